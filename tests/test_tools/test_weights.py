"""Weights of others in the tools: under which key they are, what is taken, what is published."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import load_checkpoint

from nf_plugins.checkpoint import safe_load
from nf_plugins.checkpoint.haiku import read_haiku

from ..conftest import DATA, ROOT
from ..tools import run_tool
from .test_converters import F0W8_CONFIG, build, convert

SMALL = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='NFResNet', depth=26, base_channels=8, in_channels=1, stem='cifar'),
    neck=dict(type='ReLUNeck', in_channels=256, act_cfg=dict(type='GammaAct', act='ReLU')),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=256),
)
default_scope = 'mmpretrain'
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'small.py').write_text(SMALL)
    (tmp_path / 'f0.py').write_text(F0W8_CONFIG)
    return tmp_path


@pytest.fixture
def states(folder):
    """The state dicts of two networks of the same kind."""
    model = build('small.py')
    first = {key: value.clone() for key, value in model.state_dict().items()}
    second = {k: v + 1 if v.is_floating_point() else v for k, v in first.items()}
    return first, second


def wrapped(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def equal(path, state):
    found = safe_load(path)['state_dict']
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.', 'model.', 'net.module.'])
def test_converters_find_and_choose(prefix, states, capsys):
    first, second = states
    torch.save({'model_ema': second, 'model': wrapped(first, prefix), 'epoch': 3}, 'src.pth')
    args = ['pwsconv_to_nf', 'src.pth', 'out.pth', '--config', 'small.py']
    assert convert(*args) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "the weights of 'model' are taken, not those of 'model_ema'" in line
    assert equal('out.pth', first)
    assert convert(*args, '--weights-key', 'model_ema') == 0
    assert equal('out.pth', second)
    args[1] = 'src.pth#model_ema'
    assert convert(*args) == 0
    assert equal('out.pth', second)
    args[1] = 'src.pth'
    capsys.readouterr()
    assert convert(*args, '--weights-key', 'none') == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no weights under 'none'; it has some under 'model_ema', 'model'" in line


BAD = {
    'meta': lambda v: v.to('meta'),
    'sparse': lambda v: v.to_sparse(),
    'float64 beyond float32': lambda v: torch.full_like(v, 1e300, dtype=torch.float64),
    'complex': lambda v: v.to(torch.complex64),
    'bool': lambda v: v > 0,
    'quantized': lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
    'counts': lambda v: torch.full_like(v, 2**24 + 1, dtype=torch.int64),
}


@pytest.mark.filterwarnings('ignore')  # of torch, about quantized and sparse tensors
@pytest.mark.parametrize('kind', BAD)
def test_what_holds_no_such_numbers_is_refused(kind, states, capsys):
    key = 'head.fc.weight'
    torch.save({**states[0], key: BAD[kind](states[0][key])}, 'src.pth')
    before = sorted(os.listdir())
    for name, *args in (
        ('pwsconv_to_nf', 'src.pth', 'out.pth', '--config', 'small.py'),
        ('fold', 'small.py', 'src.pth', 'out.pth'),
    ):
        assert convert(name, *args) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert key in line or 'is refused' in line or 'not a readable' in line
    assert sorted(os.listdir()) == before


def test_haiku_under_a_key_and_in_another_type(folder, capsys):
    arrays = read_haiku(DATA / 'F0w8_haiku.npz')
    other = {k: v.astype(np.float64) + (k.endswith('.b')) for k, v in arrays.items()}
    (folder / 'two.npz').write_bytes(pickle.dumps({'params': arrays, 'ema_params': other}))
    for key, expected in (('params', arrays), ('ema_params', other)):
        options = ['--config', 'f0.py', '--weights-key', key]
        assert convert('haiku_to_nf', 'two.npz', 'out.pth', *options) == 0
        bias = safe_load('out.pth')['state_dict']['head.fc.bias']
        np.testing.assert_array_equal(bias, expected['NFNet.linear.b'].astype(np.float32))
    assert convert('haiku_to_nf', 'two.npz', 'out.pth', '--config', 'f0.py') == 0
    assert "'params' are taken, not those of 'ema_params'" in capsys.readouterr().err
    for bad in (1e300, None):
        array = other['NFNet.linear.b']
        arrays['NFNet.linear.b'] = array > 0 if bad is None else np.full_like(array, bad)
        (folder / 'bad.npz').write_bytes(pickle.dumps(arrays))
        code = convert('haiku_to_nf', 'bad.npz', 'bad.pth', '--config', 'f0.py')
        assert code == 2
        assert not (folder / 'bad.pth').exists()


def test_fold_finds_and_chooses(states, capsys):
    torch.save({'net': wrapped(states[0], 'module.'), 'ema': states[1]}, 'src.pth')
    assert convert('fold', 'small.py', 'src.pth', 'one.pth') == 0
    assert "the weights of 'net' are taken, not those of 'ema'" in capsys.readouterr().err
    assert convert('fold', 'small.py', 'src.pth', 'two.pth', '--weights-key', 'ema') == 0
    for path, state in (('one.pth', states[0]), ('two.pth', states[1])):
        bias = safe_load(path)['state_dict']['head.fc.bias']
        assert torch.equal(bias, state['head.fc.bias'])


def test_spp_analysis_and_film_find_and_choose(states, capsys):
    from nf_plugins.checkpoint.fit import backbone_weights
    from nf_plugins.config import build_backbone, load_config

    backbone = build_backbone(load_config('small.py'), 'small.py', 0)
    own = {k.removeprefix('backbone.'): v for k, v in states[0].items() if k.startswith('backbone')}
    kinds = [
        {'state_dict': wrapped(states[0], 'model.'), 'pytorch-lightning_version': '2'},
        {'teacher': wrapped(states[0], 'module.'), 'student': states[1]},
        {'model': {'state_dict': own}},
        wrapped(own, '_orig_mod.'),
        wrapped(own, 'net.'),
    ]
    for checkpoint in kinds:
        torch.save(checkpoint, 'src.pth')
        found, _ = backbone_weights('src.pth', backbone)
        assert found.keys() == own.keys()
        assert all(torch.equal(found[key], own[key]) for key in own)
    torch.save(kinds[1], 'src.pth')
    options = ['--input-size', 16, '--batch-size', 2, '--format', 'json', '--out-dir', 'spp']
    capsys.readouterr()
    assert run_tool('spp_analysis', 'small.py', 'src.pth', *options) == 0
    assert "'teacher' are taken, not those of 'student'" in capsys.readouterr().err
    options += ['--weights-key', 'student']
    assert run_tool('spp_analysis', 'small.py', 'src.pth', *options) == 0
    assert "the weights of 'student' are taken" in capsys.readouterr().err
    assert run_tool('spp_analysis', 'small.py', *options) == 2


def test_train_and_test_check_the_weights_that_are_meant(states):
    from nf_plugins.checkpoint.fit import check_checkpoint
    from nf_plugins.errors import UsageError

    half = {k: v for k, v in states[0].items() if not k.startswith('head.')}
    torch.save({'model': wrapped(states[0], 'model.'), 'model_ema': half}, 'src.pth')
    check_checkpoint('src.pth', build('small.py'))
    check_checkpoint('src.pth#model_ema', build('small.py'), minimum=0)
    with pytest.raises(UsageError, match=r'another model.*head\.fc'):
        check_checkpoint('src.pth#model_ema', build('small.py'))


def mm_checkpoint(states):
    averaged, other = states
    ema = {'steps': torch.tensor(3), **wrapped(other, 'module.')}
    return dict(
        meta=dict(epoch=3, iter=9, dataset_meta=dict(classes=['a', 'b']), seed=np.int64(1)),
        state_dict=averaged,
        ema_state_dict=ema,
        message_hub=dict(log_scalars={}),
        optimizer=dict(state={0: dict(momentum_buffer=torch.ones(9))}),
        param_schedulers=[],
    )


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_publish(suffix, states, capsys):
    torch.save(mm_checkpoint(states), 'epoch_3.pth')
    for options, expected in (([], states[0]), (['--no-ema'], states[1])):
        folder = f'out{len(options)}'
        target = f'{folder}/nf{suffix}'
        assert convert('publish_model', 'epoch_3.pth', target, *options) == 0
        (name,) = os.listdir(folder)
        content = Path(folder, name).read_bytes()
        assert name == f'nf-{hashlib.sha256(content).hexdigest()[:8]}{suffix}'
        published = safe_load(f'{folder}/{name}')
        assert set(published) == {'meta', 'state_dict'}
        assert equal(f'{folder}/{name}', expected)
        if suffix == '.pth':
            assert published['meta']['dataset_meta'] == dict(classes=['a', 'b'])
        model = build('small.py')
        load_checkpoint(model, f'{folder}/{name}', strict=True)
    out = capsys.readouterr().out
    assert 'left out: ema_state_dict, message_hub, optimizer, param_schedulers' in out
    assert "mmengine keeps the averaged weights in 'state_dict'" in out


def test_publish_again_is_the_same_file(states):
    torch.save(dict(model=states[0]), 'src.pth')
    assert convert('publish_model', 'src.pth', 'out/nf.pth') == 0
    (first,) = os.listdir('out')
    assert convert('publish_model', f'out/{first}', 'out/nf.pth') == 0
    assert len(os.listdir('out')) == 1


def test_a_view_does_not_bring_its_memory_along(states):
    torch.save(dict(state_dict={'a': torch.zeros(10**6)[:5]}), 'src.pth')
    assert convert('publish_model', 'src.pth', 'out/nf.pth') == 0
    (name,) = os.listdir('out')
    assert os.path.getsize(f'out/{name}') < 10_000


class Harmful:
    def __reduce__(self):
        return os.mkdir, ('harmed',)


@pytest.mark.parametrize(
    ('content', 'dst', 'message'),
    [
        (dict(state_dict={'a': torch.ones(1)}, b=Harmful()), 'out.pth', 'is refused'),
        (dict(epoch=1), 'out.pth', 'holds no weights'),
        (dict(state_dict={'a': torch.ones(1, device='meta')}), 'out.pth', 'a is a meta tensor'),
        (dict(state_dict={'a': torch.ones(1)}), 'out.txt', 'DST must end in .pth or .safetensors'),
        (dict(state_dict={'a': torch.ones(1)}), 'src.pth/out.pth', 'cannot write'),
        (None, 'out.pth', 'no checkpoint at src.pth'),
    ],
)
def test_publish_refuses(content, dst, message, folder, capsys):
    if content is not None:
        torch.save(content, 'src.pth')
    before = sorted(os.listdir())
    assert convert('publish_model', 'src.pth', dst) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(os.listdir()) == before


@pytest.mark.slow
def test_train_and_test_with_weights_of_others(folder, capfd):
    config = str(ROOT / 'configs/nf_resnet/nf-resnet_digits.py')
    model = build(config)
    fives = {k: torch.full_like(v, 0.5) for k, v in model.state_dict().items()}
    zeros = {k: torch.zeros_like(v) for k, v in fives.items()}
    torch.save({'model': wrapped(zeros, 'module.'), 'model_ema': fives}, 'src.pth')
    torch.save({'other.weight': torch.ones(3)}, 'wrong.pth')
    common = ['--work-dir', 'work', '--cfg-options', 'train_cfg.max_epochs=1', 'custom_hooks=[]']
    common += ['optim_wrapper.optimizer.lr=0.0', 'param_scheduler=[]']
    common += ['train_dataloader.dataset.indices=64']
    load = [*common, 'load_from=src.pth', '--weights-key', 'model_ema', '--no-validate']
    assert run_tool('train', config, *load) == 0
    assert "the weights of 'model_ema' are taken" in ''.join(capfd.readouterr())
    assert equal('work/epoch_1.pth', fives)
    few = ['--cfg-options', 'test_dataloader.dataset.indices=64']
    assert run_tool('test', config, 'src.pth', '--work-dir', 'tested', *few) == 0
    assert "'model' are taken, not those of 'model_ema'" in ''.join(capfd.readouterr())

    def pretrained(module, **init_cfg):
        init_cfg = {'type': 'Pretrained', **init_cfg}
        return [f'{module}.init_cfg.{key}={value}' for key, value in init_cfg.items()]

    part = dict(checkpoint='wrong.pth', prefix='backbone')
    for options, message in (
        (['load_from=wrong.pth'], 'wrong.pth is for another model'),
        (pretrained('model', checkpoint='wrong.pth'), 'nothing of wrong.pth fits'),
        (pretrained('model.backbone', **part), "has nothing under the prefix 'backbone.'"),
        (pretrained('model.backbone', checkpoint='src.pth'), "prefix='backbone.'"),
    ):
        assert run_tool('train', config, *common, *options) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith('error')]
        assert len(lines) == 1
        assert message in lines[0]
