"""Checks of the states of optimizers and parameter schedulers against a training's own."""

from __future__ import annotations

import copy
import math
import reprlib
import types
import warnings
from collections.abc import Mapping
from typing import Any, SupportsFloat, TypeGuard

import numpy as np
import torch
from mmengine.optim import OptimWrapperDict
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer

from nf_plugins.errors import short

IMPLEMENTATION = frozenset(('foreach', 'fused', 'capturable', 'differentiable', 'param_names'))
"""Settings of a parameter group about the implementation; the config's values are used."""

PER_GROUP = frozenset(('base_values', '_last_value', 'min_values'))
"""Attributes of a scheduler with one value per parameter group."""


def known_optimizer(state: Any, wrapper: Any) -> dict[str, Any]:
    """Reduce the state of an optimizer wrapper to known keys of known types.

    Args:
        state: The state in the checkpoint.
        wrapper: The training's optimizer wrapper, or dict of optimizer wrappers.

    Returns:
        A state for ``wrapper.load_state_dict``.

    Raises:
        ValueError: It is the state of another optimizer, or it is malformed.
    """
    if isinstance(wrapper, OptimWrapperDict):
        wrappers = wrapper.optim_wrappers
        state = _mapping('optimizer', state)
        if state.keys() != wrappers.keys():
            raise ValueError(
                f'its optimizers are {_names(state)}, the config has {_names(wrappers)}'
            )
        return {name: known_optimizer(state[name], own) for name, own in wrappers.items()}
    if isinstance(wrapper.optimizer, ZeroRedundancyOptimizer):
        return state  # each process has only a part of it
    own = wrapper.state_dict()
    kept = {key: value for key, value in _mapping('optimizer', state).items() if key in own}
    groups, wanted = kept.get('param_groups'), len(own['param_groups'])
    if not isinstance(groups, list) or len(groups) != wanted:
        count = len(groups) if isinstance(groups, list) else 'no'
        raise ValueError(f'its optimizer has {count} parameter groups, the config {wanted}')
    kept['param_groups'] = [
        _group(f'parameter group {number}', group, like)
        for number, (group, like) in enumerate(zip(groups, own['param_groups']))
    ]
    kept['state'] = _states(kept.get('state'), kept['param_groups'], wrapper.optimizer)
    if 'base_param_settings' in kept:
        settings = _mapping('base_param_settings', kept['base_param_settings'])
        settings = {**settings, 'params': own['base_param_settings']['params']}
        like = own['base_param_settings']
        kept['base_param_settings'] = _group('base_param_settings', settings, like)
    if 'loss_scaler' in kept:
        scaler = _mapping('loss_scaler', kept['loss_scaler'])
        if not scaler or not own['loss_scaler']:  # one of the trainings has no accelerator
            del kept['loss_scaler']
        else:
            kept['loss_scaler'] = _known('loss_scaler', scaler, own['loss_scaler'])
            for key, value in kept['loss_scaler'].items():
                integer = type(own['loss_scaler'][key]) is int
                if not value >= (key != '_growth_tracker') * 1e-30 or integer > isinstance(
                    value, int
                ):
                    raise ValueError(f'loss_scaler has {key}={_short(value)}')
    return kept


def known_schedulers(state: Any, schedulers: Any) -> Any:
    """Reduce the states of parameter schedulers to known keys of known types.

    As in mmengine, numbers are taken from the checkpoint. Texts and functions are settings, and
    are taken from the config.

    Args:
        state: The states in the checkpoint.
        schedulers: The training's schedulers, as a list or as a dict of lists.

    Raises:
        ValueError: They are the states of other schedulers, or they are malformed.
    """
    if isinstance(schedulers, Mapping):
        state = _mapping('param_schedulers', state)
        if state.keys() != schedulers.keys():
            raise ValueError(
                f'its schedulers are of {_names(state)}, the config has {_names(schedulers)}'
            )
        return {name: known_schedulers(state[name], own) for name, own in schedulers.items()}
    count = len(state) if isinstance(state, list) else 'no'
    if count != len(schedulers):
        raise ValueError(f'it has {count} parameter schedulers, the config {len(schedulers)}')
    return [_scheduler(one, own) for one, own in zip(state, schedulers)]


