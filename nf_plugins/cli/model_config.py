"""Configs of a model alone, which work by themselves and below any dataset and schedule."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from nf_plugins.registry import MODELS

DATA = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def prefixed(config: Any) -> Any:
    """A copy of a config in which the types of this package have their prefix.

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
    """The part of a config that makes its model, the preprocessing of images included.

    It has one key, ``model``, so it can stand beside any dataset, schedule and runtime in
    ``_base_``. It needs neither ``custom_imports`` nor a ``default_scope``.
    """
    model = prefixed(cfg.model)
    preprocessor = cfg.get('data_preprocessor')
    if preprocessor is not None:
        model.setdefault('data_preprocessor', prefixed(preprocessor))
    if cfg.get('default_scope') not in (None, 'mmengine'):
        model.setdefault('_scope_', cfg.default_scope)
    return Config(dict(model=model))


def importing_config(cfg: Config) -> Config:
    """A whole config that finds this package's types by itself."""
    cfg = copy.deepcopy(cfg)
    cfg.model = prefixed(cfg.model)
    imports = cfg.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'nf_plugins' not in names:
        cfg.custom_imports = {**imports, 'imports': [*names, 'nf_plugins']}
    return cfg


def has_data(cfg: Config) -> bool:
    """Whether a config says what to train or to test with."""
    return any(cfg.get(name) is not None for name in DATA)
