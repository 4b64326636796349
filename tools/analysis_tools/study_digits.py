"""Networks with and without normalisation on real data, over batch sizes and learning rates.

    python tools/analysis_tools/study_digits.py --out benchmarks/results/study_digits

trains the networks of the digits configs (batch norm, group norm, PWS, NF with and without
AGC, and plain ones) on the embedded digits, and writes results.json, table.md and figures.
A stopped study goes on where it was: finished runs are kept in results.json.
"""

from __future__ import annotations

import argparse
import copy
import functools
import io
import itertools
import json
import logging
import math
import os
import platform
import queue
import re
import shlex
import signal as signals
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mmengine
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from mmengine.utils import ProgressBar
from torch import Tensor, nn
from torch.nn import functional as F

import nf_plugins
from nf_plugins.cli.arguments import ArgumentParser
from nf_plugins.cli.command_line import command_line
from nf_plugins.config import load_config
from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.spp import BlockSignal, SignalProfile, analyze
from nf_plugins.spp.plot import COLOURS, MARKERS, METRICS, plot_metric
from nf_plugins.utils.files import atomic_write, atomic_write_all

SCHEMA = 'nf_plugins.study_digits/1'
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


class Network(NamedTuple):
    """A line of the figures.

    Args:
        label: Its name in tables and figures.
        config: The config, in the folder of the configs.
        change: What is changed in the config's model: half the width, to save time.
        agc: Whether gradients are clipped adaptively.
    """

    label: str
    config: str
    change: dict[str, Any]
    agc: bool = False


_HALF = {'backbone.stem_channels': 8, 'backbone.base_channels': 8, 'head.in_channels': 64}
# A SkipInit gain of 0, as shipped, leaves 0 too slowly for runs this short: with AGC a step moves
# it by no more than lr * clip_factor * eps, times ten by the momentum.
_HALF_NF = {
    'backbone.base_channels': 8,
    'neck.in_channels': 256,
    'head.in_channels': 256,
    'backbone.skipinit': 1.0,
}
_NF = 'nf_resnet/nf-resnet_digits.py'
NETWORKS = {
    'bn': Network('batch norm', 'baselines/resnet-bn_digits.py', _HALF),
    'gn': Network(
        'group norm',
        'baselines/resnet-gn_digits.py',
        {**_HALF, 'backbone.norm_cfg.num_groups': 4},
    ),
    'pws': Network('PWS', 'pws_resnet/pws-resnet_digits.py', {**_HALF, 'neck.in_channels': 64}),
    'nf-agc': Network('NF, AGC', _NF, _HALF_NF, agc=True),
    'nf': Network('NF, no AGC', _NF, _HALF_NF),
    'plain': Network('plain', 'baselines/resnet-plain_digits.py', _HALF),
}
FULL = dict(batch_sizes=[4, 16, 64, 512], lrs=[0.0125, 0.05, 0.2, 0.8, 3.2], seeds=[0, 1, 2])
QUICK = dict(
    batch_sizes=[4, 64], lrs=[0.05, 0.2], seeds=[0], epochs=0.01, min_steps=2, test_images=50
)
METRIC_NAMES = ('index', 'name', 'kind', *METRICS)


@dataclass(frozen=True)
class Setting:
    """What every run of a study has in common.

    Args:
        epochs: Passes over the training images, by which the number of steps is set.
        min_steps: The least number of steps, which large batches get.
        image_size: Side of the images.
        clip_factor: Threshold of AGC.
        test_images: How many of the test images are used.
        reference: Batch size and learning rate whose first run has signal propagation.
        chance: Test accuracy in percent at or below which a run has learnt nothing.
    """

    epochs: float = 2.0
    min_steps: int = 120
    image_size: int = 12
    clip_factor: float = 0.1
    test_images: int = 359
    reference: tuple[int, float] = (64, 0.05)
    chance: float = 15.0

    def steps(self, images: int, batch_size: int) -> int:
        return max(self.min_steps, round(self.epochs * images / batch_size))


