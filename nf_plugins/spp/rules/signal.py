"""What several rules ask of a block."""

from __future__ import annotations

from ..profile import BlockSignal

CONSTANT_CHANNELS = 0.1
"""Share of channels that do not vary."""
SILENT = 1e-6
"""Share of the variance below which a gain silences a branch."""


def is_silent(block: BlockSignal) -> bool:
    """Whether the branch of a block adds next to nothing to the signal."""
    if block.res_avg_var is None or block.branch_gain is None:
        return False
    return block.branch_gain**2 * block.res_avg_var <= SILENT * block.avg_var
