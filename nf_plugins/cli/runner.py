"""Shared code of ``tools/train.py`` and ``tools/test.py``."""

from __future__ import annotations

import argparse
import logging
import os
import os.path as osp
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import (
    OPTIM_WRAPPERS,
    RUNNERS,
)
from mmengine.runner import Runner
from torch import nn

from nf_plugins.config import find_config
from nf_plugins.engine import AGCOptimWrapper, SAMOptimWrapper
from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.registry import class_of
from nf_plugins.utils.files import check_regular, check_writable_dir


def prepare(cfg: Config, args: argparse.Namespace, dataloaders: list[str]) -> None:
    """Merge the common arguments into the config and start the process group."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', Path(args.config).stem)
    with as_usage_error(f'cannot write into {cfg.work_dir}'):
        check_writable_dir(cfg.work_dir)
        # mmengine opens these files to write them. It would write through a link, or wait for
        # the reader of a pipe.
        for name in ('last_checkpoint', osp.basename(find_config(args.config))):
            check_regular(osp.join(cfg.work_dir, name))

    has_gpu = torch.cuda.is_available()
    for name in dataloaders:
        if cfg.get(name) is None:
            continue
        if cfg.get('default_scope') == 'mmpretrain':  # as mmpretrain's own tools, and no others
            cfg[name].setdefault('pin_memory', has_gpu)
            cfg[name].setdefault('collate_fn', dict(type='default_collate'))
            cfg[name].setdefault('persistent_workers', cfg[name].get('num_workers', 0) > 0)
        if args.no_pin_memory:
            cfg[name].pin_memory = False

    if args.launcher == 'pytorch' and not has_gpu:
        # mmengine's own function would require CUDA devices.
        with as_usage_error('cannot start the process group'):
            torch.distributed.init_process_group('gloo')
        cfg.setdefault(
            'model_wrapper_cfg',
            dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False),
        )


MIXED = {
    OptimWrapper: 'AmpOptimWrapper',
    AGCOptimWrapper: 'nf_plugins.AGCAmpOptimWrapper',
    SAMOptimWrapper: 'nf_plugins.SAMAmpOptimWrapper',
}
"""Optimizer wrapper -> the type of that with mixed precision."""


def use_mixed_precision(optim_wrapper: dict) -> None:
    """Change the config of an optimizer wrapper to automatic mixed precision, in place.

    Raises:
        UsageError: Its type has no version with automatic mixed precision.
    """
    kind = optim_wrapper.get('type', 'OptimWrapper')
    wrapper = class_of(kind, OPTIM_WRAPPERS)
    if wrapper is None or not issubclass(wrapper, AmpOptimWrapper):
        if wrapper not in MIXED:
            names = ', '.join(plain.__name__ for plain in MIXED)
            raise UsageError(f'--amp takes the optim_wrapper.type {names}, got {kind}')
        optim_wrapper['type'] = MIXED[wrapper]
    optim_wrapper.setdefault('loss_scale', 'dynamic')


def check_optim_wrapper(cfg: Config, path: str, model: nn.Module) -> Any:
    """Build the optimizer wrapper of a config, to check that it fits the model.

    The runner would raise an error only when it starts to train.

    Raises:
        UsageError: The optimizer does not fit the model.
    """
    logging.disable(logging.WARNING)  # the runner will log the settings of each parameter later
    try:
        with as_usage_error(f'cannot build the optimizer of {path}'):
            wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
            wrapper.initialize_count_status(model, 0, 1)
            return wrapper
    finally:
        logging.disable(logging.NOTSET)


def build_runner(cfg: Config, path: str) -> Any:
    """Build the runner of a config."""
    with as_usage_error(f'cannot start from {path}'):
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
