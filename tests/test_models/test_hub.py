"""Published weights: the table, the downloads, the conversion, against timm and the references."""

import hashlib
import os
import sys

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint
from timm.models.nfnet import default_cfgs

import nf_plugins
from nf_plugins.checkpoint import pretrained, safe_load
from nf_plugins.checkpoint.haiku import read_haiku
from nf_plugins.errors import CheckpointError, CheckpointNotFoundError
from nf_plugins.models import NFNet, hub, timm_config
from nf_plugins.models.hub import PUBLISHED, find, get_model, published_config
from nf_plugins.models.weight_names import haiku_rename, timm_rename

from ..conftest import DATA, ROOT, relative_error, sample, without_memory
from ..hub_server import haiku_file, haiku_tree, hub_server, randomize, timm_file, timm_pickle
from ..tools import Apart
from .official import F0W8, arrays

TIMM = [entry for entry in PUBLISHED if entry.source == 'timm']
DEEPMIND = [entry for entry in PUBLISHED if entry.source == 'deepmind']
TEST = 'test_nfnet.r160_in1k'


def architecture(entry):
    return entry.name.partition('.')[0]


@pytest.fixture(scope='module')
def test_net():
    torch.manual_seed(0)
    return randomize(timm.create_model('test_nfnet')).eval()


@pytest.fixture(scope='module')
def test_file(test_net, tmp_path_factory):
    return timm_file(test_net, tmp_path_factory.mktemp('timm'))


