"""All loaders of mmengine, each with a harmless and with a harmful file."""

import os
import sys
import threading
import types
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import registry_utils
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.runner import checkpoint as mm
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nf_plugins.checkpoint import loader
from nf_plugins.errors import CheckpointError, CheckpointNotFoundError


class Harmful:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two files, and all URLs and paths under which mmengine can load them."""
    state = {'backbone.weight': torch.arange(3.0)}
    torch.save(dict(state_dict=state), tmp_path / 'good.pth')
    torch.save(dict(state_dict=state, extra=Harmful(tmp_path / 'harmed')), tmp_path / 'evil.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('HOME', str(tmp_path))

    class Petrel(LocalBackend):
        @contextmanager
        def get_local_path(self, path):
            copy = tmp_path / 'copy'
            copy.write_bytes((tmp_path / path.partition('://')[2]).read_bytes())
            yield str(copy)

    monkeypatch.setitem(registry_utils.backends, 'petrel', Petrel)
    pavi = types.ModuleType('pavi')
    pavi.modelcloud = types.SimpleNamespace(get=partial(PaviModel, tmp_path))
    monkeypatch.setitem(sys.modules, 'pavi', pavi)
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    names = {name: f'{url}/{name}.pth' for name in ('good', 'evil')}
    for models in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(mm, models, lambda: names)
    monkeypatch.setattr(mm, 'get_deprecated_model_names', lambda: {'old_evil': 'evil'})
    yield types.SimpleNamespace(path=tmp_path, url=url)
    server.shutdown()
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class PaviModel:
    def __init__(self, folder, name):
        self.folder, self.name = folder, name

    def download(self, path):
        os.link(self.folder / self.name, path)


WAYS = [
    '{path}/{name}.pth',
    '~/{name}.pth',
    '{url}/{name}.pth',
    's3://{name}.pth',
    'cluster:s3://{name}.pth',
    'petrel://{name}.pth',
    'pavi://{name}.pth',
    'torchvision://{name}',
    'modelzoo://{name}',
    'open-mmlab://{name}',
    'openmmlab://{name}',
    'mmcls://{name}',
]


@pytest.mark.parametrize('way', WAYS)
def test_every_way_ends_at_the_same_reader(way, folder):
    loaded = CheckpointLoader.load_checkpoint(way.format(name='good', **vars(folder)), 'cpu')
    name = 'weight' if way.startswith('mmcls') else 'backbone.weight'  # of mmcls the backbone
    assert torch.equal(loaded['state_dict'][name], torch.arange(3.0))
    with pytest.raises(CheckpointError, match=r'is refused: it names \S*mkdir'):
        CheckpointLoader.load_checkpoint(way.format(name='evil', **vars(folder)), 'cpu')
    assert not (folder.path / 'harmed').exists()


def test_no_way_of_mmengine_is_left_out(folder):
    assert set(CheckpointLoader._schemes) == {p for ways in loader.LOADERS.values() for p in ways}
    ours = [getattr(f, '__wrapped__', None) for f in CheckpointLoader._schemes.values()]
    assert set(ours) == set(loader.LOADERS)


def test_a_deprecated_name(folder):
    with pytest.raises(CheckpointError, match='mkdir'):
        CheckpointLoader.load_checkpoint('open-mmlab://old_evil')


@pytest.mark.parametrize('way', ['open-mmlab://none', 'nowhere/none.pth', 'torchvision://none'])
def test_what_is_not_there(way, folder):
    with pytest.raises(CheckpointNotFoundError, match=f'no checkpoint at {way}'):
        CheckpointLoader.load_checkpoint(way)
    with pytest.raises(FileNotFoundError):
        CheckpointLoader.load_checkpoint(way)


def test_a_download_is_kept(folder):
    CheckpointLoader.load_checkpoint(f'{folder.url}/good.pth')
    (folder.path / 'good.pth').unlink()
    CheckpointLoader.load_checkpoint(f'{folder.url}/good.pth')


def test_safetensors_in_mmengine(folder):
    net = nn.Linear(2, 3)
    save_file(dict(net.state_dict()), folder.path / 'a.safetensors', metadata={'from': 'here'})
    other = nn.Linear(2, 3)
    loaded = load_checkpoint(other, str(folder.path / 'a.safetensors'), strict=True)
    assert torch.equal(other.weight, net.weight)
    assert torch.equal(other.bias, net.bias)
    assert loaded['meta'] == {'from': 'here'}


class Toy(BaseModel):
    def __init__(self, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = nn.Linear(1, 1)

    def forward(self, x, mode='tensor'):
        return dict(loss=self.backbone(x).sum())


def runner(folder, model=None, **settings):
    data = DataLoader(TensorDataset(torch.ones(4, 1)), 2, collate_fn=lambda x: torch.stack(x[0]))
    return Runner(
        model or Toy(),
        str(folder.path / 'work'),
        data,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        **settings,
    )


@pytest.mark.parametrize('how', ['load_from', 'resume', 'resume the latest'])
def test_mmengines_runner(how, folder):
    """As in mm's own scripts, with nothing of ours but the import."""
    evil = str(folder.path / 'evil.pth')
    (folder.path / 'work').mkdir()
    (folder.path / 'work/last_checkpoint').write_text(evil)
    settings = dict(
        load_from=None if how == 'resume the latest' else evil, resume=how != 'load_from'
    )
    with pytest.raises(CheckpointError, match='mkdir'):
        runner(folder, experiment_name=how, **settings).train()
    assert not (folder.path / 'harmed').exists()


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_pretrained_weights(prefix, folder):
    evil = str(folder.path / 'evil.pth')
    for model in (
        Toy(init_cfg=dict(type='Pretrained', checkpoint=evil, prefix=prefix)),
        MODELS.build(
            Config(
                dict(
                    type='mmpretrain.ResNet',
                    depth=18,
                    init_cfg=dict(type='Pretrained', checkpoint=evil, prefix=prefix),
                )
            )
        ),
    ):
        with pytest.raises(CheckpointError, match='mkdir'):
            model.init_weights()
    assert not (folder.path / 'harmed').exists()


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: dict(state_dict=s), lambda s: dict(net=s)])
def test_names_of_weights_do_not_steer_terminals(wrap, tmp_path, capfd):
    """mmengine prints the names that a model does not have."""
    state = {'weight': torch.ones(2, 3), 'a\x1b]0;owned\x07b': torch.ones(1)}
    torch.save(wrap(state), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='is no name'):
        load_checkpoint(nn.Linear(3, 2), str(tmp_path / 'a.pth'), 'cpu')
    assert '\x1b' not in ''.join(capfd.readouterr())
