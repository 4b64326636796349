"""A table of bad inputs: one line on stderr, exit 2, nothing written."""

import json
import os
import re

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nf_plugins.config import build_model, load_config
from nf_plugins.models import NFResNet

from ..conftest import ROOT
from ..tools import run_tool

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
    'self.py': "_base_ = './self.py'",
    'circle_a.py': "_base_ = ['./circle_b.py']",
    'circle_b.py': "_base_ = './circle_c.py'",
    'circle_c.py': "_base_ = './circle_b.py'",
    'exits.py': 'import sys\nsys.exit(0)',
    'recursive.py': 'def f(): return f()\nf()',
    'null.py': '\0' * 10,
    'binary.py': bytes(range(256)),
    'deep.json': '[' * 10_000,
    'open.yaml': 'model: [1, 2',
    'three.py': 'model = 3',
    'scope.py': 'model = dict(backbone=dict())\ndefault_scope = 3',
    'no_module.py': "custom_imports = dict(imports=['no_such_module'])\nmodel = dict(a=1)",
    'small.py': 'model = dict(backbone='
    "dict(type='nf_plugins.NFResNet', depth=26, base_channels=4))",
    'page.md': 'no picture',
    'empty.pth': '',
    'empty.png': '',
    'empty.npz': '',
    'garbage.safetensors': 'garbage' * 10,
    'head.png': b'\x89PNG\r\n\x1a\n' + bytes(10),
    'images/a.png': '',
    'records/20260101_000000/spp/iter_00000000.json': '{}',
    'study/results.json': '[]',
}