def _scheduler(state: Any, scheduler: Any) -> dict[str, Any]:
    name = type(scheduler).__name__
    likes = {
        key: like
        for key, like in scheduler.state_dict().items()
        if not isinstance(like, str) and _is_known(like)
    }
    kept = _known(name, _mapping(name, state), likes)
    for key in PER_GROUP & kept.keys():
        if len(kept[key]) != len(likes[key]):
            raise ValueError(f'{name} has {len(kept[key])} {key} instead of {len(likes[key])}')
    trial = copy.copy(scheduler)
    groups = [
        {k: v for k, v in g.items() if k != 'params'} for g in scheduler.optimizer.param_groups
    ]
    trial.__dict__.update(kept, optimizer=types.SimpleNamespace(param_groups=groups))
    trial.last_step += 1
    try:
        if trial.begin <= trial._global_step + 1 < trial.end:  # mmengine only calls it in there
            trial._get_value()
    except Exception as error:  # the same error would come at the next step
        raise ValueError(f'{name} cannot go on: {type(error).__name__}: {error}') from None
    return kept


def _group(name: str, group: Any, like: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings of a parameter group; a missing one is taken from the config."""
    group = _mapping(name, group)
    params = group.get('params')
    if isinstance(like['params'], list):
        whole = isinstance(params, list) and all(type(number) is int for number in params)
        if not whole or len(set(params)) != len(like['params']) != len(params):
            raise ValueError(
                f'{name} has {_amount(params)} parameters, not {_amount(like["params"])}'
            )
    kept = dict(params=params)
    for key, default in like.items():
        if key in IMPLEMENTATION or isinstance(default, str) or not _is_known(default):
            kept[key] = default
        elif key != 'params':
            kept[key] = group.get(key, default) if key != 'lr' else group.get(key)
            _check(name, key, kept[key], default)
    if not kept['lr'] >= 0:
        raise ValueError(f'{name} has the learning rate {kept["lr"]!r}')
    return kept


# ---------------------------------------------------------------- states of parameters
def _states(states: Any, groups: list[dict], optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """Check what an optimizer keeps for each parameter, such as its momentum."""
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    numbers = [number for group in groups for number in group['params']]
    if len(set(numbers)) != len(numbers):
        raise ValueError('its optimizer has one parameter in two groups')
    states, kept = _mapping('the state of its optimizer', states), {}
    expected = _expected_states(optimizer, groups)
    for index, (number, parameter) in enumerate(zip(numbers, parameters)):
        state = states.get(number)
        if state:
            like = expected[index] if expected else {}
            kept[number] = _state(f'parameter {number}', state, like, parameter, bool(expected))
    return kept


def _expected_states(optimizer: Optimizer, groups: list[dict]) -> dict[int, dict] | None:
    """Find what the optimizer keeps after a step, on tensors without memory; None if unknown."""
    memo = {}
    for group in optimizer.param_groups:
        for p in group['params']:
            twin = nn.Parameter(torch.empty_like(p, device='meta'), requires_grad=False)
            twin.grad = torch.zeros_like(twin)
            memo[id(p)] = twin
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            trial = copy.deepcopy(optimizer, memo)
            trial.load_state_dict(dict(state={}, param_groups=groups))
            type(trial).step(trial)  # schedulers have replaced `trial.step` by one that counts
            return trial.state_dict()['state']
    except Exception:  # a custom optimizer may need more than gradients
        return None


def _state(
    name: str, state: Any, like: Mapping[str, Any], parameter: Tensor, whole: bool
) -> dict[str, Any]:
    kept = {}
    for key, value in _mapping(name, state).items():
        expected = like.get(key)
        if isinstance(value, Tensor) and value.dim() > 0:
            shape = parameter.shape if expected is None else getattr(expected, 'shape', ())
            fits = value.layout == torch.strided and not value.is_meta and not value.is_quantized
            if whole and value.shape != shape:
                shapes = f'{tuple(value.shape)} instead of {tuple(shape)}'
                raise ValueError(f'{key} of {name} has the shape {shapes}')
            fits = fits and bool(torch.isfinite(value).all())
        elif value is None:
            fits = not whole or expected is None
        elif whole:
            single = not isinstance(expected, Tensor) or expected.numel() == 1
            fits = single and is_number(value) and math.isfinite(value)
            fits = fits and (key != 'step' or value >= 0)
        else:
            fits = _is_known(value)
        if not fits:
            raise ValueError(f'{key} of {name} is {_short(value)}')
        kept[key] = value
    missing = [key for key, value in like.items() if value is not None and key not in kept]
    if missing:
        raise ValueError(f'{name} has no {missing[0]}: its state is from another optimizer')
    return kept


# ---------------------------------------------------------------- types
def is_number(value: Any) -> TypeGuard[SupportsFloat]:
    """Return whether a value is one real number of Python or numpy, or a tensor with one."""
    if isinstance(value, Tensor):
        return (
            value.numel() == 1
            and value.layout == torch.strided
            and not (value.is_meta or value.is_quantized or value.is_complex())
        )
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float | np.integer | np.floating)


def _is_known(value: Any) -> bool:
    """Return whether a value is a number, a text, None, or a container of these."""
    if isinstance(value, Mapping):
        return all(_is_known(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return all(map(_is_known, value))
    return value is None or isinstance(value, bool | str) or is_number(value)


def _fits(value: Any, like: Any) -> bool:
    """Return whether a value has the kind of another value."""
    if like is None:
        return value is None or isinstance(value, bool) or is_number(value)
    if isinstance(like, bool):
        return isinstance(value, bool)
    if isinstance(like, str):
        return value == like
    if is_number(like):
        return is_number(value) and (
            math.isfinite(value) or (not math.isfinite(like) and not math.isnan(value))
        )
    if isinstance(like, Mapping):
        if not isinstance(value, Mapping):
            return False
        if all(isinstance(key, str) for key in like):
            return value.keys() == like.keys() and all(_fits(value[k], like[k]) for k in like)
        return all(is_number(item) for pair in value.items() for item in pair)
    if not isinstance(value, list | tuple) or bool(value) != bool(like):
        return False
    if isinstance(like, tuple):
        return len(value) == len(like) and all(map(_fits, value, like))
    return all(any(_fits(item, own) for own in like) for item in value)


def _check(name: str, key: str, value: Any, like: Any) -> None:
    if not _fits(value, like):
        raise ValueError(f'{name} has {key}={_short(value)}, which is not like {_short(like)}')


def _known(name: str, state: Mapping, likes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known keys of a state; raise if one is missing or has another kind of value."""
    for key, like in likes.items():
        if key not in state:
            raise ValueError(f'{name} has no {key}')
        _check(name, key, state[key], like)
    return {key: state[key] for key in likes}


def _mapping(name: str, value: Any) -> Mapping:
    if not isinstance(value, Mapping):
        raise ValueError(f'{name} is no dict: {type(value).__name__}')
    return value


def _names(items: Mapping) -> str:
    return ', '.join(sorted(map(short, items))[:20]) or 'none'


def _short(value: Any) -> str:
    return ' '.join(_Short().repr(value).split())


class _Short(reprlib.Repr):
    """Repr of a value that is short for long containers and for objects of any class."""

    def repr_instance(self, value: Any, level: int) -> str:
        return short(value)


def _amount(params: Any) -> str:
    return str(len(params)) if isinstance(params, list) else _short(params)
