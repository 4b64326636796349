"""What ``tools/train.py`` and ``tools/test.py`` share."""

from __future__ import annotations

import argparse
import logging
import os
import os.path as osp
import re
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from nf_plugins.checkpoint import CheckpointError, check_match, safe_load, state_dict_of

from .checks import check_integer, check_type
from .cli import UsageError, complaint
from .files import check_writable_dir


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all mm tools have."""
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--no-pin-memory', action='store_true', help='do not pin memory')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value; a list as key="[a,b]" or key=a,b',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes it.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def find_config(path: str) -> str:
    """A config file, or one of the installed package by its bare file name."""
    if osp.isfile(path):
        return path
    packaged = Path(__file__).parents[1] / '.mim' / 'configs'
    found = sorted(packaged.rglob(path)) if osp.basename(path) == path else []
    if len(found) != 1:
        raise UsageError(f'no config at {path}, and none of that name comes with nf_plugins')
    return str(found[0])


SECTIONS = dict.fromkeys(
    (
        'model',
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'optim_wrapper',
        'default_hooks',
        'auto_scale_lr',
    ),
    dict,
) | dict.fromkeys(('work_dir', 'load_from'), str)
"""What the settings that are looked at before mmengine does must be."""


def check_bases(path: str, above: tuple[str, ...] = ()) -> None:
    """Raise a ValueError if a config is among its own bases: mmengine would read for ever."""
    path = osp.realpath(path)
    if path in above:
        circle = ' -> '.join(map(osp.basename, [*above[above.index(path) :], path]))
        raise ValueError(f'its _base_ files go in a circle: {circle}')
    for base in Config._get_base_files(path):
        check_bases(Config._get_cfg_path(base, path)[0], (*above, path))


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config file; a :class:`UsageError` says what is wrong with it."""
    path = find_config(path)
    with complaint(f'cannot read the config {path}'):
        check_bases(path)
        try:
            cfg = Config.fromfile(path)
        except SystemExit as stop:
            raise ValueError('it calls sys.exit()') from stop
        if options:
            cfg.merge_from_dict(options)
        if not cfg.get('model'):
            raise UsageError(f'{path} has no model')
        for name, kind in SECTIONS.items():
            if cfg.get(name) is not None:
                check_type(name, cfg[name], kind)
        init_default_scope(check_type('default_scope', cfg.get('default_scope', 'mmengine'), str))
    return cfg


def prepare(cfg: Config, args: argparse.Namespace, dataloaders: list[str]) -> None:
    """Merge the common arguments into the config and start the process group."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', Path(args.config).stem)
    with complaint(f'cannot write into {cfg.work_dir}'):
        check_writable_dir(cfg.work_dir)

    has_gpu = torch.cuda.is_available()
    for name in dataloaders:
        if cfg.get(name) is not None:
            defaults = dict(pin_memory=has_gpu, collate_fn=dict(type='default_collate'))
            if cfg[name].get('num_workers', 0) > 0:
                defaults['persistent_workers'] = True
            cfg[name] = ConfigDict({**defaults, **cfg[name]})
            if args.no_pin_memory:
                cfg[name].pin_memory = False

    if args.launcher == 'pytorch' and not has_gpu:
        # mmengine's own start would ask for CUDA devices.
        with complaint('cannot start the process group'):
            torch.distributed.init_process_group('gloo')
        cfg.setdefault(
            'model_wrapper_cfg',
            dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False),
        )


def build_backbone(cfg: Config, path: str, seed: int) -> nn.Module:
    """The initialised backbone of a config, without touching random state."""
    if 'backbone' not in cfg.model:
        raise UsageError(f'{path} has no backbone: a config needs model.backbone')
    with complaint(f'cannot build the backbone of {path}'), torch.random.fork_rng([]):
        check_integer('seed', seed, -(2**63), 2**64 - 1)  # what torch takes
        torch.manual_seed(seed)
        backbone = MODELS.build(cfg.model.backbone)
        if hasattr(backbone, 'init_weights'):
            backbone.init_weights()
    return backbone


def backbone_weights(path: str, backbone: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The backbone's weights in a checkpoint of it or of a model, and the ``meta``."""
    with complaint(f'cannot load the checkpoint {path}'):
        checkpoint = safe_load(path)
        state = state_dict_of(checkpoint, path)
        own = {k: v for k, v in state.items() if k.startswith('backbone.')}
        state = {k.removeprefix('backbone.'): v for k, v in own.items()} or state
        check_match(state, backbone, path)
        check_plain(state, backbone, path)
    meta = checkpoint.get('meta')
    return state, meta if isinstance(meta, dict) else {}


