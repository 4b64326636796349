"""Channels that carry nothing."""

from __future__ import annotations

from collections.abc import Iterator

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile
from .signal import CONSTANT_CHANNELS


@RULES.register_module()
def constant_channels(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Channels that are the same for all images and positions."""
    constant = [b for b in blocks if CONSTANT_CHANNELS < b.constant_channels]
    if constant:
        worst = max(constant, key=lambda b: b.constant_channels)
        yield (
            'warning',
            constant[0].index,
            f'{worst.constant_channels:.0%} of the channels of block {worst.index} '
            f'({worst.name}) do not vary, over all images and positions; the same is so in '
            f'{len(constant)} of {len(blocks)} blocks beyond {CONSTANT_CHANNELS:.0%}. They are '
            'dead (ReLU after a negative mean) or cut off by a zero gain: a larger batch tells '
            'whether they ever fire; a lower learning rate or a leaky activation keeps them alive',
        )
