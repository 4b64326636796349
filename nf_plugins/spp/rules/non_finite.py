"""Values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile


@RULES.register_module()
def non_finite(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """A value is not finite: which module made it first."""
    for block in profile.blocks:
        values = (
            block.avg_sq_mean,
            block.avg_var,
            block.res_avg_var or 0.0,
            block.grad_avg_var or 0.0,
        )
        if not all(map(math.isfinite, values)):
            signal = 'signal' if all(map(math.isfinite, values[:3])) is False else 'gradient'
            text = f'the {signal} is not finite at block {block.index} ({block.name})'
            if profile.non_finite_module:
                text += f'; the first to make such a value is {profile.non_finite_module}'
            yield (
                'error',
                block.index,
                f'{text}. Look for a division by zero, an overflow in half precision, or '
                'weights that are not finite; a smaller initial scale or learning rate, or '
                'float32, keeps values in range',
            )
            return
