"""A table of bad inputs: one line on stderr, exit 2, nothing written."""

import os
import runpy
import sys

import pytest
import torch
from torch import nn

from ..conftest import ROOT

NF = str(ROOT / 'configs/nf_resnet/nf-resnet_digits.py')
BN = str(ROOT / 'configs/baselines/resnet-bn_digits.py')

FILES = {
    'broken.py': 'model = dict(',
    'raises.py': 'model = 1 / 0',
    'no_model.py': 'a = 1',
    'no_backbone.py': "model = dict(type='ImageClassifier')\ndefault_scope = 'mmpretrain'",
    'no_base.py': "_base_ = './nothing.py'",
    'vgg.py': "model = dict(backbone=dict(type='VGG', depth=11))\ndefault_scope = 'mmpretrain'",
    'cut.py': "model = dict(backbone=dict(type='VGG', depth=12))\ndefault_scope = 'mmpretrain'",
    'resnet.py': "model = dict(backbone=dict(type='ResNet', depth=18))\n"
    "default_scope = 'mmpretrain'",
    'garbage.pth': 'garbage',
    'noise.png': 'no image',
    'empty/notes.txt': 'nothing to see',
    'a_file': '',
}

AGC = [
    'optim_wrapper.type=AGCOptimWrapper',
    'optim_wrapper.clip_grad.type=agc',
]
TRAIN, TEST, SPP = 'train', 'test', 'spp_analysis'
CASES = [
    (TRAIN, ['missing.py'], 'no config at missing.py'),
    (TRAIN, ['broken.py'], 'cannot read the config broken.py.*(syntax|never closed)'),
    (TRAIN, ['raises.py'], 'cannot read the config raises.py: division by zero'),
    (TRAIN, ['no_base.py'], 'cannot read the config no_base.py.*nothing.py'),
    (TRAIN, ['no_model.py'], 'no_model.py has no model'),
    (TRAIN, [NF, '--cfg-options', 'model.backbone.depth=51'], 'depth must be one of 26.*got 51'),
    (TRAIN, [NF, '--cfg-options', 'model.backbone.type=NFNetwork'], 'NFNetwork is not in'),
    (TRAIN, [NF, '--cfg-options', 'model.backbone.act_cfg.type=Foo'], "unknown activation 'Foo'"),
    (TRAIN, [NF, '--cfg-options', 'model.backbone.color=red'], "unexpected keyword .*'color'"),
    (TRAIN, [NF, '--cfg-options', 'model.backbone.strides=(1,2)'], 'strides must be 4'),
    (TRAIN, [NF, '--resume', 'missing.pth'], 'no checkpoint at missing.pth'),
    (TRAIN, [NF, '--resume', 'garbage.pth'], 'garbage.pth is not a readable checkpoint'),
    (TRAIN, [NF, '--resume', 'linear.pth'], 'linear.pth is for another model: 0 of'),
    (TRAIN, [NF, '--cfg-options', 'load_from=cut.pth'], 'cut.pth is not a readable checkpoint'),
    (TRAIN, [NF, '--work-dir', 'a_file/work'], 'cannot write into a_file/work'),
    (TRAIN, [NF, '--launcher', 'pytorch'], 'cannot start the process group'),
    (TRAIN, [NF, '--launcher', 'cloud'], 'invalid choice'),
    (TRAIN, [NF, '--cfg-options', 'depth'], 'bad arguments'),
    (TRAIN, [NF, '--cfg-options', 'train_dataloader=None'], 'has no train_dataloader'),
    (TRAIN, [NF, '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'], 'no auto_scale_lr'),
    (TRAIN, [NF, '--cfg-options', *AGC, 'optim_wrapper.clip_grad.skip=head.fc.wieght'],
     "cannot build the optimizer.*skip='head.fc.wieght' is in no .*close are head.fc.weight"),
    (TRAIN, [NF, '--cfg-options', *AGC, 'optim_wrapper.clip_grad.clip_factor=0'],
     'cannot build the optimizer.*must be positive, got clip_factor=0'),
    (TRAIN, [NF, '--cfg-options', 'optim_wrapper.optimizer.type=SDG'], 'cannot build the optim'),
    (TRAIN, [NF, '--cfg-options', 'optim_wrapper=None'], 'has no .*optim_wrapper'),
    (TEST, [NF], 'required: checkpoint'),
    (TEST, [NF, 'missing.pth'], 'no checkpoint at missing.pth'),
    (TEST, [NF, 'cut.pth'], 'cut.pth is not a readable checkpoint'),
    (TEST, [NF, 'evil.pth'], 'evil.pth is refused: it names .*mkdir'),
    (TEST, [BN, 'nf.pth'], r'another model: \d+ of \d+ keys match; .*not: backbone'),
    (TEST, [NF, 'nf.pth', '--out-item', 'pred'], '--out-item needs --out'),
    (SPP, ['missing.py'], 'no config at missing.py'),
    (SPP, ['no_backbone.py'], 'no_backbone.py has no backbone'),
    (SPP, ['vgg.py', '--input-size', '2'], 'cannot run .* vgg.py on 8 inputs of 3x2x2.*too small'),
    (SPP, ['cut.py'], 'cannot build the backbone of cut.py.*depth 12'),
    (SPP, [NF, 'missing.pth'], 'no checkpoint at missing.pth'),
    (SPP, [NF, 'cut.pth'], 'cut.pth is not a readable checkpoint'),
    (SPP, [BN, 'nf.pth'], r'another model: \d+ of \d+ keys match; the first that do not: conv1'),
    (SPP, [NF, '--out-dir', 'a_file/out'], 'cannot write into a_file/out'),
    (SPP, [NF, '--input-size', '0'], "'0' is not a positive integer"),
    (SPP, [NF, '--input-size', '1', '2', '3'], 'takes a side, or a height and a width'),
    (SPP, [NF, '--batch-size', '-1'], "'-1' is not a positive integer"),
    (SPP, [NF, '--batch-size', '10000000000'], 'cannot make noise of shape'),
    (SPP, [NF, '--cfg-options', 'depth'], 'bad arguments'),
    (SPP, [NF, '--cfg-options', 'model.backbone.init_cfg.type=Pretrained',
           'model.backbone.init_cfg.checkpoint=evil.pth'], 'cannot build the backbone'),
    (SPP, [NF, '--input', 'video'], "takes gaussian, .* a file or a folder, got 'video'"),
    (SPP, [NF, '--input', ''], "takes gaussian, .* a file or a folder, got ''"),
    (SPP, [NF, '--input', 'empty'], 'no images in empty'),
    (SPP, [NF, '--input', 'garbage.pth'], 'cannot read the images of garbage.pth'),
    (SPP, [NF, '--input', 'noise.png'], 'cannot read the images of noise.png'),
    (SPP, [NF, '--fail-on', 'everything'], "invalid choice: 'everything'"),
    (SPP, ['resnet.py', '--input-size', '32', '--batch-size', '1'],
     'cannot run .* on 1 inputs of 3x32x32 .*more than 1 value per channel'),
    (SPP, [NF, '--mode', 'both'], 'invalid choice'),
    (SPP, [NF, '--format', 'gif'], 'invalid choice'),
    (SPP, [NF, '--device', 'quantum'], 'cannot use the device quantum'),
    (SPP, [NF, '--compare', 'missing.py'], 'no config at missing.py'),
    (SPP, [NF, '--label', 'a', 'b'], '--label takes 1 names, got 2'),
    (SPP, [str(ROOT / 'configs/nf_resnet/nf-resnet50_1xb128_cifar10.py'), '--input', 'train'],
     'cannot read the train data'),
]  # fmt: skip