@pytest.fixture
def server(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hf'))
    with hub_server() as running:
        monkeypatch.setenv('HF_ENDPOINT', running.url)
        monkeypatch.setenv('NF_PLUGINS_DEEPMIND_ENDPOINT', f'{running.url}/dm-nfnets')
        yield running


def logits(model, x):
    with torch.no_grad():
        return model.head.fc(model.extract_feat(x)[-1])


# The table


def test_the_table_is_timms():
    """timm's own default_cfgs have the same names, sizes, crops, statistics and files."""
    theirs = {}
    for name, configs in default_cfgs.items():
        for tag, cfg in configs.cfgs.items():
            if cfg.has_weights:
                theirs[f'{name}.{tag}'] = cfg
    assert set(theirs) == {entry.name for entry in TIMM}
    for entry in TIMM:
        cfg = theirs[entry.name]
        assert cfg.hf_hub_id == 'timm/'
        assert entry.train_size == cfg.input_size[1]
        size = (cfg.test_input_size or cfg.input_size)[1]
        assert (entry.test_size, entry.interpolation) == (size, cfg.interpolation)
        assert entry.resize == int(size / (cfg.test_crop_pct or cfg.crop_pct))
        assert cfg.crop_mode == ('squash' if entry.squash else 'center')
        for ours, published in ((entry.mean, cfg.mean), (entry.std, cfg.std)):
            assert ours == pytest.approx([255 * value for value in published])
        assert entry.url == (cfg.url or '')


def test_deepminds_part_of_the_table():
    """Sizes of the official nfnets/nfnet.py; both sides are resized to 32 more than the crop."""
    sizes = [(192, 256), (224, 320), (256, 352), (320, 416), (384, 512), (416, 544), (448, 576)]
    assert [entry.name for entry in DEEPMIND] == [f'F{level}' for level in range(7)]
    assert [(entry.train_size, entry.test_size) for entry in DEEPMIND] == sizes
    for entry in DEEPMIND:
        assert entry.squash and entry.resize == entry.test_size + 32
        assert entry.url == f'https://storage.googleapis.com/dm-nfnets/{entry.name}_haiku.npz'


QUICK = (TEST, 'eca_nfnet_l0.ra2_in1k')


def mark(entry):
    """The larger networks take seconds to be built."""
    return pytest.param(entry, id=entry.name, marks=[pytest.mark.slow] * (entry.name not in QUICK))


@pytest.mark.parametrize('entry', [mark(entry) for entry in TIMM])
def test_the_parameters_are_timms(entry):
    with without_memory():
        theirs = timm.create_model(architecture(entry))
    assert entry.parameters == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize('entry', PUBLISHED, ids=lambda entry: entry.name)
def test_a_config_is_what_the_table_says(entry):
    cfg = published_config(entry.uri)
    assert cfg.load_from == entry.uri
    assert cfg.model.backbone.type == f'nf_plugins.{entry.family}'
    assert tuple(cfg.data_preprocessor.mean) == entry.mean
    assert tuple(cfg.data_preprocessor.std) == entry.std
    assert cfg.data_preprocessor.to_rgb
    assert cfg.train_pipeline[1].scale == entry.train_size
    resize, crop = cfg.test_dataloader.dataset.pipeline[1:3]
    if entry.squash:
        assert (resize.type, tuple(resize.scale)) == ('Resize', (entry.resize, entry.resize))
    else:
        assert (resize.type, resize.scale, resize.edge) == ('ResizeEdge', entry.resize, 'short')
    assert (resize.interpolation, crop.crop_size) == (entry.interpolation, entry.test_size)
    assert cfg.test_dataloader == cfg.val_dataloader
    if entry.source == 'timm':
        theirs = timm_config(architecture(entry))
        for part in ('backbone', 'neck'):
            assert cfg.model[part] == theirs[part]
        assert cfg.model.head.in_channels == theirs['head']['in_channels']


@pytest.mark.parametrize('entry', [mark(entry) for entry in PUBLISHED])
def test_the_parameters_of_a_config(entry):
    init_default_scope('mmpretrain')
    with without_memory():
        model = MODELS.build({**published_config(entry).model, 'train_cfg': None})
    assert sum(p.numel() for p in model.parameters()) == entry.parameters


@pytest.mark.parametrize(
    ('name', 'uri'),
    [
        ('timm://dm_nfnet_f0.dm_in1k', 'timm://dm_nfnet_f0.dm_in1k'),
        ('dm_nfnet_f0', 'timm://dm_nfnet_f0.dm_in1k'),
        ('DM_NFNet_F0.dm_in1k', 'timm://dm_nfnet_f0.dm_in1k'),
        ('F3', 'deepmind://F3'),
        ('deepmind://f3', 'deepmind://F3'),
        ('nfnet-f6_32xb128_in1k.py', 'deepmind://F6'),
    ],
)
def test_names(name, uri):
    assert find(name).uri == uri


@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('timm://dm_nfnet_f0.ra2_in1k', 'close are timm://dm_nfnet_f0.dm_in1k'),
        ('timm://nfnet_f0', 'close are timm://'),
        ('timm://vit_base', 'there are timm://dm_nfnet_f0'),
        ('deepmind://F7', 'there are deepmind://F0'),
        ('timm://F0', 'for a file at hand write timm:///path'),
        ('eca_nfnet_l3', 'close are timm://eca_nfnet_l'),
        ('', 'there are'),
    ],
)
def test_other_names_are_refused_and_close_ones_told(name, told):
    with pytest.raises(CheckpointNotFoundError) as error:
        find(name)
    assert told in str(error.value)
    assert len(str(error.value).splitlines()) == 1


# Conversion

LARGE = 8e7


@pytest.mark.slow
@pytest.mark.parametrize(
    'entry',
    sample(
        [entry for entry in TIMM if entry.parameters < LARGE], lambda entry: entry.parameters < 3e7
    ),
)
def test_the_logits_are_timms(entry, server, tmp_path):
    """From the file of timm's network: the network, and the classifier, say the same."""
    torch.manual_seed(1)
    theirs = randomize(timm.create_model(entry.name)).eval()
    server.put_timm(entry.name, timm_file(theirs, tmp_path))
    ours = get_model(entry.uri)
    x = torch.randn(2, 3, 96, 80)
    with torch.no_grad():
        assert relative_error(logits(ours, x), theirs(x)) < 1e-4


