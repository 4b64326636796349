"""The figure of some profiles, for PNG, SVG and PDF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nf_plugins.utils.checks import check_choice

from ..profile import SignalProfile
from .axes import (
    COLOURS,
    EXPECTED,
    MANY_BLOCKS,
    MARKERS,
    TITLES,
    curve,
    drawable_text,
    expected_label,
    new_figure,
    panels_of,
    scale_of,
    set_up_panel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_metric(ax: Axes, profiles: Sequence[SignalProfile], metric: str) -> None:
    """Draw one metric of some profiles against the block index.

    The axis is logarithmic where the values span more than a factor 30. Stage
    boundaries are marked where all profiles share them. What theory expects is a dashed
    line.

    Args:
        ax: Axes to draw into.
        profiles: The profiles.
        metric: A key of :data:`METRICS` or of :data:`GRADIENT_METRICS`.

    Raises:
        ValueError: Unknown metric.
    """
    check_choice('metric', metric, TITLES)
    for number, profile in enumerate(profiles):
        colour = COLOURS[number % len(COLOURS)]
        index, values = curve(profile, metric)
        marker = None if len(index) > MANY_BLOCKS else MARKERS[number % len(MARKERS)]
        look: dict[str, Any] = dict(marker=marker, markersize=4, linewidth=1.4)
        ax.plot(index, values, color=colour, label=profile.label, **look)
        if metric in EXPECTED:
            expected = curve(profile, EXPECTED[metric])
            ax.plot(*expected, color=colour, linestyle='--', linewidth=1, alpha=0.7)
    set_up_panel(ax, profiles, metric, scale_of(profiles, metric))


def plot_profiles(profiles: Sequence[SignalProfile], title: str | None = None) -> Figure:
    """Draw the three panels of a signal propagation plot (Brock et al. 2021a, figure 1).

    A second row has the gradient's, where it was measured.

    Args:
        profiles: One or more profiles, drawn over each other.
        title: Title of the figure.

    Returns:
        The figure: save it with ``figure.savefig``.
    """
    metrics = panels_of(profiles)
    rows = len(metrics) // 3
    figure = new_figure(rows, 0.7 + 2.8 * rows, dpi=200)
    for ax, metric in zip(figure.axes, metrics):
        plot_metric(ax, profiles, metric)
        if metric not in metrics[-3:]:
            ax.set_xlabel('')
    _add_legend(figure, profiles)
    if title:
        figure.suptitle(drawable_text(title), parse_math=False)
    return figure


def _add_legend(figure: Figure, profiles: Sequence[SignalProfile]) -> None:
    """Add one row of names, or equal columns where one row is too short."""
    from matplotlib.lines import Line2D

    handles, labels = figure.axes[0].get_legend_handles_labels()
    if any(profile.curve(field)[0] for profile in profiles for field in EXPECTED.values()):
        handles.append(Line2D([], [], color='0.3', linestyle='--', linewidth=1, alpha=0.7))
        labels.append(expected_label(profiles))
    if not any(labels):
        return
    labels = [drawable_text(label).replace('$', r'\$') for label in labels]  # names are not for TeX
    width = sum(len(label) + 8 for label in labels)
    rows = -(-width // 140)  # about 140 characters fit into a row
    columns = -(-len(labels) // rows)
    figure.legend(
        handles, labels, loc='outside lower center', ncols=columns, frameon=False, fontsize=9
    )
