"""A resumed training equals one without a kill, and only takes over known and plain data."""

import collections
import copy
import datetime
import pathlib
import pickle
import re

import addict
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import HOOKS, OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn

from nf_plugins.checkpoint import safe_load
from nf_plugins.checkpoint.optim_state import known_optimizer
from nf_plugins.checkpoint.resume import Training, is_plain, known_parts, take_over
from nf_plugins.errors import CheckpointError

from ..tiny_training import tiny_config, train

EPOCHS = 4


def assert_goes_on(tmp_path, kill=2, **changes):
    """Two epochs, a kill, a resumed rest: equal to the bit to a training without a kill."""
    train(tmp_path / 'whole', **changes)
    train(tmp_path / 'killed', kill=kill, **changes)
    assert not (tmp_path / f'killed/epoch_{EPOCHS}.pth').exists()
    resumed = train(tmp_path / 'killed', resume=True, **changes)
    assert resumed.epoch == EPOCHS
    whole, killed = (safe_load(tmp_path / f'{name}/epoch_4.pth') for name in ('whole', 'killed'))
    for part in ('state_dict', 'optimizer', 'param_schedulers', 'ema_state_dict'):
        assert_same(killed.get(part), whole.get(part))
    for scalar in ('train/loss', 'train/lr'):
        logs = [c['message_hub']['log_scalars'][scalar].data[0] for c in (killed, whole)]
        assert len(logs[0]) == 2 * EPOCHS
        assert (logs[0] == logs[1]).all()
    return killed


def assert_same(found, wanted):
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted):
            assert_same(one, other)
    elif not callable(wanted):
        assert found == wanted or (found != found and wanted != wanted)


SCHEDULERS = {
    'Constant': dict(factor=0.5, end=3),
    'CosineAnnealing': dict(T_max=4),
    'CosineRestart': dict(periods=[2, 2], restart_weights=[1, 0.5], eta_min=0.01),
    'Exponential': dict(gamma=0.7),
    'Linear': dict(start_factor=0.1, end=3),
    'MultiStep': dict(milestones=[1, 3]),
    'OneCycle': dict(total_steps=4),
    'Poly': dict(power=0.9, eta_min=0.01),
    'ReduceOnPlateau': dict(monitor='acc', patience=0, threshold=10.0),
    'Step': dict(step_size=1),
}
"""Settings of each family of schedulers; each has a kind for lr, momentum, any parameter."""

KINDS = {'LR': {}, 'Momentum': {}, 'ParamScheduler': dict(param_name='weight_decay')}


def scheduler_settings(name):
    family, kind = re.fullmatch('(.+?)(LR|Momentum|ParamScheduler)', name).groups()
    settings = dict(type=name, **SCHEDULERS[family], **KINDS[kind])
    if family == 'OneCycle':
        settings.update(eta_max=0.2, **({} if kind == 'LR' else dict(param_name='lr')))
    return settings


@pytest.mark.versions
@pytest.mark.parametrize('name', sorted(PARAM_SCHEDULERS.module_dict))
def test_every_scheduler_goes_on(name, tmp_path):
    changes = dict(param_scheduler=scheduler_settings(name))
    if 'Plateau' in name:
        # mmengine saves an epoch before it validates it, so a kill between them loses that
        # validation; here one comes before the last checkpoint, and one after it.
        assert_goes_on(tmp_path, kill=3, **changes, **{'train_cfg.val_interval': 2})
    else:
        assert_goes_on(tmp_path, **changes)


OPTIMIZER_SETTINGS = dict(SGD=dict(lr=0.05, momentum=0.9, nesterov=True))
NOT_ALONE = dict(
    Optimizer='it is the base class',
    LBFGS='it wants a closure, which no OptimWrapper of mmengine gives',
    ZeroRedundancyOptimizer='it shares its state between processes and needs a process group',
)


