"""What a signal propagation analysis finds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
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
            blocks=[_block_to_dict(block) for block in self.blocks],
            verdicts=self.verdicts(),
        )

    @classmethod
    def from_dict(cls, data: Any) -> SignalProfile:
        """Read what :meth:`to_dict` wrote.

        Args:
            data: The content of ``spp.json`` or of a record.

        Returns:
            The profile; its verdicts are made anew.

        Raises:
            ValueError: It is no profile, or a value has the wrong type.

        Example:
            >>> profile = SignalProfile([BlockSignal(1, 'a', 'plain', (1, 2), 0.0, 1.0)], 'eval')
            >>> SignalProfile.from_dict(profile.to_dict()) == profile
            True
        """
        data = data if isinstance(data, Mapping) else {}
        if data.get('schema') != SCHEMA:
            raise ValueError(f'the schema must be {SCHEMA!r}, got {data.get("schema")!r}')
        if data.get('mode') not in ('train', 'eval'):
            raise ValueError(f'mode must be train or eval, got {data.get("mode")!r}')
        blocks = data.get('blocks')
        if not isinstance(blocks, list) or not blocks:
            raise ValueError('a profile needs blocks')
        plain = {
            name: data[name]
            for name, kind in _OPTIONAL.items()
            if isinstance(data.get(name), kind) and not (kind is int and data[name] is True)
        }
        parsed = [_block_from_dict(block, f'block {i}') for i, block in enumerate(blocks)]
        return cls(parsed, mode=data['mode'], **plain)

    def table(self) -> str:
        """The blocks as a table for a terminal."""
        from .report.table import to_table

        return to_table(self)

    def plot(self, ax: Axes | None = None, metric: str = 'avg_var') -> Figure:
        """Draw the three panels, or one metric into ``ax``.

        Args:
            ax: Axes to draw ``metric`` into; None makes a figure of three panels.
            metric: 'avg_sq_mean', 'avg_var', 'res_avg_var', or one of these with
                ``grad_`` in front.

        Returns:
            The figure.
        """
        from .report.figure import plot_metric, plot_profiles

        if ax is None:
            return plot_profiles([self])
        plot_metric(ax, [self], metric)
        return ax.figure


_OPTIONAL = dict(input=dict, seed=int, config=str, checkpoint=str, unit_gain=bool, label=str)
"""Fields of a profile that a file may leave out, with their types."""
_OPTIONAL['non_finite_module'] = str

_KINDS = dict(index=int, name=str, kind=str, positions=int, activated=bool, pooled=bool)
_KINDS |= dict(normalized=bool)
"""Fields of a block that are no floats, with their types."""


def _block_to_dict(block: BlockSignal) -> dict[str, Any]:
    """A block for JSON, which has no infinity and no NaN: None, and their names aside."""
    data = asdict(block)
    odd = {k: str(v) for k, v in data.items() if isinstance(v, float) and not math.isfinite(v)}
    return {**data, **dict.fromkeys(odd), **({'non_finite': odd} if odd else {})}


def _block_from_dict(data: Any, what: str) -> BlockSignal:
    data = data if isinstance(data, Mapping) else {}
    odd = data.get('non_finite')
    odd = odd if isinstance(odd, Mapping) else {}
    values = {}
    for field_ in fields(BlockSignal):
        name, value = field_.name, data.get(field_.name)
        required = field_.default is MISSING
        if name == 'shape':
            ok = isinstance(value, (list, tuple)) and all(type(size) is int for size in value)
            value = tuple(value) if ok else value
        elif name in _KINDS:
            ok = type(value) is _KINDS[name]
        elif name == 'zero_parameter':
            ok = value is None or isinstance(value, str)
        else:
            ok = value is None or type(value) in (int, float)
            if value is None and (required or name in odd):
                value = math.nan
        if not ok and (required or name in data):
            raise ValueError(f'{what}: {name} has a wrong value, {value!r}')
        if required or name in data:
            values[name] = value
    return BlockSignal(**values)