def check_plain(state: dict[str, Tensor], module: nn.Module, path: str) -> None:
    """Raise a :class:`UsageError` unless weights are stored as numbers that a module can take."""
    for key, own in module.state_dict().items():
        value = state.get(key)
        if value is None:
            continue
        kind = None
        if value.is_meta:
            kind = 'on the meta device, without values'
        elif value.layout != torch.strided:
            kind = f'of layout {str(value.layout).removeprefix("torch.")}'
        elif value.is_quantized:
            kind = 'quantized'
        elif value.is_complex() and not own.is_complex():
            kind = 'complex'
        if kind:
            raise UsageError(
                f'cannot load the checkpoint {path}: {key} is {kind}; save dense real weights: '
                'to_dense(), dequantize()'
            )


def build_model(cfg: Config, path: str) -> nn.Module:
    """Build the model of a config only to see that it can be, without touching random state."""
    with complaint(f'cannot build the model of {path}'), torch.random.fork_rng([]):
        model = dict(cfg.model)
        if cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', cfg.data_preprocessor)
        return MODELS.build(model)


def check_optim_wrapper(cfg: Config, path: str, model: nn.Module) -> None:
    """Raise a :class:`UsageError` unless the optimizer of a config fits a model.

    The runner would find out only when it starts to train.
    """
    logging.disable(logging.WARNING)  # it lists the settings of each parameter; the runner will
    try:
        with complaint(f'cannot build the optimizer of {path}'):
            build_optim_wrapper(model, cfg.optim_wrapper).initialize_count_status(model, 0, 1)
    finally:
        logging.disable(logging.NOTSET)


def check_checkpoint(
    path: str, model: nn.Module, minimum: float = 1.0, resume: bool = False
) -> None:
    """Raise a :class:`UsageError` unless a local checkpoint is readable and fits a model.

    Args:
        path: The checkpoint; what is not a local file (a URL) is left to mmengine.
        model: The model.
        minimum: Share of the model's keys that must be there.
        resume: Whether a training shall go on from it.
    """
    if '://' in path:
        return
    with complaint('cannot load the checkpoint'):
        checkpoint = safe_load(os.path.expanduser(path))
        check_match(state_dict_of(checkpoint, path), model, path, minimum)
        meta = checkpoint.get('meta')
        counts = [meta.get(name) for name in ('epoch', 'iter')] if isinstance(meta, dict) else []
        whole = 'message_hub' in checkpoint and counts and all(isinstance(n, int) for n in counts)
        if resume and not whole:
            raise UsageError(f'{path} holds weights but no training to go on with: use load_from')


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest readable checkpoint of a work dir, or None.

    mmengine notes its name in ``last_checkpoint``; a kill can leave that note empty
    or, with ``max_keep_ckpts``, naming a file that is gone, so the files count.
    """
    found = []
    for path in Path(work_dir).glob('*.pth'):
        match = re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name)
        if match:
            found.append((int(match[1]), path.stat().st_mtime, path))
    for _, _, path in sorted(found, reverse=True):
        try:
            safe_load(path)
        except CheckpointError as error:
            print(f'passed over: {error}', file=sys.stderr)
            continue
        return str(path)
    return None


def build_runner(cfg: Config, path: str) -> Any:
    """The runner of a config."""
    with complaint(f'cannot start from {path}'):
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