AGC = [
    'optim_wrapper.type=AGCOptimWrapper',
    'optim_wrapper.clip_grad.type=agc',
]
TRAIN, TEST, SPP, VIDEO = 'train', 'test', 'spp_analysis', 'spp_video'
FOLD, HAIKU, TIMM, PWS = (
    f'model_converters/{name}' for name in ('fold', 'haiku_to_nf', 'timm_to_nf', 'pwsconv_to_nf')
)
BENCHMARK, STUDY = 'benchmarks.cost.benchmark', 'benchmarks.study.__main__'
BENCHMARK_SPP, COVERAGE, CONV_CFG = (
    f'benchmarks.spp.{name}' for name in ('benchmark_spp', 'spp_coverage', 'conv_cfg_coverage')
)
FIGURES = '../docs/spp_figures'
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
    (TRAIN, [NF, '--resume', 'linear.pth'], 'linear.pth holds weights but no training'),
    (TRAIN, [NF, '--cfg-options', 'load_from=cut.pth'], 'cut.pth is not a readable checkpoint'),
    (TRAIN, [NF, '--work-dir', 'a_file/work'], 'cannot write into a_file/work'),
    (TRAIN, [NF, '--launcher', 'pytorch'], 'cannot start the process group'),
    (TRAIN, [NF, '--launcher', 'cloud'], 'invalid choice'),
    (TRAIN, [NF, '--cfg-options', 'depth'], 'bad arguments'),
    (TRAIN, [NF, '--cfg-options', 'train_dataloader=None'], 'must have train_dataloader'),
    (TRAIN, [NF, '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'], 'no auto_scale_lr'),
    (TRAIN, [NF, '--cfg-options', *AGC, 'optim_wrapper.clip_grad.skip=head.fc.wieght'],
     "cannot build the optimizer.*skip='head.fc.wieght' is in no .*close names: head.fc.weight"),
    (TRAIN, [NF, '--cfg-options', *AGC, 'optim_wrapper.clip_grad.clip_factor=0'],
     'cannot build the optimizer.*clip_factor must be a positive number, got 0'),
    (TRAIN, [NF, '--cfg-options', 'optim_wrapper.optimizer.type=SDG'], 'cannot build the optim'),
    (TRAIN, [NF, '--cfg-options', 'optim_wrapper=None'], 'must have .*optim_wrapper'),
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
    # Configs that cannot be read, for every tool that reads one.
    *((tool, ['self.py', *more], 'self.py: its _base_ files go in a circle: self.py -> self.py')
      for tool, *more in ((TRAIN,), (TEST, 'nf.pth'), (SPP,), (VIDEO, 'nf.pth', '--out', 'x.gif'),
                          (FOLD, 'nf.pth', 'out.pth'))),
    *((tool, ['one.npz', 'out.pth', '--config', 'self.py'], 'its _base_ files go in a circle')
      for tool in (HAIKU, TIMM, PWS)),
    (SPP, ['circle_a.py'], 'in a circle: circle_b.py -> circle_c.py -> circle_b.py'),
    (SPP, ['exits.py'], r'cannot read the config exits.py: it calls sys.exit\(\)'),
    (SPP, ['recursive.py'], 'cannot read the config recursive.py: maximum recursion depth'),
    (SPP, ['null.py'], 'cannot read the config null.py: .*null bytes'),
    (SPP, ['binary.py'], "cannot read the config binary.py: 'utf-8' codec"),
    (SPP, ['deep.json'], 'cannot read the config deep.json'),
    (SPP, ['open.yaml'], 'cannot read the config open.yaml'),
    (SPP, ['a_file'], 'cannot read the config a_file: .*should be py'),
    (SPP, ['three.py'], 'model must be a dict, got 3'),
    (SPP, ['scope.py'], 'default_scope must be a str, got 3'),
    (SPP, ['no_module.py'], 'cannot read the config no_module.py.*no_such_module'),
    (SPP, ['empty'], 'no config at empty'),
    (SPP, [''], 'no config at'),
    (SPP, ['nul\0.py'], 'no config at'),
    (SPP, ['/dev/zero'], 'no config at /dev/zero'),
    *((TRAIN, [NF, '--cfg-options', f'{name}=3'], f'{name} must be a dict, got 3')
      for name in ('model', 'train_dataloader', 'optim_wrapper', 'default_hooks',
                   'auto_scale_lr')),
    (TRAIN, [NF, '--cfg-options', 'work_dir=3'], 'work_dir must be a str, got 3'),
    (TRAIN, [NF, '--cfg-options', 'load_from=3'], 'load_from must be a str, got 3'),
    (TRAIN, [NF, '--work-dir', '/proc/work'], 'cannot write into /proc/work'),
    (TRAIN, [NF, '--resume', 'empty.pth'], 'empty.pth is not a readable checkpoint'),
    # Numbers that are none, and sizes beyond all memory.
    *((SPP, [NF, '--cfg-options', f'model.backbone.{name}={value}'], message)
      for name, value, message in (
          ('base_channels', '0', 'base_channels must be a positive integer, got 0'),
          ('base_channels', '-4', 'base_channels must be a positive integer, got -4'),
          ('base_channels', '1.5', 'base_channels must be a positive integer, got 1.5'),
          ('base_channels', 'many', "base_channels must be a positive integer, got 'many'"),
          ('base_channels', '1000000000000', 'base_channels must be at most'),
          ('in_channels', '0', 'in_channels must be a positive integer, got 0'),
          ('depth', '(1,1,1,1000000000)', 'depth must be at most 10000'),
          ('alpha', 'nan', "alpha must be a positive number, got"),
          ('act_cfg', 'None', 'act_cfg must be a dict .*got None'),
          ('conv_cfg', '3', 'conv_cfg must be a dict .*got 3'),
      )),
    (SPP, [NF, '--cfg-options', 'train_dataloader.dataset.pipeline=3'], 'cannot tell the input'),
    (SPP, [NF, '--input-size', '10000000000000000000000'], 'shape must be at most'),
    (SPP, [NF, '--input-size', '2000000000'], 'cannot make noise of shape'),
    (SPP, [NF, '--input-size', '1.5'], "'1.5' is not a positive integer"),
    (SPP, [NF, '--seed', '1.5'], "invalid int value: '1.5'"),
    (SPP, [NF, '--seed', str(2**64)], 'seed must be at most'),
    (SPP, [NF, '--device', ''], 'cannot use the device'),
    (SPP, [NF, '--compare', ''], 'no config at'),
    (SPP, [NF, '--out-dir', '/proc/out'], 'cannot write into /proc/out'),
    (SPP, [NF, '--out-dir', '/dev/null/out'], 'cannot write into /dev/null/out'),
    (SPP, [NF, 'empty.pth'], 'empty.pth is not a readable checkpoint'),
    (SPP, [NF, '/dev/zero'], 'no checkpoint at /dev/zero'),
    # Images and data.
    (SPP, [NF, '--input', 'images'], 'images of images: images/a.png is empty'),
    (SPP, ['small.py', '--input', 'images'], 'images of images: images/a.png is empty'),
    (SPP, [NF, '--input', 'empty.png'], 'empty.png is empty'),
    (SPP, [NF, '--input', 'cut.png'], 'images of cut.png: cut.png: failed to load image'),
    (SPP, [NF, '--input', 'head.png'], 'images of head.png: head.png: failed to load image'),
    (SPP, [NF, '--input', '/dev/null'], 'there is no file or folder /dev/null'),
    (SPP, [NF, '--input', 'train', '--cfg-options', 'train_dataloader.dataset.indices=0'],
     'cannot read the train data'),
    (SPP, [NF, '--input', 'train', '--cfg-options', 'train_dataloader.dataset.split=no'],
     "split must be one of train, test, got 'no'"),
    (SPP, ['small.py', '--input', 'val'], 'the config has no val_dataloader'),
    # The other tools.
    (TEST, [NF, 'empty.pth'], 'empty.pth is not a readable checkpoint'),
    (TEST, [NF, 'nf.pth', '--out', 'a_file/out.pkl'], 'cannot write a_file/out.pkl'),
    (TEST, [NF, 'nf.pth', '--out', '/proc/out.pkl'], 'cannot write /proc/out.pkl'),
    (TEST, [NF, 'nf.pth', '--out', 'out.json'], "must be one of pkl, pickle, got 'json'"),
    (TEST, [NF, 'nf.pth', '--out', 'out.txt', '--out-item', 'metrics'], "json.*got 'txt'"),
    (VIDEO, [], 'required: SOURCE, --out'),
    (VIDEO, ['records'], 'required: --out'),
    *((VIDEO, [*sources, '--out', 'x.gif'], message) for sources, message in (
        (['missing'], 'no such file or folder: missing'),
        (['records'], 'no record: its schema is None'),
        (['empty'], 'empty holds no records'),
        (['noise.png'], 'noise.png is not valid JSON'),
        (['nf.pth'], 'checkpoints need their config before them'),
        (['small.py'], 'small.py needs checkpoints after it'),
        (['small.py', 'missing.pth'], 'no checkpoint at missing.pth'),
        (['small.py', 'empty.pth'], 'empty.pth is not a readable checkpoint'),
        (['small.py', 'linear.pth'], 'linear.pth is for another model'),
        (['small.py', 'linear.pth', '--seed', str(2**64)], 'seed must be at most'),
        (['small.py', 'linear.pth', '--batch-size', '0'], "'0' is not a positive integer"),
        (['small.py', 'linear.pth', '--batch-size', str(10**12)], 'shape must be at most'),
        (['small.py', 'linear.pth', '--device', 'quantum'], 'cannot use the device quantum'),
        (['small.py', 'linear.pth', '--fps', 'nan'], "'nan' is not a number from"),
        (['records', '--mode', 'eval'], '--mode is for a config with checkpoints'),
    )),
    *((VIDEO, ['records', '--out', out], message) for out, message in (
        ('x.avi', '--out must end in .gif, .mp4, .html, got x.avi'),
        ('', '--out must end in'),
        ('a_file/x.gif', 'cannot write a_file/x.gif'),
        ('/proc/x.gif', 'cannot write /proc/x.gif'),
    )),
    (FOLD, [NF, 'nf.pth'], 'required: dst'),
    (FOLD, ['missing.py', 'nf.pth', 'out.pth'], 'no config at missing.py'),
    (FOLD, [NF, 'missing.pth', 'out.pth'], 'no checkpoint at missing.pth'),
    (FOLD, [NF, 'empty.pth', 'out.pth'], 'empty.pth is not a readable checkpoint'),
    (FOLD, [NF, 'evil.pth', 'out.pth'], 'evil.pth is refused'),
    (FOLD, [NF, 'linear.pth', 'out.pth'], 'linear.pth is for another model'),
    (FOLD, [NF, 'nf.pth', 'out.py'], 'out.py would be overwritten by the config'),
    (FOLD, [NF, 'nf.pth', ''], "'' is no name of a file"),
    (FOLD, [NF, 'nf.pth', 'empty'], "'empty' is no name of a file"),
    (FOLD, [NF, 'nf.pth', 'a_file/out.pth'], 'cannot write a_file/out.pth'),
    (FOLD, [NF, 'nf.pth', 'out.pth', '--onnx', '/proc/x.onnx'], 'cannot write /proc/x.onnx'),
    (FOLD, [NF, 'nf.pth', 'out.pth', '--input-size', '0'], "'0' is not a positive integer"),
    *((tool, [*args, '--config', NF], message)
      for tool in (HAIKU, TIMM, PWS)
      for args, message in (
          (['missing.npz', 'out.pth'], 'no weights at missing.npz'),
          (['empty.npz', 'out.pth'], 'empty.npz is not a readable file of weights'),
          (['one.npz', 'out.pth'], 'cannot convert one.npz for .*no place in the model: a'),
          (['one.npz', 'a_file/out.pth'], 'cannot write a_file/out.pth'),
          (['one.npz', '/proc/out.pth'], 'cannot write /proc/out.pth'),
      )),
    *((tool, [path, 'out.pth', '--config', NF], message)
      for tool, what, fault in (
          (HAIKU, 'weights', 'refused: it uses the pickle opcode GET'),
          (TIMM, 'checkpoint', 'not a readable checkpoint'),
          (PWS, 'checkpoint', 'not a readable checkpoint'),
      )
      for path, message in (
          ('garbage.safetensors', f'garbage.safetensors is {fault}'),
          ('empty', f'no {what} at empty'),
      )),
    (HAIKU, ['one.npz', 'out.pth'], 'required: --config'),
    (BENCHMARK, ['--rounds', '0'], "'0' is not a positive integer"),
    (BENCHMARK, ['--networks', 'vgg'], "invalid choice: 'vgg'"),
    (BENCHMARK, ['--shapes', 'large'], "'large' is not a positive integer"),
    (BENCHMARK_SPP, ['--rounds', '-1'], "'-1' is not a positive integer"),
    (COVERAGE, ['--max-params', 'all'], "invalid float value: 'all'"),
    (CONV_CFG, ['--docs', 'missing.md'], 'cannot read missing.md'),
    (CONV_CFG, ['--docs', 'empty.npz'], 'has no place for the table'),
    (CONV_CFG, ['--max-params', '1'], 'unrecognized arguments'),
    (FIGURES, ['missing.md'], 'cannot read missing.md'),
    (FIGURES, ['binary.py'], 'cannot read binary.py'),
    (FIGURES, ['page.md'], 'page.md has no picture'),
    (STUDY, ['--seeds', '-1'], "'-1' is not a natural number"),
    (STUDY, ['--seeds', '1', '1'], 'has a value twice'),
    (STUDY, ['--parts', 'width'], "invalid choice: 'width'"),
    (STUDY, ['--out', 'a_file/out'], 'cannot write into a_file/out'),
    (STUDY, ['--out', '/proc/out'], 'cannot write into /proc/out'),
]  # fmt: skip


