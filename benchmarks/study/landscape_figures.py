"""Figures of the loss landscapes."""

from __future__ import annotations

import math
import statistics
from typing import Any

from .drawing import GRADIENTS, new_figure, style
from .landscape import DECREASES, JUDGED, RISE, predicted_shares, sides
from .results import Rows
from .runs import NETWORKS

LEVELS = [10 ** (number / 10) for number in range(-4, 11)]
"""Losses of the contours: from 0.4 to 10, ten in a factor of ten."""

TICKS = (-1, -0.5, 0, 0.5, 1)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def landscape_figure(rows: Rows) -> Any:
    """Draw the loss along random directions, and how well the gradient predicts its decrease."""
    figure, axes = new_figure(1, 2, (10.4, 4.3))
    left, right = axes[0]
    for network in rows.values('network'):
        look = dict(**style(network, GRADIENTS), markersize=4, linewidth=1.5)
        mine = rows.where(network=network)
        valleys = [row['valley'] for row in mine.rows if 'valley' in row]
        for key, more in (('lines', {}), ('running', dict(linestyle='--'))):
            lines = [line for found in valleys for line in found.get(key, [])]
            if lines:
                label = NETWORKS[network].label
                label += ', running statistics' if key == 'running' else ''
                _band(left, sides(len(lines[0])), lines, label, look | more)
        shares = [predicted_shares(row) for row in mine.rows]
        steps = sorted(set.intersection(*(set(found) for found in shares)))
        values = [[found[step] for step in steps] for found in shares]
        _band(right, steps, values, NETWORKS[network].label, look)
    left.set_yscale('log')
    left.set_xticks(TICKS, [f'{x:g}' for x in TICKS])
    left.set_xlabel('Step along a random direction, relative to the weights')
    left.set_ylabel('Training loss')
    right.axhline(1, color='0.5', linewidth=0.8, linestyle=':')
    right.set_xlabel('Step of the training')
    right.set_ylabel('Actual : predicted decrease of the loss')
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=5, frameon=False, fontsize=9)
    return figure


def _band(ax: Any, xs: list, lines: list[list], label: str, look: dict) -> None:
    """Draw the median of several lines, and a band from the lowest to the highest."""
    points = [[_number(y) for y in column] for column in zip(*lines)]
    ax.plot(xs, [statistics.median(column) for column in points], label=label, **look)
    if look.get('linestyle') != '--':
        low, high = [min(column) for column in points], [max(column) for column in points]
        ax.fill_between(xs, low, high, color=look['color'], alpha=0.12, linewidth=0)


def plane_figure(rows: Rows) -> Any:
    """Draw the loss in a plane of two random directions: a panel for each network of seed 0."""
    from matplotlib.colors import LogNorm

    shown = [row for row in rows.where(seed=0).rows if 'plane' in row.get('valley', {})]
    figure, axes = new_figure(1, max(1, len(shown)), (2.7 * len(shown) + 1, 3.2), sharey=True)
    planes = [[[_number(x) for x in line] for line in row['valley']['plane']] for row in shown]
    for ax, row, plane in zip(axes[0], shown, planes):
        xs = sides(len(plane))
        turned = [list(line) for line in zip(*plane)]  # the first direction is horizontal
        drawn = ax.contourf(
            xs, xs, turned, levels=LEVELS, norm=LogNorm(LEVELS[0], LEVELS[-1]), extend='both'
        )
        centre = plane[len(plane) // 2][len(plane) // 2]
        ax.contour(xs, xs, turned, levels=[centre + RISE], colors='white', linewidths=1.2)
        ax.set_title(NETWORKS[row['network']].label, fontsize=10)
        ax.set_aspect('equal')
        ax.set_xticks(TICKS, [f'{x:g}' for x in TICKS])
        ax.set_yticks(TICKS, [f'{x:g}' for x in TICKS])
        ax.grid(False)
        ax.set_xlabel('First direction')
    axes[0, 0].set_ylabel('Second direction')
    if shown:
        bar = figure.colorbar(drawn, ax=axes[0], label='Training loss', shrink=0.75)
        bar.set_ticks([0.5, 1, 2, 5, 10], labels=['0.5', '1', '2', '5', '10'])
        bar.minorticks_off()
    return figure


def gradient_figure(rows: Rows) -> Any:
    """Draw the loss along the gradient, a line for each moment of a training, of seed 0."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    shown = rows.where(seed=0).rows
    figure, axes = new_figure(1, max(1, len(shown)), (2.8 * len(shown) + 1, 3.2), sharey=True)
    colours = ScalarMappable(Normalize(0, max(row['steps'] for row in shown)), colormaps['viridis'])
    for ax, row in zip(axes[0], shown):
        ax.plot([0, 1], [1, 0], color='0.5', linewidth=1, linestyle=':')
        ax.axvline(JUDGED, color='0.5', linewidth=0.8)
        for moment in row['descent']:
            start = moment['losses'][0]
            ys = [_number(loss) / start for loss in moment['losses']]
            ax.plot(DECREASES, ys, color=colours.to_rgba(moment['step']), marker='o', markersize=3)
        ax.set_title(NETWORKS[row['network']].label, fontsize=10)
        ax.set_ylim(0, 1.6)
        ax.set_xlabel('Predicted decrease')
    axes[0, 0].set_ylabel('Loss, relative to that\nbefore the step')
    figure.colorbar(colours, ax=axes[0], label='step')
    return figure
