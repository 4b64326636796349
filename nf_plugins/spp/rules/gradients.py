"""The gradient that flows back."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile
from .variance import EXPLOSION, MEAN_SHIFT

GRADIENT_ATTENUATION = 1e-3
"""``grad_avg_var`` at the first block below this times that at the last one."""


@RULES.register_module()
def gradient_explosion(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """The gradient grows exponentially towards the input."""
    known, ratio = _gradient_ratio(blocks)
    if ratio > EXPLOSION:
        text = f'the gradient grows towards the input, {_gradient_ends(known)}. '
        if any(b.normalized for b in blocks):
            severity = 'info'
            text += (
                'The branches have norms: after one the scale of the weights has no effect, so '
                'that such gradients at initialisation do little harm; warm the learning rate up'
            )
        else:
            severity = 'error'
            text += (
                'The branches scale it as they scale the signal: see the verdicts on the '
                'variance first; clip gradients (AGC) while training'
            )
        yield (severity, known[0].index, text)


@RULES.register_module()
def gradient_attenuation(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """The gradient vanishes towards the input."""
    known, ratio = _gradient_ratio(blocks)
    if ratio < GRADIENT_ATTENUATION:
        yield (
            'warning',
            known[0].index,
            f'the gradient dies away towards the input, {_gradient_ends(known)}: the first blocks '
            'hardly train. Weights that are too small, or activations that saturate, take it; '
            'shortcuts without weights keep it',
        )


def _gradient_ratio(blocks: list[BlockSignal]) -> tuple[list[BlockSignal], float]:
    known = [b for b in blocks if b.grad_avg_var]
    if len(known) < 2:
        return known, 1.0
    # Of the totals: a stage with fewer positions has larger values for the same loss.
    totals = [b.grad_avg_var * math.prod(b.shape) for b in blocks if b.grad_avg_var]
    return known, totals[0] / totals[-1]


def _gradient_ends(known: list[BlockSignal]) -> str:
    first, last = known[0], known[-1]
    return (
        f'from a variance of {last.grad_avg_var:.3g} at block {last.index} to '
        f'{first.grad_avg_var:.3g} at block {first.index} ({first.name})'
    )


@RULES.register_module()
def gradient_mean_shift(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Channels whose gradient has a mean larger than its deviation."""
    shifted = [
        (b, b.grad_avg_sq_mean / b.grad_avg_var)
        for b in blocks
        if b.grad_avg_var
        and b.grad_avg_sq_mean is not None
        and b.grad_avg_sq_mean > MEAN_SHIFT * b.grad_avg_var
    ]
    if shifted:
        first, ratio = shifted[-1]  # the one nearest to the loss
        yield (
            'warning',
            first.index,
            f'the mean of the gradient shifts: at block {first.index} ({first.name}) its square '
            f'is {ratio:.3g} times the variance. All '
            'positions then push a channel the same way, which the PWS paper (section 3) holds '
            "responsible for collapses; standardize the weights (conv_cfg=dict(type='PWS'))",
        )
