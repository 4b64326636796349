"""Figures of the study."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

from nf_plugins.spp import BlockSignal, SignalProfile
from nf_plugins.spp.plot import COLOURS, MARKERS, METRICS, plot_metric

from .results import Grid
from .runs import NETWORKS, Run, Setting


def new_figure(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    for ax in axes.flat:
        ax.grid(color='0.9', linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def draw_lines(ax: Any, grid: Grid, points: dict[str, list[tuple[float, int, float]]]) -> None:
    """Draw a line for each network through its means at (x, batch size, learning rate).

    A bar reaches from the worst to the best seed. The lines are shifted a little, so that their
    bars do not overlap.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for number, (network, line) in enumerate(points.items()):
        move = 1.05 ** (number - (len(points) - 1) / 2)
        x = [point[0] for point in line]
        found = [grid.accuracies(network, b, lr) for _, b, lr in line]
        mean = [statistics.fmean(values) for values in found]
        # The mean of equal values may differ from them by a rounding error.
        below = [max(0.0, m - min(values)) for m, values in zip(mean, found)]
        above = [max(0.0, max(values) - m) for m, values in zip(mean, found)]
        style = list(NETWORKS).index(network)
        ax.errorbar(
            [value * move for value in x],
            mean,
            [below, above],
            color=COLOURS[style],
            marker=MARKERS[style],
            markersize=4.5,
            linewidth=1.4,
            capsize=2,
            label=NETWORKS[network].label,
        )
        ticks = x
    ax.set_xscale('log')
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))


def accuracy_axis(axes: Any) -> None:
    """Set a logarithmic axis of the test error with labels of accuracy, so 98 and 99 % differ."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = [0, 50, 80, 90, 95, 98, 99, 100]
    lowest = min(ax.dataLim.y0 for ax in axes.flat)
    bottom = max((t for t in ticks[:4] if t < lowest), default=0)
    for ax in axes.flat:
        ax.set_yscale('function', functions=(_stretch, _unstretch))
        ax.set_ylim(bottom, 100.05)
        ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_minor_locator(NullLocator())


_ZERO = 100.3  # so that 100 % has a place on the axis, about one test image above 99.7 %


def _stretch(accuracy: Any) -> Any:
    import numpy as np

    return -np.log(np.maximum(_ZERO - np.asarray(accuracy, float), 0.01))


def _unstretch(value: Any) -> Any:
    import numpy as np

    return _ZERO - np.exp(-np.asarray(value, float))


def accuracy_figure(grid: Grid) -> Any:
    """Draw accuracy against batch size."""
    figure, axes = new_figure(1, 2, (10, 4.2), sharey=True)
    common = grid.common_lr()
    titles = ('at the best learning rate of each', f'at the learning rate {common:g}')
    for ax, title, best in zip(axes.flat, titles, (True, False)):
        points: dict[str, list] = {}
        for n, b in itertools.product(grid.networks, grid.batch_sizes):
            lr = grid.best_lr(n, b) if best else common
            points.setdefault(n, []).append((b, b, lr))
        draw_lines(ax, grid, points)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel('Batch size')
    axes[0, 0].set_ylabel('Test accuracy (%)')
    finish(figure, axes)
    return figure


def lr_figure(grid: Grid) -> Any:
    """Draw accuracy against learning rate, with a panel for each batch size."""
    number = len(grid.batch_sizes)
    columns = 2 if number in (2, 4) else min(3, number)
    rows = math.ceil(number / columns)
    figure, axes = new_figure(
        rows, columns, (4.2 * columns + 0.4, 3 * rows + 0.8), sharey=True, sharex=True
    )
    for ax in axes.flat[number:]:
        ax.set_visible(False)
    for ax, b in zip(axes.flat, grid.batch_sizes):
        draw_lines(ax, grid, {n: [(lr, b, lr) for lr in grid.lrs] for n in grid.networks})
        ax.set_title(f'batch size {b}', fontsize=10)
        ax.set_xlabel('Learning rate')
        ax.tick_params(labelbottom=True)
    for ax in axes[:, 0]:
        ax.set_ylabel('Test accuracy (%)')
    finish(figure, axes)
    return figure


def finish(figure: Any, axes: Any) -> None:
    accuracy_axis(axes)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title='mean over the seeds; bars from the worst to the best seed',
        title_fontsize=9,
        loc='outside lower center',
        ncols=6,
        frameon=False,
    )


def spp_figure(grid: Grid, setting: Setting) -> Any | None:
    """Draw signal propagation at the start and at the end; None if there are no such runs."""
    profiles: dict[str, list[SignalProfile]] = dict(start=[], end=[])
    for network in grid.networks:
        row = grid.rows.get(Run(network, *setting.reference, 0))
        for when in profiles if row else ():
            blocks = [BlockSignal.from_dict({'shape': (), **b}) for b in row['spp'][when]]
            label = NETWORKS[network].label
            profiles[when].append(SignalProfile(blocks, 'train', label=label))
    if not profiles['start']:
        return None
    figure, axes = new_figure(2, 3, (10.5, 6.4))
    for (when, drawn), row in zip(profiles.items(), axes):
        for ax, metric in zip(row, METRICS):
            plot_metric(ax, drawn, metric)
            ax.set_title(f'{when} of the training', fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=6, frameon=False)
    return figure
