"""Inputs that no network can learn from."""

from __future__ import annotations

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile
from .base import Finding, Findings, evidence_of, says


@RULES.register_module()
@says('error', 'warning', 'info')
def bad_input(
    profile: SignalProfile,
    blocks: list[BlockSignal],
    *,
    std: float = 10.0,
    smallest: float = 0.01,
    mean: float = 3.0,
) -> Findings:
    """The input is constant, all zero, the same in all images, or not normalized."""
    for x in evidence_of(profile).inputs:
        start = profile.blocks[0].index
        numbers = f'mean {x.mean:.3g}, standard deviation {x.std:.3g}'
        normalize = 'Normalize the input to mean 0 and standard deviation 1'
        if x.std == 0:
            value = 'all zero' if x.mean == 0 else f'constant, {x.mean:.3g} everywhere'
            remedy = 'Measure with images or noise; look at how the batch is made'
            yield Finding('error', start, f'the input is {value}', remedy)
        elif x.equal_images:
            yield Finding(
                'error',
                start,
                f'all {x.shape[0]} images of the input are the same',
                'Measure with different images; look at how the batch is made',
            )
        elif x.std > std:
            cause = f'the input is not normalized: {numbers}'
            yield Finding('warning', start, cause, f'{normalize} (pixels of 0 to 255?)')
        elif abs(x.mean) > mean * x.std:
            cause = f'the input is not centred: {numbers}'
            yield Finding('warning', start, cause, normalize)
        elif x.std < smallest:
            cause = f'the input is very small: {numbers}'
            yield Finding('warning', start, cause, f'{normalize} (divided by 255 twice?)')
        elif x.constant_channels:
            yield Finding(
                'info',
                start,
                f'{x.constant_channels:.0%} of the channels of the input are constant',
                'Look at how the batch is made',
            )
        else:
            continue
        return
