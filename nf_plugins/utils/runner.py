"""What ``tools/train.py`` and ``tools/test.py`` share."""

from __future__ import annotations

import argparse
import logging
import os
import os.path as osp
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib import import_module
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import (
    HOOKS,
    MODELS,
    OPTIM_WRAPPERS,
    PARAM_SCHEDULERS,
    RUNNERS,
    init_default_scope,
)
from mmengine.runner import Runner
from torch import Tensor, nn

from nf_plugins.checkpoint import (
    CheckpointError,
    check_match,
    find_weights,
    safe_load,
    state_dict_of,
)
from nf_plugins.checkpoint.resume import NoTrainingError, Training, check_training, take_over
from nf_plugins.checkpoint.state_dict import (
    has_place,
    split_weights_key,
    unwrap_for,
    weights_for,
)
from nf_plugins.checkpoint.work_dir import (
    named_checkpoints,
    noted_checkpoint,
    other_checkpoints,
    real_path,
)
from nf_plugins.config_names import config_path
from nf_plugins.datasets.sources import missing_data
from nf_plugins.engine import AGCOptimWrapper
from nf_plugins.registry import class_of

from .checks import check_integer, check_type, printable
from .cli import DISTRIBUTIONS, UsageError, add_weights_key, complaint, say
from .files import check_regular, check_writable_dir


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
    add_weights_key(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes it.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def find_config(path: str) -> str:
    """A config file, or one of ours by its name; ``.py`` can be left out."""
    for file in (path, f'{path}.py'):
        if osp.isfile(file):
            return file
    try:
        return config_path(path)
    except FileNotFoundError as error:
        raise UsageError(f'no config at {path}, and {error}') from error


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
        # mmengine opens these to write them: through a link, or it waits for a pipe's reader.
        for name in ('last_checkpoint', osp.basename(find_config(args.config))):
            check_regular(osp.join(cfg.work_dir, name))

    has_gpu = torch.cuda.is_available()
    for name in dataloaders:
        if cfg.get(name) is None:
            continue
        if cfg.get('default_scope') == 'mmpretrain':  # as its own tools; mmseg's and mmdet's do not
            cfg[name].setdefault('pin_memory', has_gpu)
            cfg[name].setdefault('collate_fn', dict(type='default_collate'))
            cfg[name].setdefault('persistent_workers', cfg[name].get('num_workers', 0) > 0)
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


@contextmanager
def complaint_about_data(about: str, cfg: Config, loaders: Sequence[str]) -> Iterator[None]:
    """Like :func:`complaint`, and say what is missing in the data folders of a config."""
    try:
        with complaint(about):
            yield
    except UsageError as error:
        missing = missing_data(cfg, loaders)
        raise UsageError(f'{about}: {missing}') if missing else error from error.__cause__


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


def backbone_weights(
    path: str, backbone: nn.Module, quiet: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The backbone's weights in a checkpoint of it or of a model, and the ``meta``.

    Args:
        path: The checkpoint, or ``PATH#KEY``.
        backbone: The backbone.
        quiet: Do not say which of several weights are taken.
    """
    with complaint(f'cannot load the checkpoint {path}'):
        path, weights_key = split_weights_key(path)
        checkpoint = safe_load(path)
        state, note = find_weights(checkpoint, path, weights_key)
        place = has_place(backbone.state_dict())
        state = unwrap_for(state, lambda k, v: place(k.removeprefix('backbone.'), v))
        own = {k: v for k, v in state.items() if k.startswith('backbone.')}
        state = {k.removeprefix('backbone.'): v for k, v in own.items()} or state
        check_match(state, backbone, path)
        check_plain(state, backbone, path)
    if note and not quiet:
        say(note, error=True)
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
        if cfg.get('default_scope') in DISTRIBUTIONS:
            import_module(cfg.default_scope)  # mmengine would go on without it
        model = dict(cfg.model)
        if cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', cfg.data_preprocessor)
        return MODELS.build(model)


def use_mixed_precision(optim_wrapper: dict) -> None:
    """Make the config of an optimizer wrapper one of automatic mixed precision.

    Raises:
        UsageError: There is no such wrapper for its type.
    """
    kind = optim_wrapper.get('type', 'OptimWrapper')
    wrapper = class_of(kind, OPTIM_WRAPPERS)
    if wrapper is None or not issubclass(wrapper, AmpOptimWrapper):
        if wrapper not in (OptimWrapper, AGCOptimWrapper):
            raise UsageError(
                f'--amp takes the optim_wrapper.type OptimWrapper or AGCOptimWrapper, got {kind}'
            )
        plain = wrapper is OptimWrapper
        optim_wrapper['type'] = 'AmpOptimWrapper' if plain else 'nf_plugins.AGCAmpOptimWrapper'
    optim_wrapper.setdefault('loss_scale', 'dynamic')


def check_optim_wrapper(cfg: Config, path: str, model: nn.Module) -> Any:
    """Build the optimizer wrapper of a config, to see that it can be.

    The runner would find out only when it starts to train.

    Raises:
        UsageError: The optimizer does not fit the model.
    """
    logging.disable(logging.WARNING)  # it lists the settings of each parameter; the runner will
    try:
        with complaint(f'cannot build the optimizer of {path}'):
            wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
            wrapper.initialize_count_status(model, 0, 1)
            return wrapper
    finally:
        logging.disable(logging.NOTSET)


def plan_training(cfg: Config, path: str, model: nn.Module, optim_wrapper: Any) -> Training:
    """What a checkpoint must fit so that the training of a config can go on from it."""
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))  # mmengine's default
    hooks.update(cfg.get('default_hooks') or {})
    with complaint(f'cannot build the hooks of {path}'):
        built = []
        for hook in [*hooks.values(), *(cfg.get('custom_hooks') or [])]:
            kind = hook.get('type') if isinstance(hook, dict) else type(hook)
            kind = HOOKS.get(kind) if isinstance(kind, str) else kind
            if isinstance(kind, type) and issubclass(kind, CheckpointHook | EMAHook):
                built.append(_build_hook(hook))
    schedulers = _build_schedulers(cfg, optim_wrapper)
    return Training(model, optim_wrapper, schedulers, built, cfg.work_dir)


def _build_hook(hook: Any) -> Hook:
    if isinstance(hook, Hook):
        return hook
    return HOOKS.build({key: value for key, value in hook.items() if key != 'priority'})


def _build_schedulers(cfg: Config, optim_wrapper: Any) -> Any:
    """The parameter schedulers of a config as a list, or as a dict of lists.

    None where that needs more than is known before the data set is built; mmengine builds
    them then.
    """
    settings = cfg.get('param_scheduler')
    if settings is None or isinstance(optim_wrapper, OptimWrapperDict):
        return None
    ends = {True: cfg.train_cfg.get('max_epochs'), False: cfg.train_cfg.get('max_iters')}
    schedulers = []
    try:
        for scheduler in settings if isinstance(settings, list | tuple) else [settings]:
            end = ends[scheduler.get('by_epoch', True)]
            scheduler = {**({} if end is None else dict(end=end)), **deepcopy(scheduler)}
            default = dict(optimizer=optim_wrapper, epoch_length=10_000)
            schedulers.append(PARAM_SCHEDULERS.build(scheduler, default_args=default))
    except Exception:
        return None
    return schedulers


def check_checkpoint(path: str, model: nn.Module, minimum: float = 1.0) -> None:
    """Raise a :class:`UsageError` unless a local checkpoint is readable and fits a model.

    Args:
        path: The checkpoint, or ``PATH#KEY``; what is not a local file (a URL) is left to mmengine.
        model: The model.
        minimum: Share of the model's keys that must be there.
    """
    if '://' in path:
        return
    with complaint('cannot load the checkpoint'):
        path, key = split_weights_key(path)
        checkpoint = safe_load(os.path.expanduser(path))
        check_match(weights_for(model, checkpoint, path, key)[0], model, path, minimum)


@dataclass(frozen=True)
class Resumable:
    """A checkpoint from which a training can go on.

    Args:
        path: The checkpoint.
        epoch: Completed epochs.
        iteration: Completed iterations.
        parts: What it holds of the optimizer and the parameter schedulers.
        passed_over: Others that were looked at before, and why they cannot be used.
    """

    path: str
    epoch: int = 0
    iteration: int = 0
    parts: tuple[str, ...] = ()
    passed_over: dict[str, str] = field(default_factory=dict)


def check_resume(path: str, training: Training) -> Resumable:
    """A checkpoint, if a training can go on from it.

    Args:
        path: The checkpoint; what is not a local file (a URL) is left to mmengine.
        training: What goes on.

    Raises:
        CheckpointError: It is damaged, refused, or does not fit; a :class:`NoTrainingError`
            if it holds only weights.
        OSError: It cannot be read.
    """
    if '://' in path:
        return Resumable(path)
    local = os.path.expanduser(path)
    if os.path.lexists(local) and not os.path.isfile(local):
        link = 'a link to nothing' if os.path.islink(local) else 'a special file'
        raise CheckpointError(f'{path} is {"a folder" if os.path.isdir(local) else link}')
    checkpoint = safe_load(local)
    check_training(checkpoint, path)
    if training.model is not None:
        check_match(state_dict_of(checkpoint, path), training.model, path)
    take_over(checkpoint, path, training)
    parts = tuple(part for part in ('optimizer', 'param_schedulers') if part in checkpoint)
    return Resumable(path, checkpoint['meta']['epoch'], checkpoint['meta']['iter'], parts)


def find_resumable(training: Training, start: str | None = None) -> Resumable | None:
    """The checkpoint from which the training in a work dir goes on.

    What ``last_checkpoint`` names comes first. A kill can leave that note empty or, with
    ``max_keep_ckpts``, naming a file that is gone; then the files count that the hooks save,
    and after them other files: of each kind the one with most iterations inside.

    Args:
        training: What goes on.
        start: The file that the training starts from (``load_from``), which does not count.

    Returns:
        None where there are no checkpoints.

    Raises:
        UsageError: There are checkpoints, but none is usable.
    """
    names, noted = training.saved_names, noted_checkpoint(training.work_dir)
    others = other_checkpoints(names, training.work_dir)
    others = [path for path in others if not (start and real_path(path) == real_path(start))]
    failed: dict[str, str] = {}
    for paths in ([noted] if noted else [], named_checkpoints(names), others):
        usable = []
        for path in filter(_is_printable_name, paths):  # mmengine logs it
            try:
                found = check_resume(path, training)
                _check_saved(found, training)
                usable.append((found.iteration, path == noted or os.path.getmtime(path), found))
            except NoTrainingError as error:
                if paths is not others:  # weights may lie there for other reasons
                    failed[path] = printable(error)
            except (CheckpointError, OSError) as error:
                failed[path] = printable(error)
        if usable:
            return replace(max(usable, key=itemgetter(0, 1))[2], passed_over=failed)
    if failed:
        first = '; '.join(list(failed.values())[:3])
        more = f'; and {len(failed) - 3} more' if len(failed) > 3 else ''
        raise UsageError(
            f'{training.work_dir} has checkpoints, but none to go on with: {first}{more}; '
            'to start again, name another --work-dir or leave out --resume'
        )
    return None


def _is_printable_name(path: str) -> bool:
    return osp.basename(path).isprintable()


def _check_saved(found: Resumable, training: Training) -> None:
    """Raise a CheckpointError if a part is not there that every hook of the training saves."""
    hooks = [names.hook for names in training.saved_names]
    for part, saved, own in (
        ('optimizer', all(hook.save_optimizer for hook in hooks), training.optim_wrapper),
        ('param_schedulers', all(hook.save_param_scheduler for hook in hooks), training.schedulers),
    ):
        if saved and own and part not in found.parts and '://' not in found.path:
            raise CheckpointError(f'{found.path} has no {part}')


def latest_checkpoint(work_dir: str) -> str | None:
    """The checkpoint of a work dir with mmengine's usual names, as :func:`find_resumable`."""
    hook = CheckpointHook(interval=1)
    found = find_resumable(Training(None, hooks=[hook], work_dir=str(work_dir)))
    return found and found.path


def finished(cfg: Config, found: Resumable) -> str | None:
    """How far a checkpoint is, if the training of a config ends there or before."""
    for name, count in (('epochs', found.epoch), ('iters', found.iteration)):
        end = cfg.train_cfg.get(f'max_{name}')
        if isinstance(end, int):
            return f'{count} of {end} {name}' if count >= end else None
    return None


def set_aside(found: Resumable, training: Training) -> None:
    """Rename what was passed over and would be overwritten, so that nothing is lost.

    So are links: the new checkpoint would be written to the place that they lead to.
    """
    for reason in found.passed_over.values():
        say(f'passed over: {reason}', error=True)
    links = [path for path in named_checkpoints(training.saved_names) if osp.islink(path)]
    for path in dict.fromkeys([*found.passed_over, *links]):
        for names in training.saved_names:
            done = found.epoch if names.hook.by_epoch else found.iteration
            if (names.step(path) or 0) > done and os.path.lexists(path) and is_main_process():
                aside = next(
                    name
                    for name in map(f'{path}.passed_over{{}}'.format, ('', *range(2, 10_000)))
                    if not os.path.lexists(name)
                )
                with complaint(f'cannot set {path} aside'):
                    os.rename(path, aside)
                say(f'renamed: {path} is now {aside}', error=True)


def build_runner(cfg: Config, path: str) -> Any:
    """The runner of a config."""
    with complaint(f'cannot start from {path}'):
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
