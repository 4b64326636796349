"""Branches that add nothing."""

from __future__ import annotations

from collections.abc import Iterator

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile
from .signal import CONSTANT_CHANNELS, is_silent


@RULES.register_module()
def zero_branch(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Branches that a parameter at zero, or nearly zero, silences."""
    silent = [
        b for b in blocks if is_silent(b) and (b.zero_parameter or (b.branch_gain or 0) < 1e-2)
    ]
    if not silent:
        return
    first = silent[0]
    if first.zero_parameter:
        leaf = first.zero_parameter.rpartition('.')[2]
        kind = {
            'skip_gain': 'the SkipInit gain',
            'skipinit_gain': 'the SkipInit gain',
            'gain': "the gain of the branch's last convolution",
            'weight': "the weight of the branch's last layer (zero_init_residual)",
        }.get(leaf, 'a gain')
        cause = f'{kind} is initialised at zero ({first.zero_parameter})'
        remedy = (
            'This is meant: the network starts as the identity. To see what the branches do, '
            'measure with these gains at one: --unit-gain, analyze(unit_gain=True)'
        )
        if profile.unit_gain:  # not a gain, but the weights themselves (Fixup)
            remedy = 'This is meant: the network starts as the identity'
    else:
        cause = f'it is scaled by {first.branch_gain:.3g} (LayerScale or the like)'
        remedy = (
            'Such small scales grow while training: look at a checkpoint, too, or set them to 1 '
            '(layer_scale_init_value)'
        )
    yield (
        'info',
        first.index,
        f'{len(silent)} of {len(blocks)} branches add nothing, so the plot is flat between the '
        f'transitions: in block {first.index} {cause}. {remedy}',
    )


@RULES.register_module()
def dead_branch(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Branches that give nothing although nothing is zero by design."""
    dead = [
        b
        for b in blocks
        if is_silent(b)
        and b.constant_branch > 1 - CONSTANT_CHANNELS
        and not b.zero_parameter
        and (b.branch_gain or 0.0) >= 1e-2
    ]
    if dead:
        first = dead[0]
        yield (
            'warning',
            first.index,
            f'{len(dead)} of {len(blocks)} branches are dead, the first in block {first.index} '
            f'({first.name}): variance {first.res_avg_var:.3g} at the end of the branch beside '
            f'{first.avg_var:.3g} in all. Look for units that never fire (biases that are too '
            'negative, too high a learning rate) or weights that have decayed to zero',
        )