class Run(NamedTuple):
    """What distinguishes a run of a study."""

    network: str
    batch_size: int
    lr: float
    seed: int


class Data(NamedTuple):
    """The digits in memory, normalised.

    Args:
        train: ``(9, N, 1, H, W)``, the images at each crop that the config's random crop
            (one pixel of padding) can make; index 4 is not shifted.
        train_labels: ``(N,)``.
        test: ``(M, 1, H, W)``.
        test_labels: ``(M,)``.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@contextmanager
def quiet() -> Iterator[None]:
    """mmengine lists the initialisation and the settings of each parameter."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@functools.cache
def config_of(network: str) -> Config:
    about = NETWORKS[network]
    options = {f'model.{key}': value for key, value in about.change.items()}
    return load_config(str(CONFIGS / about.config), options)


@functools.cache
def load_images(image_size: int) -> Data:
    """The images of the digits configs, at another size, in memory."""
    cfg = config_of('nf')
    mean, std = cfg.data_preprocessor.mean[0], cfg.data_preprocessor.std[0]
    pipeline = copy.deepcopy(cfg.test_pipeline)
    pipeline[0].scale = (image_size, image_size)
    found = []
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        items = list(DATASETS.build({**loader.dataset, 'pipeline': pipeline}))
        images = torch.stack([item['inputs'] for item in items]).float()
        found += [images, torch.tensor([int(item['data_samples'].gt_label) for item in items])]
    train, train_labels, test, test_labels = found
    padded = F.pad(train, (1, 1, 1, 1))
    crops = [
        padded[:, :, y : y + image_size, x : x + image_size] for y in range(3) for x in range(3)
    ]
    train = (torch.stack(crops) - mean) / std
    return Data(train, train_labels, (test - mean) / std, test_labels)


def load_data(setting: Setting) -> Data:
    """The images of a setting."""
    data, kept = load_images(setting.image_size), slice(setting.test_images)
    return data._replace(test=data.test[kept], test_labels=data.test_labels[kept])


def build(network: str, lr: float, clip_factor: float) -> tuple[nn.Module, Any]:
    """A network of a config, and its optimizer with the config's parameter groups."""
    cfg = config_of(network)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    optim_wrapper = copy.deepcopy(cfg.optim_wrapper)
    optim_wrapper.optimizer.lr = lr
    if NETWORKS[network].agc:
        optim_wrapper.type = 'nf_plugins.AGCOptimWrapper'
        optim_wrapper.clip_grad = dict(
            type='agc', clip_factor=clip_factor, eps=1e-3, skip=['head.fc.weight']
        )
    optimizer = build_optim_wrapper(model, optim_wrapper)
    optimizer.initialize_count_status(model, 0, 1)
    return model, optimizer


def schedule(step: int, steps: int) -> float:
    """Linear warm-up from 0.1 in a tenth of the steps, then a cosine to 0, as the config's."""
    warmup = steps / 10
    if step < warmup:
        return 0.1 + 0.9 * step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def signal(model: nn.Module, data: Data) -> list[dict]:
    """The signal propagation on 256 training images."""
    blocks = [b.to_dict() for b in analyze(model, data.train[4, :256], mode='train').blocks]
    return [{name: block[name] for name in METRIC_NAMES} for block in blocks]