@pytest.mark.versions
@pytest.mark.parametrize('name', sorted(OPTIMIZERS.module_dict))
def test_every_optimizer_goes_on(name, tmp_path):
    if name in NOT_ALONE:
        pytest.skip(NOT_ALONE[name])
    settings = dict(_delete_=True, type=name, **OPTIMIZER_SETTINGS.get(name, dict(lr=0.05)))
    changes = {'optim_wrapper.optimizer': settings}
    if name == 'SparseAdam':  # takes no dense parameter beside the sparse one
        changes.update({'model.sparse': True, 'optim_wrapper.constructor': 'SparseOnly'})
    assert_goes_on(tmp_path, **changes)


HOOK_SETTINGS = dict(
    CheckpointHook=dict(interval=1, save_best='acc', max_keep_ckpts=2),
    EMAHook=dict(momentum=0.1),
    EarlyStoppingHook=dict(monitor='acc', patience=100),
)
NOT_HERE = dict(
    KillHook='it belongs to these tests',
    SPPHook='it needs a backbone; test_kill_resume_and_every_record_exactly_once trains with it',
    ProfilerHook='it keeps no state and writes traces',
    NPUProfilerHook='it needs an NPU',
    PrepareTTAHook='it wraps a model for tests, not for trainings',
    RFSearchHook='it changes dilated convolutions of its own models',
    NaiveVisualizationHook='it acts in tests alone',
)


@pytest.mark.versions
@pytest.mark.parametrize('name', sorted(HOOKS.module_dict))
def test_every_hook_goes_on(name, tmp_path):
    if name in NOT_HERE:
        pytest.skip(NOT_HERE[name])
    hook = dict(type=name, **HOOK_SETTINGS.get(name, {}))
    if name == 'CheckpointHook':
        assert_goes_on(tmp_path, **{'default_hooks.checkpoint': dict(_delete_=True, **hook)})
        for name in ('whole', 'killed'):
            left = sorted(path.name for path in (tmp_path / name).glob('*.pth'))
            assert [p for p in left if not p.startswith('best')] == ['epoch_3.pth', 'epoch_4.pth']
            assert len([p for p in left if p.startswith('best_acc')]) == 1
    elif name == 'RuntimeInfoHook':  # twice it would log each loss twice
        assert_goes_on(tmp_path)
    else:
        assert_goes_on(tmp_path, custom_hooks=[hook])


@pytest.mark.versions
@pytest.mark.parametrize(
    'changes',
    [
        {'optim_wrapper.paramwise_cfg': dict(custom_keys={'fc': dict(lr_mult=0.5)})},
        {'optim_wrapper.type': 'AGCOptimWrapper', 'optim_wrapper.clip_grad': dict(type='agc')},
        {'optim_wrapper.accumulative_counts': 2},
        {'param_scheduler': [dict(type='LinearLR', end=2, convert_to_iter_based=True),
                             dict(type='CosineAnnealingLR', begin=2, T_max=2)]},
        {'param_scheduler': [dict(type='LinearLR', end=1), dict(type='ExponentialLR', gamma=0.5)]},
    ],
    ids=['groups', 'agc', 'accumulation', 'two schedulers', 'a scheduler of one step'],
)  # fmt: skip
def test_other_settings_go_on(changes, tmp_path):
    assert_goes_on(tmp_path, **changes)


# ---------------------------------------------------------------- what is taken over
@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """Two epochs with best checkpoints and the last two kept."""
    folder = tmp_path_factory.mktemp('work')
    train(folder, kill=2, **KEEPING)
    return folder


KEEPING = {
    'default_hooks.checkpoint.save_best': 'acc',
    'default_hooks.checkpoint.max_keep_ckpts': 2,
}


@pytest.fixture
def saved(work_dir):
    """Its last checkpoint, opened, its path, and the training that goes on."""
    path = str(work_dir / 'epoch_2.pth')
    return safe_load(path), path, training_in(work_dir)


