"""Architecture of a normalizer-free network, as one frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nf_plugins.utils.checks import (
    LARGEST,
    check_choice,
    check_integer,
    check_integers,
    check_number,
)

from .nf_stem import STEMS

MOST_BLOCKS = 10_000
"""Largest number of blocks of a stage. A larger number is a mistake, and building takes hours."""


@dataclass(frozen=True)
class NFArch:
    """Architecture of a normalizer-free network.

    Args:
        depths: Blocks of each stage.
        widths: Output channels of each stage, before ``width_mult``.
        stem: A key of :data:`STEMS`.
        stem_channels: Output channels of the stem, before ``width_mult``; None: equal to the
            first stage.
        strides: Stride of each stage.
        width_mult: Factor of all widths.
        bottleneck_ratio: Channels of the 3x3 convolutions, as a ratio to the output channels of
            the block. With ``regnet``, to its input channels.
        group_width: Channels per group of the 3x3 convolutions; None: one group.
        whole_groups: Round the bottleneck down to whole groups of ``group_width``, as the
            official code does; else keep its channels, in as many groups, which are wider.
        num_3x3: Number of 3x3 convolutions per block, 1 or 2.
        regnet: Use EfficientNet-like blocks: the bottleneck expands the input, the first
            block does not expand, and the attention is inside the bottleneck.
        attention: 'se', 'eca' or None.
        se_ratio: Hidden channels of squeeze-excite, as a ratio to its channels.
        downsample: 'avg': average pooling, then a shortcut convolution without stride.
            'conv': a strided shortcut convolution.
        final_ratio: Channels of the final 1x1 convolution, as a fraction
            ``(numerator, denominator)`` of the last width. None: there is no such convolution.
        channel_divisor: Channels are rounded to multiples of it (timm: 8).
        gamma_at: 'act' (official): the gain belongs to the activations, and the convolution
            after an activation contains it. 'conv' (timm): all convolutions contain it, even if
            there is no activation before them.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: str = 'imagenet'
    stem_channels: int | None = None
    strides: tuple[int, ...] = (1, 2, 2, 2)
    width_mult: float = 1.0
    bottleneck_ratio: float = 0.25
    group_width: int | None = None
    whole_groups: bool = True
    num_3x3: int = 1
    regnet: bool = False
    attention: str | None = None
    se_ratio: float = 0.5
    downsample: str = 'conv'
    final_ratio: tuple[int, int] | None = None
    channel_divisor: int = 1
    gamma_at: str = 'act'

    def __post_init__(self) -> None:
        for name, most in dict(depths=MOST_BLOCKS, widths=LARGEST, strides=LARGEST).items():
            values = check_integers(name, getattr(self, name), 4, maximum=most)
            object.__setattr__(self, name, values)
        check_choice('stem', self.stem, STEMS)
        check_choice('num_3x3', self.num_3x3, (1, 2))
        check_choice('attention', self.attention, (None, 'se', 'eca'))
        check_choice('downsample', self.downsample, ('conv', 'avg'))
        check_choice('gamma_at', self.gamma_at, ('act', 'conv'))
        check_integer('channel_divisor', self.channel_divisor)
        for name in ('stem_channels', 'group_width'):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))
        if self.final_ratio is not None:
            check_integers('final_ratio', self.final_ratio, 2)
        for name in ('width_mult', 'bottleneck_ratio', 'se_ratio'):
            check_number(name, getattr(self, name), 'a positive number')

    def round(self, channels: float) -> int:
        """Round channels to a multiple of ``channel_divisor``, to at least 0.9 of ``channels``."""
        divisor = self.channel_divisor
        if divisor == 1:
            return int(channels)
        rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
        return rounded if rounded >= 0.9 * channels else rounded + divisor

    @property
    def stage_channels(self) -> list[int]:
        return [self.round(width * self.width_mult) for width in self.widths]

    @property
    def first_channels(self) -> int:
        """Channels of the stem."""
        return self.round((self.stem_channels or self.widths[0]) * self.width_mult)

    @property
    def final_channels(self) -> int:
        """Channels of the final convolution; 0 if there is none."""
        if self.final_ratio is None:
            return 0
        numerator, denominator = self.final_ratio
        if self.channel_divisor == 1:
            return int(numerator * self.stage_channels[-1] // denominator)
        return self.round(self.width_mult * (numerator * self.widths[-1] // denominator))

    def bottleneck(self, in_channels: int, out_channels: int, first: bool) -> tuple[int, int]:
        """Compute the channels and the groups of the 3x3 convolutions of a block."""
        ratio = 1.0 if self.regnet and first else self.bottleneck_ratio
        mid = self.round((in_channels if self.regnet else out_channels) * ratio)
        if self.group_width is None:
            return mid, 1
        groups = mid // self.group_width
        return groups * self.group_width if self.whole_groups else mid, groups

    def hidden_channels(self, channels: int) -> int:
        """Compute the hidden channels of squeeze-excite."""
        divisor, hidden = self.channel_divisor, channels * self.se_ratio
        if divisor == 1:
            return max(1, int(hidden))
        return max(divisor, int(hidden + divisor / 2) // divisor * divisor)


def resolve_arch(archs: Mapping[str, NFArch], arch: str | Mapping) -> NFArch:
    """Find an architecture by its name, or by a dict that overrides fields of a named one.

    Args:
        archs: Table of architectures.
        arch: A key in upper or lower case, or ``dict(base=KEY, field=value, ...)``.

    Raises:
        ValueError: The name or a field is unknown.
    """
    overrides = {}
    if isinstance(arch, Mapping):
        overrides = dict(arch)
        arch = overrides.pop('base', None)
        if not isinstance(arch, str):
            raise ValueError(f'an arch dict needs base, one of {", ".join(archs)}, got {arch!r}')
    if not isinstance(arch, str):
        raise TypeError(f'arch must be a name or a dict, got {arch!r}')
    named = archs[check_choice('arch', arch.lower(), archs)]
    return override_arch(named, **overrides)


def override_arch(arch: NFArch, **overrides: Any) -> NFArch:
    """Replace fields of an architecture; raise a ValueError for an unknown field."""
    known = [field.name for field in fields(NFArch)]
    for name in overrides:
        check_choice('a field of arch', name, known)
    return replace(arch, **overrides)
