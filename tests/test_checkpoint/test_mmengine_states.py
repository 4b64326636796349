"""What mmengine's schedulers, optimizers and hooks write is read, and can be resumed from."""

import datetime
import warnings
from collections import defaultdict, deque
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader
from torch import nn

from nf_plugins.checkpoint import safe_load
from nf_plugins.checkpoint.inert import holds_stand_in

ARGUMENTS = [
    {}, dict(T_max=5), dict(total_steps=9, eta_max=0.1), dict(gamma=0.9), dict(milestones=[2]),
    dict(step_size=2), dict(eta_min=0.0), dict(param_name='lr'), dict(monitor='loss'),
    dict(factor=0.5), dict(periods=[5], restart_weights=[1]), dict(step_size=2, gamma=0.5),
    dict(T_max=5, eta_min=0.0), dict(milestones=[2], gamma=0.5), dict(periods=[5], eta_min=0.0),
    dict(param_name='lr', total_steps=9, eta_max=0.1), dict(param_name='lr', T_max=5),
    dict(param_name='lr', gamma=0.9), dict(param_name='lr', step_size=2),
    dict(param_name='lr', milestones=[2]), dict(param_name='lr', periods=[5], restart_weights=[1]),
    dict(total_steps=9), dict(num_steps=9), dict(param_name='lr', factor=0.5),
]  # fmt: skip


def sgd():
    torch.manual_seed(0)
    return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)


def build(name, **more):
    """A scheduler of this name with the first arguments that fit, or None."""
    for arguments in ARGUMENTS:
        try:
            return PARAM_SCHEDULERS.get(name)(optimizer=sgd(), **arguments, **more)
        except (TypeError, ValueError, KeyError, AssertionError):
            continue
    return None


def step(scheduler):
    """One step; the rates after it."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the optimizer makes no step
        if 'Plateau' in type(scheduler).__name__:
            scheduler.step(dict(loss=1.0))
        else:
            scheduler.step()
    return [dict(group, params=None) for group in scheduler.optimizer.param_groups]


SCHEDULERS = sorted(name for name in PARAM_SCHEDULERS.module_dict if build(name) is not None)


def test_most_schedulers_are_tried():
    assert len(SCHEDULERS) >= 0.9 * len(PARAM_SCHEDULERS.module_dict)
    assert {'OneCycleLR', 'CosineAnnealingLR', 'ReduceOnPlateauLR', 'PolyLR'} <= set(SCHEDULERS)


@pytest.mark.parametrize('name', SCHEDULERS)
def test_a_scheduler_goes_on_as_without_interruption(name, tmp_path):
    path, scheduler = str(tmp_path / 'epoch_1.pth'), build(name)
    for _ in range(3):
        step(scheduler)
    optimizer = scheduler.optimizer.state_dict()
    saved = [scheduler.state_dict()]
    for schedulers in (saved, dict(generator=saved)):
        torch.save(dict(optimizer=optimizer, param_schedulers=schedulers), path)
        safe_load(path)
        read = CheckpointLoader.load_checkpoint(path)
        states = read['param_schedulers']
        (state,) = states['generator'] if isinstance(states, dict) else states
        assert not holds_stand_in(state)
        resumed = build(name)
        resumed.optimizer.load_state_dict(read['optimizer'])
        resumed.load_state_dict(state)
    assert [step(resumed) for _ in range(4)] == [step(scheduler) for _ in range(4)]


def optimizer_of(name):
    """An optimizer with a state, or None."""
    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    for arguments in ({}, dict(lr=0.1), dict(lr=0.1, momentum=0.9)):
        try:
            optimizer = OPTIMIZERS.get(name)(layer.parameters(), **arguments)
            layer(torch.ones(1, 2)).sum().backward()
            optimizer.step(lambda: torch.tensor(1.0))
        except Exception:  # it needs a library, other gradients or other arguments
            continue
        return optimizer
    return None


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(v, second[k]) for k, v in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


@pytest.mark.filterwarnings('ignore')
def test_states_of_optimizers(tmp_path):
    tried = []
    for name in sorted(OPTIMIZERS.module_dict):
        optimizer = optimizer_of(name)
        if optimizer is None:
            continue
        tried.append(name)
        torch.save(optimizer.state_dict(), tmp_path / 'a.pth')
        assert equal(safe_load(tmp_path / 'a.pth'), optimizer.state_dict()), name
    assert {'SGD', 'Adam', 'AdamW', 'RMSprop', 'Adagrad', 'Adadelta'} <= set(tried)
    assert len(tried) >= 10


def test_states_of_optimizer_wrappers(tmp_path):
    for name in ('OptimWrapper', 'AmpOptimWrapper', 'AGCOptimWrapper'):
        wrapper = OPTIM_WRAPPERS.get(name)
        if wrapper is None or (name == 'AmpOptimWrapper' and not torch.cuda.is_available()):
            continue
        more = dict(clip_grad=dict(type='agc', clip_factor=0.01)) if 'AGC' in name else {}
        state = wrapper(optimizer=sgd(), **more).state_dict()
        torch.save(state, tmp_path / 'a.pth')
        assert equal(safe_load(tmp_path / 'a.pth'), state)


def test_what_hooks_keep_in_the_hub(tmp_path):
    """Each value is equal to the original; if a hook uses it, it also has the original class."""
    hub = MessageHub.get_instance('test_what_hooks_keep_in_the_hub')
    kept = dict(
        start=datetime.datetime(2020, 1, 2, 3), folder=Path('work'), last=deque([1.0], maxlen=3),
        counts=defaultdict(int, a=1), rate=np.float32(0.1), name=np.str_('x'), left=timedelta(1),
        meta=ConfigDict(classes=('a',)), best=dict(key=[1, (2, {3})]),
    )  # fmt: skip
    for key, value in kept.items():
        hub._runtime_info[key] = value
        hub._resumed_keys[key] = True
    torch.save(dict(message_hub=hub.state_dict()), tmp_path / 'a.pth')
    fresh = MessageHub.get_instance('test_what_hooks_keep_in_the_hub, again')
    fresh.load_state_dict(safe_load(tmp_path / 'a.pth')['message_hub'])
    for key, value in kept.items():
        assert fresh.get_info(key) == value
    assert fresh.get_info('start') + fresh.get_info('left') == datetime.datetime(2020, 1, 3, 3)
    assert fresh.get_info('last').maxlen == 3


def test_a_hub_is_resumed(tmp_path):
    hub = MessageHub.get_instance('test_a_hub_is_resumed')
    for value in (3.0, 1.0):
        hub.update_scalar('loss', value)
    hub.update_info('epoch', 2)
    torch.save(dict(message_hub=hub.state_dict()), tmp_path / 'a.pth')
    fresh = MessageHub.get_instance('test_a_hub_is_resumed, again')
    fresh.load_state_dict(safe_load(tmp_path / 'a.pth')['message_hub'])
    fresh.update_scalar('loss', 5.0)
    assert fresh.get_scalar('loss').mean() == 3.0
    assert fresh.get_scalar('loss').statistics('min') == 1.0
    assert fresh.get_info('epoch') == 2
