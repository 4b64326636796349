"""What a signal propagation analysis finds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import mmengine
import torch

from nf_plugins.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = 'nf_plugins.spp/1'


@dataclass
class BlockSignal:
    """The signal at the output of one block.

    Args:
        index: 0 for the stem, then the blocks in order of execution.
        name: Module path in the backbone.
        kind: 'stem', 'residual' (identity shortcut), 'transition' (projection) or
            'plain'.
        shape: Shape of the output.
        avg_sq_mean: Mean over channels of the squared channel mean.
        avg_var: Mean over channels of the channel variance (biased).
        res_avg_var: ``avg_var`` at the end of the residual branch, before stochastic
            depth, SkipInit gain and alpha; None without a branch.
        expected_var: ``avg_var`` as the method expects it; None where no theory applies.
    """

    index: int
    name: str
    kind: str
    shape: tuple[int, ...]
    avg_sq_mean: float
    avg_var: float
    res_avg_var: float | None = None
    expected_var: float | None = None


@dataclass
class SignalProfile:
    """A signal propagation profile: one :class:`BlockSignal` per block.

    Args:
        blocks: The blocks, the stem first.
        mode: 'train' or 'eval', the mode of the network.
        input: What went in: ``kind``, ``shape``, ...
        seed: Seed of the input and of everything random in the network.
        label: Name for legends.
        config: Path of the config, if any.
        checkpoint: Path of the checkpoint, if any.
    """

    blocks: list[BlockSignal]
    mode: str
    input: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    label: str = ''
    config: str | None = None
    checkpoint: str | None = None

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Block indices and values of a metric, where it is defined."""
        pairs = [(b.index, getattr(b, metric)) for b in self.blocks]
        pairs = [(i, value) for i, value in pairs if value is not None]
        return [i for i, _ in pairs], [value for _, value in pairs]

    def verdicts(self) -> list[dict]:
        """What is wrong, as dicts of ``rule``, ``severity``, ``block`` and ``message``.

        There is one rule: ``non_finite``, the first block whose signal is not finite.
        """
        for block in self.blocks:
            values = [block.avg_sq_mean, block.avg_var, block.res_avg_var or 0.0]
            if not all(map(math.isfinite, values)):
                message = f'the signal is not finite from block {block.index} ({block.name}) on'
                return [
                    dict(rule='non_finite', severity='error', block=block.index, message=message)
                ]
        return []

    def to_dict(self) -> dict[str, Any]:
        """The profile in the schema of ``spp.json``; values that are not finite are None."""
        return dict(
            schema=SCHEMA,
            config=self.config,
            checkpoint=self.checkpoint,
            mode=self.mode,
            seed=self.seed,
            input=self.input,
            versions=dict(
                nf_plugins=__version__, torch=torch.__version__, mmengine=mmengine.__version__
            ),
            blocks=[
                {key: _finite_or_none(value) for key, value in asdict(block).items()}
                for block in self.blocks
            ],
            verdicts=self.verdicts(),
        )

    def table(self) -> str:
        """The blocks as a table for a terminal."""
        head = ('block', 'name', 'kind', 'shape', 'avg_sq_mean', 'avg_var', 'res_avg_var', 'theory')
        rows = [
            (
                str(b.index),
                b.name,
                b.kind,
                'x'.join(map(str, b.shape)),
                *(
                    '-' if value is None else f'{value:.4g}'
                    for value in (b.avg_sq_mean, b.avg_var, b.res_avg_var, b.expected_var)
                ),
            )
            for b in self.blocks
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows)]
        left = (False, True, True, True, False, False, False, False)
        lines = [
            '  '.join(
                cell.ljust(width) if flush else cell.rjust(width)
                for cell, width, flush in zip(row, widths, left)
            ).rstrip()
            for row in (head, *rows)
        ]
        return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])

    def plot(self, ax: Axes | None = None, metric: str = 'avg_var') -> Figure:
        """Draw the three panels, or one metric into ``ax``.

        Args:
            ax: Axes to draw ``metric`` into; None makes a figure of three panels.
            metric: 'avg_sq_mean', 'avg_var' or 'res_avg_var'.

        Returns:
            The figure.
        """
        from .plot import plot_metric, plot_profiles

        if ax is None:
            return plot_profiles([self])
        plot_metric(ax, [self], metric)
        return ax.figure


def profiles_to_csv(profiles: Sequence[SignalProfile]) -> str:
    """The blocks of some profiles as comma-separated values, a line per block."""
    buffer = io.StringIO()
    names = ['label', *(f.name for f in fields(BlockSignal))]
    writer = csv.DictWriter(buffer, names, lineterminator='\n')
    writer.writeheader()
    for profile in profiles:
        for block in profile.blocks:
            shape = 'x'.join(map(str, block.shape))
            writer.writerow({**asdict(block), 'label': profile.label, 'shape': shape})
    return buffer.getvalue()


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
