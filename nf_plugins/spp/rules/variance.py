"""How the variance and the mean of the signal change with depth."""

from __future__ import annotations

from collections.abc import Iterator

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile
from .signal import is_silent

EXPLOSION = 1e3
"""``avg_var`` beyond this times that of the first block, or gradients towards the input."""
ATTENUATION = 1 / 20
"""``avg_var`` below this times the larger one of stem and first block."""
MEAN_SHIFT = 1.0
"""``avg_sq_mean`` beyond this times ``avg_var``; batch norm and ReLU have 0.47."""


@RULES.register_module()
def explosion(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """The variance grows exponentially with depth."""
    first = blocks[0].avg_var
    last = max(blocks, key=lambda b: b.avg_var)
    if first > 0 and last.avg_var > EXPLOSION * first:
        depth = max(1, last.index - blocks[0].index)
        rate = (last.avg_var / first) ** (1 / depth)
        beyond = next(b for b in blocks if b.avg_var > EXPLOSION * first)
        yield (
            'error',
            beyond.index,
            f'the variance explodes: {first:.3g} at block {blocks[0].index}, '
            f'{last.avg_var:.3g} at block {last.index} ({last.name}), {rate:.3g} times per block. '
            'Every block adds a branch as large as its input; divide the input of the branch by '
            'its expected standard deviation and scale the branch (NFResNet: alpha, beta), '
            'normalize it, or start the branch at zero (SkipInit)',
        )


@RULES.register_module()
def attenuation(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """The variance dies away."""
    stem = [b.avg_var for b in profile.blocks if b.kind == 'stem']
    start = max([blocks[0].avg_var, *stem])
    low = min(blocks, key=lambda b: b.avg_var)
    if low.avg_var < ATTENUATION * start:
        pooled = [b for b in blocks if b.pooled]
        text = (
            f'the variance dies away: from {start:.3g} to {low.avg_var:.3g} at block '
            f'{low.index} ({low.name}). '
        )
        silent = any(is_silent(b) for b in blocks)
        if pooled and silent:
            text += (
                'With silent branches only the shortcuts are left, and their average pooling '
                'shrinks it (pooled_shortcut): training opens the branches, --unit-gain shows '
                'the plot with them'
            )
        elif pooled:
            text += (
                'The average pooling of the shortcuts shrinks it (pooled_shortcut); '
                'branches can make up for it only in part'
            )
        elif silent:
            text += (
                'With silent branches (zero_branch) only the shortcuts and the layers between the '
                'stages are left: training opens the branches'
            )
        else:
            text += (
                'The weights are too small for the activation: use an initialisation that keeps '
                "the variance (He's for ReLU), ScaledWS with the activation's gamma, or a norm"
            )
        yield ('warning', low.index, text)


@RULES.register_module()
def mean_shift(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Channels have means larger than their deviations."""
    # Up to the first transition a large mean may be the stem's (its pooling, its ReLU).
    start = max([b.avg_sq_mean for b in profile.blocks if b.kind == 'stem'], default=0.0)
    inherited, shifted = True, []
    for b in blocks:
        inherited &= b.kind != 'transition' and b.avg_sq_mean <= 1.1 * start
        followed = b.kind == 'plain' and b.normalized  # a norm takes the mean away
        if (
            not (b.activated or inherited or followed)
            and b.avg_sq_mean > MEAN_SHIFT * b.avg_var > 0
        ):
            shifted.append(b)
    if shifted:
        worst = max(shifted, key=lambda b: b.avg_sq_mean / b.avg_var)
        yield (
            'warning',
            shifted[0].index,
            f'the channel means shift: at block {worst.index} ({worst.name}) the squared mean is '
            f'{worst.avg_sq_mean / worst.avg_var:.3g} times the variance ({len(shifted)} of '
            f'{len(blocks)} blocks are beyond {MEAN_SHIFT:g}). Activations such as ReLU have a '
            'positive mean, which weights of non-zero mean pass on; standardize the weights '
            "(conv_cfg=dict(type='ScaledWS') or 'PWS'), or normalize the activations",
        )
