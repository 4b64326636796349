"""The hook watches, and changes nothing."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from nf_plugins.checkpoint import safe_load
from nf_plugins.engine import SPPHook, TrainingStopped
from nf_plugins.spp import analyze
from nf_plugins.spp.inputs import gaussian_batch

from ..conftest import ROOT


def config(work_dir, network='nf_resnet/nf-resnet', epochs=2, hook=None, **options):
    cfg = Config.fromfile(ROOT / f'configs/{network}_digits.py')
    cfg.work_dir = str(work_dir)
    cfg.train_dataloader.dataset.indices = 192  # three iterations an epoch
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg = dict(by_epoch=True, max_epochs=epochs)
    cfg.default_hooks.logger.interval = 1
    cfg.log_level = 'ERROR'
    cfg.experiment_name = Path(work_dir).name
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


def records(work_dir):
    found = [json.loads(p.read_text()) for p in Path(work_dir).glob('*/spp/*.json')]
    return sorted(found, key=lambda record: record['iter'])


@pytest.mark.slow
@pytest.mark.parametrize('network', ['nf_resnet/nf-resnet', 'baselines/resnet-bn'])
@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('source', ['gaussian', 'batch'])
def test_training_is_the_same_to_the_bit(network, mode, source, tmp_path):
    options = {k: v for k, v in SMALL[network].items() if 'dropout' not in k}
    hook = dict(by_epoch=False, interval=1, mode=mode, input=source, backward=True)
    with_hook = train(tmp_path / 'with', network=network, hook=hook, **options)
    random = torch.get_rng_state()
    without = train(tmp_path / 'without', network=network, **options)
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


def test_records_are_analyses_of_the_network_of_that_moment(tmp_path):
    runner = train(tmp_path, hook=dict(interval=2, mode='eval', batch_size=3, seed=4), **NF)
    first, last = records(tmp_path)
    assert [(r['epoch'], r['iter']) for r in (first, last)] == [(0, 0), (2, 6)]
    batch = gaussian_batch((3, 1, 16, 16), 4)
    expected = analyze(runner.model, batch, mode='eval', seed=4).to_dict()
    assert last['blocks'] == json.loads(json.dumps(expected['blocks']))
    assert last['input'] == {'shape': [3, 1, 16, 16], 'kind': 'gaussian'}
    assert last['schema'] == 'nf_plugins.spp/1'
    assert first['training'] == last['training'] == runner.timestamp
    assert first['blocks'] != last['blocks']


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


@pytest.mark.stacks
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


@pytest.mark.stacks
def test_a_resumed_training_has_no_gaps_and_no_doubles(tmp_path):
    """Killed behind a record but before its checkpoint; the two timestamps differ."""
    hook = dict(by_epoch=False, interval=2)
    train(tmp_path, hook=hook, epochs=2, **NF)
    (tmp_path / 'epoch_2.pth').unlink()  # so the last one is of iteration 3
    assert [r['iter'] for r in records(tmp_path)] == [0, 2, 4, 6]
    folder = next(tmp_path.glob('*/spp')).parent
    folder.rename(tmp_path / '20200101_000000')
    resume = dict(resume=True, load_from=str(tmp_path / 'epoch_1.pth'))
    train(tmp_path, hook=hook, epochs=3, **NF, **resume)
    found = records(tmp_path)
    assert [r['iter'] for r in found] == [0, 2, 4, 6, 8]
    assert len({r['training'] for r in found}) == 1
    aside = sorted(p.name for p in tmp_path.glob('*/spp/superseded/*.json'))
    assert aside == ['iter_00000004.json', 'iter_00000006.json']


@pytest.mark.stacks
def test_a_second_training_in_the_same_folder_is_another_one(tmp_path):
    hook = dict(interval=1)
    train(tmp_path, hook=hook, epochs=1, **NF)
    next(tmp_path.glob('*/spp')).parent.rename(tmp_path / '20200101_000000')
    train(tmp_path, hook=hook, epochs=1, **NF)
    found = records(tmp_path)
    assert [r['iter'] for r in found] == [0, 0, 3, 3]
    assert len({r['training'] for r in found}) == 2


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


def test_epochs_of_an_iteration_based_training(tmp_path):
    cfg = config(tmp_path, hook=dict(), **NF)
    cfg.train_cfg = dict(by_epoch=False, max_iters=3)
    with pytest.raises(ValueError, match=r'has no epochs: SPPHook\(by_epoch=False\)'):
        Runner.from_cfg(cfg).train()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(interval=0), 'interval must be a positive integer, got 0'),
        (dict(interval=1.5), 'interval must be a positive integer, got 1.5'),
        (dict(batch_size=-1), 'batch_size must be a positive integer'),
        (dict(input='train'), "input must be one of gaussian, batch, got 'train'"),
        (dict(mode='both'), "mode must be one of train, eval, got 'both'"),
        (dict(stop_on=['exploded']), "stop_on must be one of non_finite, .*got 'exploded'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SPPHook(**kwargs)
