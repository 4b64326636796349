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
        expected_var: ``avg_var`` as theory expects it; None where none applies.
        expected_res_var: The same for ``res_avg_var``.
        grad_avg_sq_mean: ``avg_sq_mean`` of the gradient that reaches the output, if
            it was measured.
        grad_avg_var: ``avg_var`` of that gradient.
        grad_res_avg_var: ``avg_var`` of the gradient at the end of the branch.
        branch_gain: What multiplies the branch between its end and the addition (alpha,
            SkipInit gain, LayerScale): root mean square.
        constant_channels: Share of the channels that do not vary.
        constant_branch: The same at the end of the branch, to the precision of its mean.
        positions: Values per channel and image.
        activated: Whether the block ends in an activation, behind the addition.
        pooled: Whether the shortcut is average-pooled.
        normalized: Whether the branch has a norm, or one reads a plain module.
        zero_parameter: Name of the parameter, all zero, that silences the branch.
    """

    index: int
    name: str
    kind: str
    shape: tuple[int, ...]
    avg_sq_mean: float
    avg_var: float
    res_avg_var: float | None = None
    expected_var: float | None = None
    expected_res_var: float | None = None
    grad_avg_sq_mean: float | None = None
    grad_avg_var: float | None = None
    grad_res_avg_var: float | None = None
    branch_gain: float | None = None
    constant_channels: float = 0.0
    constant_branch: float = 0.0
    positions: int = 0
    activated: bool = False
    pooled: bool = False
    normalized: bool = False
    zero_parameter: str | None = None


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
        unit_gain: Whether gains at zero were measured at one.
        non_finite_module: The module that first made a non-finite value.
    """

    blocks: list[BlockSignal]
    mode: str
    input: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    label: str = ''
    config: str | None = None
    checkpoint: str | None = None
    unit_gain: bool = False
    non_finite_module: str | None = None

    def is_finite(self) -> bool:
        """Whether every measured value is finite."""
        return all(
            math.isfinite(value)
            for block in self.blocks
            for value in asdict(block).values()
            if isinstance(value, float)
        )

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Block indices and values of a metric, where it is defined."""
        pairs = [(b.index, getattr(b, metric)) for b in self.blocks]
        pairs = [(i, value) for i, value in pairs if value is not None]
        return [i for i, _ in pairs], [value for _, value in pairs]

    def verdicts(self) -> list[dict]:
        """What is wrong, why, and what to do: see :func:`nf_plugins.spp.diagnose`."""
        from .rules import diagnose  # late: a profile is data and needs no rule

        return diagnose(self)

    def to_dict(self) -> dict[str, Any]:
        """The profile in the schema of ``spp.json``; values that are not finite are None."""
        return dict(
            schema=SCHEMA,
            config=self.config,
            checkpoint=self.checkpoint,
            mode=self.mode,
            seed=self.seed,
            unit_gain=self.unit_gain,
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
        columns = {
            'avg_sq_mean': 'avg_sq_mean',
            'avg_var': 'avg_var',
            'expected_var': 'theory',
            'res_avg_var': 'res_avg_var',
            'expected_res_var': 'theory',
            'grad_avg_sq_mean': 'grad_avg_sq_mean',
            'grad_avg_var': 'grad_avg_var',
            'grad_res_avg_var': 'grad_res_avg_var',
        }
        columns = {
            metric: title
            for metric, title in columns.items()
            if any(getattr(b, metric) is not None for b in self.blocks)
        }
        head = ('block', 'name', 'kind', 'shape', *columns.values())
        rows = [
            (
                str(b.index),
                b.name,
                b.kind,
                'x'.join(map(str, b.shape)),
                *(
                    '-' if value is None else f'{value:.4g}'
                    for value in (getattr(b, metric) for metric in columns)
                ),
            )
            for b in self.blocks
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows)]
        left = (False, True, True, True, *[False] * len(columns))
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
            metric: 'avg_sq_mean', 'avg_var', 'res_avg_var', or one of these with
                ``grad_`` in front.

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