def training_in(work_dir):
    cfg = tiny_config(work_dir)
    model = nn.ModuleDict(dict(fc=nn.Linear(4, 3, bias=False)))
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    scheduler = PARAM_SCHEDULERS.build(dict(cfg.param_scheduler, optimizer=wrapper))
    hook = CheckpointHook(interval=1, save_best='acc', max_keep_ckpts=2)
    return Training(model, wrapper, [scheduler], [hook], str(work_dir))


def test_an_honest_checkpoint_is_taken_over(saved):
    checkpoint, path, training = saved
    kept, dropped = take_over(checkpoint, path, training)
    assert not dropped
    info = checkpoint['message_hub']['runtime_info']
    assert kept['message_hub']['runtime_info'] == {
        name: info[name] for name in ('best_ckpt', 'best_score', 'keep_ckpt_ids')
    }
    (scheduler,) = checkpoint['param_schedulers']
    del scheduler['param_name']  # the config's
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_same(kept[part], checkpoint[part])
    assert 'cfg' not in kept['meta']


def test_nothing_that_deletes_comes_from_elsewhere(saved, tmp_path):
    checkpoint, path, training = saved
    here = path.rpartition('/')[0]
    for goes_on, file in (
        (training, f'{here}/other.pth'),
        (training, str(tmp_path / 'epoch_2.pth')),
        (training_in(tmp_path), path),
    ):
        kept, dropped = take_over(checkpoint, file, goes_on)
        assert not kept['message_hub']['runtime_info']
        assert len(dropped) == 3


BEST = ('best_ckpt', 'best_score')


@pytest.mark.parametrize(
    ('changes', 'left'),
    [
        (dict(best_ckpt='/'), ('best_score', 'keep_ckpt_ids')),
        (dict(best_ckpt='epoch_1.pth'), ('best_score', 'keep_ckpt_ids')),
        (dict(best_ckpt=['best_acc_epoch_1.pth']), ('best_score', 'keep_ckpt_ids')),
        (dict(best_ckpt='HERE/best_acc_epoch_9.pth'), ('best_score', 'keep_ckpt_ids')),
        (dict(best_ckpt='HERE/best_other_epoch_1.pth'), ('best_score', 'keep_ckpt_ids')),
        (dict(best_ckpt='HERE/../x/best_acc_epoch_1.pth'), ('best_score', 'keep_ckpt_ids')),
        (dict(best_score='x'), ('keep_ckpt_ids',)),
        (dict(best_score=None), ('keep_ckpt_ids',)),
        (dict(best_score=float('nan')), ('keep_ckpt_ids',)),
        (dict(best_score=float('-inf')), ('keep_ckpt_ids',)),
        (dict(best_score=-1.0), ('keep_ckpt_ids',)),  # a worse one would replace the best
        (dict(best_score_acc=1.0, best_ckpt_acc='/'), (*BEST, 'keep_ckpt_ids')),
        (dict(keep_ckpt_ids='12'), BEST),
        (dict(keep_ckpt_ids=[1]), BEST),
        (dict(keep_ckpt_ids=[2, 1]), BEST),
        (dict(keep_ckpt_ids=[True, 2]), BEST),
        (dict(keep_ckpt_ids=['../x', 2]), BEST),
        (dict(keep_ckpt_ids={1: 2}), BEST),
    ],
)
def test_only_own_files_of_the_right_kind(changes, left, saved):
    checkpoint, path, training = saved
    info = checkpoint['message_hub']['runtime_info']
    here = path.rpartition('/')[0]
    info.update(
        {k: v.replace('HERE', here) if isinstance(v, str) else v for k, v in changes.items()}
    )
    kept, _ = take_over(checkpoint, path, training)
    assert set(kept['message_hub']['runtime_info']) == set(left)


def history(logs=(1.0,), counts=(1,), **more):
    value = HistoryBuffer(logs, counts)
    value.__dict__.update(more)
    return value


