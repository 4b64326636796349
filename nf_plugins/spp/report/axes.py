"""The panels that the figure, the page and the film share: curves, colours and scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nf_plugins.errors import printable

from ..profile import BlockSignal, SignalProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

METRICS = {
    'avg_sq_mean': 'Average channel squared mean',
    'avg_var': 'Average channel variance',
    'res_avg_var': 'Residual average channel variance',
}
"""Metric of the signal -> title of its panel."""

GRADIENT_METRICS = {
    'grad_avg_sq_mean': 'Gradient: channel squared mean',
    'grad_avg_var': 'Gradient: channel variance',
    'grad_res_avg_var': 'Gradient: residual channel variance',
}
"""Metric of the gradient -> title of its panel."""

TITLES = {**METRICS, **GRADIENT_METRICS}
EXPECTED = {'avg_var': 'expected_var', 'res_avg_var': 'expected_res_var'}
"""Metric -> the field of a block with the value that theory expects."""
EXPECTED_LABEL = 'expected by theory'
EXPECTED_AT_START = 'expected at initialisation'
"""What the dashed lines of a trained network are."""

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = 'osD^vP*'
SYMBOLS = ('circle', 'square', 'diamond', 'triangle-up', 'triangle-down', 'cross', 'star')
"""The markers under plotly's names."""
MANY_BLOCKS = 40
"""Beyond this many blocks a curve has no markers."""


def drawable_text(text: str, longest: int = 100) -> str:
    """Cut a text to what a figure can show: without control characters, and not too long.

    Example:
        >>> drawable_text('a' * 10**6)[-5:]
        'aa...'
    """
    text = printable(text)
    return text if len(text) <= longest else f'{text[: longest - 3]}...'


def expected_label(profiles: Iterable[SignalProfile]) -> str:
    """Return the name of the dashed lines: theory is about networks at initialisation."""
    trained = any(profile.state == 'trained' for profile in profiles)
    return EXPECTED_AT_START if trained else EXPECTED_LABEL


def panels_of(profiles: Sequence[SignalProfile]) -> list[str]:
    """Return the metrics to draw: three, or six where the gradient was measured."""
    gradients = any(profile.curve('grad_avg_var')[0] for profile in profiles)
    return [*METRICS, *(GRADIENT_METRICS if gradients else ())]


def curve(profile: SignalProfile, field: str) -> tuple[list[int], list[float]]:
    """Return block indices and values of a field; NaN where a value is missing or not finite.

    The stem's pooling is not part of the theory, so expected values start after it.
    """
    blocks = profile.blocks
    if field in EXPECTED.values():
        blocks = [block for block in blocks if block.kind != 'stem']
    elif field in TITLES:
        blocks = [block for block in blocks if getattr(block, field) is not None]
    return [b.index for b in blocks], [drawable(getattr(b, field)) for b in blocks]


def drawable(value: float | None) -> float:
    """Replace what cannot be drawn by NaN, and what is too small for a logarithm by 0."""
    if value is None or not abs(value) < 1e150:
        return math.nan
    return float(value) if abs(value) > 1e-150 else 0.0


def transitions(blocks: Sequence[BlockSignal]) -> tuple[float, ...]:
    """Return where the stages begin: half a block before each transition."""
    return tuple(block.index - 0.5 for block in blocks if block.kind == 'transition')


def describe(block: BlockSignal) -> str:
    """Return the name, kind and shape of a block as text."""
    return f'{block.name}, {block.kind}, {"x".join(map(str, block.shape))}'


