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
    broken = [fact for fact in evidence_of(profile).parameters if fact.kind == 'non_finite']
    module = profile.non_finite_module
    if not (signal or gradient or broken or module):
        return
    # The gradient flows back, so that the last block has it first.
    block, what = profile.blocks[-1], ''
    if signal or gradient:
        block, what = (signal[0], 'signal') if signal else (gradient[-1], 'gradient')
        what = f'the {what} is not finite at {called(block)}'
    elif module:
        what = 'the output is not finite, although the signal of all blocks is'
    texts = [what] if what else []
    if module and not (gradient and not signal):
        texts.append(f'the first to make such a value is {module}')
    remedy = (
        'Look for a division by zero or an overflow in half precision; a smaller initial scale '
        'or learning rate, or float32, keeps values in range'
    )
    if broken:
        fact = broken[0]
        of = f'{fact.count} of {fact.total} parameters and buffers are not finite'
        texts.append(f'{of}{" themselves" if texts else ""}: {some(fact.names)}')
        remedy = 'Load an earlier checkpoint: the update before made them so'
        if profile.state != 'trained':
            remedy = 'Look at how these parameters are initialised'
    elif module == 'the input':
        remedy = 'Look at how the batch is made'
    yield Finding('error', block.index, '; '.join(texts), remedy)
