"""The figure of a sweep: each metric against the swept value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..sweep import Sweep, Trend, slope_range
from .axes import COLOURS, MARKERS, TITLES, Scale, drawable, drawable_text, new_figure, panels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = len(COLOURS)
"""Up to this many places have a colour and a name in the legend each."""


def plot_sweep(sweep: Sweep, title: str = '') -> Figure:
    """Draw each metric against the swept value: a line per block, or per end of a stage.

    The axes are logarithmic where they can be. Above each panel stands whether it is flat. Where
    there are few lines, a dashed one shows what theory expects.

    Args:
        sweep: The profiles.
        title: Title of the figure.

    Returns:
        The figure: save it with ``figure.savefig``.
    """
    metrics = panels_of(sweep.profiles)
    rows = len(metrics) // 3
    figure = new_figure(rows, 1.0 + 2.8 * rows, dpi=200)
    for ax, metric in zip(figure.axes, metrics):
        _plot_panel(ax, sweep, metric)
    _add_key(figure, list(sweep.places()))
    if title:
        figure.suptitle(drawable_text(title), parse_math=False, fontsize=10)
    return figure


def _plot_panel(ax: Axes, sweep: Sweep, metric: str) -> None:
    order = list(sweep.places())
    at = sweep.at() or list(range(len(sweep.values)))
    trends = sweep.trends(metric)
    shown = []
    for trend in trends:
        number = order.index(trend.place)
        colour = _colour(number, len(order))
        marker = MARKERS[number % len(MARKERS)] if len(order) <= FEW else '.'
        shown += (values := [drawable(value) for value in trend.values])
        ax.plot(at, values, color=colour, marker=marker, markersize=4, linewidth=1.2)
        if trend.expected is not None and len(order) <= FEW:
            shown += (theory := [drawable(value) for value in trend.expected])
            ax.plot(at, theory, color=colour, linestyle='--', linewidth=1, alpha=0.7)
    Scale.of(shown).apply(ax)
    if sweep.at():
        ax.set_xscale('log')
    ax.set_xticks(at, labels=[drawable_text(str(value), 20) for value in sweep.values])
    ax.minorticks_off()
    ax.tick_params(labelsize=8, labelbottom=True)
    ax.set_xlabel(drawable_text(sweep.option, 50), fontsize=9, parse_math=False)
    ax.set_ylabel(TITLES[metric], fontsize=9)
    ax.set_title(_short_words(trends), fontsize=9)
    ax.grid(axis='y', color='0.9', linewidth=0.6)
    ax.set_axisbelow(True)


def _short_words(trends: list[Trend]) -> str:
    """Say in a few words whether a panel is flat; :meth:`Sweep.words` says where."""
    if not trends or len(trends[0].values) < 2:
        return 'nothing to compare'
    other = [trend for trend in trends if trend.kind != 'flat']
    text = f'not flat in {len(other)} of {len(trends)}' if other else 'flat'
    return text + slope_range(other or trends)


def _colour(number: int, places: int) -> str | tuple[float, float, float, float]:
    """Return a colour of its own for each of a few places, else one from dark to light."""
    if places <= FEW:
        return COLOURS[number]
    from matplotlib import colormaps

    return colormaps['viridis'](0.95 * number / (places - 1))


def _add_key(figure: Figure, places: list[str]) -> None:
    """Add a legend: all places, or five of many."""
    from matplotlib.lines import Line2D

    last, few = len(places) - 1, len(places) <= FEW
    shown = list(range(last + 1)) if few else [round(part * last / 4) for part in range(5)]
    handles = [Line2D([], [], color=_colour(number, len(places))) for number in shown]
    labels = [drawable_text(places[number], 40).replace('$', r'\$') for number in shown]
    figure.legend(
        handles, labels, loc='outside lower center', ncols=len(labels), frameon=False, fontsize=8
    )