@dataclass(frozen=True)
class Scale:
    """The vertical scale of a panel.

    Args:
        kind: 'linear', 'log' or 'symlog' (logarithmic, but linear up to ``threshold``).
        limits: Lowest and highest value in sight.
        threshold: For 'symlog'.
    """

    kind: str
    limits: tuple[float, float]
    threshold: float = 1.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Scale:
        """Return the scale that shows all values: logarithmic if they span more than a factor 30.

        Zeros (a branch that starts at zero) stay in sight on 'symlog'. Values that are not
        finite do not count.

        Example:
            >>> [Scale.of(values).kind for values in ([1, 2], [1, 99], [0, 1, 99])]
            ['linear', 'log', 'symlog']
        """
        finite = [value for value in values if math.isfinite(value)]
        positive = [value for value in finite if value > 0]
        lowest, highest = min(finite, default=0.0), max(finite, default=1.0)
        if not positive or highest <= 30 * min(positive):
            bottom, top = min(lowest, 0.0), max(highest, 0.0)
            top = top if top > bottom else 1.0  # of zeros alone
            margin = 0.05 * (top - bottom)
            return cls('linear', (bottom - margin, top + margin))
        if lowest > 0:
            margin = (highest / lowest) ** 0.05
            return cls('log', (lowest / margin, highest * margin))
        # A decade below the smallest value.
        threshold = 10.0 ** math.floor(math.log10(max(min(positive), highest * 1e-12)))
        margin = (highest / threshold) ** 0.05
        bottom = -0.3 * threshold if lowest == 0 else lowest * margin - threshold
        return cls('symlog', (bottom, highest * margin), threshold)

    def apply(self, ax: Axes) -> None:
        """Set up an axis of matplotlib."""
        from matplotlib.ticker import FixedLocator, NullLocator

        options = dict(linthresh=self.threshold) if self.kind == 'symlog' else {}
        ax.set_yscale(self.kind, **options)
        ax.set_ylim(*self.limits)
        if self.kind != 'linear':
            ax.yaxis.set_major_locator(FixedLocator(self.ticks()))
            ax.yaxis.set_minor_locator(NullLocator())

    def ticks(self) -> list[float]:
        """Return the marks of a logarithmic axis: powers of ten, about seven, and 0 on 'symlog'."""
        low, high = self.limits
        first = self.threshold if self.kind == 'symlog' else low
        powers = range(math.ceil(math.log10(first) - 1e-9), math.floor(math.log10(high)) + 1)
        step = max(1, math.ceil(len(powers) / 7))
        positive = [10.0**power for power in powers if power % step == 0]
        negative = [-tick for tick in reversed(positive) if low <= -tick]
        return [*negative, *([0.0] if self.kind == 'symlog' else []), *positive]

    def _symlog(self) -> Any:
        from matplotlib.scale import SymmetricalLogTransform

        return SymmetricalLogTransform(base=10, linthresh=self.threshold, linscale=1)

    def place(self, values: Sequence[float]) -> list[float]:
        """Return where plotly draws values, which has no symlog scale."""
        if self.kind != 'symlog':
            return list(values)
        return self._symlog().transform(np.asarray(values, dtype=float)).tolist()

    def plotly(self) -> dict[str, Any]:
        """Return the settings of an axis of plotly."""
        if self.kind == 'linear':
            return dict(type='linear', range=list(self.limits), autorange=False)
        ticks, text = self.ticks(), [_power(tick) for tick in self.ticks()]
        if self.kind == 'log':
            limits = [math.log10(value) for value in self.limits]
            return dict(type='log', range=limits, autorange=False, tickvals=ticks, ticktext=text)
        return dict(
            type='linear',
            range=self.place(self.limits),
            autorange=False,
            tickvals=self.place(ticks),
            ticktext=text,
        )


def _power(value: float) -> str:
    """Return a power of ten, or 0, in the markup of plotly."""
    if not value:
        return '0'
    sign = '-' if value < 0 else ''
    return f'{sign}10<sup>{round(math.log10(abs(value)))}</sup>'


def scale_of(profiles: Iterable[SignalProfile], metric: str) -> Scale:
    """Return the scale that shows a metric of all profiles, and what theory expects of it."""
    fields = [metric, *([EXPECTED[metric]] if metric in EXPECTED else [])]
    return Scale.of(
        value for profile in profiles for field in fields for value in curve(profile, field)[1]
    )


def new_figure(rows: int, height: float, dpi: int) -> Figure:
    """Return a figure with rows of three panels, which keep their labels apart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08)
    figure = Figure(figsize=(10, height), dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    figure.subplots(rows, 3, sharex=True)
    return figure


def set_up_panel(ax: Axes, profiles: Sequence[SignalProfile], metric: str, scale: Scale) -> None:
    """Set up scale, labels, grid and, where all profiles share them, stage boundaries."""
    scale.apply(ax)
    boundaries = {transitions(profile.blocks) for profile in profiles}
    for x in boundaries.pop() if len(boundaries) == 1 else ():
        ax.axvline(x, color='0.8', linewidth=0.8, zorder=0)
    last = max(block.index for profile in profiles for block in profile.blocks)
    first = min(block.index for profile in profiles for block in profile.blocks)
    margin = max(0.5, 0.03 * (last - first))
    ax.set_xlim(first - margin, last + margin)
    locator = cast('MaxNLocator', ax.xaxis.get_major_locator())  # that of every linear axis
    locator.set_params(integer=True)
    ax.set_xlabel('Block index', fontsize=9)
    ax.set_ylabel(TITLES[metric], fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(axis='y', color='0.9', linewidth=0.6)
    ax.set_axisbelow(True)
