"""Figures of the study."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nf_plugins.errors import as_usage_error
from nf_plugins.spp.plot import COLOURS, MARKERS
from nf_plugins.spp.rules import RULES, thresholds_of
from nf_plugins.spp.rules.variance import SURE
from nf_plugins.utils.files import atomic_write_all

from .drawing import new_figure, style
from .film import film, mean_share
from .landscape_figures import gradient_figure, landscape_figure, plane_figure
from .results import Rows
from .runs import NETWORKS, Run

LIMIT = SURE * thresholds_of(RULES['explosion'])['growth']
"""Growth of the variance from which on the rule `explosion` says "error"."""
LARGEST_LOSS = 1e4
"""Upper end of the axis of the losses."""


def depth_figure(rows: Rows) -> Any:
    """Draw predicted against actual failure: a panel for each depth."""
    blocks, networks = sorted(rows.values('blocks')), rows.values('network')
    figure, axes = new_figure(1, len(blocks), (3.6 * len(blocks) + 0.6, 4.6), sharey=True)
    largest = 1e12
    for ax, number in zip(axes.flat, blocks):
        for network in networks:
            found = rows.where(blocks=number, network=network).rows
            if not found:
                continue
            x = [min(r['prediction']['growth'] or largest, largest) for r in found]
            y = [r['accuracy'] for r in found]
            line = dict(linestyle='', markersize=6, alpha=0.85, label=NETWORKS[network].label)
            ax.plot(x, y, **style(network, networks), **line)
        ax.axvspan(LIMIT, 3 * largest, color='#D55E00', alpha=0.08, linewidth=0)
        ax.axhline(10, color='0.5', linewidth=0.8, linestyle=':')
        ax.set_xscale('log')
        ax.set_xlim(0.3, 3 * largest)
        ax.set_title(f'{Run("depth", "nf", number).convs} convolutions', fontsize=10)
        ax.set_xlabel('Growth of the signal before the first step')
    axes[0, 0].set_ylabel('Test accuracy after 30 steps (%)')
    axes[0, -1].text(
        largest, 73, 'failure predicted', color='#A04000', fontsize=9, ha='right', va='top'
    )
    axes[0, 0].set_ylim(0, 75)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=4, frameon=False, fontsize=9)
    return figure


def draw_means(ax: Any, rows: Rows, key: str, networks: list[str], value: str = 'accuracy') -> None:
    """Draw the mean over the seeds against a key, with bars from the worst to the best seed."""
    for number, network in enumerate(networks):
        mine = rows.where(network=network)
        xs = sorted(mine.values(key))
        move = 1.03 ** (number - (len(networks) - 1) / 2)
        cells = [mine.where(**{key: x}) for x in xs]
        means = [cell.mean(value) for cell in cells]
        bars = [
            [max(0.0, m - min(r[value] for r in c.rows)) for m, c in zip(means, cells)],
            [max(0.0, max(r[value] for r in c.rows) - m) for m, c in zip(means, cells)],
        ]
        label = NETWORKS[network].label
        if value == 'batch_accuracy':
            label += ', statistics of the batch'
        dashed = dict(linestyle='--') if value == 'batch_accuracy' else {}
        ax.errorbar(
            [x * move for x in xs], means, bars, capsize=2, linewidth=1.4, markersize=5,
            label=label, **style(network, networks), **dashed,
        )  # fmt: skip


def batch_figure(rows: Rows) -> Any:
    """Draw accuracy against batch size, with running statistics and with those of the batch."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure, axes = new_figure(1, 1, (5.6, 4))
    ax = axes[0, 0]
    draw_means(ax, rows, 'batch_size', rows.values('network'))
    draw_means(ax, rows.where(network='bn'), 'batch_size', ['bn'], 'batch_accuracy')
    for line in ax.containers[-1:]:
        for part in (line[0], *line[1], *line[2]):
            part.set_color(COLOURS[rows.values('network').index('bn')])
    ax.set_xscale('log')
    ax.xaxis.set_major_locator(FixedLocator(sorted(rows.values('batch_size'))))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    ax.set_xlabel('Batch size (equal numbers of images)')
    ax.set_ylabel('Test accuracy (%)')
    ax.legend(frameon=False, fontsize=9)
    return figure


def clip_label(clip_factor: float | None) -> str:
    """Name a threshold of AGC."""
    return 'no AGC' if clip_factor is None else f'AGC, {clip_factor:g}'


def agc_figure(rows: Rows) -> Any:
    """Draw accuracy against learning rate for each threshold of AGC; a panel per batch size."""
    sizes = sorted(rows.values('batch_size'))
    figure, axes = new_figure(1, len(sizes) + 1, (3.6 * len(sizes) + 4.2, 3.9))
    clips = sorted(rows.values('clip_factor'), key=lambda c: -(c or math.inf))
    for ax, size in zip(axes.flat, sizes):
        for number, clip in enumerate(clips):
            mine = rows.where(batch_size=size, clip_factor=clip)
            lrs = sorted(mine.values('lr'))
            cells = [[r['accuracy'] for r in mine.where(lr=lr).rows] for lr in lrs]
            ax.plot(
                lrs, [sum(c) / len(c) for c in cells], color=COLOURS[number],
                marker=MARKERS[number], label=clip_label(clip), linewidth=1.4, markersize=5,
            )  # fmt: skip
            for lr, cell in zip(lrs, cells):
                ax.plot([lr] * 2, [min(cell), max(cell)], color=COLOURS[number], linewidth=1)
        ax.set_xscale('log', base=2)
        ax.set_xticks(sorted(rows.values('lr')), [f'{lr:g}' for lr in sorted(rows.values('lr'))])
        ax.set_ylim(0, 80)
        ax.set_title(f'batch size {size}', fontsize=10)
        ax.set_xlabel('Learning rate')
    axes[0, 0].set_ylabel('Test accuracy (%)')
    axes[0, 0].legend(frameon=False, fontsize=9)
    draw_clipped(axes[0, -1], rows)
    return figure


