"""Weights under other keys, in every way in: Python, mmengine, and the tools' own tests."""

import io
import os
from itertools import pairwise

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, BaseModule
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nf_plugins.checkpoint import WEIGHTS_KEYS, find_weights, safe_load, state_dict_of
from nf_plugins.checkpoint.state_dict import split_weights_key
from nf_plugins.errors import CheckpointError


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


STATE, OTHER = net(1).state_dict(), net(2).state_dict()


def put(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def same(found, state=STATE):
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


SHAPES = {
    **{key: {key: STATE, 'epoch': 3, 'best': torch.tensor(0.7)} for key in WEIGHTS_KEYS},
    'bare': STATE,
    'nested': {'model': {'state_dict': STATE, 'step': 1}, 'optimizer': {'state': {0: STATE}}},
    'nested deeper': {'state_dict': {'model': {'net': STATE}}},
    'plain before averaged': {'model_ema': OTHER, 'ema': OTHER, 'model': STATE},
    'timm': {'state_dict_ema': OTHER, 'state_dict': STATE, 'arch': 'x', 'version': 2},
    'teacher before student': {'student': OTHER, 'teacher': STATE},
    'data parallel': {'state_dict': put('module.')},
    'compiled': {'model': put('_orig_mod.')},
    'compiled data parallel': {'model': put('module._orig_mod.')},
    'data parallel compiled': {'model': put('_orig_mod.module.')},
    'two wrappers': put('module.module.'),
    'fsdp': put('_fsdp_wrapped_module.'),
    'deepspeed': {'module': put('_forward_module.')},
    'averaged': {'model_ema': {'n_averaged': torch.tensor(3), **put('module.')}},
    'a part compiled': {'model': {k.replace('0.', '0._orig_mod.'): v for k, v in STATE.items()}},
}


@pytest.mark.parametrize('shape', SHAPES)
def test_weights_are_found(shape):
    assert same(state_dict_of(SHAPES[shape]))


def test_the_documented_order():
    for first, second in pairwise(WEIGHTS_KEYS):
        state, note = find_weights({second: OTHER, first: STATE}, 'x.pth')
        assert same(state)
        assert note.startswith(
            f'x.pth: the weights of {first!r} are taken, not those of {second!r}'
        )


def test_what_is_usual_is_not_said():
    assert find_weights(STATE)[1] == find_weights(dict(state_dict=STATE, meta={}))[1] == ''
    assert find_weights(dict(state_dict=STATE, best=torch.ones(1)))[1] == ''


@pytest.mark.parametrize(
    ('checkpoint', 'key'),
    [
        ({'model': OTHER, 'model_ema': STATE}, 'model_ema'),
        ({'model': {'a': OTHER, 'b': STATE}}, 'model.b'),
        ({'mine': put('module.'), 'state_dict': OTHER}, 'mine'),
        ({'my.key': {'state_dict': STATE}}, 'my.key'),
        ({'a': {'b.c': STATE}}, 'a.b.c'),
    ],
)
def test_a_key_chooses(checkpoint, key):
    state, note = find_weights(checkpoint, 'x.pth', key)
    assert same(state)
    assert f'the weights of {key!r}'[:-1] in note


@pytest.mark.parametrize(
    ('checkpoint', 'key', 'message'),
    [
        ({'model': STATE}, 'ema', "no weights under 'ema'; it has some under 'model'"),
        ({'mine': STATE, 'yours': OTHER}, None, "no weights; it has some under 'mine', 'yours'"),
        ({'epoch': 1, 'optimizer': {'a': STATE}}, None, "it has the keys 'epoch', 'optimizer'"),
        ({}, None, 'no weights'),
        ([STATE], None, 'no state dict; it is a list'),
        ({'model': 'resnet50'}, 'model', "no weights under 'model'"),
    ],
)
def test_where_there_are_none(checkpoint, key, message):
    with pytest.raises(CheckpointError, match=message):
        find_weights(checkpoint, 'x.pth', key)


def test_a_dict_that_holds_itself():
    loop = {'model': {}}
    loop['model']['model'] = loop
    for checkpoint in (loop, {**loop, 'all': [loop], 'more': loop}):
        with pytest.raises(CheckpointError, match='no weights'):
            find_weights(checkpoint)


def test_a_module_called_module():
    state = {'module.a': torch.ones(1), 'a': torch.zeros(1)}
    assert state_dict_of(state).keys() == state.keys()


def test_paths_with_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a#b.pth').touch()
    assert split_weights_key('x.pth') == ('x.pth', None)
    assert split_weights_key('x.pth#model') == ('x.pth', 'model')
    assert split_weights_key('a#b.pth') == ('a#b.pth', None)
    assert split_weights_key('a#b.pth#ema') == ('a#b.pth', 'ema')


class Backbone(BaseModule):
    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(3, 4, 3)
        self.gain = nn.Parameter(torch.zeros(()))


class Model(BaseModel):
    def __init__(self, init_cfg=None, backbone_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = Backbone(backbone_cfg)

    def forward(self, x, mode='tensor'):
        y = self.backbone.conv(x).mean() * self.backbone.gain
        return dict(loss=y) if mode == 'loss' else y


FULL = {k: torch.full_like(v, 5.0) for k, v in Model().state_dict().items()}
PARTS = {k.removeprefix('backbone.'): v for k, v in FULL.items()}
FOREIGN = {
    'model': {'model': FULL},
    'nested': {'model': {'state_dict': FULL}},
    'compiled': {'net': put('module._orig_mod.', FULL)},
    'lightning': {'state_dict': put('model.', FULL), 'pytorch-lightning_version': '2.0'},
    'ema': {'state_dict_ema': put('module.', FULL)},
    'bare': FULL,
    'bare compiled': put('_orig_mod.', FULL),
}


def is_full(model):
    return all((value == 5).all() for value in model.state_dict().values())


def runner(model, folder, **settings):
    data = DataLoader(TensorDataset(torch.ones(2, 3, 4, 4)), 2)
    return Runner(
        model,
        str(folder / 'work'),
        data,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        experiment_name=f'{folder.name}{len(os.listdir(folder))}{torch.rand(1).item()}',
        **settings,
    )


@pytest.mark.parametrize('kind', FOREIGN)
def test_mmengine_takes_foreign_files(kind, tmp_path):
    path = str(tmp_path / 'x.pth')
    torch.save(FOREIGN[kind], path)
    model = Model()
    load_checkpoint(model, path)
    assert is_full(model)
    for init_cfg in (
        dict(init_cfg=dict(type='Pretrained', checkpoint=path)),
        dict(backbone_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.')),
    ):
        model = Model(**init_cfg)
        model.init_weights()
        assert is_full(model)
    for hooks in ([], [EMAHook()]):
        trained = runner(Model(), tmp_path, load_from=path, custom_hooks=hooks)
        trained.train()
        assert is_full(trained.model)


def test_a_key_in_mmengine(tmp_path):
    path = str(tmp_path / 'x.pth')
    zeros = {k: torch.zeros_like(v) for k, v in FULL.items()}
    torch.save({'model': zeros, 'model_ema': FULL}, path)
    model = Model(init_cfg=dict(type='Pretrained', checkpoint=f'{path}#model_ema'))
    model.init_weights()
    assert is_full(model)
    model = Model()
    load_checkpoint(model, path)
    assert not is_full(model)


def test_mmengine_says_what_it_takes(tmp_path):
    path = str(tmp_path / 'x.pth')
    torch.save({'model': FULL, 'model_ema': FULL}, path)
    stream = io.StringIO()
    logger = MMLogger.get_instance('says', logger_name='says')
    handler = logger.handlers[0]
    before, handler.stream = handler.stream, stream
    try:
        load_checkpoint(Model(), path)
    finally:
        handler.stream = before
    assert "the weights of 'model' are taken, not those of 'model_ema'" in stream.getvalue()


def test_a_checkpoint_of_mmengine_stays_as_it_is(tmp_path):
    """Its EMAHook exchanges averaged and other weights when it resumes."""
    first = runner(Model(), tmp_path, custom_hooks=[EMAHook(momentum=0.5)])
    first.train()
    path = str(tmp_path / 'work/epoch_1.pth')
    raw, loaded = safe_load(path), CheckpointLoader.load_checkpoint(path, 'cpu')
    for name in ('state_dict', 'ema_state_dict'):
        assert list(raw[name]) == list(loaded[name])
        assert all(torch.equal(raw[name][key], loaded[name][key]) for key in raw[name])
    assert loaded['state_dict']._metadata == raw['state_dict']._metadata


WRONG = {
    'another network': {'state_dict': {'x.weight': torch.ones(3), 'y.bias': torch.ones(1)}},
    'other shapes': {k: torch.ones(*v.shape, 2) for k, v in FULL.items()},
    'a gain alone': {**{k + 'x': v for k, v in FULL.items()}, 'backbone.gain': torch.ones(())},
    'its part': {'model': PARTS},
}


@pytest.mark.parametrize('kind', WRONG)
def test_what_fits_nothing_is_an_error(kind, tmp_path):
    path = str(tmp_path / 'wrong.pth')
    torch.save(WRONG[kind], path)
    model = Model(init_cfg=dict(type='Pretrained', checkpoint=path))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for load in (
        model.init_weights,
        lambda: load_checkpoint(model, path),
        runner(model, tmp_path, load_from=path).train,
        runner(model, tmp_path, load_from=path, custom_hooks=[EMAHook()]).train,
    ):
        with pytest.raises(CheckpointError, match=r'nothing of .*wrong\.pth fits Model') as error:
            load()
        assert '\n' not in str(error.value)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_part_says_its_prefix(tmp_path):
    path = str(tmp_path / 'full.pth')
    torch.save(FULL, path)
    backbone = Backbone(dict(type='Pretrained', checkpoint=path))
    with pytest.raises(CheckpointError, match=r"prefix='backbone\.'"):
        backbone.init_weights()
    backbone = Backbone(dict(type='Pretrained', checkpoint=path, prefix='neck.'))
    with pytest.raises(CheckpointError, match=r"nothing under the prefix 'neck\.', but backbone\."):
        backbone.init_weights()


class Renaming(BaseModule):
    """A module that loads an old name of its weight, as mmcv's and mmpretrain's do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}old')
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_a_module_may_rename(tmp_path):
    torch.save({'old': torch.ones(2)}, tmp_path / 'old.pth')
    module = Renaming()
    load_checkpoint(module, str(tmp_path / 'old.pth'))
    assert torch.equal(module.weight.detach(), torch.ones(2))


class Harmful:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(
    ('checkpoint', 'advice'),
    [
        (dict(state_dict=STATE, model='x'), "checkpoint['state_dict']"),
        (dict(epoch=1, optimizer=dict(net=1), model=STATE), "checkpoint['model']"),
        (dict(args=dict(model='r50'), net=STATE), "checkpoint['net']"),
        (dict(state_dict_ema=STATE, arch='model'), "checkpoint['state_dict_ema']"),
        (STATE, 'for k, v in checkpoint.items()'),
    ],
)
def test_the_advice_fits_the_file(checkpoint, advice, legacy, tmp_path):
    path = tmp_path / 'evil.pth'
    evil = type(checkpoint)({**checkpoint, 'evil': Harmful(tmp_path / 'harmed')})
    torch.save(evil, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as error:
        safe_load(path)
    assert advice in str(error.value)
    assert not (tmp_path / 'harmed').exists()
