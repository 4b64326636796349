"""Figures of signal propagation profiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .profile import SignalProfile

METRICS = {
    'avg_sq_mean': 'Average channel squared mean',
    'avg_var': 'Average channel variance',
    'res_avg_var': 'Residual average channel variance',
}

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = 'osD^vP*'


def plot_metric(ax: Axes, profiles: Sequence[SignalProfile], metric: str) -> None:
    """Draw one metric of some profiles against the block index.

    The axis is logarithmic where the values span more than a factor 30. Stage
    boundaries are marked where all profiles share them. The method's expectation is
    a dashed line.

    Args:
        ax: Axes to draw into.
        profiles: The profiles.
        metric: A key of :data:`METRICS`.

    Raises:
        ValueError: Unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f'metric must be one of {", ".join(METRICS)}, got {metric!r}')
    drawn = []
    for number, profile in enumerate(profiles):
        colour = COLOURS[number % len(COLOURS)]
        index, values = profile.curve(metric)
        dense = len(index) > 40
        ax.plot(
            index,
            values,
            color=colour,
            label=profile.label,
            marker=None if dense else MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
        )
        drawn += values
        if metric == 'avg_var':
            index, expected = profile.curve('expected_var')
            if index:  # the stem's pooling is not in the theory
                index, expected = index[1:], expected[1:]
                ax.plot(index, expected, color=colour, linestyle='--', linewidth=1, alpha=0.7)
    positive = [v for v in drawn if 0 < v < math.inf]
    if positive and max(positive) > 30 * min(positive):
        # `symlog` keeps exact zeros (a zero-initialised branch) in sight.
        threshold = max(min(positive), max(positive) * 1e-12)
        if min(drawn) <= 0:
            ax.set_yscale('symlog', linthresh=threshold)
        else:
            ax.set_yscale('log')
    elif positive:
        ax.set_ylim(bottom=-0.03 * max(positive))  # points at 0 stay whole
    boundaries = {
        tuple(b.index - 0.5 for b in profile.blocks if b.kind == 'transition')
        for profile in profiles
    }
    if len(boundaries) == 1:
        for x in boundaries.pop():
            ax.axvline(x, color='0.8', linewidth=0.8, zorder=0)
    ax.set_xlabel('Block index', fontsize=9)
    ax.set_ylabel(METRICS[metric], fontsize=9)
    ax.grid(axis='y', color='0.9', linewidth=0.6)
    ax.set_axisbelow(True)
    ax.xaxis.get_major_locator().set_params(integer=True)


def plot_profiles(profiles: Sequence[SignalProfile], title: str | None = None) -> Figure:
    """Draw the three panels of a signal propagation plot (Brock et al. 2021a, figure 1).

    Args:
        profiles: One or more profiles, drawn over each other.
        title: Title of the figure.

    Returns:
        The figure: save it with ``figure.savefig``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10, 3.5), dpi=200, layout='constrained')
    FigureCanvasAgg(figure)
    for ax, metric in zip(figure.subplots(1, 3, sharex=True), METRICS):
        plot_metric(ax, profiles, metric)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if any(profile.curve('expected_var')[0] for profile in profiles):
        handles.append(Line2D([], [], color='0.3', linestyle='--', linewidth=1, alpha=0.7))
        labels.append('expected by the method')
    if any(labels):
        figure.legend(handles, labels, loc='outside lower center', ncols=4, frameon=False)
    if title:
        figure.suptitle(title)
    return figure
