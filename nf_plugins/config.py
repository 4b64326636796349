"""Read a config, and build the network that it describes."""

from __future__ import annotations

import os.path as osp
from importlib import import_module

import torch
from mmengine.config import Config
from mmengine.registry import (
    MODELS,
    init_default_scope,
)
from torch import nn

from nf_plugins.config_names import config_path
from nf_plugins.errors import DISTRIBUTIONS, UsageError, as_usage_error
from nf_plugins.utils.checks import check_integer, check_type


def find_config(path: str) -> str:
    """Return the path of a config: a file, or one of our configs by its name.

    ``.py`` can be left out.
    """
    for file in (path, f'{path}.py'):
        if osp.isfile(file):
            return file
    try:
        return config_path(path)
    except FileNotFoundError as error:
        raise UsageError(f'no config at {path}, and {error}') from error


SECTIONS = dict.fromkeys(
    (
        'model',
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'optim_wrapper',
        'default_hooks',
        'auto_scale_lr',
    ),
    dict,
) | dict.fromkeys(('work_dir', 'load_from'), str)
"""Setting -> the type that it must have; our code reads these before mmengine checks them."""


def check_bases(path: str, above: tuple[str, ...] = ()) -> None:
    """Raise a ValueError if a config is among its own bases: mmengine would not stop reading."""
    path = osp.realpath(path)
    if path in above:
        circle = ' -> '.join(map(osp.basename, [*above[above.index(path) :], path]))
        raise ValueError(f'its _base_ files go in a circle: {circle}')
    for base in Config._get_base_files(path):
        check_bases(Config._get_cfg_path(base, path)[0], (*above, path))


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config file; a :class:`UsageError` says what is wrong with it."""
    path = find_config(path)
    with as_usage_error(f'cannot read the config {path}'):
        check_bases(path)
        try:
            cfg = Config.fromfile(path)
        except SystemExit as stop:
            raise ValueError('it calls sys.exit()') from stop
        if options:
            cfg.merge_from_dict(options)
        if not cfg.get('model'):
            raise UsageError(f'{path} has no model')
        for name, kind in SECTIONS.items():
            if cfg.get(name) is not None:
                check_type(name, cfg[name], kind)
        init_default_scope(check_type('default_scope', cfg.get('default_scope', 'mmengine'), str))
    return cfg


def build_backbone(cfg: Config, path: str, seed: int) -> nn.Module:
    """Build and initialise the backbone of a config. The random state stays as it was."""
    if 'backbone' not in cfg.model:
        raise UsageError(f'{path} has no backbone: a config needs model.backbone')
    with as_usage_error(f'cannot build the backbone of {path}'), torch.random.fork_rng([]):
        check_integer('seed', seed, -(2**63), 2**64 - 1)  # what torch takes
        torch.manual_seed(seed)
        backbone = MODELS.build(cfg.model.backbone)
        if hasattr(backbone, 'init_weights'):
            backbone.init_weights()
    return backbone


def build_model(cfg: Config, path: str) -> nn.Module:
    """Build the model of a config to check that it works. The random state stays as it was."""
    with as_usage_error(f'cannot build the model of {path}'), torch.random.fork_rng([]):
        if cfg.get('default_scope') in DISTRIBUTIONS:
            import_module(cfg.default_scope)  # mmengine would not complain if it is missing
        model = dict(cfg.model)
        if cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', cfg.data_preprocessor)
        return MODELS.build(model)
