"""Measure what a training image costs, beside the published accuracy of the network.

    python -m benchmarks.cost.accuracy --out benchmarks/results/cost_accuracy.json \\
        --docs docs/cost.md

Each network makes training steps at the resolution at which its authors trained it. The steps of
all networks are interleaved in one process. A table (.md) and a figure (.png) with the same name
are written beside the JSON file, and --docs writes the section of the page between its marks.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import nf_plugins.models  # noqa: F401 (registers the networks)
from benchmarks.common import command, machine, quiet
from nf_plugins.cli.arguments import ArgumentParser, positive
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.utils.files import atomic_write, atomic_write_all

from .benchmark import GAIN, Setting, summary, training_step
from .measuring import interleaved

MODULE = 'benchmarks.cost.accuracy'
BASE = 'ResNet-50'
START, END = '<!-- made by make bench-accuracy -->', '<!-- end of the section -->'


@dataclass(frozen=True)
class Network:
    """A network as it was published.

    Args:
        family: Networks of a family are one line in the figure.
        config: Of the backbone.
        size: Height and width of the training images.
        top1: Published accuracy on ImageNet in per cent.
        source: Who published it.
        tpu: Milliseconds of a training step per device on TPUv3, with 32 images (2102.06171).
        v100: The same on a V100.
    """

    family: str
    config: dict[str, Any]
    size: int
    top1: float | None = None
    source: str = ''
    tpu: float | None = None
    v100: float | None = None


MMPRETRAIN, PAPER = 'mmpretrain', '2102.06171'


def efficientnet(arch: str, size: int, top1: float, **more: Any) -> Network:
    config = dict(type='mmpretrain.EfficientNet', arch=arch)
    return Network('EfficientNet', config, size, top1, MMPRETRAIN, **more)


def nf_regnet(arch: str, size: int, top1: float | None = None, source: str = '') -> Network:
    return Network('NF-RegNet', dict(type='NFRegNet', arch=arch, skipinit=GAIN), size, top1, source)


def nfnet(arch: str, size: int, top1: float, **more: Any) -> Network:
    config = dict(type='NFNet', arch=arch, skipinit=GAIN)
    return Network('NFNet', config, size, top1, PAPER, **more)


NETWORKS = {
    BASE: Network('ResNet', dict(type='mmpretrain.ResNet', depth=50), 224, 76.55, MMPRETRAIN),
    'EfficientNet-B0': efficientnet('b0', 224, 77.26),
    'EfficientNet-B1': efficientnet('b1', 240, 79.20),
    'EfficientNet-B2': efficientnet('b2', 260, 80.21),
    'EfficientNet-B3': efficientnet('b3', 300, 81.58),
    'EfficientNet-B4': efficientnet('b4', 380, 82.95),
    'EfficientNet-B5': efficientnet('b5', 456, 83.82),
    'EfficientNet-B7': efficientnet('b7', 600, 84.38, tpu=1397.0, v100=1753.3),
    'NF-RegNet-B0': nf_regnet('b0', 192),
    'NF-RegNet-B1': nf_regnet('b1', 224, 79.37, 'timm, trained at 256x256'),
    'NF-RegNet-B2': nf_regnet('b2', 240),
    'NF-RegNet-B3': nf_regnet('b3', 288),
    'NF-RegNet-B4': nf_regnet('b4', 320),
    'NF-RegNet-B5': nf_regnet('b5', 384),
    'NFNet-F0': nfnet('f0', 192, 83.6),
    'NFNet-F1': nfnet('f1', 224, 84.7, tpu=158.5, v100=133.9),
}


def counts(net: nn.Module, size: int) -> dict[str, int]:
    """Parameters without a classifier, and multiply-adds of a forward pass of one image."""
    net.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, size, size))
    parameters = sum(p.numel() for p in net.parameters())
    return dict(parameters=parameters, multiply_adds=counter.get_total_flops() // 2)


def measure(names: list[str], images: int, rounds: int) -> dict[str, dict[str, Any]]:
    """The published facts of each network, its size, and the milliseconds of a training image."""
    found, jobs = {}, {}
    for name in names:
        size = NETWORKS[name].size
        net = MODELS.build(NETWORKS[name].config)
        found[name] = {**asdict(NETWORKS[name]), **counts(net, size)}
        jobs[name] = training_step(net, Setting('cpu', 'fp32', False, images, size))
    for name, times in summary(interleaved(jobs, rounds), base=names[0]).items():
        low, middle, high = (ms / images for ms in times['ms'])
        found[name].update(ms=middle, ms_quartiles=[low, high])
    return found


def _cell(value: float | None, form: str) -> str:
    return '' if value is None else format(value, form)


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    titles = ['network', 'training images', 'parameters, M', 'multiply-adds, G']
    titles += ['ms of an image in training', f': {BASE}', 'top-1, %', 'of', 'TPUv3, ms', 'V100, ms']
    lines = ['| ' + ' | '.join(titles) + ' |', '| --- |' + ' ---: |' * (len(titles) - 1)]
    base = results.get(BASE)
    for name, found in results.items():
        low, high = found['ms_quartiles']
        cells = [name, f'{found["size"]}x{found["size"]}']
        cells += [f'{found["parameters"] / 1e6:.1f}', f'{found["multiply_adds"] / 1e9:.2f}']
        cells += [f'{found["ms"]:.0f} ({low:.0f} to {high:.0f})']
        cells += [f'{found["ms"] / base["ms"]:.2f}' if base else '']
        cells += [_cell(found['top1'], '.2f'), found['source']]
        cells += [_cell(found[device], '.1f') for device in ('tpu', 'v100')]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def faster(results: dict[str, dict[str, Any]]) -> str:
    """Say how much faster NFNet-F1 trains than EfficientNet-B7, here and as published."""
    pair = [results.get(name) for name in ('EfficientNet-B7', 'NFNet-F1')]
    if None in pair:
        return ''
    here, tpu, v100 = (pair[0][key] / pair[1][key] for key in ('ms', 'tpu', 'v100'))
    return (
        f'NFNet-F1 and EfficientNet-B7 are about equally accurate. An image of a training takes '
        f'{here:.1f} times less\ntime in NFNet-F1 on this machine. By the times of the paper, it '
        f'is {tpu:.1f} times less on TPUv3 and {v100:.1f} times\nless on a V100; the text of the '
        f'paper says 8.7.\n\n'
    )


def section(found: dict[str, Any], png: str) -> str:
    """The section of docs/cost.md.

    Args:
        found: The content of the JSON file.
        png: Path of the figure, relative to the page.
    """
    about = found['machine']
    return (
        f'Measured with {found["images"]} images in a step on {about["cpu"]} with '
        f'{about["threads"]} threads, torch {about["torch"]}.\n\n'
        f'![Time of a training image against multiply-adds and accuracy]({png})\n\n'
        f'{faster(found["results"])}{table(found["results"])}'
    )


def with_section(page: str, text: str) -> str:
    """Put the section into a page.

    Raises:
        ValueError: The page has no place for it.
    """
    if START not in page or END not in page:
        raise ValueError(f'it has no place for the section: {START} ... {END}')
    before, after = page.split(START)[0], page.split(END)[1]
    return f'{before}{START}\n\n{text}\n{END}{after}'


COLOURS = {'ResNet': '0.3', 'EfficientNet': '#d55e00', 'NF-RegNet': '#009e73', 'NFNet': '#0072b2'}


def figure(results: dict[str, dict[str, Any]]) -> bytes:
    """Draw the time of a training image against its multiply-adds and the accuracy, as PNG."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2))
    for family, colour in COLOURS.items():
        rows = [(name, r) for name, r in results.items() if r['family'] == family]
        rated = [(name, r) for name, r in rows if r['top1'] is not None]
        style = dict(color=colour, marker='o', ms=4, lw=1, label=family)
        left.plot([r['multiply_adds'] / 1e9 for _, r in rows], [r['ms'] for _, r in rows], **style)
        right.plot([r['ms'] for _, r in rated], [r['top1'] for _, r in rated], **style)
        for ax, points in ((left, rows), (right, rated)):
            for name, r in points:
                xy = (r['multiply_adds'] / 1e9, r['ms']) if ax is left else (r['ms'], r['top1'])
                text = name.rpartition('-')[2] if family != 'ResNet' else name
                ax.annotate(text, xy, (4, -9), textcoords='offset points', fontsize=7, color=colour)
    left.set(xscale='log', yscale='log', xlabel='multiply-adds of a forward pass, billion')
    left.set_ylabel('ms of an image in training')
    right.set(xscale='log', xlabel='ms of an image in training', ylabel='published top-1, %')
    for axis in (left.xaxis, left.yaxis, right.xaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axis.set_minor_locator(NullLocator())
    for ax in (left, right):
        ax.margins(0.1)
        ax.grid(alpha=0.3, lw=0.5)
    left.legend(frameon=False, fontsize=8)
    fig.tight_layout()
    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=130)
    plt.close(fig)
    return buffer.getvalue()


