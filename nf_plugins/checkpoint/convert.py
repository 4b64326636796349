"""Other people's weights, renamed and reshaped for the networks here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from nf_plugins.models.backbones.nf_backbone import NFBackbone
from nf_plugins.version import __version__

from .exact import cast_exactly, check_numbers
from .state_dict import keys_set_by_layers, unwrap_for
from .tensors import encode_weights

Rename = Callable[[str, Tensor], 'tuple[str, Tensor] | None']
"""Source name and value -> model name and value, or None for an unknown name."""


def convert(source: Mapping[str, Tensor], model: nn.Module, rename: Rename) -> dict[str, Tensor]:
    """Make a state dict for a model from foreign weights.

    Values keep their numbers, as :func:`~nf_plugins.checkpoint.exact.cast_exactly` says.

    Args:
        source: Foreign name -> value.
        model: The model to fill.
        rename: What becomes of each value.

    Returns:
        A complete state dict.

    Raises:
        ValueError: A source key is unknown or has another shape than the model wants,
            two of them want the same place, a model key is left, or a value cannot be kept;
            all are listed.
    """
    wanted = model.state_dict()
    state: dict[str, Tensor] = {}
    unused, mismatched, changed = [], [], []
    _check_all_numbers(source)

    def fits(name: str, value: Tensor) -> bool:
        renamed = rename(name, value)
        return renamed is not None and renamed[0] in wanted

    for name, value in unwrap_for(source, fits).items():
        renamed = rename(name, value)
        if renamed is None or renamed[0] not in wanted or renamed[0] in state:
            unused.append(name)
            continue
        key, value = renamed
        if value.shape != wanted[key].shape:
            shapes = f'{tuple(value.shape)} instead of {tuple(wanted[key].shape)}'
            mismatched.append(f'{name} -> {key}: {shapes}')
            state[key] = wanted[key]
            continue
        try:
            state[key] = cast_exactly(value, wanted[key].dtype).contiguous().clone()
        except ValueError as error:
            changed.append(f'{name} -> {key}: {error}')
            state[key] = wanted[key]
    for key in keys_set_by_layers(model) & wanted.keys():  # foreign weights are initialised
        state.setdefault(key, torch.ones_like(wanted[key]))
    # What the mean of the images is, is the config's business and in no weight file.
    empty = [key for key in wanted if key not in state and not key.startswith('data_preprocessor')]
    problems = [
        _listed(names, what)
        for what, names in (
            ('source keys have no place in the model', unused),
            ('shapes differ', mismatched),
            ('arrays would change', changed),
            ('model keys are left empty', empty),
        )
        if names
    ]
    if problems:
        raise ValueError('; '.join(problems))
    return state


def _check_all_numbers(source: Mapping[str, Tensor]) -> None:
    bad = []
    for name, value in source.items():
        try:
            check_numbers(value)
        except ValueError as error:
            bad.append(f'{name} is {error}')
    if bad:
        raise ValueError(_listed(bad, 'values cannot be used'))


def _listed(names: list[str], what: str) -> str:
    return f'{len(names)} {what}: {", ".join(names[:5])}{" ..." if len(names) > 5 else ""}'


def encode_converted(state: Mapping[str, Tensor], path: str | os.PathLike, source: str) -> bytes:
    """The content of ``path`` with converted weights, and where they come from."""
    meta = dict(source=os.path.basename(source), converter=f'nf_plugins {__version__}')
    return encode_weights(state, path, meta)


def _nf_backbone(model: nn.Module) -> NFBackbone:
    backbone = getattr(model, 'backbone', model)
    if not isinstance(backbone, NFBackbone):
        raise ValueError(
            'the config needs a normalizer-free backbone (NFResNet, NFRegNet, NFNet), '
            f'got {type(backbone).__name__}'
        )
    return backbone


def _block_names(backbone: NFBackbone) -> list[str]:
    """Module path of each block, in order."""
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
    """Names of DeepMind's haiku networks (``NF_ResNet``, ``NF_RegNet``, ``NFNet``).

    Convolutions turn from HWIO to OIHW, linear layers from IO to OI.
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
    """Names of timm's ``NormFreeNet``.

    Gains turn from (C, 1, 1, 1) to (C,), the 1x1 convolutions of squeeze-excite into
    linear layers.
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
    """Names of the PWSConv repository: they are the ones here, but for data parallel."""

    def rename(name: str, value: Tensor) -> tuple[str, Tensor] | None:
        return name.removeprefix('module.'), value

    return rename
