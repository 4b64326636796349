"""Read a config, and build the network that it describes."""

from __future__ import annotations

import os.path as osp
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch import nn

from nf_plugins.config_names import config_path
from nf_plugins.errors import DISTRIBUTIONS, UsageError, as_usage_error
from nf_plugins.registry import class_of
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
        scope = check_type('default_scope', cfg.get('default_scope', 'mmengine'), str)
        if 'default_scope' not in cfg and (library := library_of(cfg)):
            scope = cfg.default_scope = library
        init_default_scope(scope)
    return cfg


LIBRARIES = ('mmpretrain', 'mmdet', 'mmseg')
"""Libraries in which the types of a config without a ``default_scope`` are looked up."""


def library_of(cfg: Config) -> str | None:
    """Return the installed mm library that has the types of a config, None if all are found."""
    kinds = [cfg.model.get('type')]
    kinds += [cfg.model[name]['type'] for name in PARTS if _is_part(cfg.model.get(name))]
    kinds = [kind for kind in kinds if isinstance(kind, str) and '.' not in kind]
    with DefaultScope.overwrite_default_scope('mmengine'):  # not that of a config before
        if all(map(class_of, kinds)):
            return None
    for library in filter(find_spec, LIBRARIES):
        try:
            with MODELS.switch_scope_and_registry(library) as registry:
                if registry.scope == library and all(map(registry.get, kinds)):
                    return library
        except ImportError:  # it is not installed completely
            continue
    return None


PARTS = ('backbone', 'image_encoder', 'vision_backbone', 'vision_encoder', 'visual_encoder')
"""Names of the part of a model that reads the images, in the mm libraries."""


def part_name(cfg: Config, path: str, module: str | None = None) -> str:
    """Return the path in a config's model of the part that reads images.

    Args:
        cfg: The config.
        path: Its path, for messages.
        module: The path, if the user names it.

    Raises:
        UsageError: There is no such part; the message lists the parts.
    """
    if module is not None:
        return module
    for name in PARTS:
        if cfg.model.get(name):
            return name
    parts = [k for k, section in cfg.model.items() if _is_part(section) and k != 'tokenizer']
    listed = f'measure one of its parts with --module: {", ".join(parts)}' if parts else ''
    raise UsageError(
        f'{path} has no backbone: the model has none of {", ".join(PARTS)}'
        + (f'; {listed}' if listed else f'; it has {", ".join(cfg.model)}')
    )


def _is_part(section: object) -> bool:
    return isinstance(section, dict) and 'type' in section


def build_backbone(
    cfg: Config, path: str, seed: int, module: str = 'backbone', init: bool = True
) -> nn.Module:
    """Build and initialise the backbone of a config. The random state stays as it was.

    Args:
        cfg: The config.
        path: Its path, for messages.
        seed: Seed of the weights.
        module: Path in the model of another part; '' is the whole model.
        init: Initialise the weights, and load those that the config names.

    Raises:
        UsageError: There is no such part, or it cannot be built.
    """
    about = f'cannot build {called(module)} of {path}'
    with as_usage_error(about), torch.random.fork_rng([]):
        check_integer('seed', seed, -(2**63), 2**64 - 1)  # what torch takes
        torch.manual_seed(seed)
        section = _section(cfg.model, module)
        if module in PARTS[1:] and isinstance(section, dict):
            # Multimodal models load these weights by themselves.
            section = {key: value for key, value in section.items() if key != 'pretrained'}
        # A part that has no config of its own is cut out of the model.
        built = MODELS.build(cfg.model if section is None else section)
        if init and hasattr(built, 'init_weights'):
            built.init_weights()
        if section is None:
            modules = dict(built.named_modules())
            if module not in modules:
                names = [name for name, _ in built.named_children()]
                raise UsageError(f'{about}: there is none; its parts are {", ".join(names)}')
            built = modules[module]
    return built


def called(module: str) -> str:
    """Return what messages call a part of a model."""
    return {'': 'the model', 'backbone': 'the backbone'}.get(module, module)


def _section(section: Any, module: str) -> Any:
    """Return the config of a part of a model; None where it has none of its own."""
    for name in module.split('.') if module else ():
        section = section.get(name) if isinstance(section, dict) else None
    return section if module and isinstance(section, dict | list) else None


def build_model(cfg: Config, path: str) -> nn.Module:
    """Build the model of a config to check that it works. The random state stays as it was."""
    with as_usage_error(f'cannot build the model of {path}'), torch.random.fork_rng([]):
        if cfg.get('default_scope') in DISTRIBUTIONS:
            import_module(cfg.default_scope)  # mmengine would not complain if it is missing
        model = dict(cfg.model)
        if cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', cfg.data_preprocessor)
        return MODELS.build(model)