@pytest.mark.slow
def test_timm_reads_the_same_file(server, test_file, tmp_path):
    """timm's own loader gives the same logits, from the same bytes."""
    (tmp_path / 'model.safetensors').write_bytes(test_file)
    theirs = timm.create_model('test_nfnet', checkpoint_path=str(tmp_path / 'model.safetensors'))
    server.put_timm(TEST, test_file)
    x = torch.randn(2, 3, 96, 80)
    with torch.no_grad():
        assert relative_error(logits(get_model(f'timm://{TEST}'), x), theirs.eval()(x)) < 1e-5


@pytest.mark.parametrize('entry', [mark(entry) for entry in TIMM if entry.parameters >= LARGE])
def test_the_shapes_of_larger_networks_are_timms(entry):
    with without_memory():
        theirs = timm.create_model(architecture(entry)).state_dict()
        model = hub._Skeleton(published_config(entry).model)
    found = dict(timm_rename(model)(name, value) for name, value in theirs.items())
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert len(found) == len(theirs)


@pytest.mark.parametrize('entry', [mark(entry) for entry in DEEPMIND])
def test_the_shapes_of_deepminds_networks(entry):
    """Names and shapes as haiku has them, and as many parameters as the official code counts."""
    with without_memory():
        model = hub._Skeleton(published_config(entry).model)
    tree = haiku_tree(model)
    rename = haiku_rename(model)
    found = {}
    for module, leaves in tree.items():
        for leaf, value in leaves.items():
            key, tensor = rename(f'{module.replace("/~/", ".").replace("/", ".")}.{leaf}', value)
            found[key] = tensor.shape
    assert found == {k: v.shape for k, v in model.state_dict().items()}


def test_our_haiku_names_are_those_of_a_file_of_deepminds_code():
    with torch.device('meta'):
        model = torch.nn.Module()
        model.backbone = NFNet(F0W8)
        model.head = torch.nn.Module()
        model.head.fc = torch.nn.Linear(384, 10)
    ours = {
        f'{module.replace("/~/", ".").replace("/", ".")}.{leaf}': tuple(value.shape)
        for module, leaves in haiku_tree(model).items()
        for leaf, value in leaves.items()
    }
    theirs = {name: value.shape for name, value in read_haiku(DATA / 'F0w8_haiku.npz').items()}
    assert ours == theirs


F0W8_MODEL = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='nf_plugins.NFNet', arch=F0W8),
    neck=dict(
        type='nf_plugins.ReLUNeck',
        in_channels=384,
        act_cfg=dict(type='nf_plugins.GammaAct', act='GELU', approximate='tanh'),
    ),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=384),
)


@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['deepmind://', ''])
def test_a_file_of_deepminds_code_gives_the_reference_logits(scheme):
    """As a place, and as a plain path: what `mim download` leaves."""
    init_default_scope('mmpretrain')
    model = MODELS.build(F0W8_MODEL).eval()
    load_checkpoint(model, f'{scheme}{DATA / "nfnet_F0w8_gelu.npz"}', 'cpu')
    data = arrays('nfnet_F0w8_gelu')
    for size in ('64x64', '65x71'):
        x = torch.from_numpy(data[f'input/{size}']).permute(0, 3, 1, 2)
        assert relative_error(logits(model, x), data[f'out/{size}/logits']) < 1e-4


@pytest.mark.slow
def test_deepminds_f0_from_its_server(server):
    torch.manual_seed(2)
    with torch.random.fork_rng():
        source = hub._Skeleton(published_config('F0').model)
    server.put_deepmind('F0', haiku_file(randomize(source)))
    model = get_model('deepmind://F0', num_classes=None)
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert server.downloads() == ['/dm-nfnets/F0_haiku.npz']


# Other classes and channels, and parts


