"""Conversion of the weight names of other implementations into the names of this package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from nf_plugins.checkpoint import foreign
from nf_plugins.checkpoint.convert import Rename

from .backbones.nf_backbone import NFBackbone


def _nf_backbone(model: nn.Module) -> NFBackbone:
    backbone = getattr(model, 'backbone', model)
    if not isinstance(backbone, NFBackbone):
        raise ValueError(
            'the config needs a normalizer-free backbone (NFResNet, NFRegNet, NFNet), '
            f'got {type(backbone).__name__}'
        )
    return backbone


def _block_names(backbone: NFBackbone) -> list[str]:
    """Return the module path of each block, in order."""
    return [
        f'backbone.layer{stage}.{index}'
        for stage, depth in enumerate(backbone.arch.depths, start=1)
        for index in range(depth)
    ]


def _lookup(patterns: Iterable[tuple[str, str]], name: str) -> str | None:
    for pattern, replacement in patterns:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return None


_HAIKU_BLOCK = [
    (r'conv0', 'conv1'),
    (r'conv1', 'conv2'),
    (r'conv1b', 'conv2b'),
    (r'conv2', 'conv3'),
    (r'conv_shortcut', 'downsample.conv'),
    (r'squeeze_excite\.linear', 'attention.fc0'),
    (r'squeeze_excite\.linear_1', 'attention.fc1'),
]


def haiku_rename(model: nn.Module) -> Rename:
    """Return the renaming of DeepMind's haiku networks (``NF_ResNet``, ``NF_RegNet``, ``NFNet``).

    It also changes the order of axes: from HWIO to OIHW for convolutions, from IO to OI for
    linear layers.
    """
    blocks = _block_names(_nf_backbone(model))

    def module_name(parts: list[str]) -> str | None:
        name = '.'.join(parts)
        if name == 'initial_conv':
            return 'backbone.stem.conv1'
        if re.fullmatch(r'stem_conv\d', name):
            return f'backbone.stem.conv{int(name[-1]) + 1}'
        if name == 'final_conv':
            return 'backbone.final_conv'
        if name == 'linear':
            return 'head.fc'
        block = re.fullmatch(r'nf_(?:res_)?block(?:_(\d+))?', parts[0]) if parts else None
        if not block or int(block[1] or 0) >= len(blocks):
            return None
        inner = _lookup(_HAIKU_BLOCK, '.'.join(parts[1:])) if parts[1:] else ''
        return None if inner is None else f'{blocks[int(block[1] or 0)]}.{inner}'.rstrip('.')

    def rename(name: str, value: Tensor) -> tuple[str, Tensor] | None:
        *parts, leaf = name.split('.')
        module = module_name(parts[1:])
        ours = {'w': 'weight', 'b': 'bias', 'bias': 'bias', 'gain': 'gain'}
        if module is None:
            return None
        if leaf == 'skip_gain':
            return f'{module}.skip_gain', value.reshape(())
        if leaf not in ours:
            return None
        if leaf == 'w':
            value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value.T
        return f'{module}.{ours[leaf]}', value

    return rename


_TIMM = [
    (r'stem\.conv\.(\w+)', r'backbone.stem.conv1.\1'),
    (r'stem\.(conv\d\.\w+)', r'backbone.stem.\1'),
    (r'final_conv\.(\w+)', r'backbone.final_conv.\1'),
    (r'head\.fc\.(\w+)', r'head.fc.\1'),
    (r'BLOCK\.(conv1|conv2|conv2b|conv3|downsample\.conv)\.(\w+)', r'BLOCK.\1.\2'),
    (r'BLOCK\.attn(?:_last)?\.fc1\.(\w+)', r'BLOCK.attention.fc0.\1'),
    (r'BLOCK\.attn(?:_last)?\.fc2\.(\w+)', r'BLOCK.attention.fc1.\1'),
    (r'BLOCK\.attn(?:_last)?\.conv\.weight', r'BLOCK.attention.conv.weight'),
    (r'BLOCK\.skipinit_gain', r'BLOCK.skip_gain'),
]


def timm_rename(model: nn.Module) -> Rename:
    """Return the renaming of timm's ``NormFreeNet``.

    It also changes shapes: gains from (C, 1, 1, 1) to (C,), and the 1x1 convolutions of
    squeeze-excite to linear layers.
    """
    _nf_backbone(model)

    def rename(name: str, value: Tensor) -> tuple[str, Tensor] | None:
        block = re.match(r'stages\.(\d+)\.(\d+)\.', name)
        if block:
            name = 'BLOCK.' + name[block.end() :]
        ours = _lookup(_TIMM, name)
        if ours is None:
            return None
        if block:
            place = f'backbone.layer{int(block[1]) + 1}.{block[2]}'
            ours = ours.replace('BLOCK', place)
        if name.endswith('.gain'):
            value = value.flatten()
        elif '.attention.fc' in ours and value.dim() == 4:
            value = value.flatten(1)
        return ours, value

    return rename


def pwsconv_rename(model: nn.Module) -> Rename:
    """Return the renaming of the PWSConv repository, which removes the prefix ``module.``."""

    def rename(name: str, value: Tensor) -> tuple[str, Tensor] | None:
        return name.removeprefix('module.'), value

    return rename


_TIMM_FILE = re.compile(r'(?:^|\.)stages\.0\.0\.conv1\.weight$')
_HAIKU_FILE = re.compile(r'^\w+\.(?:stem_conv0|initial_conv)\.w$')


def foreign_rename(module: nn.Module, state: Mapping[str, Any]) -> Rename | None:
    """The renaming for a network here, if a state dict is one of timm's or of DeepMind's."""
    if not isinstance(getattr(module, 'backbone', module), NFBackbone):
        return None
    for pattern, make in ((_TIMM_FILE, timm_rename), (_HAIKU_FILE, haiku_rename)):
        if any(pattern.search(key) for key in state if isinstance(key, str)):
            return make(module)
    return None


foreign.RENAMES[:] = [foreign_rename]