def test_known_keys_of_the_message_hub():
    user = dict(
        started=datetime.datetime(2026, 1, 1),
        folder=pathlib.Path('/tmp'),
        last=collections.deque([1, 2], maxlen=3),
        seen=collections.defaultdict(int, a=1),
        best={'name': [1, (2.0, None)], 'array': np.ones(2), 'tensor': torch.ones(2)},
    )
    deep, wide = [], [0] * 1000
    for _ in range(30):
        deep = [deep]
    for _ in range(3):
        wide = [wide] * 1000
    refused = {
        'function': print, 'object': object(), 'objects': np.array([print]), 'deep': deep,
        'wide': wide, 'factory': collections.defaultdict(lambda: print), 1: 2, ('a',): 1,
        '\x1b]0;owned\x07': 1, 'val/text': 'a\x1b[2J', 'spp_training': 7,
        'meta': torch.empty(1, device='meta'),
    }  # fmt: skip
    info = {**user, **refused, 'cfg': 'x', 'epoch': 'y', 'iter': [], 'eta': 'z', 'loop_stage': 1}
    scalars = {
        'train/loss': history(), '\x1b[2J': history(), 'train/none': history((), ()),
        'train/text': history(_log_history=np.array(['a'])), 'train/dict': {}, 2: history(),
        'train/shape': history(_log_history=np.ones((1, 1))),
        'train/length': history(max_length='x'),
        'train/short': history((1.0, 2.0), (1, 1), max_length=1),
    }  # fmt: skip
    resumed = dict.fromkeys([*info, *scalars, 'nowhere'], False)
    hub = dict(runtime_info=info, log_scalars=scalars, resumed_keys=resumed)
    kept, dropped = known_parts(dict(message_hub=hub, meta={}), 'a.pth')
    assert kept['message_hub']['runtime_info'] == user
    assert list(kept['message_hub']['log_scalars']) == ['train/loss']
    assert kept['message_hub']['resumed_keys'] == dict.fromkeys([*user, 'train/loss'], True)
    assert len(dropped) == len(refused) + len(scalars) - 1
    assert all(text.isprintable() for text in dropped)


KINDS_OF_DICTS = {
    'ConfigDict': ConfigDict(classes=('a', 'b'), palette=[[1, 2]], more=dict(x=[ConfigDict(y=1)])),
    'addict': addict.Dict(a=dict(b=[1])),
    'defaultdict': collections.defaultdict(list, a=[1]),
    'defaultdict of counts': collections.defaultdict(int, {7: 1}),
    'defaultdict without a factory': collections.defaultdict(None, a=1),
    'nested': dict(a=collections.defaultdict(dict, b=addict.Dict(c=1))),
}


@pytest.mark.parametrize('value', KINDS_OF_DICTS.values(), ids=KINDS_OF_DICTS)
def test_kinds_of_dicts_go_on(value, tmp_path):
    """mmengine compares the pickles of two ``dataset_meta``; hooks keep such dicts in the hub."""
    hub = dict(log_scalars={}, runtime_info=dict(mine=value), resumed_keys=dict(mine=True))
    checkpoint = dict(meta=dict(epoch=1, iter=2, dataset_meta=value), message_hub=hub)
    torch.save(dict(checkpoint, state_dict=dict(a=torch.ones(1))), tmp_path / 'a.pth')
    kept, dropped = known_parts(safe_load(tmp_path / 'a.pth'), 'a.pth')
    assert dropped == []
    meta = kept['meta']['dataset_meta']
    assert pickle.loads(pickle.dumps(meta)) == value
    if isinstance(value, ConfigDict):  # otherwise mmengine warns of another data set
        own = pickle.loads(pickle.dumps(value))  # words of a file are no words of a program
        assert pickle.dumps(meta) == pickle.dumps(own)
    mine = copy.deepcopy(kept['message_hub']['runtime_info']['mine'])
    assert mine == value
    if isinstance(value, collections.defaultdict) and value.default_factory:
        assert mine['new'] == value.default_factory() == mine.pop('new')