@pytest.mark.parametrize(
    'options',
    [dict(num_classes=3), dict(in_channels=1), dict(in_channels=4, num_classes=2)],
    ids=str,
)
def test_other_classes_and_channels_as_in_timm(options, test_net, test_file, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(pretrained, 'print_log', lambda text, **kwargs: said.append(text))
    path = tmp_path / 'model.safetensors'
    path.write_bytes(test_file)
    theirs = timm.create_model(
        'test_nfnet',
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(path)),
        num_classes=options.get('num_classes', 1000),
        in_chans=options.get('in_channels', 3),
    ).eval()
    ours = get_model(TEST, str(path), **options)
    said = ' '.join(said)
    assert ('adapted from 3 to' in said) == ('in_channels' in options)
    assert ('classifier of 1000 classes is left out' in said) == ('num_classes' in options)
    x = torch.randn(2, options.get('in_channels', 3), 64, 64)
    with torch.no_grad():
        expected = theirs.forward_features(x).mean((2, 3))
        assert relative_error(ours.extract_feat(x)[-1], expected) < 1e-5
        if 'num_classes' not in options:
            assert relative_error(logits(ours, x), theirs(x)) < 1e-5
    assert ours.head.fc.weight.std() > 0  # a new classifier starts small, but not at nothing
    assert len(ours.data_preprocessor.mean) == options.get('in_channels', 3)


@pytest.mark.parametrize('scheme', ['timm://', ''])
@pytest.mark.parametrize('suffix', ['.safetensors', '.pth', '.bin'])
@pytest.mark.parametrize('head', [True, False])
def test_a_file_at_hand(scheme, suffix, head, test_net, tmp_path):
    """Of a backbone alone, or of a classifier; with a plain path, too."""
    state = {k: v for k, v in test_net.state_dict().items() if head or not k.startswith('head.')}
    path = tmp_path / f'any{suffix}'
    if suffix == '.safetensors':
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path)
    model = get_model(TEST, pretrained=False)
    load_checkpoint(model, f'{scheme}{path}', 'cpu')
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = test_net.forward_features(x).mean((2, 3))
    assert relative_error(model.extract_feat(x)[-1], expected) < 1e-5
    backbone = MODELS.build({**timm_config('test_nfnet')['backbone']})
    load_checkpoint(backbone, f'{scheme}{path}', 'cpu')
    assert torch.equal(backbone.final_conv.weight, model.backbone.final_conv.weight)


