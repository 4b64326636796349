"""docs/finetune.md, run as it stands, and the config that its tool writes."""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from PIL import Image

from nf_plugins.checkpoint import safe_load
from nf_plugins.config import build_model, load_config
from nf_plugins.models import hub
from nf_plugins.models.hub import PUBLISHED

from .conftest import ROOT, without_memory
from .hub_server import hub_server, timm_file
from .tools import run_apart, run_tool

PAGE = (ROOT / 'docs/finetune.md').read_text('utf-8')
TEST = 'test_nfnet.r160_in1k'
TOOL = 'model_converters/from_published'
COLORS = dict(daisy=(220, 60, 50), rose=(60, 200, 70), tulip=(50, 80, 220))


def images(folder, count, seed=0):
    """Images of noise around the colour of their class."""
    generator = np.random.default_rng(seed)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = np.clip(generator.normal(color, 15, (8, 10, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noise).resize((120, 96)).save(folder / name / f'{number} a.jpg')


@pytest.fixture
def server(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hf'))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hf'))  # of other processes
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.chdir(tmp_path)
    with hub_server() as running:
        monkeypatch.setenv('HF_ENDPOINT', running.url)
        yield running


def commands():
    """The commands of the page, as arguments."""
    for block in re.findall(r'^```bash\n(.*?)^```', PAGE, re.DOTALL | re.M):
        for line in block.replace('\\\n', ' ').splitlines():
            if not re.match(r'\w+=', line):  # the names that a reader chooses
                yield shlex.split(os.path.expandvars(line))


@pytest.mark.slow
def test_the_page_as_it_stands(server, tmp_path, monkeypatch, capfd):
    """From published weights and a folder of images to a folded ONNX file, and predictions."""
    server.put_timm(TEST, timm_file(timm.create_model('test_nfnet'), tmp_path))
    images(tmp_path / 'photos', 14)
    images(tmp_path / 'new', 4, seed=1)
    monkeypatch.setenv('NAME', TEST)
    monkeypatch.setenv('DATA', 'photos')
    monkeypatch.setenv('IMAGES', str(tmp_path / 'new/rose'))
    done, said = [], ''
    for command in commands():
        if command[0] == 'pip':
            assert command[1:] == ['install', '.[mm,hub]']
            continue
        python, tool, *arguments = command
        assert python == 'python' and (ROOT / tool).is_file()
        name = tool.removeprefix('tools/').removesuffix('.py')
        if name in ('train', 'test'):  # with processes that load images
            result = run_apart(name, *arguments)
            assert result.returncode == 0, result.stderr[-2000:]
            said += result.stdout + result.stderr
        else:
            assert run_tool(name, *arguments) == 0, capfd.readouterr().err
        done.append(name)
        if name == 'train' and '--resume' not in arguments:
            assert len(done) == 2  # after the installation: a config, and the training
    assert done == [TOOL, 'train', 'train', 'test', 'spp_analysis', 'spp_analysis',
                    'model_converters/fold']  # fmt: skip
    accuracies = [float(n) for n in re.findall(r'accuracy/top1: ([\d.]+)', said)]
    assert len(accuracies) == 13 and accuracies[-1] > 60  # 3 classes: a third by chance
    assert 'resumed epoch: 10' in said and 'Epoch(train) [12]' in said
    assert (tmp_path / 'folded.onnx').stat().st_size > 5e5
    assert not [key for key in safe_load('folded.pth')['state_dict'] if 'gain' in key]

    blocks = re.findall(r'^```python\n(.*?)^```', PAGE, re.DOTALL | re.M)
    scope = {}
    exec(blocks[0], scope)
    predicted = [result['pred_class'] for result in scope['results']]
    assert len(predicted) == 4 and predicted.count('rose') >= 2
    exec(blocks[1].replace('dm_nfnet_f0.dm_in1k', TEST), scope)
    assert scope['model'].head.num_classes == 3


@pytest.mark.parametrize(
    'entry',
    [
        pytest.param(e, id=e.name, marks=[pytest.mark.slow] * (e.parameters > 1e7))
        for e in PUBLISHED
    ],
)
def test_the_config_of_each_name_loads_as_it_is(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images(tmp_path / 'data', 3)
    assert run_tool(TOOL, entry.name, 'my.py', '--data-root', 'data', '--num-classes', 3) == 0
    cfg = load_config('my.py')
    with without_memory():
        model = build_model(cfg, 'my.py')
    assert type(model.backbone).__name__ == entry.family
    assert cfg.model.backbone.type.startswith('nf_plugins.')
    assert cfg.load_from == entry.uri and cfg.model.head.num_classes == 3
    assert tuple(cfg.data_preprocessor.mean) == entry.mean
    assert cfg.train_dataloader.dataset.pipeline[1].scale == entry.train_size
    assert cfg.test_dataloader.dataset.pipeline[2].crop_size == entry.test_size
    wrapper = cfg.optim_wrapper
    assert (wrapper.get('type') == 'nf_plugins.AGCOptimWrapper') == (entry.family == 'NFNet')
    assert wrapper.paramwise_cfg.custom_keys.backbone.lr_mult < 1
    assert wrapper.constructor == 'nf_plugins.NFOptimWrapperConstructor'


@pytest.mark.slow
def test_every_fifth_image_is_for_validation(tmp_path, monkeypatch):
    from mmpretrain.datasets import CustomDataset

    monkeypatch.chdir(tmp_path)
    images(tmp_path / 'data', 10)
    assert run_tool(TOOL, TEST, 'my.py', '--data-root', 'data') == 0
    cfg = Config.fromfile('my.py')
    sets = {}
    for part in ('train', 'val'):
        options = {**cfg[f'{part}_dataloader'].dataset, 'pipeline': []}
        assert options.pop('type') == 'CustomDataset'
        dataset = CustomDataset(**options)
        sets[part] = {info['img_path'] for info in dataset.load_data_list()}
        assert list(dataset.CLASSES) == list(COLORS)
        for info in dataset.load_data_list():
            assert list(COLORS)[info['gt_label']] in info['img_path']
            assert os.path.isfile(info['img_path'])
    assert (len(sets['train']), len(sets['val'])) == (24, 6)
    assert not sets['train'] & sets['val']


def test_folders_for_training_and_validation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images(tmp_path / 'data/train', 2)
    images(tmp_path / 'data/val', 2)
    (tmp_path / 'w.pth').write_bytes(b'')
    more = ('--weights', 'w.pth', '--epochs', 1, '--batch-size', 64)
    assert run_tool(TOOL, 'F0', 'my.py', '--data-root', 'data', *more) == 0
    cfg = Config.fromfile('my.py')
    assert cfg.load_from == f'deepmind://{tmp_path}/w.pth'
    assert cfg.val_dataloader.dataset.data_prefix == 'val'
    assert cfg.train_dataloader.dataset.metainfo.classes == list(COLORS)
    assert cfg.train_cfg.max_epochs == 1 and cfg.auto_scale_lr.base_batch_size == 64
    assert sorted(os.listdir(tmp_path)) == ['data', 'my.py', 'w.pth']


def rates(cfg, iterations):
    """The learning rates of a training, as a factor of the first setting."""
    from mmengine.registry import PARAM_SCHEDULERS

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = []
    for options in cfg.param_scheduler:
        options = {k: v for k, v in options.items() if k != 'convert_to_iter_based'}
        kind = PARAM_SCHEDULERS.get(options.pop('type'))
        build = kind.build_iter_from_epoch
        schedulers.append(build(optimizer=optimizer, epoch_length=iterations, **options))
    found = []
    for _ in range(iterations * cfg.train_cfg.max_epochs):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


@pytest.mark.parametrize(
    ('folder', 'count', 'iterations'),
    [('data', 12, 1), ('data', 26, 2), ('data/train', 10, 1), ('data/train', 110, 11)],
)
def test_few_images(folder, count, iterations, tmp_path, monkeypatch, capsys):
    """The full rate is reached: mmengine's warm-up would keep a hundredth in a single iteration."""
    monkeypatch.chdir(tmp_path)
    for kind in COLORS:
        (tmp_path / folder / kind).mkdir(parents=True)
        for number in range(count):
            (tmp_path / folder / kind / f'{number}.jpg').touch()
    if folder == 'data/train':
        images(tmp_path / 'data/val', 1)
    assert run_tool(TOOL, TEST, 'my.py', '--data-root', 'data') == 0
    assert max(rates(load_config('my.py'), iterations)) == pytest.approx(1.0)
    told = f'{10 * iterations} times. For 100 updates, run this again with --epochs'
    assert (told in capsys.readouterr().err) == (iterations < 10)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['resnet50', 'my.py', '--data-root', 'data'], 'no published weights are named resnet50'),
        ([TEST, 'my.txt', '--data-root', 'data'], 'must end in .py'),
        ([TEST, 'my.py', '--data-root', 'none'], 'there is no none: say --num-classes'),
        ([TEST, 'my.py', '--data-root', 'data', '--num-classes', '4'], 'data has 3: daisy, rose'),
        ([TEST, 'my.py', '--data-root', 'data/rose'], 'needs a folder of images for each class'),
        ([TEST, 'my.py', '--data-root', 'half'], 'none called val'),
        ([TEST, 'my.py', '--data-root', 'odd'], 'differ in tulip'),
        ([TEST, 'my.py', '--data-root', 'empty'], 'has 0 images'),
        ([TEST, 'my.py'], 'data-root'),
        ([TEST, 'no/such/../../data/rose/0 a.jpg/my.py', '--data-root', 'data'], 'cannot write'),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    images(tmp_path / 'data', 2)
    images(tmp_path / 'half/train', 2)
    images(tmp_path / 'odd/train', 2)
    for name in ('odd/val/daisy', 'odd/val/rose', 'empty/a', 'empty/b'):
        (tmp_path / name).mkdir(parents=True)
    before = sorted(os.listdir(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, 'load_from_published', None)  # nothing is downloaded
        assert run_tool(TOOL, *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: ') and message in line
    assert sorted(os.listdir(tmp_path)) == before


def test_images_may_come_later(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ('--data-root', 'data/flowers', '--num-classes', 3)
    assert run_tool(TOOL, TEST, 'my.py', *arguments) == 0
    assert 'there is no data/flowers yet' in capsys.readouterr().err
    assert Config.fromfile('my.py').model.head.num_classes == 3


@pytest.mark.slow
@pytest.mark.parametrize('place', [f'timm://{TEST}', TEST])
def test_signal_of_published_weights_by_name(place, server, tmp_path):
    import json

    source = timm.create_model('test_nfnet')
    with torch.no_grad():
        source.stem.conv1.gain.mul_(3)
    server.put_timm(TEST, timm_file(source, tmp_path))
    options = ('--batch-size', 2, '--input-size', 64, '--format', 'json')
    assert run_tool('spp_analysis', place, *options, '--out-dir', 'by_name') == 0
    pair = (ROOT / f'configs/timm/{TEST}.py', f'timm://{TEST}')
    assert run_tool('spp_analysis', *pair, *options, '--out-dir', 'pair') == 0
    found, expected = (
        json.loads((tmp_path / name / 'spp.json').read_text()) for name in ('by_name', 'pair')
    )
    assert found['checkpoint'] == expected['checkpoint'] == f'timm://{TEST}'
    assert found['blocks'] == expected['blocks']


def test_a_wrong_name_in_a_tool_is_one_line(server, capsys):
    assert run_tool('spp_analysis', 'timm://test_nfnt') == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert 'close are timm://test_nfnet.r160_in1k' in line


MIM = """
import sys
from importlib import import_module
import requests
server, root, folder, *configs = sys.argv[1:]
get = requests.get
requests.get = lambda url, **options: get(f'{server}/{url.partition("://")[2]}', **options)
download, search = (import_module(f'mim.commands.{name}') for name in ('download', 'search'))
download.get_installed_path = search.get_installed_path = lambda package: root
print(*download.download('nfplugins', configs, folder))
"""
"""mim with the network of this machine and the package of the checkout. It changes what
`distutils` is for its process, so it gets its own."""


@pytest.mark.slow
def test_mim_download(server, tmp_path):
    """File and config of a name; both work as they are."""
    expected = {
        TEST: 'model.safetensors',
        'nf_resnet50.ra2_in1k': 'nf_resnet50_ra2-9f236009.pth',
        'nfnet-f0_32xb128_in1k': 'F0_haiku.npz',
    }
    content = {}
    for config in expected:
        place = f'https://huggingface.co/timm/{TEST}/resolve/main/{expected[TEST]}'
        url = hub.find(config).url or place
        content[config] = config.encode()
        if config == TEST:
            content[config] = timm_file(timm.create_model('test_nfnet'), tmp_path)
        server.files['/' + url.partition('://')[2]] = content[config]
    command = [sys.executable, '-W', 'ignore', '-c', MIM, server.url, str(ROOT), 'got', *expected]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1].split() == list(expected.values())
    for config, file in expected.items():
        assert (tmp_path / 'got' / file).read_bytes() == content[config]
        backbone = load_config(f'got/{config}.py').model.backbone
        assert backbone.type == f'nf_plugins.{hub.find(config).family}'
    options = ('--batch-size', 2, '--input-size', 64, '--out-dir', 'out')
    assert run_tool('spp_analysis', f'got/{TEST}.py', f'got/{expected[TEST]}', *options) == 0
