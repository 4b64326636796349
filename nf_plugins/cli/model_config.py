"""Configs that contain a model only, and work alone or as ``_base_`` with any data set."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from nf_plugins.registry import MODELS

DATA = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def prefixed(config: Any) -> Any:
    """Copy a config and add the prefix ``nf_plugins.`` to the types of this package.

    Example:
        >>> prefixed(dict(type='NFResNet', act_cfg=dict(type='ReLU')))
        {'type': 'nf_plugins.NFResNet', 'act_cfg': {'type': 'ReLU'}}
    """
    if isinstance(config, Mapping):
        result = {key: prefixed(value) for key, value in config.items()}
        if isinstance(result.get('type'), str) and result['type'] in MODELS.module_dict:
            result['type'] = f'nf_plugins.{result["type"]}'
        return result
    if isinstance(config, (list, tuple)):
        return type(config)(map(prefixed, config))
    return copy.deepcopy(config)


def model_config(cfg: Config) -> Config:
    """Extract the model of a config, including the preprocessing of images.

    The result has one key, ``model``. So it can be in ``_base_`` together with any data set,
    schedule and runtime. It needs neither ``custom_imports`` nor a ``default_scope``.
    """
    model = prefixed(cfg.model)
    preprocessor = cfg.get('data_preprocessor')
    if preprocessor is not None:
        model.setdefault('data_preprocessor', prefixed(preprocessor))
    if cfg.get('default_scope') not in (None, 'mmengine'):
        model.setdefault('_scope_', cfg.default_scope)
    return Config(dict(model=model))


def importing_config(cfg: Config) -> Config:
    """Copy a whole config and add what it needs to find the types of this package."""
    cfg = copy.deepcopy(cfg)
    cfg.model = prefixed(cfg.model)
    imports = cfg.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'nf_plugins' not in names:
        cfg.custom_imports = {**imports, 'imports': [*names, 'nf_plugins']}
    return cfg


def has_data(cfg: Config) -> bool:
    """Return whether a config has data to train or to test with."""
    return any(cfg.get(name) is not None for name in DATA)