def test_a_folder_of_timm(test_file, tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(test_file)
    model = get_model(TEST, f'timm://{tmp_path}')
    assert model.head.num_classes == 1000


def test_init_cfg_of_a_backbone(server, test_net, test_file):
    server.put_timm(TEST, test_file)
    for prefix in ({}, dict(prefix='backbone.')):
        init_cfg = dict(type='Pretrained', checkpoint=f'timm://{TEST}', **prefix)
        cfg = {**timm_config('test_nfnet')['backbone'], 'init_cfg': init_cfg}
        backbone = MODELS.build(cfg)
        backbone.init_weights()
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            found = backbone.eval()(x)[-1]
            expected = test_net.final_conv(test_net.stages(test_net.stem(x)))
        assert relative_error(found, expected) < 1e-5


def test_weights_of_another_network_are_an_error(server, test_file):
    server.put_timm(TEST, test_file)
    backbone = NFNet(F0W8, init_cfg=dict(type='Pretrained', checkpoint=f'timm://{TEST}'))
    with pytest.raises(CheckpointError, match='is for another network than this NFNet'):
        backbone.init_weights()


def test_a_backbone_of_another_library_gets_no_renamed_keys(test_net, tmp_path):
    torch.save(test_net.state_dict(), tmp_path / 'x.pth')
    target = timm.create_model('test_nfnet')
    load_checkpoint(target, str(tmp_path / 'x.pth'), 'cpu')
    assert torch.equal(target.final_conv.weight, test_net.final_conv.weight)


# The images


@pytest.fixture(scope='module')
def jpeg(tmp_path_factory):
    import numpy as np
    from PIL import Image

    path = tmp_path_factory.mktemp('images') / 'image.jpg'
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (13, 19, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((507, 341), Image.Resampling.BICUBIC).save(path, quality=92)
    return path


@pytest.mark.slow
@pytest.mark.parametrize('entry', TIMM, ids=lambda entry: entry.name)
def test_the_images_are_those_of_timms_transforms(entry, jpeg):
    """Both sides, or the short one, by Pillow: a pixel differs by rounding at most.

    timm truncates the longer side to an integer, as mmpretrain does, and both crop the middle;
    where the difference is odd one of them rounds up, which is why the sizes here are even.
    """
    from PIL import Image

    with torch.device('meta'):
        config = timm.data.resolve_model_data_config(
            timm.create_model(entry.name), use_test_size=True
        )
    theirs = timm.data.create_transform(**config, is_training=False)(Image.open(jpeg))
    cfg = published_config(entry)
    init_default_scope('mmpretrain')
    pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
    batch = pseudo_collate([pipeline(dict(img_path=str(jpeg), gt_label=0))])
    options = {'type': 'ClsDataPreprocessor', **cfg.data_preprocessor}
    ours = MODELS.build(options)(batch)['inputs'][0]
    assert ours.shape == theirs.shape == (3, entry.test_size, entry.test_size)
    assert (ours - theirs).abs().max() < 1e-4


def test_nfnets_are_tested_on_squashed_images(jpeg):
    """DeepMind's 'resize_crop_32': (S + 32) x (S + 32), then the middle."""
    import cv2

    cfg = published_config('F0')
    init_default_scope('mmpretrain')
    found = Compose(cfg.test_dataloader.dataset.pipeline)(dict(img_path=str(jpeg), gt_label=0))
    resized = cv2.resize(cv2.imread(str(jpeg)), (288, 288), interpolation=cv2.INTER_CUBIC)
    expected = torch.from_numpy(resized[16:272, 16:272]).permute(2, 0, 1)
    assert torch.equal(found['inputs'], expected)


# The download


def load(name=TEST):
    return CheckpointLoader.load_checkpoint(f'timm://{name}', 'cpu', logger='silent')


def test_once_downloaded_and_once_converted(server, test_file, monkeypatch):
    path = server.put_timm(TEST, test_file)
    first = load()['state_dict']
    assert server.downloads() == [path]
    (kept,) = (hub._folder()).glob('*.pth')
    assert hashlib.sha256(test_file).hexdigest()[:16] in kept.name
    monkeypatch.setattr(hub, 'convert', None)  # it would fail
    second = load()
    assert server.downloads() == [path]
    assert all(torch.equal(first[key], value) for key, value in second['state_dict'].items())
    assert second['meta']['source'] == f'timm://{TEST}'
    monkeypatch.undo()


def test_a_new_file_of_the_publisher_is_taken(server, test_net, test_file, tmp_path):
    server.put_timm(TEST, test_file)
    before = load()['state_dict']['head.fc.bias']
    other = timm.create_model('test_nfnet')
    state = {**test_net.state_dict(), 'head.fc.bias': torch.full((1000,), 3.0)}
    other.load_state_dict(state)
    server.put_timm(TEST, timm_file(other, tmp_path))
    from .. import hub_server as module

    module.COMMIT = '2' * 40
    try:
        after = load()['state_dict']['head.fc.bias']
    finally:
        module.COMMIT = '1' * 40
    assert not torch.equal(before, after) and (after == 3).all()


def test_a_damaged_copy_in_the_cache_is_made_again(server, test_file):
    server.put_timm(TEST, test_file)
    before = load()['state_dict']
    (kept,) = hub._folder().glob('*.pth')
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    after = load()['state_dict']
    assert all(torch.equal(before[key], value) for key, value in after.items())
    assert torch.equal(safe_load(kept)['state_dict']['head.fc.bias'], before['head.fc.bias'])


def test_a_damaged_download_in_the_cache_is_fetched_again(server, test_file, tmp_path):
    path = server.put_timm(TEST, test_file)
    load()
    (blob,) = (tmp_path / 'hf').rglob(hashlib.sha256(test_file).hexdigest())
    blob.write_bytes(test_file[:-1] + b'?')
    load()
    assert blob.read_bytes() == test_file
    assert server.downloads() == [path, path]


def test_a_pickle_where_there_are_no_safetensors(server, test_net):
    server.put_timm(TEST, timm_pickle(test_net), 'pytorch_model.bin')
    assert torch.equal(load()['state_dict']['head.fc.bias'], test_net.head.fc.bias)


def test_redirected(server, test_net, test_file):
    path = server.put_timm(TEST, test_file)
    server.faults[path] = 'redirected'
    assert torch.equal(load()['state_dict']['head.fc.bias'], test_net.head.fc.bias)
    assert f'/elsewhere{path}' in server.downloads()


def evil_pickle():
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, ('harmed',)

    return pickle.dumps({'a': Evil()})


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        ('wrong', 'is damaged or another file: SHA-256 is not'),
        (401, 'there is no repository timm/test_nfnet.r160_in1k, or it needs a token'),
        (404, 'the repository has none of model.safetensors, pytorch_model.bin'),
        ('another', 'is not what its name says'),
        ('half', 'is not a readable'),
        ('evil', 'is refused|is not a readable'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    fault, message, server, test_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = server.put_timm(TEST, test_file)
    if fault == 'another':
        server.put_timm(TEST, timm_file(timm.create_model('nf_resnet26', num_classes=2), tmp_path))
    elif fault == 'half':
        server.put_timm(TEST, test_file[:-100])
    elif fault == 'evil':
        del server.files[path]
        server.put_timm(TEST, evil_pickle(), 'pytorch_model.bin')
    else:
        server.faults[path] = fault
    with pytest.raises(CheckpointError, match=message) as error:
        load()
    assert len(str(error.value).splitlines()) == 1 and f'timm://{TEST}' in str(error.value)
    assert not list(hub._folder().glob('*.pth'))
    assert not (tmp_path / 'harmed').exists()
    # It works as soon as the server does.
    server.faults.clear()
    server.put_timm(TEST, test_file)
    from .. import hub_server as module

    monkeypatch.setattr(module, 'COMMIT', '3' * 40)
    assert 'head.fc.bias' in load()['state_dict']


@pytest.mark.slow
@pytest.mark.parametrize('fault', ['cut', 'closed', 'slow', 500])
def test_a_server_that_breaks_off(fault, server, test_file, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 1)
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # before each try
    path = server.put_timm(TEST, test_file)
    server.faults[path] = fault
    with pytest.raises(CheckpointNotFoundError, match=f'cannot download timm://{TEST}') as error:
        load()
    assert len(str(error.value).splitlines()) == 1
    server.faults.clear()
    assert 'head.fc.bias' in load()['state_dict']


@pytest.mark.parametrize(
    ('fault', 'message'), [(404, '404'), ('cut', 'cut off after'), ('another', 'its name says')]
)
def test_deepminds_server(fault, message, server):
    content = (DATA / 'F0w8_haiku.npz').read_bytes()
    path = server.put_deepmind('F0', content)
    server.faults[path] = fault
    with pytest.raises(CheckpointError, match=message) as error:
        CheckpointLoader.load_checkpoint('deepmind://F0', 'cpu', logger='silent')
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.slow
def test_a_damaged_file_of_deepmind_is_fetched_again(server, tmp_path, monkeypatch):
    """F0 is here the network of the test file, of an eighth of the width."""
    content = (DATA / 'F0w8_haiku.npz').read_bytes()
    path = server.put_deepmind('F0', content)
    config = tmp_path / 'f0w8.py'
    config.write_text(f'model = {F0W8_MODEL!r}')
    monkeypatch.setattr(hub, 'config_path', lambda name: str(config))

    def load_f0():
        return CheckpointLoader.load_checkpoint('deepmind://F0', 'cpu', logger='silent')

    before = load_f0()['state_dict']
    assert torch.equal(load_f0()['state_dict']['head.fc.bias'], before['head.fc.bias'])
    assert server.downloads() == [path]
    (cached,) = (tmp_path / 'torch').rglob('*.npz')
    cached.write_bytes(content[:-1000])
    after = load_f0()['state_dict']
    assert all(torch.equal(before[key], value) for key, value in after.items())
    assert server.downloads() == [path, path]
    assert cached.read_bytes() == content


def test_grey_images(jpeg):
    cfg = published_config(TEST, in_channels=1)
    init_default_scope('mmpretrain')
    pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
    batch = pseudo_collate([pipeline(dict(img_path=str(jpeg), gt_label=0))])
    options = {'type': 'ClsDataPreprocessor', **cfg.data_preprocessor}
    assert MODELS.build(options)(batch)['inputs'].shape == (1, 1, 160, 160)


CHILD = """
import sys, torch, nf_plugins
from mmengine.runner import CheckpointLoader
state = CheckpointLoader.load_checkpoint(sys.argv[1], 'cpu', logger='silent')['state_dict']
print('sum', float(sum(value.double().sum() for value in state.values())))
"""


def child(server, tmp_path, uri=f'timm://{TEST}', **variables):
    env = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'HF_ENDPOINT': server.url,
        'HF_HOME': str(tmp_path / 'home'),
        'TORCH_HOME': str(tmp_path / 'torch'),
        'PYTHONWARNINGS': 'ignore',
        **variables,
    }
    return Apart(CHILD, uri, env=env, code=True)


@pytest.mark.slow
def test_two_processes_download_once_and_then_it_works_offline(server, test_file, tmp_path):
    path = server.put_timm(TEST, test_file)
    running = [child(server, tmp_path) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0], [p.output for p in running]
    results = [process.read('stdout') for process in running]
    assert results[0] == results[1] and 'sum' in results[0]
    assert server.downloads() == [path]
    assert len(list((tmp_path / 'torch').rglob('*.pth'))) == 1
    asked = len(server.asked)
    offline = child(server, tmp_path, HF_HUB_OFFLINE='1')
    nobody = child(server, tmp_path, HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path / 'empty'))
    assert offline.wait() == 0 and offline.read('stdout') == results[0]
    assert nobody.wait() == 1
    message = nobody.read('stderr').splitlines()[-1]
    assert len(server.asked) == asked
    assert 'cannot download timm://' in message and 'write timm:///path/to/file' in message


def test_without_huggingface_hub(server, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(CheckpointNotFoundError, match='pip install huggingface_hub'):
        load()


def test_a_cache_that_cannot_be_written(server, test_file, tmp_path, monkeypatch):
    server.put_timm(TEST, test_file)
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'file'))
    assert 'head.fc.bias' in load()['state_dict']