class Harmful:
    def __reduce__(self):
        return os.mkdir, ('harmed',)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / 'linear.pth')
    state = {'backbone.stem.conv1.gain': torch.ones(16), 'head.fc.weight': torch.ones(10, 512)}
    torch.save(dict(state_dict=state), tmp_path / 'nf.pth')
    torch.save(dict(state_dict=state, extra=Harmful()), tmp_path / 'evil.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'linear.pth').read_bytes()[:-100])
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)


@pytest.mark.parametrize(('tool', 'args', 'message'), CASES)
def test_bad_input(tool, args, message, workplace, monkeypatch, capsys):
    import re

    before = files(workplace)
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *args])
    with pytest.raises(SystemExit) as status:
        runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')
    assert status.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: ')
    assert re.search(message, line), line
    assert files(workplace) == before
    assert not (workplace / 'harmed').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is an accelerator')
@pytest.mark.parametrize(('tool', 'args'), [(SPP, ['--device', 'cuda']), (TRAIN, ['--amp'])])
def test_an_accelerator_that_is_not_there(tool, args, workplace, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', NF, *args])
    with pytest.raises(SystemExit) as status:
        runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')
    assert status.value.code == 2
    assert capsys.readouterr().err.startswith('error: ')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_read_only_folder(workplace, monkeypatch, capsys):
    (workplace / 'locked').mkdir(mode=0o500)
    monkeypatch.setattr(sys, 'argv', ['spp_analysis.py', NF, '--out-dir', 'locked/out'])
    with pytest.raises(SystemExit) as status:
        runpy.run_path(str(ROOT / 'tools/spp_analysis.py'), run_name='__main__')
    assert status.value.code == 2
    assert 'cannot write into locked/out' in capsys.readouterr().err
