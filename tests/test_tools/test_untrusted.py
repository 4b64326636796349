"""Harmful and damaged files, given to whatever opens one: nothing is executed."""

import os
import pickle
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.registry import MODELS, init_default_scope

from nf_plugins.checkpoint.tensors import read_weights

from ..conftest import ROOT
from ..tools import run_tool

NF = str(ROOT / 'configs/nf_resnet/nf-resnet_digits.py')
PRETRAINED = 'model.backbone.init_cfg.type=Pretrained'
BACKBONE = 'model.backbone.init_cfg.checkpoint='
CONVERTERS = 'model_converters/'
SHORT = ['train_cfg.max_epochs=1', 'train_dataloader.num_workers=0']
SHORT += ['train_dataloader.dataset.indices=64', 'val_dataloader.dataset.indices=64']


RUN_ME = "import os\nos.mkdir('harmed')\nmodel = dict()"


class Harmful:
    def __reduce__(self):
        return os.mkdir, ('harmed',)


def evil(**more):
    return dict(state_dict={'head.fc.weight': torch.ones(10, 512)}, extra=Harmful(), **more)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    init_default_scope('mmpretrain')
    state = MODELS.build(Config.fromfile(NF).model).state_dict()
    torch.save(state, tmp_path / 'weights.pth')
    torch.save(evil(), tmp_path / 'evil.pth')
    torch.save(evil(), tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    orders = dict(
        state_dict=state,
        meta=dict(epoch=0, iter=0, config=RUN_ME, cfg=RUN_ME),
        message_hub=dict(
            runtime_info=dict(cfg=RUN_ME, best_ckpt=str(tmp_path / 'victim'), best_score=-1.0),
            log_scalars={},
            resumed_keys={},
        ),
    )
    torch.save(orders, tmp_path / 'orders.pth')
    (tmp_path / 'victim').mkdir()
    for name in ('evil.npz', 'evil.safetensors', 'evil.pkl'):
        (tmp_path / name).write_bytes(pickle.dumps({'NFNet': {'w': Harmful()}}))
    np.savez(tmp_path / 'objects.npz', w=np.array([Harmful()], dtype=object))
    (tmp_path / 'work').mkdir()
    torch.save(evil(), tmp_path / 'work/epoch_1.pth')
    (tmp_path / 'work/last_checkpoint').write_text(str(tmp_path / 'work/epoch_1.pth'))
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, tool, args):
    """The exit status of a tool, and what it wrote to stderr."""
    capsys.readouterr()
    return run_tool(tool, *args), capsys.readouterr().err


NAMED = r'is refused: it names \S*mkdir'
DAMAGED = 'is not a readable'
CASES = [
    ('train', [NF, '--resume', 'evil.pth'], NAMED),
    ('train', [NF, '--resume', 'legacy.pth'], NAMED),
    ('train', [NF, '--resume', 'evil.safetensors'], DAMAGED),
    ('train', [NF, '--cfg-options', 'load_from=evil.pth'], NAMED),
    ('train', [NF, '--cfg-options', 'load_from=evil.pth', 'resume=True'], NAMED),
    ('train', [NF, '--cfg-options', PRETRAINED, BACKBONE + 'evil.pth'], NAMED),
    ('train', [NF, '--cfg-options', PRETRAINED, BACKBONE + 'evil.pth',
               'model.backbone.init_cfg.prefix=backbone'], NAMED),
    ('train', [NF, '--cfg-options', 'model.init_cfg.type=Pretrained',
               'model.init_cfg.checkpoint=legacy.pth'], NAMED),
    ('train', [NF, '--cfg-options', 'model.pretrained=evil.pth'], NAMED),
    ('train', [NF, '--resume', 'weights.pth'], 'no training to go on with: use load_from'),
    ('train', [NF, '--cfg-options', 'load_from=http://127.0.0.1:9/evil.pth'], 'cannot download'),
    ('test', [NF, 'evil.pth'], NAMED),
    ('test', [NF, 'legacy.pth', '--out', 'out.pkl'], NAMED),
    ('test', [NF, 'evil.pkl'], DAMAGED),
    ('spp_analysis', [NF, 'evil.pth'], NAMED),
    ('spp_analysis', [NF, 'evil.safetensors'], DAMAGED),
    ('spp_analysis', [NF, '--compare', f'{NF}=evil.pth'], NAMED),
    ('spp_analysis', [NF, '--cfg-options', PRETRAINED, BACKBONE + 'evil.pth'], NAMED),
    ('spp_analysis', [NF, '--input', 'evil.npz'], 'cannot read the images'),
    ('spp_video', ['evil.pkl', '--out', 'a.gif'], ''),
    (CONVERTERS + 'fold', [NF, 'evil.pth', 'out.pth'], NAMED),
    (CONVERTERS + 'haiku_to_nf', ['evil.npz', 'out.pth', '--config', NF], r'is refused.*mkdir'),
    (CONVERTERS + 'haiku_to_nf', ['objects.npz', 'out.pth', '--config', NF], DAMAGED),
    (CONVERTERS + 'haiku_to_nf', ['evil.pth', 'out.pth', '--config', NF], 'no archive of arrays'),
    (CONVERTERS + 'timm_to_nf', ['evil.pth', 'out.pth', '--config', NF], NAMED),
    (CONVERTERS + 'timm_to_nf', ['objects.npz', 'out.pth', '--config', NF], DAMAGED),
    (CONVERTERS + 'timm_to_nf', ['evil.safetensors', 'out.pth', '--config', NF], DAMAGED),
    (CONVERTERS + 'pwsconv_to_nf', ['legacy.pth', 'out.pth', '--config', NF], NAMED),
]  # fmt: skip