def train(run: Run, setting: Setting) -> dict:
    """Train and test one network: a row of the results."""
    data = load_data(setting)
    start, cpu_start = time.perf_counter(), time.process_time()
    torch.manual_seed(run.seed)
    with quiet():
        model, optimizer = build(run.network, run.lr, setting.clip_factor)
    with_signal = (run.batch_size, run.lr) == setting.reference and run.seed == 0
    spp = dict(start=signal(model, data)) if with_signal else None
    torch.manual_seed(run.seed)
    images = len(data.train_labels)
    steps = setting.steps(images, run.batch_size)
    passes = math.ceil(steps * run.batch_size / images)
    order = torch.cat([torch.randperm(images) for _ in range(passes)])
    crops = torch.randint(9, order.shape)
    losses: list[float] = []
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group['lr'] = run.lr * schedule(step, steps)
        chosen = slice(step * run.batch_size, (step + 1) * run.batch_size)
        batch = data.train[crops[chosen], order[chosen]]
        loss = F.cross_entropy(model(batch), data.train_labels[order[chosen]])
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.update_params(loss)
    model.eval()
    with torch.no_grad():
        logits = model(data.test)
    # A network without finite outputs guesses.
    finite = math.isfinite(losses[-1]) and bool(torch.isfinite(logits).all())
    correct = (logits.argmax(1) == data.test_labels).double().mean().item()
    accuracy = 100 * correct if finite else 10.0
    tail = losses[-max(1, steps // 10) :]
    row = dict(
        **run._asdict(),
        steps=steps,
        accuracy=round(accuracy, 3),
        train_loss=float(f'{statistics.fmean(tail):.5g}') if finite else None,
        diverged=None if accuracy > setting.chance else 'chance' if finite else 'non-finite',
    )
    if spp is not None:
        row['spp'] = dict(**spp, end=signal(model, data))
    return dict(
        **row,
        seconds=round(time.perf_counter() - start, 2),
        cpu_seconds=round(time.process_time() - cpu_start, 2),
    )


def attempt(run: Run, setting: Setting) -> dict:
    """A row of the results, or what is wrong with the run."""
    try:
        return train(run, setting)
    except Exception as error:
        what = f'{run.network}, batch size {run.batch_size}, {setting.image_size} pixels'
        return dict(error=f'cannot train {what}: {error}')


def work(setting: Setting) -> None:
    """Runs come in as JSON lines and rows go out, until the input ends."""
    rows = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print must not get between the rows
    signals.signal(signals.SIGINT, signals.SIG_IGN)  # the study itself ends its workers
    torch.set_num_threads(1)
    for line in sys.stdin:
        rows.write(json.dumps(attempt(Run(*json.loads(line)), setting)) + '\n')
        rows.flush()


def run_all(runs: list[Run], setting: Setting, workers: int) -> Iterator[dict]:
    """Rows in the order in which they finish.

    The workers read from pipes: if this process is killed, they end after their run.
    """
    if not workers:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from (attempt(run, setting) for run in runs)
        finally:
            torch.set_num_threads(threads)
        return
    todo: queue.SimpleQueue[Run] = queue.SimpleQueue()
    done: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
    for run in runs:
        todo.put(run)
    command = [sys.executable, '-W', 'ignore', __file__, '--worker', json.dumps(asdict(setting))]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(min(workers, len(runs)))
    ]

    def serve(process: subprocess.Popen) -> None:
        try:
            while True:
                process.stdin.write(json.dumps(todo.get_nowait()) + '\n')
                process.stdin.flush()
                line = process.stdout.readline()
                while line and not line.startswith('{'):  # printed by an import
                    line = process.stdout.readline()
                done.put(json.loads(line))
        except queue.Empty:
            pass
        except (OSError, ValueError):  # the worker is gone
            done.put(None)

    try:
        for process in processes:
            threading.Thread(target=serve, args=(process,), daemon=True).start()
        for _ in runs:
            row = done.get()
            if row is None:
                raise UsageError('a worker ended early, see above; finished runs are kept')
            yield row
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


class Results:
    """The file results.json: one row per run, written whole after each run."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self.path = path
        self.content: dict[str, Any] = dict(
            schema=SCHEMA,
            setting=json.loads(json.dumps(asdict(setting))),
            wall_seconds=0.0,
            networks={},
            runs=[],
        )
        if path.exists():
            with as_usage_error(f'cannot read {path}'):
                found = json.loads(path.read_text())
                if not isinstance(found, dict) or found.get('schema') != SCHEMA:
                    raise ValueError(f'it is no file of schema {SCHEMA}')
                self._check(found['setting'])
                self.content.update(found)
                self.rows()
        self.content.update(
            command=shlex.join(['python', 'tools/analysis_tools/study_digits.py', *sys.argv[1:]]),
            machine=machine(),
        )

    def _check(self, setting: dict) -> None:
        ours = self.content['setting']
        differ = [
            f'{key} {setting.get(key)} (now {ours.get(key)})'
            for key in {**ours, **setting}
            if ours.get(key) != setting.get(key)
        ]
        if differ:
            raise ValueError(f'it has another setting: {", ".join(differ)}; take another --out')

    def rows(self) -> dict[Run, dict]:
        rows = {Run(*(row[key] for key in Run._fields)): row for row in self.content['runs']}
        if unknown := {run.network for run in rows} - set(NETWORKS):
            raise ValueError(f'it has an unknown network, {min(unknown)}')
        return rows

    def save(self) -> None:
        order = list(NETWORKS)
        self.content['runs'].sort(
            key=lambda r: (order.index(r['network']), *map(r.get, Run._fields[1:]))
        )
        # A row per line.
        text = json.dumps(self.content, indent=1)
        text = re.sub(r'\n {3,}', ' ', text)
        text = re.sub(r'\n  ([]}])', r' \1', text)
        with as_usage_error(f'cannot write {self.path}'):
            atomic_write(self.path, text + '\n')


def machine() -> dict:
    try:
        model = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())[1]
    except (OSError, TypeError):
        model = platform.processor()
    import mmpretrain

    return dict(
        cpus=os.cpu_count(),
        machine=platform.machine(),
        cpu=model,
        python=platform.python_version(),
        torch=torch.__version__,
        mmengine=mmengine.__version__,
        mmpretrain=mmpretrain.__version__,
        nf_plugins=nf_plugins.__version__,
    )


def describe(network: str) -> dict:
    with quiet():
        model, _ = build(network, 0.1, 0.01)
    parameters = sum(p.numel() for p in model.parameters())
    about = NETWORKS[network]
    return dict(label=about.label, config=f'configs/{about.config}', parameters=parameters)


class Grid:
    """The rows of a grid of runs, and their means over the seeds."""

    def __init__(self, rows: dict[Run, dict], args: argparse.Namespace) -> None:
        self.rows = rows
        self.networks, self.batch_sizes = args.networks, args.batch_sizes
        self.lrs, self.seeds = args.lrs, args.seeds

    def accuracies(self, network: str, batch_size: int, lr: float) -> list[float]:
        return [self.rows[Run(network, batch_size, lr, s)]['accuracy'] for s in self.seeds]

    def mean(self, network: str, batch_size: int, lr: float) -> float:
        return statistics.fmean(self.accuracies(network, batch_size, lr))

    def spread(self, network: str, batch_size: int, lr: float) -> float:
        values = self.accuracies(network, batch_size, lr)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def best_lr(self, network: str, batch_size: int) -> float:
        return max(self.lrs, key=lambda lr: self.mean(network, batch_size, lr))

    def working_lrs(self, network: str, batch_size: int) -> list[float]:
        """The learning rates of a mean of at least 90 %."""
        return [lr for lr in self.lrs if self.mean(network, batch_size, lr) >= 90]

    def common_lr(self) -> float:
        """The learning rate of the highest mean over all networks and batch sizes."""
        pairs = list(itertools.product(self.networks, self.batch_sizes))
        return max(self.lrs, key=lambda lr: sum(self.mean(n, b, lr) for n, b in pairs))

    def failures(self, **where: Any) -> tuple[int, int, int]:
        """Runs, those that became non-finite, and those that learnt nothing."""
        runs = [
            row
            for run, row in self.rows.items()
            if all(getattr(run, key) == value for key, value in where.items())
        ]
        kinds = [row['diverged'] for row in runs]
        return len(runs), kinds.count('non-finite'), kinds.count('chance')


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def table(grid: Grid, setting: Setting) -> str:
    """The tables of table.md."""

    def accuracy(network: str, batch_size: int, lr: float, name_lr: bool) -> str:
        mean, spread = (f(network, batch_size, lr) for f in (grid.mean, grid.spread))
        return f'{mean:.1f} ± {spread:.1f}' + (f' ({lr:g})' if name_lr else '')

    def failed(**where: Any) -> str:
        runs, non_finite, chance = grid.failures(**where)
        return f'{non_finite + chance} of {runs} ({non_finite})'

    def working(network: str, batch_size: int) -> str:
        return ', '.join(f'{lr:g}' for lr in grid.working_lrs(network, batch_size)) or 'none'

    labels = {network: NETWORKS[network].label for network in grid.networks}
    by_batch = ['network', *(f'batch {b}' for b in grid.batch_sizes)]
    common = grid.common_lr()
    best = [
        [label, *(accuracy(n, b, grid.best_lr(n, b), True) for b in grid.batch_sizes)]
        for n, label in labels.items()
    ]
    at_common = [
        [label, *(accuracy(n, b, common, False) for b in grid.batch_sizes)]
        for n, label in labels.items()
    ]
    lrs = [[label, *(working(n, b) for b in grid.batch_sizes)] for n, label in labels.items()]
    diverged = [
        [label, *(failed(network=n, batch_size=b) for b in grid.batch_sizes), failed(network=n)]
        for n, label in labels.items()
    ]
    by_lr = [
        [label, *(failed(network=n, lr=lr) for lr in grid.lrs), failed(network=n)]
        for n, label in labels.items()
    ]
    seeds = f'{len(grid.seeds)} seeds' if len(grid.seeds) > 1 else 'one seed'
    return f"""\
## Test accuracy in percent at the best learning rate (in brackets)

Mean ± standard deviation over {seeds}. The best learning rate is that of the highest mean.

{markdown(by_batch, best)}

## Test accuracy in percent at one learning rate, {common:g}

It is the one of the highest mean over all networks and batch sizes.

{markdown(by_batch, at_common)}

## Learning rates with a mean test accuracy of at least 90 %

{markdown(by_batch, lrs)}

## Diverged runs

At most {setting.chance:g} % of the test images right at the end, or a loss or an output that is
not finite (these in brackets). Over all learning rates:

{markdown([*by_batch, 'all'], diverged)}

Over all batch sizes:

{markdown(['network', *(f'lr {lr:g}' for lr in grid.lrs), 'all'], by_lr)}
"""


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
    """A line per network through the means at (x, batch size, learning rate).

    The lines are moved a little so that their bars, from the worst to the best seed, stay apart.
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
    """Test error on a logarithmic axis, labelled as accuracy: 98 and 99 % differ visibly."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = [0, 50, 80, 90, 95, 98, 99, 100]
    lowest = min(ax.dataLim.y0 for ax in axes.flat)
    bottom = max((t for t in ticks[:4] if t < lowest), default=0)
    for ax in axes.flat:
        ax.set_yscale('function', functions=(_stretch, _unstretch))
        ax.set_ylim(bottom, 100.05)
        ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_minor_locator(NullLocator())


_ZERO = 100.3  # an error of 0 is drawn as one more wrong test image


def _stretch(accuracy: Any) -> Any:
    import numpy as np

    return -np.log(np.maximum(_ZERO - np.asarray(accuracy, float), 0.01))


def _unstretch(value: Any) -> Any:
    import numpy as np

    return _ZERO - np.exp(-np.asarray(value, float))


def accuracy_figure(grid: Grid) -> Any:
    """Accuracy against batch size."""
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
    """Accuracy against learning rate, a panel per batch size."""
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
    """Signal propagation at the start and at the end, or None without such runs."""
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


def report(results: Results, args: argparse.Namespace, setting: Setting) -> str:
    """Write the table and the figures, and return the table."""
    wanted = set(runs_of(args))
    rows = {run: row for run, row in results.rows().items() if run in wanted}
    grid = Grid(rows, args)
    text = table(grid, setting)
    files: dict[Path, bytes | str] = {args.out / 'table.md': text}
    figures = dict(accuracy=accuracy_figure(grid), lr=lr_figure(grid))
    figures['spp'] = spp_figure(grid, setting)
    for name, figure in figures.items():
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format='png')
            files[args.out / f'{name}.png'] = buffer.getvalue()
    with as_usage_error(f'cannot write into {args.out}'):
        atomic_write_all(files)
    if figures['spp'] is None:
        batch_size, lr = setting.reference
        text += f'\nNo spp.png: it is of batch size {batch_size}, lr {lr:g}, seed 0.\n'
    return text


def runs_of(args: argparse.Namespace) -> list[Run]:
    # The batch sizes in turn, so that the time left can be told early.
    return [
        Run(network, batch_size, lr, seed)
        for seed in args.seeds
        for lr in args.lrs
        for network in args.networks
        for batch_size in args.batch_sizes
    ]


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Two studies must not write the same files."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    # Not the folder itself, which `atomic_write_all` locks.
    lock = Path(folder) / '.study.lock'
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    except BlockingIOError:
        raise UsageError(f'another study is writing into {folder}') from None
    finally:
        os.close(handle)


def positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError
        return value

    parse.__name__ = f'positive {kind.__name__}'
    return parse


def natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    number, size = positive(float), positive(int)
    parser.add_argument('--networks', nargs='+', choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument('--batch-sizes', nargs='+', type=size, help='default: 4 to 512')
    parser.add_argument('--lrs', nargs='+', type=number, help='default: 0.0125 to 3.2')
    parser.add_argument('--seeds', nargs='+', type=natural, help='default: 0 1 2')
    parser.add_argument('--epochs', type=number, help='passes over the images, default 2')
    parser.add_argument('--min-steps', type=size, help='at least so many steps, default 120')
    parser.add_argument('--image-size', type=size, help='side of the images, default 12')
    parser.add_argument('--clip-factor', type=number, help='threshold of AGC, default 0.1')
    parser.add_argument('--quick', action='store_true', help='a few steps only, to try the tool')
    parser.add_argument(
        '--workers', type=natural, default=2, help='processes of one thread; 0: in this one'
    )
    parser.add_argument('--out', type=Path, default=Path('benchmarks/results/study_digits'))
    parser.add_argument('--worker', type=json.loads, help=argparse.SUPPRESS)
    with as_usage_error('bad arguments'):
        args = parser.parse_args()
    for key, value in {**FULL, **(QUICK if args.quick else {})}.items():
        if getattr(args, key, None) is None:
            setattr(args, key, value)
    for key in ('networks', 'batch_sizes', 'lrs', 'seeds'):
        values = getattr(args, key)
        if len(set(values)) < len(values):
            raise UsageError(f'--{key.replace("_", "-")} names one twice: {values}')
        setattr(args, key, values if key == 'networks' else sorted(values))
    return args


def setting_of(args: argparse.Namespace) -> Setting:
    given = {key: getattr(args, key, None) for key in asdict(Setting())}
    return Setting(**{key: value for key, value in given.items() if value is not None})


@command_line
def main() -> None:
    args = parse_args()
    if args.worker:
        work(Setting(**{**args.worker, 'reference': tuple(args.worker['reference'])}))
        return
    setting = setting_of(args)
    with as_usage_error(f'cannot write into {args.out}'):
        args.out.mkdir(parents=True, exist_ok=True)
    with only_one(args.out):
        results = Results(args.out / 'results.json', setting)
        finished = results.rows()
        runs = [run for run in runs_of(args) if run not in finished]
        with as_usage_error('cannot read the digits'):
            load_data(setting)
        for network in args.networks:
            if network not in results.content['networks']:
                results.content['networks'][network] = describe(network)
        results.save()
        print(f'{len(runs)} runs to do, {len(runs_of(args)) - len(runs)} are there', flush=True)
        if runs:
            bar = ProgressBar(len(runs), file=sys.stderr)
            before, start = results.content['wall_seconds'], time.time()
            for row in run_all(runs, setting, args.workers):
                if 'error' in row:
                    print(file=sys.stderr)
                    raise UsageError(row['error'])
                results.content['runs'].append(row)
                results.content['wall_seconds'] = round(before + time.time() - start, 1)
                results.save()
                bar.update()
            print(file=sys.stderr)
        print(report(results, args, setting))


if __name__ == '__main__':
    main()
