"""Inputs that no network can learn from."""

from __future__ import annotations

from nf_plugins.registry import RULES

from ..evidence import InputFact
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
    start = profile.blocks[0].index
    inputs = evidence_of(profile).inputs
    if inputs and all(x.tokens for x in inputs):
        yield from _tokens(inputs, start)
        return
    for x in inputs:
        if found := _images(x, std, smallest, mean):
            severity, cause, remedy = found
            yield Finding(severity, start, cause, remedy)
            return


NORMALIZE = 'Normalize the input to mean 0 and standard deviation 1'
BATCH = 'look at how the batch is made'


def _tokens(inputs: list[InputFact], start: int) -> Findings:
    """Tokens have no scale; a mask beside them may be constant."""
    if all(x.std == 0 for x in inputs):
        value = f'the input is constant, {inputs[0].mean:.3g} everywhere'
        yield Finding('error', start, value, f'Measure with text; {BATCH}')
    elif all(x.equal_images for x in inputs):
        samples = f'all {inputs[0].shape[0]} samples of the input are the same'
        yield Finding('error', start, samples, f'Measure with different samples; {BATCH}')


def _images(x: InputFact, std: float, smallest: float, mean: float) -> tuple[str, str, str] | None:
    """Return severity, cause and remedy for a tensor of numbers, None where it is right."""
    numbers = f'mean {x.mean:.3g}, standard deviation {x.std:.3g}'
    if x.std == 0:
        value = 'all zero' if x.mean == 0 else f'constant, {x.mean:.3g} everywhere'
        return 'error', f'the input is {value}', f'Measure with images or noise; {BATCH}'
    if x.equal_images:
        same = f'all {x.shape[0]} images of the input are the same'
        return 'error', same, f'Measure with different images; {BATCH}'
    if x.std > std:
        cause = f'the input is not normalized: {numbers}'
        return 'warning', cause, f'{NORMALIZE} (pixels of 0 to 255?)'
    if abs(x.mean) > mean * x.std:
        return 'warning', f'the input is not centred: {numbers}', NORMALIZE
    if x.std < smallest:
        cause = f'the input is very small: {numbers}'
        return 'warning', cause, f'{NORMALIZE} (divided by 255 twice?)'
    if x.constant_channels:
        cause = f'{x.constant_channels:.0%} of the channels of the input are constant'
        return 'info', cause, BATCH.capitalize()
    return None