# mmpretrain


@pytest.mark.versions
def test_mmpretrains_own_functions(server, test_file, test_net, jpeg, monkeypatch):
    """get_model by name with the URL in the metafile, and the inferencer with its classes."""
    import mmpretrain
    from mmpretrain.apis.model import ModelHub

    server.put_timm(TEST, test_file)
    entry = ModelHub._models_dict.get(TEST) or ModelHub.get(TEST)
    public = 'https://huggingface.co'
    assert entry.weights.startswith(f'{public}/timm/')
    mapping = (public, server.url)
    model = mmpretrain.get_model(TEST, pretrained=True, url_mapping=mapping)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(logits(model, x), test_net(x)) < 1e-5
    (result,) = mmpretrain.ImageClassificationInferencer(get_model(TEST))(str(jpeg))
    with torch.no_grad():
        from PIL import Image

        config = timm.data.resolve_model_data_config(test_net, use_test_size=True)
        image = timm.data.create_transform(**config, is_training=False)(Image.open(jpeg))
        scores = test_net(image[None]).softmax(1)[0]
    assert result['pred_label'] == int(scores.argmax())
    assert result['pred_score'] == pytest.approx(float(scores.max()), rel=1e-2)
    assert isinstance(result['pred_class'], str)


def test_mmpretrains_get_model_by_the_url_of_deepmind(server):
    """The URL in the metafile gives the reference logits; here F0 has an eighth of its width."""
    import mmpretrain

    path = server.put_deepmind('F0', (DATA / 'nfnet_F0w8_gelu.npz').read_bytes())
    model = mmpretrain.get_model(
        'nfnet-f0_32xb128_in1k',
        pretrained=True,
        url_mapping=('https://storage.googleapis.com', server.url),
        backbone=dict(_delete_=True, type='nf_plugins.NFNet', arch=F0W8),
        neck=dict(in_channels=384),
        head=dict(in_channels=384, num_classes=10),
    )
    assert server.downloads() == [path]
    data = arrays('nfnet_F0w8_gelu')
    x = torch.from_numpy(data['input/64x64']).permute(0, 3, 1, 2)
    assert relative_error(logits(model, x), data['out/64x64/logits']) < 1e-4


