"""What a signal propagation analysis finds: data alone, which can be written and read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import mmengine
import torch

from nf_plugins.version import __version__

from .evidence import Evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from pandas import DataFrame

SCHEMA = 'nf_plugins.spp/2'
OLD_SCHEMA = 'nf_plugins.spp/1'
"""What 0.1.0 wrote, without state and evidence; it is still read."""
STATES = ('init', 'trained')
MODES = ('train', 'eval', 'asis')


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
        activated: Whether the block ends in an activation, after the addition.
        pooled: Whether the shortcut is average-pooled.
        normalized: Whether the branch has a norm, or one reads a plain module.
        zero_parameter: Name of the parameter, all zero, that silences the branch.
        module: Path of the module that holds the block; ``name`` is a part of it where several
            blocks are in one module.
        family: Name of the class of that module.
        layers: Convolutions and matrix products of the branch.
        norms: Norms of the branch.
        shortcut_norms: Norms of the shortcut.
        pre_norm: Whether the branch starts or ends with a norm, before any activation: the scale
            of its input has no effect.
        activation: Names of the activations of the branch.
        max_pooled: Whether the shortcut is max-pooled.
        largest: Largest absolute value of the output.
        image_cosine: Mean cosine between the features of two images, None for a single one.
        token_cosine: Mean cosine between the features at two positions of an image.
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
    module: str = ''
    family: str = ''
    layers: int = 0
    norms: int = 0
    shortcut_norms: int = 0
    pre_norm: bool = False
    activation: str = ''
    max_pooled: bool = False
    largest: float | None = None
    image_cosine: float | None = None
    token_cosine: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the block for JSON, which has no infinity and no NaN.

        Such values are None, and ``non_finite`` says what they were.
        """
        data = asdict(self)
        odd = {k: str(v) for k, v in data.items() if isinstance(v, float) and not math.isfinite(v)}
        return {**data, **dict.fromkeys(odd), **({'non_finite': odd} if odd else {})}

    @classmethod
    def from_dict(cls, data: Any) -> BlockSignal:
        """Read what :meth:`to_dict` wrote; other keys are ignored.

        Raises:
            ValueError: A value is missing, or has the wrong type.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f'it must be a dict, got {type(data).__name__}')
        odd = data.get('non_finite')
        odd = odd if isinstance(odd, Mapping) else {}
        given = [spec for spec in fields(cls) if spec.name in data or spec.default is MISSING]
        return cls(**{spec.name: _parse(spec, data, odd.get(spec.name)) for spec in given})


MAX_BLOCKS = 10_000
"""The most blocks that are read; a network has far fewer."""

_IS_VALID: dict[str, Callable[[Any], bool]] = {
    'index': lambda v: type(v) is int and 0 <= v < MAX_BLOCKS,
    **dict.fromkeys(
        ('positions', 'layers', 'norms', 'shortcut_norms'),
        lambda v: type(v) is int and 0 <= v < 2**31,
    ),
    **dict.fromkeys(
        ('name', 'kind', 'module', 'family', 'activation'), lambda v: isinstance(v, str)
    ),
    **dict.fromkeys(
        ('activated', 'pooled', 'normalized', 'pre_norm', 'max_pooled'),
        lambda v: isinstance(v, bool),
    ),
    'shape': lambda v: isinstance(v, list | tuple) and all(type(size) is int for size in v),
    'zero_parameter': lambda v: v is None or isinstance(v, str),
}
"""Field of a block -> whether a value is right; all other fields are numbers."""


def _parse(spec: Field, data: Mapping, odd: Any) -> Any:
    """Return the value of a field of a block; ``odd`` is what a value that is not finite was."""
    name = spec.name
    if name not in data:
        raise ValueError(f'{name} is missing')
    value = data[name]
    is_valid = _IS_VALID.get(name, lambda v: v is None or type(v) in (int, float))
    if not is_valid(value):
        raise ValueError(f'{name} has a wrong value, {repr(value)[:40]}')
    if name == 'shape':
        return tuple(value)
    if name in _IS_VALID:
        return value
    if value is not None:
        return _to_float(value)
    # None is 'no such value' for some fields, and 'not finite' for those that always have one.
    if odd is None and spec.default is None:
        return None
    return float(odd) if odd in ('inf', '-inf') else math.nan


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf if value > 0 else -math.inf


@dataclass
class SignalProfile:
    """A signal propagation profile: one :class:`BlockSignal` per block.

    Args:
        blocks: The blocks, the stem first.
        mode: 'train', 'eval' or 'asis' (each module in its own), the mode of the network.
        input: What went in: ``kind``, ``shape``, ...
        seed: Seed of the input and of everything random in the network.
        label: Name for legends.
        config: Path of the config, if any.
        checkpoint: Path of the checkpoint, if any.
        unit_gain: Whether gains at zero were measured at one.
        non_finite_module: The module that first made a non-finite value.
        state: 'init' or 'trained', None where it is not known.
        evidence: What rules need beside the curves, None where it was not collected.
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
    state: str | None = None
    evidence: Evidence | None = None

    def is_finite(self) -> bool:
        """Whether every measured value is finite."""
        return all(
            math.isfinite(value)
            for block in self.blocks
            for value in vars(block).values()
            if isinstance(value, float)
        )

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Return block indices and values of a metric, where it is defined."""
        pairs = [(b.index, getattr(b, metric)) for b in self.blocks]
        pairs = [(i, value) for i, value in pairs if value is not None]
        return [i for i, _ in pairs], [value for _, value in pairs]

    # `verdicts`, `table` and `plot` stay methods because users of 0.1.0 call them; their imports
    # are late, so that a profile can be read and written without any rule or plot.
    def verdicts(self, thresholds: Mapping[str, float] | None = None) -> list[dict]:
        """Say what is wrong, why, and what to do: see :func:`nf_plugins.spp.diagnose`.

        Args:
            thresholds: Other thresholds than the rules declare, e.g. ``{'explosion': 50}``.
        """
        from .rules import diagnose

        return diagnose(self, thresholds)

    def summary(self) -> str:
        """Say in one line whether the network is healthy, or what is worst."""
        from .rules import headline

        return headline(self.verdicts())

    def __repr__(self) -> str:
        shape = 'x'.join(map(str, self.input.get('shape', ())))
        parts = [self.label, f'{len(self.blocks)} blocks', f'{self.mode} mode', self.state, shape]
        return f'<SignalProfile: {", ".join(str(part) for part in parts if part)}>'

    def _repr_html_(self) -> str:
        from .report.words import to_html

        return to_html(self)

    def to_dataframe(self) -> DataFrame:
        """Return the blocks as a data frame, a row per block; the package ``pandas`` is needed."""
        import pandas

        return pandas.DataFrame([asdict(block) for block in self.blocks]).set_index('index')

    def to_dict(self) -> dict[str, Any]:
        """Return the profile in the schema of ``spp.json``; see :meth:`from_dict`."""
        data = dict(
            schema=SCHEMA,
            config=self.config,
            checkpoint=self.checkpoint,
            mode=self.mode,
            state=self.state,
            seed=self.seed,
            unit_gain=self.unit_gain,
            input=self.input,
            versions=dict(
                nf_plugins=__version__, torch=torch.__version__, mmengine=mmengine.__version__
            ),
            blocks=[block.to_dict() for block in self.blocks],
            verdicts=self.verdicts(),
        )
        if self.non_finite_module is not None:
            data['non_finite_module'] = self.non_finite_module
        if self.evidence is not None:
            data['evidence'] = self.evidence.to_dict()
        return data

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
        if data.get('schema') not in (SCHEMA, OLD_SCHEMA):
            raise ValueError(f'its schema is {data.get("schema")!r:.100}, not {SCHEMA!r}')
        if data.get('mode') not in MODES:
            raise ValueError(
                f'its mode must be one of {", ".join(MODES)}, got {data.get("mode")!r}'
            )
        if not isinstance(data.get('blocks'), list) or not data['blocks']:
            raise ValueError('it has no list of blocks')
        if len(data['blocks']) > MAX_BLOCKS:
            raise ValueError(f'it has more than {MAX_BLOCKS} blocks')
        blocks = []
        for number, block in enumerate(data['blocks']):
            try:
                blocks.append(BlockSignal.from_dict(block))
            except ValueError as error:
                raise ValueError(f'block {number}: {error}') from None
        optional = {k: data[k] for k, kind in _OPTIONAL.items() if type(data.get(k)) is kind}
        if data.get('state') in STATES:
            optional['state'] = data['state']
        if data.get('evidence') is not None:
            optional['evidence'] = Evidence.from_dict(data['evidence'])
        return cls(blocks, mode=data['mode'], **optional)

    def table(self) -> str:
        """Return the blocks as a table for a terminal."""
        from .report.table import to_table

        return to_table(self)

    def plot(self, ax: Axes | None = None, metric: str = 'avg_var') -> Figure | SubFigure:
        """Draw the three panels, or one metric into ``ax``.

        Args:
            ax: Axes to draw ``metric`` into; None makes a figure of three panels.
            metric: 'avg_sq_mean', 'avg_var' or 'res_avg_var'; ``grad_`` before one of these
                names means the gradient.

        Returns:
            The figure.
        """
        from .report.figure import plot_metric, plot_profiles

        if ax is None:
            return plot_profiles([self])
        plot_metric(ax, [self], metric)
        return ax.figure


_OPTIONAL = dict(
    input=dict, seed=int, config=str, checkpoint=str, unit_gain=bool, non_finite_module=str
)
"""Fields of a profile that a file may leave out, with their types."""
