"""The hook watches, and changes nothing."""

import itertools
import json
import math
import os
import time
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from nf_plugins.checkpoint import safe_load
from nf_plugins.engine import SPPHook, TrainingStopped
from nf_plugins.engine.spp_hook import SPPHookError
from nf_plugins.spp import analyze
from nf_plugins.spp.inputs import gaussian_batch

from ..conftest import ROOT

_numbers = itertools.count()


def config(work_dir, network='nf_resnet/nf-resnet', epochs=2, hook=None, **options):
    cfg = Config.fromfile(ROOT / f'configs/{network}_digits.py')
    cfg.work_dir = str(work_dir)
    cfg.train_dataloader.dataset.indices = 192  # three iterations an epoch
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg = dict(by_epoch=True, max_epochs=epochs)
    cfg.default_hooks.logger.interval = 1
    cfg.log_level = 'ERROR'
    # The name that mmengine gives ends with the second, so the next one could have the same.
    cfg.experiment_name = f'{Path(work_dir).name}{next(_numbers)}'
    cfg.merge_from_dict(options)
    cfg.custom_hooks = [] if hook is None else [dict(type='SPPHook', **hook)]
    return cfg


SMALL = {
    'nf_resnet/nf-resnet': {
        'model.backbone.base_channels': 4,
        'model.backbone.drop_path_rate': 0.3,
        'model.neck.in_channels': 128,
        'model.head.in_channels': 128,
    },
    'baselines/resnet-bn': {'model.head.dropout_ratio': 0.0},
    'pws_resnet/pws-resnet': {'model.backbone.conv_cfg.initalpha': True},
}
NF = SMALL['nf_resnet/nf-resnet']


def train(work_dir, **kwargs):
    torch.manual_seed(0)
    runner = Runner.from_cfg(config(work_dir, **kwargs))
    runner.train()
    return runner


def next_second():
    """A training is known by the second in which it starts."""
    start = int(time.time())
    while int(time.time()) == start:
        time.sleep(0.02)


def records(work_dir):
    found = [json.loads(p.read_text()) for p in Path(work_dir).glob('*/spp/*.json')]
    return sorted(found, key=lambda record: record['iter'])


def options_of(network):
    return {k: v for k, v in SMALL[network].items() if 'dropout' not in k}


@pytest.fixture(scope='module')
def without_hook(tmp_path_factory):
    """The runner of a training that nothing watches, and the random state after it."""

    @cache
    def run(network):
        folder = tmp_path_factory.mktemp('without')
        return train(folder, network=network, **options_of(network)), torch.get_rng_state()

    return run


@pytest.mark.slow
@pytest.mark.parametrize('network', ['nf_resnet/nf-resnet', 'baselines/resnet-bn'])
@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('source', ['gaussian', 'batch'])
def test_training_is_the_same_to_the_bit(network, mode, source, without_hook, tmp_path):
    hook = dict(by_epoch=False, interval=1, mode=mode, input=source, backward=True)
    without, random = without_hook(network)
    with_hook = train(tmp_path / 'with', network=network, hook=hook, **options_of(network))
    assert torch.equal(random, torch.get_rng_state())
    a, b = with_hook.model.state_dict(), without.model.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    a, b = (r.optim_wrapper.state_dict()['state'] for r in (with_hook, without))
    assert all(torch.equal(a[i]['momentum_buffer'], b[i]['momentum_buffer']) for i in a)
    found = records(tmp_path / 'with')
    assert [r['iter'] for r in found] == list(range(source == 'batch', 7))
    assert {r['mode'] for r in found} == {mode}
    assert all(r['blocks'][1]['grad_avg_var'] > 0 for r in found)


@pytest.mark.slow
def test_records_are_analyses_of_the_network_of_that_moment(tmp_path):
    runner = train(tmp_path, hook=dict(interval=2, mode='eval', batch_size=3, seed=4), **NF)
    first, last = records(tmp_path)
    assert [(r['epoch'], r['iter']) for r in (first, last)] == [(0, 0), (2, 6)]
    batch = gaussian_batch((3, 1, 16, 16), 4)
    expected = analyze(runner.model, batch, mode='eval', seed=4).to_dict()
    assert last['blocks'] == json.loads(json.dumps(expected['blocks']))
    about = {'shape': [3, 1, 16, 16], 'kind': 'gaussian', 'module': 'backbone'}
    assert last['input'] == about
    assert last['schema'] == 'nf_plugins.spp/2'
    assert first['training'] == last['training'] == runner.timestamp
    assert first['blocks'] != last['blocks']


