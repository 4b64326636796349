"""Test the papers' claims about networks without norms on Fashion-MNIST.

    python -m benchmarks.study --out benchmarks/results/study

Each part of the study is a grid of short trainings (runs.py). Finished runs are kept in
results.json. So after an interruption, the same command goes on. Afterwards,
`python -m benchmarks.study.page` writes docs/study.md and the figures from the results.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mmengine.utils import ProgressBar

from nf_plugins.cli.arguments import ArgumentParser
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import UsageError, as_usage_error

from .data import load_data
from .results import OUT, Results, only_one
from .runs import PARTS, runs_of
from .workers import run_all, work


def natural(text: str) -> int:
    """Convert the text of an argument to an integer that is not negative."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f'{text!r} is not a natural number')
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description='Test claims about networks without norms.')
    parser.add_argument('--parts', nargs='+', choices=list(PARTS), default=list(PARTS))
    parser.add_argument('--seeds', nargs='+', type=natural, default=[0, 1, 2])
    parser.add_argument('--more', action='store_true', help='more learning rates and batch sizes')
    parser.add_argument(
        '--workers', type=natural, default=2, help='processes of one thread; 0: only this process'
    )
    parser.add_argument('--out', type=Path, default=OUT)
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    for key in ('parts', 'seeds'):
        if len(set(getattr(args, key))) < len(getattr(args, key)):
            raise UsageError(f'--{key} has a value twice: {getattr(args, key)}')
    return args


def train_all(results: Results, args: argparse.Namespace) -> None:
    """Train what is not yet in the results."""
    wanted = runs_of(args.parts, args.seeds, args.more)
    finished = results.rows()
    runs = [run for run in wanted if run not in finished]
    print(f'{len(runs)} runs to do, {len(wanted) - len(runs)} are there', flush=True)
    if not runs:
        return
    load_data()  # else each worker would find out that it is missing
    bar = ProgressBar(len(runs), file=sys.stderr)
    before, start = results.content['wall_seconds'], time.time()
    for row in run_all(runs, args.workers):
        if 'error' in row:
            print(file=sys.stderr)
            raise UsageError(row['error'])
        results.content['runs'].append(row)
        results.content['wall_seconds'] = round(before + time.time() - start, 1)
        results.save()
        bar.update()
    print(file=sys.stderr)


@command_line
def main() -> None:
    args = parse_args()
    if args.worker:
        work()
        return
    with as_usage_error(f'cannot write into {args.out}'):
        args.out.mkdir(parents=True, exist_ok=True)
    with only_one(args.out):
        results = Results(args.out / 'results.json')
        train_all(results, args)


if __name__ == '__main__':
    main()
