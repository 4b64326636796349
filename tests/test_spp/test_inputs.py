import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from nf_plugins.models import NFResNet
from nf_plugins.spp.inputs import config_input_size, dataset_batch, gaussian_batch, image_channels

from ..conftest import ROOT


@pytest.mark.parametrize(
    ('config', 'size'),
    [
        ('nf_resnet/nf-resnet50_8xb32_in1k.py', (224, 224)),
        ('nf_resnet/nf-resnet50_1xb128_cifar10.py', (32, 32)),
        ('nf_resnet/nf-resnet_digits.py', (16, 16)),
    ],
)
def test_size_of_shipped_configs(config, size):
    assert config_input_size(Config.fromfile(str(ROOT / 'configs' / config))) == size


@pytest.mark.parametrize(
    ('pipeline', 'size'),
    [
        ([dict(type='Resize', scale=(20, 10))], (10, 20)),  # mm: (width, height)
        ([dict(type='CenterCrop', crop_size=(20, 10))], (20, 10)),
        ([dict(type='Resize', scale=64), dict(type='RandomCrop', crop_size=56)], (56, 56)),
        ([dict(type='PackInputs')], (224, 224)),
    ],
)
def test_size_of_pipelines(pipeline, size):
    wrapped = dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=pipeline)))
    assert config_input_size(Config(dict(train_dataloader=wrapped))) == size


def test_gaussian_batch_depends_on_the_seed_alone():
    rng = torch.get_rng_state()
    x = gaussian_batch((2, 3, 4, 5), seed=1)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, gaussian_batch((2, 3, 4, 5), seed=1))
    assert not torch.equal(x, gaussian_batch((2, 3, 4, 5), seed=2))


def test_channels():
    assert image_channels(NFResNet(26, base_channels=4, in_channels=1)) == 1


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_dataset_batch(split):
    cfg = Config.fromfile(str(ROOT / 'configs/nf_resnet/nf-resnet_digits.py'))
    init_default_scope('mmpretrain')
    batch = dataset_batch(cfg, split, batch_size=64, seed=0)
    assert batch.shape == (64, 1, 16, 16)
    assert abs(batch.mean().item()) < 0.2
    assert 0.8 < batch.std().item() < 1.2
    assert torch.equal(batch, dataset_batch(cfg, split, batch_size=64, seed=0))
    with pytest.raises(ValueError, match='no other_dataloader'):
        dataset_batch(cfg, 'other', 8, 0)
