"""Compare networks with and without norms on real data, over batch sizes and learning rates.

    python -m benchmarks.study --out benchmarks/results/study_digits

This trains the networks of the digits configs (batch norm, group norm, PWS, NF with and without
AGC, and a plain one) on the digits of scikit-learn, and writes results.json, table.md and figures.
Finished runs are kept in results.json. So after an interruption, the same command goes on.
"""

from __future__ import annotations

import io
import sys
import time
from argparse import Namespace
from pathlib import Path

from mmengine.utils import ProgressBar

from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.utils.files import atomic_write_all

from .arguments import parse_args, runs_of, setting_of
from .figures import accuracy_figure, lr_figure, spp_figure
from .results import Grid, Results, describe, only_one
from .runs import Setting, load_data
from .tables import table
from .workers import run_all, work


def report(results: Results, args: Namespace, setting: Setting) -> str:
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
        text += f'\nNo spp.png: it needs the run of batch size {batch_size}, lr {lr:g}, seed 0.\n'
    return text


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