def shares(rows: Rows) -> dict[str, float]:
    """Return the share of the units that AGC clipped, by stage and kind of parameter."""
    counts: dict[str, list[int]] = {}
    for row in rows.rows:
        for name, (clipped, units) in row.get('clipped', {}).items():
            count = counts.setdefault(name, [0, 0])
            count[0] += clipped
            count[1] += units
    return {name: clipped / units for name, (clipped, units) in counts.items()}


KINDS = ('weight', 'bias', 'gain', 'SkipInit gains')


def draw_clipped(ax: Any, rows: Rows) -> None:
    """Draw which parameters AGC clips: a line for each kind, over the stages."""
    found = shares(rows.where(clip_factor=0.1))
    stages = ['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'classifier']
    for number, kind in enumerate(KINDS):
        points = [(x, found.get(f'{stage} {kind}')) for x, stage in enumerate(stages)]
        points = [(x, 100 * y) for x, y in points if y is not None]
        ax.plot(*zip(*points), color=COLOURS[3 + number], marker=MARKERS[3 + number], label=kind)
    ax.set_xticks(range(len(stages)), stages, rotation=30, fontsize=9)
    ax.set_ylim(0, 105)
    ax.set_ylabel('Clipped units (%)')
    ax.set_title('clipped with AGC, 0.1', fontsize=10)
    ax.legend(frameon=False, fontsize=9)


def collapse_figure(rows: Rows) -> Any:
    """Draw the gradient's mean over the blocks, a line for each moment, and the losses.

    There is a column for each network, and a row for each learning rate.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    networks, lrs = rows.values('network'), sorted(rows.values('lr'))
    size = (3 * len(networks) + 0.8, 2.3 * len(lrs) + 2.7)
    figure, axes = new_figure(len(lrs) + 1, len(networks), size, sharey='row')
    colours = ScalarMappable(Normalize(0, max(rows.values('steps'))), colormaps['viridis'])
    for column, network in zip(axes.T, networks):
        mine = rows.where(network=network)
        for ax, lr in zip(column, lrs):
            for frame in (f for row in mine.where(lr=lr, seed=0).rows for f in row['film']):
                share = mean_share(frame)
                ax.plot(range(len(share)), share, color=colours.to_rgba(frame['step']), lw=1.2)
            ax.set_yscale('log')
            ax.set_ylim(1e-5, 1)
            ax.set_xlabel('Block')
        column[0].set_title(NETWORKS[network].label, fontsize=10)
        draw_losses(column[-1], mine)
    for ax, lr in zip(axes[:, 0], lrs):
        ax.set_ylabel(f'Share of the mean in the\nsquared gradient, lr {lr:g}')
    axes[-1, 0].set_ylabel('Training loss')
    axes[-1, 0].legend(frameon=False, fontsize=9)
    figure.colorbar(colours, ax=axes[:-1], label='step')
    return figure


def draw_losses(ax: Any, rows: Rows) -> None:
    """Draw the losses of all seeds, with a cross where the next one is not finite."""
    for colour, lr in zip(('0.2', '#0072B2', '#E69F00'), sorted(rows.values('lr'))):
        for row in rows.where(lr=lr).rows:
            moments = [(f['step'], f['loss']) for f in row['film'] if f['loss'] is not None]
            label = f'lr {lr:g}' if row['seed'] == rows.rows[0]['seed'] else None
            ax.plot(*zip(*moments), color=colour, linewidth=1.2, label=label)
            if row['failed'] == 'non-finite':
                step, loss = moments[-1]
                ax.plot(step, min(loss, LARGEST_LOSS), 'x', color='#D55E00', markersize=7)
    ax.axhline(math.log(10), color='0.5', linewidth=0.8, linestyle=':')
    ax.set_yscale('log')
    ax.set_ylim(0.4, 2 * LARGEST_LOSS)
    ax.set_xlim(-1, rows.rows[0]['steps'])
    ax.set_xlabel('Step')


FIGURES: dict[str, tuple[str, Callable[[Rows], Any]]] = {
    'depth': ('depth', depth_figure),
    'batch': ('batch', batch_figure),
    'agc': ('agc', agc_figure),
    'collapse': ('collapse', collapse_figure),
    'landscape': ('landscape', landscape_figure),
    'landscape_plane': ('landscape', plane_figure),
    'landscape_gradient': ('landscape', gradient_figure),
}
"""File -> the part whose rows it shows, and the function that draws them."""


def write_figures(rows: Rows, folder: Path) -> None:
    """Write the figures of the parts that have results."""
    files: dict[Path, bytes | str] = {}
    for name, (part, draw) in FIGURES.items():
        mine = rows.where(part=part)
        if mine.rows:
            content = io.BytesIO()
            draw(mine).savefig(content, format='png')
            files[folder / f'{name}.png'] = content.getvalue()
    if filmed := rows.where(part='collapse', seed=0).rows:
        files[folder / 'collapse.gif'] = film(Rows(filmed))
    with as_usage_error(f'cannot write into {folder}'):
        atomic_write_all(files)