@pytest.mark.slow
def test_the_running_batch_is_what_was_trained_on(tmp_path):
    cfg = config(tmp_path, hook=dict(input='batch', mode='eval'), epochs=1, **NF)
    runner = Runner.from_cfg(cfg)
    seen = []
    step = runner.model.train_step
    runner.model.train_step = lambda data, **kwargs: seen.append(data) or step(data, **kwargs)
    runner.train()
    (record,) = records(tmp_path)
    inputs = runner.model.data_preprocessor(seen[-1], training=False)['inputs']
    expected = analyze(runner.model, inputs, mode='eval')
    assert record['blocks'] == json.loads(json.dumps(expected.to_dict()['blocks']))
    assert record['input']['shape'] == [64, 1, 16, 16]


@pytest.mark.versions
def test_scalars_reach_the_visualizer(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    runner = train(
        tmp_path,
        hook=dict(by_epoch=False, interval=3),
        **NF,
        **{'visualizer.vis_backends': backends, 'visualizer.name': 'spp'},
    )
    tag = 'spp/avg_var/004_layer2.1'
    expected = {r['iter']: r['blocks'][4]['avg_var'] for r in records(tmp_path)}
    events = EventAccumulator(str(Path(runner.log_dir) / 'vis_data')).Reload()
    found = {event.step: event.value for event in events.Scalars(tag)}
    assert found == pytest.approx(expected)
    assert list(found) == [0, 3, 6]
    lines = (Path(runner.log_dir) / 'vis_data/scalars.json').read_text().splitlines()
    local = [json.loads(line) for line in lines]
    assert {r['step']: r[tag] for r in local if tag in r} == pytest.approx(expected)


@pytest.mark.versions
def test_a_resumed_training_has_no_gaps_and_no_doubles(tmp_path):
    """Killed behind a record but before its checkpoint; the two timestamps differ."""
    hook = dict(by_epoch=False, interval=2)
    train(tmp_path, hook=hook, epochs=2, **NF)
    (tmp_path / 'epoch_2.pth').unlink()  # so the last one is of iteration 3
    assert [r['iter'] for r in records(tmp_path)] == [0, 2, 4, 6]
    folder = next(tmp_path.glob('*/spp')).parent
    folder.rename(tmp_path / '20200101_000000')
    next_second()
    resume = dict(resume=True, load_from=str(tmp_path / 'epoch_1.pth'))
    train(tmp_path, hook=hook, epochs=3, **NF, **resume)
    found = records(tmp_path)
    assert [r['iter'] for r in found] == [0, 2, 4, 6, 8]
    assert len({r['training'] for r in found}) == 1
    aside = sorted(p.name for p in tmp_path.glob('*/spp/superseded/*.json'))
    assert aside == ['iter_00000004.json', 'iter_00000006.json']


@pytest.mark.versions
def test_a_second_training_in_the_same_folder_is_another_one(tmp_path):
    hook = dict(interval=1)
    train(tmp_path, hook=hook, epochs=1, **NF)
    next(tmp_path.glob('*/spp')).parent.rename(tmp_path / '20200101_000000')
    next_second()
    train(tmp_path, hook=hook, epochs=1, **NF)
    found = records(tmp_path)
    assert [r['iter'] for r in found] == [0, 0, 3, 3]
    assert len({r['training'] for r in found}) == 2


@pytest.mark.slow
@pytest.mark.parametrize('how', ['activation', 'update', 'explosion'])
def test_stop_on(how, tmp_path):
    """The step, the module, and the last checkpoint as it was."""
    hook = dict(by_epoch=False, interval=100, stop_on=['non_finite', 'explosion'])
    runner = Runner.from_cfg(config(tmp_path, hook=hook, epochs=3, **NF))
    block = runner.model.backbone.layer2[1]
    if how == 'explosion':
        for spp in runner.hooks:
            if isinstance(spp, SPPHook):
                spp.interval = 4
    original = runner.model.train_step

    def train_step(data, optim_wrapper):
        if runner.iter == 3:
            with torch.no_grad():
                if how == 'activation':
                    block.conv2.gain.fill_(math.inf)
                elif how == 'update':
                    next(iter(runner.model.backbone.parameters()))[0] = math.nan
                else:
                    block.skip_gain.fill_(1e4)
        return original(data, optim_wrapper)

    runner.model.train_step = train_step
    with pytest.raises(TrainingStopped) as stopped:
        runner.train()
    message = str(stopped.value)
    assert message.startswith('iteration 4: ')
    if how == 'explosion':
        assert 'the variance explodes' in message
    else:
        assert 'non_finite' in message
        module = 'backbone.layer2.1.conv2' if how == 'activation' else 'backbone.stem'
        assert f'the first to make such a value is {module}' in message
        assert 'parameters are not finite' in message
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == ['epoch_1.pth']
    state = safe_load(tmp_path / 'epoch_1.pth')['state_dict']
    assert all(value.isfinite().all() for value in state.values())
    assert not runner.model._forward_hooks
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert message in log


@pytest.mark.slow
@pytest.mark.parametrize('levels', [False, True])
def test_the_loss_itself(tmp_path, levels):
    hook = dict(stop_on='non_finite')
    runner = Runner.from_cfg(config(tmp_path, hook=hook, epochs=1, **NF))
    runner.model.head.loss_module.loss_weight = math.nan
    if levels:  # a detector has a list of losses, one of each level
        whole = runner.model.loss
        runner.model.loss = lambda *args: {k: [v] for k, v in whole(*args).items()}
    with pytest.raises(TrainingStopped, match='iteration 1: .*it is the loss itself'):
        runner.train()


@pytest.mark.slow
def test_epochs_of_an_iteration_based_training(tmp_path):
    cfg = config(tmp_path, hook=dict(), **NF)
    cfg.train_cfg = dict(by_epoch=False, max_iters=3)
    with pytest.raises(ValueError, match=r'has no epochs: SPPHook\(by_epoch=False\)'):
        Runner.from_cfg(cfg).train()


class AnyBatch(BaseModel):
    """A model that finds its images in whatever it is given."""

    def __init__(self, mode_tensor=True):
        super().__init__()
        self.backbone, self.fc = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Linear(4, 2)
        self.embedding, self.mode_tensor = nn.Embedding(4, 4), mode_tensor

    def forward(self, *args, mode='tensor', **kwargs):
        if mode == 'tensor' and not self.mode_tensor:
            raise NotImplementedError('no such mode')
        images = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        images = [x for x in images if x.dim() > 2 and x.is_floating_point()]
        images = [x if x.dim() == 4 else x[None] for x in images]
        features = [self.backbone(x).mean((2, 3)).mean(0) for x in images]
        features = features or [self.embedding(torch.tensor(1))]
        scores = self.fc(sum(features))
        return dict(loss=scores.square().mean()) if mode == 'loss' else scores


IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = {
    'pair': (IMAGES, torch.tensor([0, 1])),
    'views': dict(inputs=[IMAGES, IMAGES.flip(0)]),
    'pairs of views': [[IMAGES, IMAGES], [IMAGES, IMAGES]],
    'sizes': dict(inputs=[IMAGES[0], IMAGES[1, :, :6]]),
    'several': dict(inputs=dict(img=IMAGES, points=[torch.rand(3, 4)])),
    'samples': dict(inputs=IMAGES, data_samples=[BaseDataElement(), BaseDataElement()]),
    'texts': dict(inputs=IMAGES, texts=['a', 'b'], none=None),
    'texts alone': (['a', 'b'],),
    'other name': dict(img=IMAGES),
    'tokens': dict(inputs=torch.tensor([[1, 2]])),
}


def train_on(batch, work_dir, hook, model=None):
    def step(data, optim_wrapper):
        if runner.iter == 1:
            with torch.no_grad():
                runner.model.fc.weight.fill_(math.nan)
        return BaseModel.train_step(runner.model, data, optim_wrapper)

    runner = Runner(
        model or AnyBatch(),
        str(work_dir),
        train_dataloader=DataLoader([batch] * 2, collate_fn=lambda batches: batches[0]),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='SPPHook', **hook)],
        experiment_name=work_dir.name,
        log_level='ERROR',
    )
    runner.model.train_step = step
    runner.train()


