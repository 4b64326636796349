"""Where a normalizer-free network leaves what its method expects."""

from __future__ import annotations

from collections.abc import Iterator

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile

OFF_THEORY = 2.0
"""Factor between ``avg_var`` and ``expected_var`` after a transition."""
GROWTH = 2.0
"""Growth within a stage that a transition is expected to undo."""


@RULES.register_module()
def not_reset(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """A transition does not bring the variance back."""
    start = None
    for before, block in zip([None, *blocks], blocks):
        if block.kind != 'transition':
            start = block if start is None else start
            continue
        if before is None or block.activated:
            start = block
            continue
        grown = start is not None and before.avg_var > GROWTH * start.avg_var
        theory = block.expected_var
        # A factor that the blocks before have, too, is the stem's (stem_scale).
        beyond = (
            theory
            and block.avg_var > OFF_THEORY * theory
            and before.expected_var
            and before.avg_var < OFF_THEORY * before.expected_var
        )
        if (grown and block.avg_var >= before.avg_var) or beyond:
            expected = f', {theory:.3g} expected' if theory else ''
            yield (
                'warning',
                block.index,
                f'the variance is not reset at the transition in block {block.index} '
                f'({block.name}): {before.avg_var:.3g} before, {block.avg_var:.3g} after it'
                f'{expected}. The shortcut has to read the activation divided by beta, or a '
                'normalized one, and not the raw signal, or the growth of all stages multiplies',
            )
            return
        start = block


@RULES.register_module()
def pooled_shortcut(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Average pooling on the shortcut takes variance that beta assumes is there."""
    low = [
        (b, b.avg_var / b.expected_var)
        for b in blocks
        if b.pooled and b.expected_var and b.avg_var < b.expected_var / OFF_THEORY
    ]
    if low:
        first = low[0][0]
        ratios = ', '.join(f'{ratio:.2g}' for _, ratio in low)
        yield (
            'info',
            first.index,
            f'{len(low)} transitions average-pool their shortcut, which shrinks what varies from '
            f'pixel to pixel, white noise most of all: avg_var is {ratios} times what the betas '
            f'assume, first in block {first.index} ({first.name}). Images are smoother and lose '
            'less (measure with --input FOLDER_OF_IMAGES); downsample without pooling keeps it',
        )


@RULES.register_module()
def stem_scale(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """The first stage starts at another variance than the method assumes."""
    first = blocks[0]
    expected = first.expected_var
    if expected and first.avg_var > OFF_THEORY * expected:
        yield (
            'info',
            first.index,
            f'the signal starts at {first.avg_var / expected:.3g} times what the method expects '
            f'(block {first.index}, {first.name}): the stem gives a larger one than the unit '
            'variance that the first beta assumes. A gamma folded into the stem convolution, '
            'without an activation before it, does this (ReLU: gamma^2 = 2.94). As the betas are '
            'constants, all stages carry the factor on; it is harmless, but the plot is not the '
            "paper's",
        )
