"""Test a checkpoint: the mm command line.

python tools/test.py configs/nf_resnet/nf-resnet_digits.py work_dirs/.../epoch_20.pth
"""

from __future__ import annotations

import argparse
import os.path as osp

from mmengine import dump
from mmengine.evaluator import DumpResults
from mmengine.fileio.handlers import file_handlers

from nf_plugins.checkpoint.fit import check_checkpoint
from nf_plugins.cli.arguments import ArgumentParser, add_common_arguments, with_weights_key
from nf_plugins.cli.command_line import command_line
from nf_plugins.cli.runner import build_runner, prepare
from nf_plugins.config import build_model, load_config
from nf_plugins.datasets.sources import as_usage_error_with_data
from nf_plugins.engine import FoldHook
from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.utils.checks import check_choice
from nf_plugins.utils.files import atomic_write, check_writable_dir

FORMATS = dict(metrics=tuple(file_handlers), pred=('pkl', 'pickle'))
"""Content of ``--out`` -> accepted extensions."""


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description='Test a checkpoint.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='file for the results: .pkl, or .json for metrics')
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='content of --out: the metrics, or the predictions (default)',
    )
    add_common_arguments(parser)
    args = parser.parse_args()
    if args.out is None and args.out_item is not None:
        parser.error('--out-item needs --out')
    return args


class AtomicDumpResults(DumpResults):
    """Metric that writes the predictions into a file atomically."""

    def compute_metrics(self, results: list) -> dict:
        with as_usage_error(f'cannot write {self.out_file_path}'):
            atomic_write(self.out_file_path, dump(results, file_format='pkl'))
        return {}


@command_line
def main() -> None:
    with as_usage_error('bad arguments'):
        args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    if cfg.get('test_dataloader') is None:
        raise UsageError(f'{args.config} has no test_dataloader')
    if args.out:
        with as_usage_error(f'cannot write {args.out}'):
            check_writable_dir(osp.dirname(osp.abspath(args.out)))
            form = osp.splitext(args.out)[1][1:]
            check_choice('the extension', form, FORMATS[args.out_item or 'pred'])
    args.checkpoint = with_weights_key(args.checkpoint, args.weights_key)
    check_checkpoint(args.checkpoint, build_model(cfg, args.config))
    prepare(cfg, args, ['test_dataloader'])
    cfg.load_from = args.checkpoint
    if args.amp:
        cfg.test_cfg.fp16 = True

    runner = build_runner(cfg, args.config)
    if args.out and args.out_item != 'metrics':
        with as_usage_error(f'cannot write {args.out}'):
            runner.test_evaluator.metrics.append(AtomicDumpResults(out_file_path=args.out))
    about = f'cannot prepare the test of {args.config}'
    with as_usage_error_with_data(about, cfg, ['test_dataloader']):
        _ = runner.test_loop  # this builds the data set
    # The runner loads the weights after the hooks have started, because EMAHook has to see them.
    runner.register_hook(FoldHook())
    metrics = runner.test()
    if args.out and args.out_item == 'metrics':
        with as_usage_error(f'cannot write {args.out}'):
            atomic_write(args.out, dump(metrics, file_format=form))


if __name__ == '__main__':
    main()
