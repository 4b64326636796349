"""Plot the loss of a trained classifier around its weights.

    python tools/analysis_tools/loss_landscape.py CONFIG CHECKPOINT --compare CONFIG=CHECKPOINT

draws the loss along a random direction that is normalised by filter (Li et al. 2018), and along its
own gradient, for several networks. `--plane` also draws it in two random directions. Give the
checkpoints of several epochs to --compare to see the loss along the gradient while training.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmengine.utils import ProgressBar
from torch import Tensor, nn

from nf_plugins.checkpoint.fit import backbone_weights
from nf_plugins.cli.arguments import ArgumentParser, output_folder, positive
from nf_plugins.cli.command_line import command_line, quiet
from nf_plugins.config import build_model, load_config
from nf_plugins.datasets.sources import as_usage_error_with_data
from nf_plugins.errors import as_usage_error, say
from nf_plugins.functional.loss_landscape import gradient_direction, loss_along, random_direction
from nf_plugins.spp.report.axes import COLOURS, MARKERS
from nf_plugins.utils.files import atomic_write_all


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description='Plot the loss around the weights of a classifier.')
    parser.add_argument('config', help='config file of a classifier')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument(
        '--compare', nargs='+', default=[], metavar='CONFIG=CHECKPOINT', help='more networks'
    )
    parser.add_argument('--label', nargs='+', help='names for the legend, one per network')
    parser.add_argument('--images', type=positive, default=256, help='default: 256')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='train')
    parser.add_argument('--points', type=positive, default=21, help='along a line; default: 21')
    parser.add_argument(
        '--radius', type=_positive_number, default=1.0,
        help='largest step along a random direction, relative to the weights; default: 1',
    )  # fmt: skip
    parser.add_argument(
        '--step', type=_positive_number, default=1.0,
        help='largest step along the gradient, as a learning rate; default: 1',
    )  # fmt: skip
    parser.add_argument('--plane', action='store_true', help='also in two random directions')
    parser.add_argument('--seed', type=int, default=0, help='seed of the directions')
    parser.add_argument('--out-dir', help='default: work_dirs/loss_landscape/CONFIG')
    args = parser.parse_args(arguments)
    args.networks = [(args.config, args.checkpoint)]
    for source in args.compare:
        config, equals, checkpoint = source.partition('=')
        if not equals:
            parser.error(f'--compare takes CONFIG=CHECKPOINT, got {source!r}')
        args.networks.append((config, checkpoint))
    if args.label and len(args.label) != len(args.networks):
        parser.error(f'--label takes {len(args.networks)} names, got {len(args.label)}')
    args.label = args.label or [Path(config).stem for config, _ in args.networks]
    return args


def _positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive number')
    return value


def load(config: str, checkpoint: str, split: str, images: int) -> tuple[nn.Module, Callable]:
    """Build a trained network and the function that computes its loss on some images.

    It is in eval mode: batch norm uses its running statistics, which are those of the centre.
    """
    cfg = load_config(config)
    model = build_model(cfg, config).eval()
    state, _ = backbone_weights(checkpoint, model, '')
    model.load_state_dict(state)
    key = f'{split}_dataloader'
    with as_usage_error_with_data(f'cannot read the {split} data of {config}', cfg, [key]):
        dataset: Any = DATASETS.build(cfg[key].dataset)
        items = pseudo_collate([dataset[i] for i in range(min(images, len(dataset)))])
        data = model.data_preprocessor(items, False)

    def loss() -> Tensor:
        losses = model(data['inputs'], data['data_samples'], mode='loss')
        return model.parse_losses(losses)[0]

    return model, loss


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the loss of each network along each kind of direction."""
    networks = [load(*network, args.split, args.images) for network in args.networks]
    sides = torch.linspace(-args.radius, args.radius, args.points).tolist()
    steps = torch.linspace(0, args.step, args.points).tolist()
    plane = sides if args.plane else []
    bar = ProgressBar(len(networks) * (2 * args.points + len(plane) ** 2), file=sys.stderr)
    found = []
    for (model, loss), (config, checkpoint), label in zip(networks, args.networks, args.label):
        first, second = (random_direction(model, args.seed + i) for i in range(2))
        descent = gradient_direction(model, loss)
        row: dict[str, Any] = dict(label=label, config=config, checkpoint=checkpoint)
        row['line'] = loss_along(model, loss, [first], [sides], bar.update).tolist()
        row['gradient'] = loss_along(model, loss, [descent], [steps], bar.update).tolist()
        if plane:
            row['plane'] = loss_along(
                model, loss, [first, second], [plane, plane], bar.update
            ).tolist()
        found.append(row)
    print(file=sys.stderr)
    return [dict(row, sides=sides, steps=steps) for row in found]


def draw(rows: list[dict[str, Any]]) -> bytes:
    """Draw the lines, and the planes as contours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    planes = [row for row in rows if 'plane' in row]
    columns = max(2, len(planes))
    figure = Figure((4.2 * columns, 8 if planes else 4), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if planes else 1, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    for ax, x, y, title in zip(
        axes[0],
        ('sides', 'steps'),
        ('line', 'gradient'),
        ('a random direction, relative to the weights', 'minus the gradient, as a learning rate'),
    ):
        ax.set_visible(True)
        for number, row in enumerate(rows):
            place = number % len(COLOURS)
            ax.plot(
                row[x], row[y], color=COLOURS[place], marker=MARKERS[place], label=row['label'],
                markersize=4,
            )  # fmt: skip
        ax.set_yscale('log')
        ax.set_xlabel(f'Step along {title}')
        ax.grid(color='0.9')
    axes[0, 0].set_ylabel('Loss')
    axes[0, 0].legend(frameon=False)
    for ax, row in zip(axes[-1], planes):
        ax.set_visible(True)
        values = torch.tensor(row['plane']).clamp(min=1e-6).log10().T
        drawn = ax.contourf(row['sides'], row['sides'], values, levels=20, cmap='viridis')
        figure.colorbar(drawn, ax=ax, label='Loss, log10')
        ax.set_title(row['label'], fontsize=10)
        ax.set_aspect('equal')
    content = io.BytesIO()
    figure.savefig(content, format='png')
    return content.getvalue()


@command_line
def main() -> None:
    with as_usage_error('bad arguments'):
        args = parse_args()
    quiet()
    out_dir = output_folder(args.out_dir, 'loss_landscape', args.config)
    rows = measure(args)
    text = json.dumps(dict(schema='nf_plugins.loss_landscape/1', networks=rows), indent=1) + '\n'
    with as_usage_error(f'cannot write into {out_dir}'):
        atomic_write_all({out_dir / 'landscape.json': text, out_dir / 'landscape.png': draw(rows)})
    say('written:', str(out_dir / 'landscape.json'), str(out_dir / 'landscape.png'))


if __name__ == '__main__':
    main()
