"""Configs of timm's normalizer-free models with the backbones of this package."""

from __future__ import annotations

import copy
from typing import Any

import torch

from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import check_choice, check_integer

# Differences between all of timm's models and the official ones.
_ARCH = dict(channel_divisor=8, gamma_at='conv', downsample='avg')
_NET = dict(
    eps_mode='add',
    padding='symmetric',
    skipinit=False,
    zero_init_residual=True,
    scale_by_keep=True,
)
_LIGHT = dict(group_width=64, bottleneck_ratio=0.25, **_ARCH)
_SILU, _GELU, _RELU = (dict(type=name) for name in ('SiLU', 'GELU', 'ReLU'))


def _resnet(depth: int, **kwargs: Any) -> dict:
    return dict(type='nf_plugins.NFResNet', depth=depth, act_cfg=_RELU, **kwargs, **_ARCH, **_NET)


def _nfnet(base: str, act_cfg: dict, **fields: Any) -> dict:
    return dict(type='nf_plugins.NFNet', arch=dict(base=base, **fields), act_cfg=act_cfg, **_NET)


TIMM_BACKBONES: dict[str, dict] = {}
"""Name of a timm model -> config of its backbone."""

for _depth in (26, 50, 101):
    TIMM_BACKBONES[f'nf_resnet{_depth}'] = _resnet(_depth)
    TIMM_BACKBONES[f'nf_seresnet{_depth}'] = _resnet(_depth, attention='se', se_ratio=1 / 16)
    TIMM_BACKBONES[f'nf_ecaresnet{_depth}'] = _resnet(_depth, attention='eca')
for _level in range(6):
    TIMM_BACKBONES[f'nf_regnet_b{_level}'] = dict(
        type='nf_plugins.NFRegNet', arch=dict(base=f'b{_level}', **_ARCH), act_cfg=_SILU, **_NET
    )
for _level in range(8):
    TIMM_BACKBONES[f'nfnet_f{_level}'] = _nfnet(f'f{_level}', _GELU, **_ARCH)
for _level in range(7):  # DeepMind's weights: gain at the activations, SkipInit, SAME padding
    TIMM_BACKBONES[f'dm_nfnet_f{_level}'] = dict(
        type='nf_plugins.NFNet',
        arch=dict(base=f'f{_level}', channel_divisor=8),
        act_cfg=_GELU,
        eps_mode='add',
        scale_by_keep=True,
    )
TIMM_BACKBONES['nfnet_l0'] = _nfnet('f0', _SILU, se_ratio=0.25, final_ratio=(3, 2), **_LIGHT)
TIMM_BACKBONES['eca_nfnet_l0'] = _nfnet('f0', _SILU, attention='eca', final_ratio=(3, 2), **_LIGHT)
for _level in (1, 2, 3):
    TIMM_BACKBONES[f'eca_nfnet_l{_level}'] = _nfnet(f'f{_level}', _SILU, attention='eca', **_LIGHT)
TIMM_BACKBONES['test_nfnet'] = _nfnet(
    'f0',
    _SILU,
    depths=(1, 1, 1, 1),
    widths=(32, 64, 96, 128),
    se_ratio=0.25,
    final_ratio=(3, 2),
    **{**_LIGHT, 'group_width': 8},
)


MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of red, green and blue, of nearly all."""
HALF = (127.5, 127.5, 127.5)
"""Both of ``test_nfnet``."""


def timm_config(name: str, num_classes: int = 1000) -> dict:
    """Return the mm config of one of timm's ``NormFreeNet`` models.

    Args:
        name: timm's name, e.g. ``'eca_nfnet_l0'``.
        num_classes: Number of classes.

    Returns:
        Config of an ``ImageClassifier``. With weights that ``timm_to_nf.py`` has converted, its
        outputs are equal to those of timm's model. It normalises images as timm does, and works
        in any default scope.

    Raises:
        ValueError: ``name`` is unknown.

    Example:
        >>> timm_config('nf_resnet50')['backbone']['eps_mode']
        'add'
    """
    backbone = TIMM_BACKBONES[check_choice('name', name, TIMM_BACKBONES)]
    check_integer('num_classes', num_classes)
    with torch.device('meta'):  # only its width is needed
        channels = MODELS.build(backbone).feat_dim
    act_cfg = backbone['act_cfg']
    if name.startswith('dm_'):
        act_cfg = dict(type='nf_plugins.GammaAct', act=act_cfg['type'])
    mean, std = (HALF, HALF) if name == 'test_nfnet' else (MEAN, STD)
    return dict(
        _scope_='mmpretrain',
        type='mmpretrain.ImageClassifier',
        data_preprocessor=dict(
            type='mmpretrain.ClsDataPreprocessor',
            num_classes=num_classes,
            mean=list(mean),
            std=list(std),
            to_rgb=True,
        ),
        backbone=copy.deepcopy(backbone),
        neck=dict(type='nf_plugins.ReLUNeck', in_channels=channels, act_cfg=dict(act_cfg)),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=num_classes, in_channels=channels),
    )


timm_model = timm_config  # its name in version 0.1.0
