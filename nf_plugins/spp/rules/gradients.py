"""The gradient that flows back."""

from __future__ import annotations

import math

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile
from .base import Finding, Findings, called, is_trained, says


@RULES.register_module()
@says('error', 'info')
def gradient_explosion(
    profile: SignalProfile, blocks: list[BlockSignal], *, growth: float = 1000.0
) -> Findings:
    """The gradient grows exponentially towards the input."""
    known, ratio = _gradient_ratio(blocks)
    if not ratio > growth:
        return
    cause = f'the gradient grows towards the input, {_gradient_ends(known)}'
    if any(b.norms or b.normalized for b in blocks):
        yield Finding(
            'info',
            known[0].index,
            f'{cause}; the blocks have norms, after which the scale of the weights has no effect, '
            'so that this does little harm at initialisation',
            'Warm the learning rate up',
        )
    else:
        remedy = 'The branches scale it as they scale the signal: see the verdicts on the variance'
        yield Finding('error', known[0].index, cause, f'{remedy}; clip gradients while training')


@RULES.register_module()
@says('warning')
def gradient_attenuation(
    profile: SignalProfile, blocks: list[BlockSignal], *, share: float = 1e-3
) -> Findings:
    """The gradient vanishes towards the input."""
    known, ratio = _gradient_ratio(blocks)
    if ratio < share:
        yield Finding(
            'warning',
            known[0].index,
            f'the gradient dies away towards the input, {_gradient_ends(known)}: the first blocks '
            'hardly train',
            'Look for weights that are too small and for activations that saturate; shortcuts '
            'without weights keep it',
        )


def _gradient_ratio(blocks: list[BlockSignal]) -> tuple[list[BlockSignal], float]:
    known = [b for b in blocks if b.grad_avg_var and math.isfinite(b.grad_avg_var)]
    if len(known) < 2:
        return known, 1.0
    # Of the totals: a stage with fewer positions has larger values for the same loss.
    totals = [(b.grad_avg_var or 0.0) * math.prod(b.shape) for b in known]
    return known, totals[0] / totals[-1]


def _gradient_ends(known: list[BlockSignal]) -> str:
    first, last = known[0], known[-1]
    return (
        f'from a variance of {last.grad_avg_var:.3g} at block {last.index} to '
        f'{first.grad_avg_var:.3g} at {called(first)}'
    )


@RULES.register_module()
@says('warning', 'info')
def gradient_mean_shift(
    profile: SignalProfile, blocks: list[BlockSignal], *, ratio: float = 1.0
) -> Findings:
    """Channels whose gradient has a mean larger than its deviation."""
    shifted = [
        (b, b.grad_avg_sq_mean / b.grad_avg_var)
        for b in blocks
        if b.grad_avg_var
        and b.positions != 1
        and b.grad_avg_sq_mean is not None
        and b.grad_avg_sq_mean > ratio * b.grad_avg_var
    ]
    if shifted:
        first, worst = shifted[-1]  # the one nearest to the loss
        yield Finding(
            'info' if is_trained(profile) else 'warning',
            first.index,
            f'the mean of the gradient shifts: at {called(first)} its square is {worst:.3g} times '
            'the variance, so that all positions push a channel the same way',
            'Standardized weights (PWS, section 3 of its paper) or a norm take the mean away',
        )
