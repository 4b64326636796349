"""Values that are not finite."""

from __future__ import annotations

import math

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile
from .base import Finding, Findings, called, evidence_of, says, some


def is_signal_finite(block: BlockSignal) -> bool:
    """Whether the signal of a block is finite; its gradient may not be."""
    return all(map(math.isfinite, (block.avg_sq_mean, block.avg_var, block.res_avg_var or 0.0)))


@RULES.register_module()
@says('error')
def non_finite(profile: SignalProfile, blocks: list[BlockSignal]) -> Findings:
    """A value is not finite: which module made it first, and which parameters are so."""
    signal = [b for b in profile.blocks if not is_signal_finite(b)]
    gradient = [
        b
        for b in profile.blocks
        if not all(map(math.isfinite, (b.grad_avg_var or 0.0, b.grad_avg_sq_mean or 0.0)))
    ]
    if not signal and not gradient:
        return
    # The gradient flows back, so that the last block has it first.
    block, what = (signal[0], 'signal') if signal else (gradient[-1], 'gradient')
    cause = f'the {what} is not finite at {called(block)}'
    broken = [fact for fact in evidence_of(profile).parameters if fact.kind == 'non_finite']
    if profile.non_finite_module and signal:
        cause += f'; the first to make such a value is {profile.non_finite_module}'
    remedy = (
        'Look for a division by zero or an overflow in half precision; a smaller initial scale '
        'or learning rate, or float32, keeps values in range'
    )
    if broken:
        fact = broken[0]
        cause += f'; {fact.count} of {fact.total} parameters and buffers are not finite '
        cause += f'themselves: {some(fact.names)}'
        remedy = 'Load an earlier checkpoint: the update before made them so'
        if profile.state != 'trained':
            remedy = 'Look at how these parameters are initialised'
    elif profile.non_finite_module == 'the input':
        remedy = 'Look at how the batch is made'
    yield Finding('error', block.index, cause, remedy)
