"""Checks of a checkpoint from which a training goes on.

Even a checkpoint without code can make mmengine run a config, delete files, or fail hours later.
So each part of it is compared with the training's own. Known keys of known plain types are taken
over, and everything else is dropped.
"""

from __future__ import annotations

import collections
import datetime
import functools
import logging
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from nf_plugins.errors import CheckpointError, printable, short

from .inert import InertDict, without_stand_ins
from .optim_state import is_number, known_optimizer, known_schedulers
from .safe_load import safe_load
from .state_dict import check_match
from .work_dir import SavedNames

REWRITTEN = frozenset(
    'cfg seed experiment_name mmengine_version epoch iter max_epochs max_iters '
    'dataset_meta loop_stage eta last_ckpt'.split()
)
"""Keys of mmengine's ``runtime_info`` that each training writes itself."""

FILES = ('best_ckpt', 'best_score', 'keep_ckpt_ids')
"""Prefixes of the keys by which mmengine deletes files."""

INERT = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
    *(pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath),
)
"""Types of plain data that are no containers."""

CONTAINERS = (list, tuple, set, frozenset, collections.deque)
MAPPINGS = (
    *(dict, collections.OrderedDict, collections.Counter, collections.defaultdict),
    InertDict,
)


class NoTrainingError(CheckpointError):
    """A checkpoint contains weights but not the state of a training."""