def test_averaged_weights_begin_with_the_published_ones(server, test_file, tmp_path):
    """An EMAHook wants all keys of `load_from`, also where the classifier is new."""
    from mmengine.runner import Runner

    server.put_timm(TEST, test_file)
    cfg = published_config(TEST, num_classes=3)
    loop = dict(
        work_dir=str(tmp_path),
        train_dataloader=dict(dataset=[], batch_size=1, sampler=dict(type='DefaultSampler')),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
    )
    init_default_scope('mmpretrain')
    runner = Runner(
        model={**cfg.model, 'data_preprocessor': cfg.data_preprocessor},
        default_scope='mmpretrain',
        custom_hooks=[dict(type='EMAHook')],
        load_from=cfg.load_from,
        **loop,
    )
    runner.call_hook('before_run')
    runner.load_or_resume()
    (hook,) = [hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook']
    averaged = hook.ema_model.module.backbone.state_dict()
    for key, value in runner.model.backbone.state_dict().items():
        assert torch.equal(value, averaged[key])
    assert runner.model.backbone.stem.conv1.bias.std() > 0


def test_get_model_is_public_and_needs_mmpretrain(monkeypatch):
    assert nf_plugins.get_model is get_model
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    with pytest.raises(ImportError, match='pip install onedl-mmpretrain'):
        get_model(TEST, pretrained=False)


@pytest.mark.slow
def test_nfnet_f4_plus_of_the_papers_size():
    """The paper's 527 M and 367 B; the released code has 525 M."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device('meta'):
        net = NFNet('f4+paper').eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 512, 512))
    classifier = 1000 * net.feat_dim
    assert sum(p.numel() for p in net.parameters()) + classifier + 1000 == 527_033_076
    assert (counter.get_total_flops() / 2 + classifier) / 1e9 == pytest.approx(367.4, abs=0.05)


def test_configs_of_names_are_read_by_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    child_config = tmp_path / 'child.py'
    child_config.write_text("_base_ = 'nfplugins::timm/dm_nfnet_f0.dm_in1k.py'\n")
    assert Config.fromfile(child_config).model.backbone.arch.base == 'f0'


def test_names_in_the_place_of_a_config(tmp_path, monkeypatch):
    """A name with or without the tag of its training; a file of this name comes first."""
    monkeypatch.chdir(tmp_path)
    for name in ('dm_nfnet_f0', 'dm_nfnet_f0.dm_in1k', 'timm://dm_nfnet_f0'):
        assert hub.find_in_place_of_config(name).uri == 'timm://dm_nfnet_f0.dm_in1k'
    assert hub.find_in_place_of_config('nfnet-f0_32xb128_in1k') is None
    (tmp_path / 'dm_nfnet_f0').write_text('model = dict()')
    assert hub.find_in_place_of_config('dm_nfnet_f0') is None
