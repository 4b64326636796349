"""Arguments of the study: the list of runs, and the setting that they share."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nf_plugins.cli.arguments import ArgumentParser
from nf_plugins.errors import UsageError, as_usage_error

from .runs import NETWORKS, Run, Setting

FULL = dict(batch_sizes=[4, 16, 64, 512], lrs=[0.0125, 0.05, 0.2, 0.8, 3.2], seeds=[0, 1, 2])
QUICK = dict(
    batch_sizes=[4, 64], lrs=[0.05, 0.2], seeds=[0], epochs=0.01, min_steps=2, test_images=50
)


def runs_of(args: argparse.Namespace) -> list[Run]:
    # Alternate between the batch sizes, so that the remaining time can be estimated early.
    return [
        Run(network, batch_size, lr, seed)
        for seed in args.seeds
        for lr in args.lrs
        for network in args.networks
        for batch_size in args.batch_sizes
    ]


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
    parser = ArgumentParser(description='Train networks with and without norms on digits.')
    number, size = positive(float), positive(int)
    parser.add_argument('--networks', nargs='+', choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument('--batch-sizes', nargs='+', type=size, help='default: 4 to 512')
    parser.add_argument('--lrs', nargs='+', type=number, help='default: 0.0125 to 3.2')
    parser.add_argument('--seeds', nargs='+', type=natural, help='default: 0 1 2')
    parser.add_argument('--epochs', type=number, help='passes over the images, default 2')
    parser.add_argument('--min-steps', type=size, help='least number of steps, default 120')
    parser.add_argument('--image-size', type=size, help='side of the images, default 12')
    parser.add_argument('--clip-factor', type=number, help='threshold of AGC, default 0.1')
    parser.add_argument('--quick', action='store_true', help='only a few steps, to try the tool')
    parser.add_argument(
        '--workers', type=natural, default=2, help='processes of one thread; 0: only this process'
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
            raise UsageError(f'--{key.replace("_", "-")} has a value twice: {values}')
        setattr(args, key, values if key == 'networks' else sorted(values))
    return args


def setting_of(args: argparse.Namespace) -> Setting:
    given = {key: getattr(args, key, None) for key in asdict(Setting())}
    return Setting(**{key: value for key, value in given.items() if value is not None})