@pytest.mark.parametrize('factory', [print, collections.defaultdict, nn.Linear, pathlib.Path])
def test_a_factory_of_something_else_is_dropped(factory, tmp_path):
    value = collections.defaultdict(factory, a=1)
    torch.save(dict(state_dict={}, meta=dict(mine=value)), tmp_path / 'a.pth')
    loaded = safe_load(tmp_path / 'a.pth')
    with pytest.raises(KeyError, match='new'):
        loaded['meta']['mine']['new']
    kept, dropped = known_parts(loaded, 'a.pth')
    assert (kept['meta'], dropped) == ({}, ["meta['mine']"])


def test_plain_data_ends():
    circle = []
    circle.append(circle)
    assert not is_plain(circle)
    assert is_plain([[1]] * 100)


@pytest.mark.parametrize(
    'hub',
    [history(_runtime_info={}), None, 7, {}, dict(log_scalars={}, resumed_keys={}),
     dict(log_scalars=[], runtime_info={}, resumed_keys={})],
)  # fmt: skip
def test_a_hub_of_another_form(hub, saved):
    checkpoint, path, training = saved
    checkpoint['message_hub'] = hub
    assert 'message_hub' not in known_parts(checkpoint, path)[0]
    with pytest.raises(CheckpointError, match='no training to go on with'):
        take_over(checkpoint, path, training)


@pytest.mark.parametrize(
    'meta', [None, {}, dict(epoch=1), dict(epoch='1', iter=2), dict(epoch=1, iter=-2),
             dict(epoch=True, iter=2), dict(epoch=1.0, iter=2), dict(epoch=1, iter=2**80)]
)  # fmt: skip
def test_counts_of_another_kind(meta, saved):
    checkpoint, path, training = saved
    checkpoint['meta'] = meta
    with pytest.raises(CheckpointError, match='no training to go on with'):
        take_over(checkpoint, path, training)


@pytest.mark.parametrize('seed', ['x', -1, 2**32, 1.5, [1]])
def test_a_seed_of_another_kind_is_dropped(seed, saved):
    checkpoint, path, training = saved
    checkpoint['meta']['seed'] = seed
    kept, dropped = take_over(checkpoint, path, training)
    assert 'seed' not in kept['meta']
    assert dropped == ["meta['seed']"]


def put(value, *keys):
    """Change a part of a checkpoint."""

    def change(checkpoint):
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        if value is put:
            del checkpoint[keys[-1]]
        else:
            checkpoint[keys[-1]] = value

    return change


GROUP = ('optimizer', 'param_groups', 0)
MOMENTUM = ('optimizer', 'state', 0, 'momentum_buffer')
MALFORMED = {
    'no groups': put([], 'optimizer', 'param_groups'),
    'groups are a dict': put({}, 'optimizer', 'param_groups'),
    'no key of groups': put(put, 'optimizer', 'param_groups'),
    'a list': put([], 'optimizer'),
    'a group is none': put(None, *GROUP),
    'no lr': put(put, *GROUP, 'lr'),
    'lr is nan': put(float('nan'), *GROUP, 'lr'),
    'lr is infinite': put(float('inf'), *GROUP, 'lr'),
    'lr is negative': put(-1.0, *GROUP, 'lr'),
    'lr is a word': put('0.1', *GROUP, 'lr'),
    'lr is huge': put(10**400, *GROUP, 'lr'),
    'momentum is none': put(None, *GROUP, 'momentum'),
    'nesterov is a word': put('x', *GROUP, 'nesterov'),
    'params of another number': put([0, 1], *GROUP, 'params'),
    'params are words': put(['a'], *GROUP, 'params'),
    'no params': put(put, *GROUP, 'params'),
    'no state': put(put, 'optimizer', 'state'),
    'the state is a list': put([1], 'optimizer', 'state'),
    'the state of a parameter is a list': put([1], 'optimizer', 'state', 0),
    'another shape': put(torch.zeros(4, 3), *MOMENTUM),
    'one number': put(0.5, *MOMENTUM),
    'a word': put('x', *MOMENTUM),
    'nan': put(torch.full((3, 4), float('nan')), *MOMENTUM),
    'sparse': put(torch.zeros(3, 4).to_sparse(), *MOMENTUM),
    'no memory': put(torch.zeros(3, 4, device='meta'), *MOMENTUM),
    'schedulers are a dict': put({}, 'param_schedulers'),
    'no schedulers': put([], 'param_schedulers'),
    'a scheduler is none': put([None], 'param_schedulers'),
    'a scheduler is empty': put([{}], 'param_schedulers'),
    'last step is a word': put('2', 'param_schedulers', 0, 'last_step'),
    'last step is nan': put(float('nan'), 'param_schedulers', 0, 'last_step'),
    'no last value': put([], 'param_schedulers', 0, '_last_value'),
    'two base values': put([0.1, 0.1], 'param_schedulers', 0, 'base_values'),
    'milestones are a list': put([1], 'param_schedulers', 0, 'milestones'),
    'gamma is none': put(None, 'param_schedulers', 0, 'gamma'),
}