@dataclass(frozen=True)
class Training:
    """Parts of a training that a checkpoint must fit.

    Args:
        model: The model, without a wrapper. None: weights are not checked.
        optim_wrapper: Its optimizer wrapper. None: the state of the optimizer is not checked.
        schedulers: Parameter schedulers, a list or a dict of lists. None: not checked.
        hooks: The hooks.
        work_dir: The work dir.
    """

    model: nn.Module | None
    optim_wrapper: Any = None
    schedulers: Any = None
    hooks: Sequence[Hook] = ()
    work_dir: str = '.'

    @property
    def saved_names(self) -> list[SavedNames]:
        """Folders and file names of its checkpoint hooks."""
        hooks = [hook for hook in self.hooks if isinstance(hook, CheckpointHook)]
        return [SavedNames(hook, self.work_dir) for hook in hooks]

    @classmethod
    def of(cls, runner: Any) -> Training:
        """Return the training of a runner that is about to resume."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if isinstance(runner, Runner):  # a FlexibleRunner has already built them, or has none
            if runner.optim_wrapper is not None:
                runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            if runner.param_schedulers is not None:
                runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        schedulers = runner.param_schedulers
        return cls(model, runner.optim_wrapper, schedulers, runner._hooks, runner.work_dir)


def take_over(checkpoint: Any, path: str, training: Training) -> tuple[dict[str, Any], list[str]]:
    """Select what a training takes over from a checkpoint.

    Args:
        checkpoint: The result of :func:`safe_load`.
        path: Its file.
        training: The training that goes on.

    Returns:
        A checkpoint of known parts, and the names of dropped parts.

    Raises:
        CheckpointError: It has no state of a training, or the state does not fit.
    """
    check_training(checkpoint, path)
    kept, dropped = known_parts(checkpoint, path)
    hub = kept['message_hub']
    files = _files(hub['runtime_info'], path, training)
    for key in [key for key in hub['runtime_info'] if key.startswith(FILES)]:
        if key in files:
            hub['runtime_info'][key] = files[key]
        else:
            del hub['runtime_info'][key], hub['resumed_keys'][key]
            dropped.append(f'runtime_info[{key!r}]')
    try:
        if training.optim_wrapper is not None and 'optimizer' in kept:
            kept['optimizer'] = known_optimizer(kept['optimizer'], training.optim_wrapper)
        if training.schedulers is not None and 'param_schedulers' in kept:
            saved = kept['param_schedulers']
            kept['param_schedulers'] = known_schedulers(saved, training.schedulers)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f'{path} does not fit the training: {printable(error)}') from None
    averages = any(isinstance(hook, EMAHook) for hook in training.hooks)
    if averages and 'ema_state_dict' in kept and training.model is not None:
        _check_ema(kept, path, training.model)
    return kept, dropped


def check_training(checkpoint: Any, path: str) -> None:
    """Raise a NoTrainingError unless a checkpoint has the parts of a training."""
    checkpoint = checkpoint if isinstance(checkpoint, Mapping) else {}
    meta = checkpoint.get('meta')
    counts = [meta.get(name) for name in ('epoch', 'iter')] if isinstance(meta, Mapping) else []
    whole = (
        isinstance(checkpoint.get('state_dict'), Mapping)
        and counts
        and all(type(count) is int and 0 <= count < 2**63 for count in counts)
        and _is_hub(checkpoint.get('message_hub'))
    )
    if not whole:
        raise NoTrainingError(f'{path} holds weights but no training to go on with: use load_from')


def known_parts(checkpoint: Mapping[str, Any], path: str) -> tuple[dict[str, Any], list[str]]:
    """Remove from a checkpoint what mmengine would run, and what is no plain data.

    The config in ``meta`` is removed, because mmengine executes it when it resumes and for its
    inferencers. From ``meta`` and the message hub, keys that are not printable and values that
    are no plain data are dropped. A malformed message hub is dropped as a whole. Functions and
    classes are removed from the states of parameter schedulers; the schedulers keep their own.

    Returns:
        The checkpoint, and the names of other dropped parts.

    Raises:
        CheckpointError: A name in the state dict has control characters. Logs would print it.
    """
    kept, dropped = dict(checkpoint), []
    state = kept.get('state_dict')
    for name in state if isinstance(state, Mapping) else kept:  # a bare state dict
        if isinstance(name, str) and not _is_word(name):
            raise CheckpointError(f'{path} is refused: {printable(repr(name[:80]))} is no name')
    if isinstance(kept.get('meta'), Mapping):
        kept['meta'], more = _plain_items(kept['meta'], 'meta', {'config', 'cfg'})
        seed = kept['meta'].get('seed')
        if not (seed is None or (type(seed) is int and 0 <= seed < 2**32)):  # the range of numpy
            more.append("meta['seed']")
            del kept['meta']['seed']
        dropped += more
    if _is_hub(kept.get('message_hub')):
        kept['message_hub'], more = _known_hub(kept['message_hub'])
        dropped += more
    elif kept.pop('message_hub', None) is not None:
        dropped.append('message_hub')
    if 'param_schedulers' in kept:
        kept['param_schedulers'] = _schedulers(kept['param_schedulers'])
    return kept, dropped


def _schedulers(states: Any) -> Any:
    """Remove functions and classes from states of schedulers, a list or a dict of lists."""
    if isinstance(states, Mapping):
        return {name: _schedulers(group) for name, group in states.items()}
    if not isinstance(states, list):
        return states
    return [without_stand_ins(one) if isinstance(one, dict) else one for one in states]


def is_plain(value: Any) -> bool:
    """Return whether a value is plain data: numbers, texts, arrays, and containers of these.

    Example:
        >>> is_plain({'seen': [1, 2.5, 'three']}), is_plain(print)
        (True, False)
    """
    return _extent(value, {}) is not None


DEPTH, SIZE = 20, 10_000_000
"""Largest nesting and number of parts of plain data; mmengine copies shared parts each time."""


def _extent(value: Any, known: dict[int, tuple[int, int]], depth: int = 0) -> Any:
    """Count levels and parts of plain data, shared parts each time; None for other data."""
    parts = _parts(value) if depth <= DEPTH else None
    if parts is None:
        return None
    if id(value) not in known:
        height, size = 0, 1
        for part in parts:
            extent = _extent(part, known, depth + 1)
            if extent is None:
                return None
            height, size = max(height, extent[0] + 1), size + extent[1]
        known[id(value)] = height, size
    height, size = known[id(value)]
    return None if depth + height > DEPTH or size > SIZE else (height, size)


def _parts(value: Any) -> list | None:
    """Return the parts of plain data; empty for a single value, None for other data."""
    kind = type(value)
    if kind in CONTAINERS:
        return list(value)
    if kind in MAPPINGS:
        factory = getattr(value, 'default_factory', None)
        known = factory in (None, bool, int, float, str, *CONTAINERS, *MAPPINGS)
        parts = [part for pair in value.items() for part in pair]
        if kind is InertDict and value.factory is None:
            parts += [value.args, value.state]
        return parts if known else None
    if kind in (Tensor, nn.Parameter):  # only if a new checkpoint can contain it
        dense = value.layout == torch.strided and not value.is_meta and not value.is_quantized
        return [] if dense else None
    if isinstance(value, np.ndarray | np.generic):
        return None if value.dtype.hasobject else []
    return [] if kind in INERT else None


def _is_word(key: Any) -> bool:
    return isinstance(key, str) and key.isprintable() and len(key) <= 1000


def _plain_items(
    items: Mapping, name: str, silently: frozenset | set
) -> tuple[dict[str, Any], list[str]]:
    """Keep plain data under printable keys, and list what is dropped.

    Keys in ``silently`` are dropped but not listed.
    """
    kept = {
        key: value
        for key, value in items.items()
        if _is_word(key) and key not in silently and is_plain(value)
    }
    dropped = [key for key in items if not (_is_word(key) and (key in kept or key in silently))]
    return kept, [f'{name}[{short(key)}]' for key in dropped]


def _is_hub(hub: Any) -> bool:
    parts = ('log_scalars', 'runtime_info', 'resumed_keys')
    return isinstance(hub, Mapping) and all(isinstance(hub.get(part), Mapping) for part in parts)


def _known_hub(hub: Mapping) -> tuple[dict[str, Any], list[str]]:
    info, dropped = _plain_items(hub['runtime_info'], 'runtime_info', REWRITTEN)
    for key in [key for key, value in info.items() if not _is_expected(key, value)]:
        del info[key]
        dropped.append(f'runtime_info[{key!r}]')
    histories = {key: _history(value) for key, value in hub['log_scalars'].items()}
    scalars = {k: v for k, v in histories.items() if _is_word(k) and v is not None}
    dropped += [f'log_scalars[{short(k)}]' for k in histories if k not in scalars]
    # All saved keys have the value True here. mmengine fails if this value of a key changes.
    resumed = dict.fromkeys([*scalars, *info], True)
    return dict(log_scalars=scalars, runtime_info=info, resumed_keys=resumed), dropped


def _is_expected(key: str, value: Any) -> bool:
    """Return whether a value of the runtime info has the kind that is expected for its key."""
    if key == 'spp_training':  # SPPHook writes it into its records
        return _is_word(value)
    if key.startswith(('train', 'val', 'test')):  # mmengine prints these values
        return not isinstance(value, str) or value.isprintable()
    return True


def _history(value: Any) -> HistoryBuffer | None:
    """Copy a log history if it only contains numbers, else return None."""
    if not isinstance(value, HistoryBuffer):
        return None
    length = getattr(value, 'max_length', None)
    logs, counts = (getattr(value, name, None) for name in ('_log_history', '_count_history'))
    whole = (
        type(length) is int
        and length > 0
        and isinstance(logs, np.ndarray)
        and isinstance(counts, np.ndarray)
        and logs.dtype.kind in 'biuf'
        and counts.dtype.kind in 'biuf'
        and logs.ndim == 1
        and logs.shape == counts.shape
        and 0 < len(logs) <= length
    )
    return HistoryBuffer(logs, counts, length) if whole else None


# ---------------------------------------------------------------- files that mmengine deletes
def _files(info: Mapping[str, Any], path: str, training: Training) -> dict[str, Any]:
    """Select the entries about best and kept checkpoints that belong to this training.

    mmengine deletes the best checkpoint when there is a better one, and the oldest kept
    checkpoint when ``max_keep_ckpts`` is reached. So such entries are only taken over from a
    file that a hook of this training has saved in its own folder.
    """
    own = [names for names in training.saved_names if names.step(path) is not None]
    kept: dict[str, Any] = {}
    for names in own:
        indicators = getattr(names.hook, 'key_indicators', [])
        for indicator in indicators:
            suffix = '' if len(indicators) == 1 else f'_{indicator}'
            score, best = f'best_score{suffix}', f'best_ckpt{suffix}'
            known = _own_best(info, score, best, names, None if indicator == 'auto' else indicator)
            kept.update({key: info[key] for key in known})
    limited = [names for names in training.saved_names if names.hook.max_keep_ckpts > 0]
    ids = [_own_ids(info.get('keep_ckpt_ids'), path, names) for names in limited]
    if ids and all(ids) and all(names in own for names in limited):
        # Not more than max_keep_ckpts: mmengine would delete the others at once.
        kept['keep_ckpt_ids'] = ids[0][-min(names.hook.max_keep_ckpts for names in limited) :]
    return kept


def _own_best(
    info: Mapping[str, Any], score: str, best: str, names: SavedNames, indicator: str | None
) -> list[str]:
    """Return which of two keys, a score and its checkpoint, are taken over."""
    value, file = info.get(score), info.get(best)
    if not is_number(value) or not math.isfinite(value):
        return []
    if not isinstance(file, str) or not names.is_best(file, indicator):
        return [score]
    try:
        hub = safe_load(file, 'meta')['message_hub']
        same = float(hub['runtime_info'][score]) == float(value)
    except FileNotFoundError:
        return [score]
    except Exception:  # not a checkpoint of this hook
        return []
    return [score, best] if same else []


def _own_ids(ids: Any, path: str, names: SavedNames) -> list[int]:
    """Return the kept checkpoints of a hook that exist; none if they are not its last ones."""
    own = names.step(path)
    if own is None or not isinstance(ids, list) or not all(type(step) is int for step in ids):
        return []
    steps = {step for step in map(names.step, names.files()) if step is not None}
    there = sorted(step for step in steps if step <= own)
    ids = [step for step in ids if step in steps]
    return ids if ids and ids == there[-len(ids) :] else []


# ---------------------------------------------------------------- averaged weights
def _check_ema(checkpoint: Mapping[str, Any], path: str, model: nn.Module) -> None:
    """Raise a CheckpointError unless the averaged weights of an ``EMAHook`` fit the model."""
    averaged, state = checkpoint['ema_state_dict'], checkpoint['state_dict']
    if not isinstance(averaged, Mapping) or not all(map(_is_word, averaged)):
        raise CheckpointError(f'the ema_state_dict of {path} is no state dict')
    own = {k.removeprefix('module.'): v for k, v in averaged.items() if k.startswith('module.')}
    check_match(own, model, f'the ema_state_dict of {path}')
    for name in own.keys() - state.keys():
        raise CheckpointError(f'{path} has {name} in ema_state_dict alone')
    if not is_number(averaged.get('steps', 0)):
        raise CheckpointError(f'the steps in the ema_state_dict of {path} are no number')


# ---------------------------------------------------------------- where mmengine resumes
_resuming: ContextVar[Training | None] = ContextVar('_resuming', default=None)


def while_resuming(resume: Callable[..., None]) -> Callable[..., None]:
    """Decorate a runner's ``resume``, so that it only takes over known parts."""

    @functools.wraps(resume)
    def wrapper(runner: Any, *args: Any, **kwargs: Any) -> None:
        token = _resuming.set(Training.of(runner))
        try:
            resume(runner, *args, **kwargs)
        finally:
            _resuming.reset(token)

    return wrapper


def cleaned(checkpoint: Any, path: str) -> Any:
    """Remove from a loaded checkpoint the parts by which mmengine would run or delete files.

    While a runner resumes, its log lists the dropped parts.
    """
    if not isinstance(checkpoint, Mapping):
        return checkpoint
    training = _resuming.get()
    if training is None:
        return known_parts(checkpoint, path)[0]
    kept, dropped = take_over(checkpoint, path, training)
    if dropped:
        more = f' and {len(dropped) - 5} more' if len(dropped) > 5 else ''
        text = f'not taken over from {printable(path)}: {", ".join(dropped[:5])}{more}'
        print_log(text, logger='current', level=logging.WARNING)
    return kept
