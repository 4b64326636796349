"""Choice of the checkpoint from which a training goes on."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import (
    HOOKS,
    PARAM_SCHEDULERS,
)
from torch import nn

from nf_plugins.checkpoint import check_match, safe_load, state_dict_of
from nf_plugins.checkpoint.resume import NoTrainingError, Training, check_training, take_over
from nf_plugins.checkpoint.work_dir import (
    named_checkpoints,
    noted_checkpoint,
    other_checkpoints,
    real_path,
)
from nf_plugins.errors import CheckpointError, UsageError, as_usage_error, printable, say


def plan_training(cfg: Config, path: str, model: nn.Module, optim_wrapper: Any) -> Training:
    """Return what a checkpoint must fit, so that the training of a config can go on from it."""
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))  # mmengine's default
    hooks.update(cfg.get('default_hooks') or {})
    with as_usage_error(f'cannot build the hooks of {path}'):
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
    """Build the parameter schedulers of a config, as a list or as a dict of lists.

    The result is None if this needs the data set, which does not exist yet. Then mmengine builds
    them later.
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


@dataclass(frozen=True)
class Resumable:
    """Checkpoint from which a training can go on.

    Args:
        path: The checkpoint.
        epoch: Completed epochs.
        iteration: Completed iterations.
        parts: Names of its states of the optimizer and the parameter schedulers.
        passed_over: Path of another checkpoint that was tried before -> why it cannot be used.
    """

    path: str
    epoch: int = 0
    iteration: int = 0
    parts: tuple[str, ...] = ()
    passed_over: dict[str, str] = field(default_factory=dict)


def check_resume(path: str, training: Training) -> Resumable:
    """Check that a training can go on from a checkpoint, and describe the checkpoint.

    Args:
        path: The checkpoint. A path that is not local (a URL) is not checked here; mmengine
            loads it.
        training: The training.

    Raises:
        CheckpointError: It is damaged, is refused, or does not fit. If it only contains weights,
            the error is a :class:`NoTrainingError`.
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
    """Find the checkpoint from which the training in a work dir goes on.

    The file that ``last_checkpoint`` names is tried first. If the training was killed,
    ``last_checkpoint`` may be empty, or (with ``max_keep_ckpts``) may name a file that is gone.
    Then the files that the hooks save are tried, and then other files. Of several files, the one
    with the most iterations inside is taken.

    Args:
        training: The training.
        start: The file with which the training starts (``load_from``). It is left out.

    Returns:
        The checkpoint, or None if there are no checkpoints.

    Raises:
        UsageError: There are checkpoints, but none is usable.
    """
    names, noted = training.saved_names, noted_checkpoint(training.work_dir)
    others = other_checkpoints(names, training.work_dir)
    others = [path for path in others if not (start and real_path(path) == real_path(start))]
    failed: dict[str, str] = {}
    for paths in ([noted] if noted else [], named_checkpoints(names), others):
        usable = []
        for path in filter(_is_printable_name, paths):  # mmengine writes the name to the log
            try:
                found = check_resume(path, training)
                _check_saved(found, training)
                usable.append((found.iteration, path == noted or os.path.getmtime(path), found))
            except NoTrainingError as error:
                if paths is not others:  # other files may be there for other reasons
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
    return os.path.basename(path).isprintable()


def _check_saved(found: Resumable, training: Training) -> None:
    """Raise a CheckpointError if a part is missing that all hooks of the training save."""
    hooks = [names.hook for names in training.saved_names]
    for part, saved, own in (
        ('optimizer', all(hook.save_optimizer for hook in hooks), training.optim_wrapper),
        ('param_schedulers', all(hook.save_param_scheduler for hook in hooks), training.schedulers),
    ):
        if saved and own and part not in found.parts and '://' not in found.path:
            raise CheckpointError(f'{found.path} has no {part}')


def latest_checkpoint(work_dir: str) -> str | None:
    """Find the checkpoint of a work dir as :func:`find_resumable`, by mmengine's usual names."""
    hook = CheckpointHook(interval=1)
    found = find_resumable(Training(None, hooks=[hook], work_dir=str(work_dir)))
    return None if found is None else found.path


def finished(cfg: Config, found: Resumable) -> str | None:
    """Return the progress of a checkpoint as text if the training is finished, else None."""
    for name, count in (('epochs', found.epoch), ('iters', found.iteration)):
        end = cfg.train_cfg.get(f'max_{name}')
        if isinstance(end, int):
            return f'{count} of {end} {name}' if count >= end else None
    return None


def set_aside(found: Resumable, training: Training) -> None:
    """Rename unusable checkpoints that the training would overwrite, so that nothing is lost.

    Links with the name of a new checkpoint are renamed, too. Otherwise the new checkpoint would
    be written to the file at the end of the link.
    """
    for reason in found.passed_over.values():
        say(f'passed over: {reason}', error=True)
    links = [path for path in named_checkpoints(training.saved_names) if os.path.islink(path)]
    for path in dict.fromkeys([*found.passed_over, *links]):
        for names in training.saved_names:
            done = found.epoch if names.hook.by_epoch else found.iteration
            if (names.step(path) or 0) > done and os.path.lexists(path) and is_main_process():
                aside = next(
                    name
                    for name in map(f'{path}.passed_over{{}}'.format, ('', *range(2, 10_000)))
                    if not os.path.lexists(name)
                )
                with as_usage_error(f'cannot set {path} aside'):
                    os.rename(path, aside)
                say(f'renamed: {path} is now {aside}', error=True)