@pytest.mark.parametrize('change', MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_state_is_one_line(change, saved):
    checkpoint, path, training = saved
    change(checkpoint)
    with pytest.raises(CheckpointError, match='does not fit the training') as error:
        take_over(checkpoint, path, training)
    assert str(error.value).isprintable()


def test_words_and_functions_are_the_configs(saved):
    """A scheduler's functions, and the name of what it schedules."""
    checkpoint, path, training = saved
    checkpoint['param_schedulers'][0].update(param_name='x', step=print, optimizer=7)
    kept, _ = take_over(checkpoint, path, training)
    assert not {'param_name', 'step', 'optimizer'} & kept['param_schedulers'][0].keys()
    checkpoint['optimizer']['param_groups'][0].update(foreach=True, fused=True, other=print)
    group = take_over(checkpoint, path, training)[0]['optimizer']['param_groups'][0]
    assert (group['foreach'], group['fused']) == (None, None)
    assert 'other' not in group


def test_another_optimizer(saved):
    checkpoint, path, training = saved
    adam = OptimWrapper(torch.optim.Adam(training.model.parameters()))
    training = Training(training.model, adam, None, training.hooks, training.work_dir)
    with pytest.raises(CheckpointError, match='does not fit the training'):
        take_over(checkpoint, path, training)


@pytest.mark.parametrize('step', [-1.0, float('nan'), 'x', [1]])
def test_the_step_of_adam(step):
    model = nn.Linear(2, 2)
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters()))
    model(torch.ones(1, 2)).sum().backward()
    wrapper.step()
    state = copy.deepcopy(wrapper.state_dict())
    assert known_optimizer(state, wrapper)['state'].keys() == {0, 1}
    state['state'][0]['step'] = torch.tensor(step) if isinstance(step, float) else step
    with pytest.raises(ValueError, match='step of parameter 0'):
        known_optimizer(state, wrapper)


SCALER = dict(
    scale=4.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=9, _growth_tracker=0
)


@pytest.mark.parametrize(
    'change',
    [dict(scale=float('nan')), dict(scale=0.0), dict(scale='x'), dict(growth_interval=1.5),
     dict(growth_interval=0), dict(_growth_tracker=-1), dict(backoff_factor=None)],
)  # fmt: skip
def test_the_loss_scaler(change):
    wrapper = AmpOptimWrapper.__new__(AmpOptimWrapper)
    OptimWrapper.__init__(wrapper, torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))
    wrapper.loss_scaler = torch.amp.GradScaler('cpu')
    state = {**copy.deepcopy(wrapper.state_dict()), 'loss_scaler': {**SCALER, 'more': print}}
    assert known_optimizer(state, wrapper)['loss_scaler'] == SCALER
    assert 'loss_scaler' not in known_optimizer({**state, 'loss_scaler': {}}, wrapper)
    with pytest.raises(ValueError, match='loss_scaler has'):
        known_optimizer({**state, 'loss_scaler': {**SCALER, **change}}, wrapper)
