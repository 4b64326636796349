import numpy as np
import pytest
import torch
from mmcv.transforms import CenterCrop
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmpretrain.datasets import RandomResizedCrop

from nf_plugins.models import NFResNet
from nf_plugins.spp.inputs import (
    config_input_size,
    dataset_batch,
    gaussian_batch,
    image_channels,
    output_size,
)

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
        ([dict(type='CenterCrop', crop_size=(20, 10))], (10, 20)),  # (width, height), too
        ([dict(type='Resize', scale=64), dict(type='RandomCrop', crop_size=56)], (56, 56)),
        ([dict(type='PackInputs')], (224, 224)),
    ],
)
def test_size_of_pipelines(pipeline, size):
    wrapped = dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=pipeline)))
    assert config_input_size(Config(dict(train_dataloader=wrapped))) == size


TRANSFORMS = [
    ('mmpretrain', dict(type='Resize', scale=(20, 10))),
    ('mmpretrain', dict(type='Resize', scale=12)),
    ('mmpretrain', dict(type='Pad', size=(70, 60))),
    ('mmpretrain', dict(type='CenterCrop', crop_size=(20, 10))),
    ('mmpretrain', dict(type='CenterCrop', crop_size=9)),
    ('mmpretrain', dict(type='RandomCrop', crop_size=(20, 10))),
    ('mmpretrain', dict(type='RandomResizedCrop', scale=(20, 10))),
    ('mmpretrain', dict(type='RandomResizedCrop', scale=11)),
    ('mmpretrain', dict(type='EfficientNetRandomCrop', scale=11)),
    ('mmpretrain', dict(type='EfficientNetCenterCrop', crop_size=11)),
    ('mmpretrain', dict(type='RandomChoiceResize', scales=[(20, 10)])),
    ('mmpretrain', dict(type='RandomResize', scale=[(20, 10), (20, 10)])),
    ('mmpretrain', dict(type='torchvision/Resize', size=(20, 10))),
    ('mmpretrain', dict(type='torchvision/RandomCrop', size=(20, 10))),
    ('mmpretrain', dict(type='torchvision/RandomResizedCrop', size=(20, 10))),
    ('mmpretrain', dict(type='torchvision/CenterCrop', size=(20, 10))),
    ('mmpretrain', dict(type='mmcv.CenterCrop', crop_size=(20, 10))),
    ('mmpretrain', dict(type='mmdet.RandomCrop', crop_size=(20, 10))),
    ('mmpretrain', dict(type='mmseg.RandomCrop', crop_size=(20, 10))),
    ('mmdet', dict(type='RandomCrop', crop_size=(20, 10))),
    ('mmdet', dict(type='Resize', scale=(20, 10))),
    ('mmdet', dict(type='FixShapeResize', width=20, height=10)),
    ('mmdet', dict(type='mmpretrain.RandomCrop', crop_size=(20, 10))),
    ('mmseg', dict(type='RandomCrop', crop_size=(20, 10))),
    ('mmseg', dict(type='Resize', scale=(20, 10))),
    ('mmseg', dict(type='ResizeToMultiple', size_divisor=32)),
]


@pytest.mark.parametrize(('scope', 'transform'), TRANSFORMS, ids=str)
def test_sizes_are_what_the_transforms_make(scope, transform):
    """They are run on an image that is larger, and neither a square."""
    for package in ('mmdet', 'mmseg'):
        if package in (scope, transform['type'].partition('.')[0]):
            pytest.importorskip(f'{package}.datasets', exc_type=ImportError)
    init_default_scope(scope)
    image = np.zeros((48, 56, 3), np.uint8)
    data = dict(img=image, img_shape=image.shape[:2], img_fields=['img'])
    if 'torchvision' in transform['type']:
        transform_ = [dict(type='ToPIL'), transform, dict(type='ToNumpy')]
    else:
        transform_ = [transform]
    made = Compose(transform_)(data)['img'].shape[:2]
    if 'size_divisor' in transform or 'width' in transform:
        expected = None  # says nothing, or not in one argument
    else:
        expected = made
    assert output_size(transform, scope) == expected


def test_sizes_of_views_and_classes():
    views = [[dict(type='RandomResizedCrop', scale=(6, 4)), dict(type='RandomFlip')]]
    assert output_size(dict(type='MultiView', num_views=2, transforms=views)) == (6, 4)
    assert output_size(dict(type=RandomResizedCrop, scale=(6, 4))) == (6, 4)
    assert output_size(dict(type=CenterCrop, crop_size=(6, 4))) == (4, 6)
    assert output_size(dict(type='RandomFlip', prob=0.5)) is None


def test_gaussian_batch_depends_on_the_seed_alone():
    rng = torch.get_rng_state()
    x = gaussian_batch((2, 3, 4, 5), seed=1)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, gaussian_batch((2, 3, 4, 5), seed=1))
    assert not torch.equal(x, gaussian_batch((2, 3, 4, 5), seed=2))


def test_channels():
    assert image_channels(NFResNet(26, base_channels=4, in_channels=1)) == 1


@pytest.mark.slow
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