@pytest.mark.parametrize('mode_tensor', [True, False])
@pytest.mark.parametrize('batch', BATCHES.values(), ids=BATCHES)
def test_the_report_of_a_broken_training_on_any_batch(batch, mode_tensor, tmp_path):
    hook = dict(by_epoch=False, interval=100, stop_on='non_finite', input='gaussian')
    hook.update(input_size=8)
    with pytest.raises(TrainingStopped) as stopped:
        train_on(batch, tmp_path, hook, AnyBatch(mode_tensor))
    assert 'iteration 2: non_finite' in str(stopped.value)
    assert 'the first to make such a value is fc (addmm' in str(stopped.value)


def test_a_report_that_fails_still_stops_the_training(tmp_path, monkeypatch):
    hook = dict(by_epoch=False, interval=100, stop_on='non_finite', input_size=8)

    def fail(*args):
        raise RuntimeError('no memory')

    monkeypatch.setattr('nf_plugins.engine.spp_hook.first_non_finite', fail)
    with pytest.raises(TrainingStopped, match='is not known: RuntimeError: no memory'):
        train_on(BATCHES['pair'], tmp_path, hook)


@pytest.mark.parametrize('batch', BATCHES.values(), ids=BATCHES)
def test_what_the_running_batch_must_be(batch, tmp_path):
    """Said before the first step, not at the first record."""
    hook = dict(by_epoch=False, interval=1, input='batch', mode='eval')
    if isinstance(batch, dict) and batch.get('inputs') is IMAGES:
        train_on(batch, tmp_path, hook)
        assert [r['input']['shape'] for r in records(tmp_path)] == [[2, 3, 8, 8]] * 2
        return
    with pytest.raises(SPPHookError, match=r'needs batches .* as dict\(inputs=images, ...\), got '):
        train_on(batch, tmp_path, hook)
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.slow
def test_two_hooks_have_two_folders(tmp_path):
    cfg = config(tmp_path, epochs=1, **NF)
    cfg.custom_hooks = [dict(type='SPPHook', mode=mode) for mode in ('train', 'eval')]
    runner = Runner.from_cfg(cfg)
    runner.train()
    for folder, mode in (('spp', 'train'), ('spp_2', 'eval')):
        found = [json.loads(p.read_text()) for p in tmp_path.glob(f'*/{folder}/*.json')]
        assert sorted((r['iter'], r['mode']) for r in found) == [(0, mode), (3, mode)]
        assert {r['training'] for r in found} == {runner.timestamp}


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*use_reentrant parameter:UserWarning')
@pytest.mark.filterwarnings('ignore:None of the inputs have requires_grad:UserWarning')
def test_activation_checkpointing(tmp_path):
    hook = dict(interval=1, backward=True)
    plain = train(tmp_path / 'plain', hook=hook, epochs=1, **NF)
    torch.manual_seed(0)
    cfg = config(tmp_path / 'checkpointed', hook=hook, epochs=1, **NF)
    cfg.activation_checkpointing = ['backbone.layer1', 'backbone.layer2.0']
    runner = Runner.from_cfg(cfg)
    runner.train()
    a, b = records(tmp_path / 'plain')[0], records(tmp_path / 'checkpointed')[0]
    assert a['blocks'] == b['blocks']
    assert all(block['grad_avg_var'] > 0 for block in b['blocks'][1:])
    assert torch.utils.checkpoint.CheckpointFunction.__module__ == 'torch.utils.checkpoint'
    assert plain.iter == runner.iter