@pytest.mark.parametrize(('tool', 'args', 'message'), CASES)
def test_nothing_is_executed(tool, args, message, workplace, capsys):
    status, errors = run(capsys, tool, args)
    assert status == 2, errors
    lines = [line for line in errors.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1, errors
    assert 'Traceback' not in errors
    assert re.search(message, lines[0]), lines[0]
    assert not (workplace / 'harmed').exists()
    assert not (workplace / 'out.pth').exists()


@pytest.mark.versions
def test_a_harmful_latest_checkpoint_is_not_overwritten(workplace, capsys):
    """`--resume` alone takes the newest readable file; where there is none, nothing starts."""
    before = (workplace / 'work/epoch_1.pth').read_bytes()
    args = [NF, '--resume', '--work-dir', 'work', '--cfg-options', *SHORT]
    status, errors = run(capsys, 'train', args)
    assert status == 2
    assert 'mkdir' in errors
    assert not (workplace / 'harmed').exists()
    assert (workplace / 'work/epoch_1.pth').read_bytes() == before


class Inferencer(BaseInferencer):
    _init_pipeline = postprocess = visualize = None


@pytest.mark.versions
def test_what_a_checkpoint_tells_mmengine_to_run_or_to_delete(workplace, capsys):
    """Its config, in two places, and the best checkpoint so far, here a folder."""
    args = [NF, '--resume', 'orders.pth', '--work-dir', 'best', '--cfg-options', *SHORT]
    args.append('default_hooks.checkpoint.save_best=accuracy/top1')
    status, errors = run(capsys, 'train', args)
    assert status == 0, errors
    assert list((workplace / 'best').glob('best_accuracy_top1_*.pth'))
    assert (workplace / 'victim').exists()
    with pytest.raises(ValueError, match='Cannot find the config in the checkpoint'):
        Inferencer(weights='orders.pth', device='cpu')
    assert not (workplace / 'harmed').exists()


def test_control_characters_do_not_reach_the_terminal(workplace, capsys):
    state = {'\x1b]0;owned\x07': torch.ones(1)}
    torch.save(state, 'strange.pth')
    args = ['strange.pth', 'out.pth', '--config', NF]
    status, errors = run(capsys, CONVERTERS + 'timm_to_nf', args)
    assert status == 2
    assert '\x1b' not in errors
    assert '\x07' not in errors
    assert r'\x1b]0;owned' in errors


def damaged(whole, rng):
    """A file cut short, or with one to four bits turned over."""
    if rng.rand() < 0.5:
        return whole[: rng.randint(len(whole))]
    data = bytearray(whole)
    for position in rng.randint(len(data), size=rng.randint(1, 5)):
        data[position] ^= 1 << rng.randint(8)
    return bytes(data)


SMALL = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='PWSResNet', depth=18, base_channels=2, stem_channels=2, norm_cfg=None),
    neck=dict(type='ReLUNeck', in_channels=16, norm_cfg=None),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=16),
)
default_scope = 'mmpretrain'
"""


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['pth', 'npz'])
def test_damaged_weights_are_loaded_correctly_or_refused(suffix, workplace, capsys):
    (workplace / 'small.py').write_text(SMALL)
    init_default_scope('mmpretrain')
    state = MODELS.build(Config.fromfile('small.py').model).state_dict()
    if suffix == 'pth':
        torch.save(dict(state_dict=state, meta=dict(epoch=1)), 'good.pth')
    else:
        np.savez('good.npz', **{name: value.numpy() for name, value in state.items()})
    whole, rng = (workplace / f'good.{suffix}').read_bytes(), np.random.RandomState(0)
    counts = {0: 0, 2: 0}
    for _ in range(200):
        with open(f'bad.{suffix}', 'wb') as file:
            file.write(damaged(whole, rng))
        args = [f'bad.{suffix}', 'out.pth', '--config', 'small.py']
        status, errors = run(capsys, CONVERTERS + 'pwsconv_to_nf', args)
        counts[status] += 1
        if status == 0:
            found = read_weights('out.pth')
            assert found.keys() == state.keys()
            assert all(torch.equal(found[name], value) for name, value in state.items())
            os.remove('out.pth')
        else:
            (line,) = errors.splitlines()
            assert line.startswith('error: ')
        assert not os.path.exists('out.pth')
    assert counts[2] > 150, counts