class Harmful:
    def __reduce__(self):
        return os.mkdir, ('harmed',)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    np.savez(tmp_path / 'one.npz', a=np.ones(3))
    png = cv2.imencode('.png', np.random.RandomState(0).randint(0, 255, (20, 20), np.uint8))[1]
    (tmp_path / 'cut.png').write_bytes(png.tobytes()[: len(png) // 2])
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
def test_bad_input(tool, args, message, workplace, monkeypatch, capfd):
    before = files(workplace)
    assert run_tool(tool, *args) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith('error: ')
    assert re.search(message, line), line
    assert files(workplace) == before
    assert not (workplace / 'harmed').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is an accelerator')
@pytest.mark.parametrize(
    ('tool', 'args'),
    [
        (SPP, [NF, '--device', 'cuda']),
        (SPP, [NF, '--device', 'cuda:7']),
        (VIDEO, ['small.py', 'linear.pth', '--out', 'x.gif', '--device', 'cuda']),
        (TRAIN, [NF, '--amp']),
        (BENCHMARK, ['--device', 'cuda']),
    ],
)
def test_an_accelerator_that_is_not_there(tool, args, workplace, monkeypatch, capsys):
    assert run_tool(tool, *args) == 2
    assert capsys.readouterr().err.startswith('error: ')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_read_only_folder(workplace, monkeypatch, capsys):
    (workplace / 'locked').mkdir(mode=0o500)
    assert run_tool(SPP, *[NF, '--out-dir', 'locked/out']) == 2
    assert 'cannot write into locked/out' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('name', ['dataset.indices=0', 'dataset=None', 'batch_size=0'])
def test_data_that_cannot_be_trained_on(name, workplace, monkeypatch, capsys):
    args = [NF, '--work-dir', 'work', '--cfg-options', f'train_dataloader.{name}']
    assert run_tool(TRAIN, *args) == 2
    assert re.search('^error: cannot prepare the training of', capsys.readouterr().err, re.M)


GREY = np.random.RandomState(0).randint(0, 255, (20, 30), np.uint8)
IMAGES = {
    'grey.png': Image.fromarray(GREY),
    '16 bit.png': Image.fromarray(GREY.astype(np.uint16) * 257),
    'alpha.png': Image.fromarray(np.dstack([GREY] * 4)),
    'grey with alpha.png': Image.fromarray(np.dstack([GREY] * 2)),
    'palette.png': Image.fromarray(GREY).convert('P'),
    'black and white.png': Image.fromarray(GREY).convert('1'),
    'cmyk.jpg': Image.fromarray(np.dstack([GREY] * 3)).convert('CMYK'),
    'grün ☃.webp': Image.fromarray(np.dstack([GREY] * 3)),
    'grey.tiff': Image.fromarray(GREY),
    'one pixel.png': Image.fromarray(GREY[:1, :1]),
}


@pytest.mark.parametrize('config', [NF, 'small.py'])
def test_images_of_every_kind(config, workplace, monkeypatch):
    """Of a network for colours and one for grey images; a folder that only looks like one, too."""
    (workplace / 'alle Bilder ☃/folder.png').mkdir(parents=True)
    for name, image in IMAGES.items():
        image.save(workplace / 'alle Bilder ☃' / name)
    args = [config, '--input', 'alle Bilder ☃', '--batch-size', '20', '--format', 'json']
    assert run_tool(SPP, *[*args, '--out-dir', 'o', '--input-size', '17', '33']) == 0
    shape = json.loads((workplace / 'o/spp.json').read_text())['input']['shape']
    assert shape[0] == len(IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize('size', [['1'], ['33', '17']])
def test_names_with_spaces_and_unicode_and_one_image(size, workplace, monkeypatch, capsys):
    """Configs, checkpoints and folders; a batch of one, of one pixel or of odd sides."""
    folder = workplace / 'größe ☃ dir'
    folder.mkdir()
    (folder / 'ein netz é.py').write_text(f'_base_ = {str(workplace / "small.py")!r}')
    torch.save(NFResNet(26, base_channels=4).state_dict(), folder / 'a ☃.pth')
    source = [str(folder / name) for name in ('ein netz é.py', 'a ☃.pth')]
    options = ['--batch-size', '1', '--input-size', *size]
    out = str(folder / 'out é ☃')
    label = ['--label', 'größe $x_$ ☃', '--format', 'json', 'csv']
    assert run_tool(SPP, *[*source, *options, '--out-dir', out, *label]) == 0
    assert json.loads((folder / 'out é ☃/spp.json').read_text())['config'] == source[0]
    film = str(folder / 'film ☃.html')
    assert run_tool(VIDEO, *[*source, *options, '--out', film, '--title', '<ü> ☃']) == 0
    assert '☃' in (folder / 'film ☃.html').read_text(encoding='utf-8')


def test_folding_with_names_of_unicode(workplace, monkeypatch):
    cfg = load_config(NF)
    torch.save(dict(state_dict=build_model(cfg, NF).state_dict()), 'ganz ☃.pth')
    assert run_tool(FOLD, *[NF, 'ganz ☃.pth', 'größe dir/gefaltet ☃.pth']) == 0
    source = ['größe dir/gefaltet ☃.py', 'größe dir/gefaltet ☃.pth']
    assert run_tool(SPP, *source, '--format', 'json', '--out-dir', 'o') == 0