@command_line
@quiet()
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument('--images', type=positive, default=2, help='images in a step')
    parser.add_argument('--rounds', type=positive, default=5)
    parser.add_argument('--out', type=Path, help='JSON file; a table and a figure go beside it')
    parser.add_argument('--docs', type=Path, help='write the section of this page, too')
    with as_usage_error('bad arguments'):
        args = parser.parse_args()
    if args.docs and not args.out:
        raise UsageError('--docs needs --out: the page shows its figure')
    if args.docs:  # before the minutes that the measurement takes
        with as_usage_error(f'cannot write the section of {args.docs}'):
            with_section(args.docs.read_text('utf-8'), '')
    steps = len(args.networks) * (args.rounds + 1)
    print(f'{steps} training steps of {args.images} images', file=sys.stderr, flush=True)
    results = measure(args.networks, args.images, args.rounds)
    print(table(results))
    if args.out:
        write(results, args)


def write(results: dict[str, dict[str, Any]], args: Any) -> None:
    """Write the results, their table and figure, and the section of the page."""
    found = dict(machine=machine(), command=command(MODULE), images=args.images, results=results)
    png = args.out.with_suffix('.png')
    files: dict[Path, bytes | str] = {
        args.out: json.dumps(found, indent=1) + '\n',
        args.out.with_suffix('.md'): table(results),
        png: figure(results),
    }
    with as_usage_error(f'cannot write {args.out}'):
        atomic_write_all(files)
    if args.docs:
        text = section(found, Path(os.path.relpath(png, args.docs.parent)).as_posix())
        with as_usage_error(f'cannot write the section of {args.docs}'):
            atomic_write(args.docs, with_section(args.docs.read_text('utf-8'), text))


if __name__ == '__main__':
    main()
