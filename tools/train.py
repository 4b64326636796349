"""Train a model: the mm command line.

python tools/train.py configs/nf_resnet/nf-resnet_digits.py
"""

from __future__ import annotations

import argparse

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from nf_plugins.checkpoint.fit import check_checkpoint
from nf_plugins.checkpoint.resume import Training
from nf_plugins.cli.arguments import ArgumentParser, add_common_arguments, with_weights_key
from nf_plugins.cli.command_line import command_line
from nf_plugins.cli.resuming import (
    Resumable,
    check_resume,
    find_resumable,
    finished,
    plan_training,
    set_aside,
)
from nf_plugins.cli.runner import (
    build_runner,
    check_optim_wrapper,
    prepare,
    use_mixed_precision,
)
from nf_plugins.config import build_model, load_config
from nf_plugins.datasets.sources import as_usage_error_with_data
from nf_plugins.engine import TrainingStopped
from nf_plugins.errors import UsageError, as_usage_error, say


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description='Train a model.')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint; without a name, from the latest one in the work dir',
    )
    parser.add_argument('--no-validate', action='store_true', help='train without validation')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size over auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--no-persistent-workers', action='store_true', help='end the workers after each epoch'
    )
    add_common_arguments(parser)
    return parser.parse_args()


def go_on(cfg: Config, resume: str | None, training: Training) -> Resumable | None:
    """Find the checkpoint that ``--resume`` or the config asks for, and enter it into the config.

    Args:
        cfg: The config.
        resume: The value of ``--resume``: a checkpoint, 'auto', or None.
        training: The training.

    Returns:
        The checkpoint, or None if the training starts from the beginning.
    """
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    found = None
    if resume == 'auto':
        with as_usage_error(f'cannot look for checkpoints in {cfg.work_dir}'):
            found = find_resumable(training, cfg.get('load_from'))
        if found is None:
            say(f'no checkpoint in {cfg.work_dir}: the training starts from the beginning')
    elif resume is not None:
        with as_usage_error('cannot load the checkpoint'):
            found = check_resume(resume, training)
    cfg.resume = found is not None
    if found:
        cfg.load_from = found.path
    return found


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    """Put the options of the command line into the config."""
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.no_persistent_workers:
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name) is not None:
                cfg[name].persistent_workers = False
    if args.amp:
        if not torch.cuda.is_available():
            raise UsageError('--amp needs an accelerator, and there is none')
        use_mixed_precision(cfg.optim_wrapper)


def train(runner: Runner) -> int:
    """Train, and return the exit status: 1 if a hook has stopped the training, else 0."""
    try:
        runner.train()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    except TrainingStopped as stop:
        say(f'stopped: {stop}', error=True)
        return 1
    finally:
        # With gloo, the other processes fail if one ends while they still communicate with it.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


@command_line
def main() -> int:
    with as_usage_error('bad arguments'):
        args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    if any(cfg.get(name) is None for name in ('train_dataloader', 'train_cfg', 'optim_wrapper')):
        raise UsageError(f'{args.config} must have train_dataloader, train_cfg and optim_wrapper')
    model = build_model(cfg, args.config)
    prepare(cfg, args, ['train_dataloader', 'val_dataloader', 'test_dataloader'])

    apply_options(cfg, args)
    training = plan_training(cfg, args.config, model, check_optim_wrapper(cfg, args.config, model))
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UsageError(f'{args.config} has no auto_scale_lr.base_batch_size to scale by')
        cfg.auto_scale_lr.enable = True

    found = go_on(cfg, args.resume, training)
    if found and (end := finished(cfg, found)):
        say(f'the training is finished: {found.path} has {end}; nothing is done')
        return 0
    if args.weights_key is not None:
        if found or not cfg.get('load_from'):
            raise UsageError('--weights-key is for load_from, and there is none')
        cfg.load_from = with_weights_key(cfg.load_from, args.weights_key)
    if found:
        set_aside(found, training)
    elif cfg.get('load_from'):
        check_checkpoint(cfg.load_from, model, minimum=0.0)  # in fine-tuning the head is missing
    runner = build_runner(cfg, args.config)
    about = f'cannot prepare the training of {args.config}'
    with as_usage_error_with_data(about, cfg, ['train_dataloader', 'val_dataloader']):
        _ = runner.train_loop, runner.val_loop
    return train(runner)


if __name__ == '__main__':
    main()