@pytest.mark.slow
@pytest.mark.parametrize('value', [3, None, ['a'], {'a': 1}, b'x', 'a\x1b[2J', '', 'x' * 10_000])
def test_a_hub_that_holds_something_else(value, tmp_path):
    """Found when the training starts, not when the first record is due."""
    cfg = config(tmp_path, epochs=1, hook=dict(), **NF)
    runner = Runner.from_cfg(cfg)
    hook = next(hook for hook in runner.hooks if isinstance(hook, SPPHook))
    runner.message_hub.runtime_info['spp_training'] = value
    runner.train_loop._iter = 3  # resumed
    runner.train_loop._epoch = 1
    hook.before_train(runner)
    assert runner.message_hub.get_info('spp_training') == runner.timestamp
    assert [r['training'] for r in records(tmp_path)] == [runner.timestamp]


@pytest.mark.slow
def test_files_in_the_folder_that_are_no_records(tmp_path):
    runner = Runner.from_cfg(config(tmp_path, epochs=1, hook=dict(), **NF))
    hook = next(hook for hook in runner.hooks if isinstance(hook, SPPHook))
    folder = tmp_path / '20200101_000000/spp'
    folder.mkdir(parents=True)
    os.mkfifo(folder / 'pipe.json')
    (folder / 'folder.json').mkdir()
    (folder / 'dangling.json').symlink_to('nowhere')
    (folder / 'loop.json').symlink_to('loop.json')
    with open(folder / 'huge.json', 'wb') as file:
        file.truncate(2**34)
    contents = dict(
        brackets=b'[' * 10**5,
        text=b'{"schema": "nf_plugins.spp/1", "training": "T", "iter": "9"}',
        number=b'{"training": "T", "iter": 1e3}',
        list=b'[1]',
        empty=b'',
        latin=b'{"training": "\xff"}',
        digits=b'{"training": "T", "iter": ' + b'9' * 5000 + b'}',
    )
    for name, content in contents.items():
        (folder / f'{name}.json').write_bytes(content)
    runner.message_hub.update_info('spp_training', 'T')
    (folder / 'good.json').write_text('{"training": "T", "iter": 9}')
    messages = []
    runner.logger.warning = messages.append
    start = time.perf_counter()
    assert hook._set_aside(runner) == set()
    assert time.perf_counter() - start < 10
    passed = ['brackets', 'dangling', 'digits', 'empty', 'folder', 'huge', 'latin', 'loop']
    passed += ['number', 'pipe', 'text']
    assert len(messages) == len(passed)
    for name, message in zip(passed, messages):
        assert f'{name}.json' in message
        assert message.startswith('passed over: ')
        assert '\n' not in message
    assert (folder / 'superseded/good.json').exists()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(interval=0), 'interval must be a positive integer, got 0'),
        (dict(interval=1.5), 'interval must be a positive integer, got 1.5'),
        (dict(batch_size=-1), 'batch_size must be a positive integer'),
        (dict(input='train'), "input must be one of gaussian, batch, got 'train'"),
        (dict(mode='both'), "mode must be one of train, eval, asis, got 'both'"),
        (dict(stop_on=['exploded']), "stop_on must be one of non_finite, .*got 'exploded'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SPPHook(**kwargs)


@pytest.mark.slow
def test_each_block_has_norms_of_gradient_weights_and_update(tmp_path):
    """Compared with a training by hand: SGD's update is the learning rate times the gradient."""
    sgd = {'optim_wrapper': dict(_delete_=True, optimizer=dict(type='SGD', lr=0.01))}
    sgd |= {'param_scheduler': []}
    train(tmp_path, hook=dict(by_epoch=False, interval=2), **NF, **sgd)
    first, *later = records(tmp_path)
    assert 'update' not in first
    assert len(later) == 3
    for record in later:
        assert list(record['update']) == [b['name'] for b in record['blocks']]
        for values in record['update'].values():
            step = values['update_ratio'] * values['weight_norm']
            assert step == pytest.approx(0.01 * values['grad_norm'], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['DyT', 'Derf'])
def test_the_factors_of_pointwise_norms_over_a_training(kind, tmp_path):
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    norm = dict(type=f'nf_plugins.{kind}', alpha=0.7)
    vit = dict(type='VisionTransformer', arch=arch, img_size=16, patch_size=4, in_channels=1)
    vit.update(_delete_=True, norm_cfg=norm, out_type='avg_featmap')
    options = {'model.backbone': vit, 'model.neck': None, 'model.head.in_channels': 16}
    options['train_dataloader.batch_size'] = 64
    runner = train(tmp_path, hook=dict(by_epoch=False, interval=2), **options)
    first, *later = records(tmp_path)
    names = [n for n, m in runner.model.backbone.named_modules() if type(m).__name__ == kind]
    assert len(names) == 6
    assert first['pointwise_factors'] == dict.fromkeys(names, pytest.approx(0.7))
    assert len(later) == 3
    for name in names:
        now = runner.model.backbone.get_submodule(name).alpha.item()
        assert later[-1]['pointwise_factors'][name] == pytest.approx(now)
        assert now != pytest.approx(0.7, abs=1e-6)


def test_warnings_are_logged_once_each():
    hook = SPPHook(warn_on=['zero_branch', 'error'])
    verdicts = [
        dict(rule='zero_branch', severity='info', name='a', message='m', symptoms=[]),
        dict(rule='explosion', severity='error', name='b', message='m', symptoms=[]),
        dict(rule='mean_shift', severity='warning', name='c', message='m', symptoms=[]),
    ]
    runner = mock.Mock()
    for iteration in (5, 6):
        hook._warn(runner, iteration, verdicts)
    said = [call.args[0] for call in runner.logger.warning.call_args_list]
    assert said == [
        'SPPHook at iteration 5: zero_branch: m',
        'SPPHook at iteration 5: explosion: m',
    ]
    with pytest.raises(ValueError, match='warn_on must be one of'):
        SPPHook(warn_on=['loud'])
