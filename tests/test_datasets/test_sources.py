"""What is said where the data of a config are missing."""

import re

import pytest
from mmengine.config import Config, DictAction

from nf_plugins.datasets.sources import SOURCES, missing_data
from nf_plugins.registry import type_name

from ..conftest import ROOT

LOADERS = ['train_dataloader', 'val_dataloader']
BY_HAND = {
    'nf_resnet/nf-resnet50_8xb32_in1k.py': ('data/imagenet', ['train', 'val']),
    'pws_resnet/pws-resnet34_1xb128_cifar10.py': ('data/cifar10', ['cifar-10-batches-py']),
    'nf_resnet/nf-resnet50_1xb128_cifar100.py': ('data/cifar100', ['cifar-100-python']),
    'downstream/fcn_nf-resnet50-d8_4xb4-80k_ade20k-512x512.py': (
        'data/ade/ADEChallengeData2016',
        ['images', 'annotations'],
    ),
    'downstream/retinanet_nf-resnet50_fpn_1x_coco.py': (
        'data/coco/',
        ['annotations', 'train2017', 'val2017'],
    ),
}


def load(name):
    if 'coco' in name:
        pytest.importorskip('mmdet')
    return Config.fromfile(ROOT / 'configs' / name)


@pytest.mark.parametrize('name', BY_HAND)
def test_the_option_that_is_named_is_the_right_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg, (root, folders) = load(name), BY_HAND[name]
    text = missing_data(cfg, LOADERS)
    assert '\n' not in text
    assert all(f'{root.rstrip("/")}/{folder}' in text for folder in folders)
    source = SOURCES[cfg.train_dataloader.dataset.type]
    assert source.url in text and source.layout in text and source.title in text

    (options,) = re.findall(r'--cfg-options (.*)', text)
    elsewhere = tmp_path / 'elsewhere'
    pairs = [o.replace('FOLDER', str(elsewhere)).split('=') for o in options.split()]
    cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in pairs})
    assert root.rstrip('/') not in str(cfg.val_evaluator).replace(str(elsewhere), '')
    for loader in (*LOADERS, 'test_dataloader'):
        assert cfg[loader].dataset.data_root == str(elsewhere)
    assert str(elsewhere) in missing_data(cfg, LOADERS)
    for folder in folders:
        (elsewhere / folder).mkdir(parents=True)
    assert missing_data(cfg, LOADERS) is None


@pytest.mark.slow
def test_every_data_set_of_the_configs_is_embedded_or_has_a_source():
    embedded = {'Digits', 'Shapes'}
    for path in sorted((ROOT / 'configs').rglob('*.py')):
        if '_base_' in path.parts:
            continue
        cfg = load(path.relative_to(ROOT / 'configs').as_posix())
        dataset = cfg.train_dataloader.dataset
        while 'dataset' in dataset or 'datasets' in dataset:  # wrappers that repeat or join
            dataset = dataset.dataset if 'dataset' in dataset else dataset.datasets[0]
        name = type_name(dataset.type).rpartition('.')[2]
        assert name in embedded or name in SOURCES, path


class ImageNet:
    pass


@pytest.mark.parametrize(
    ('dataset', 'said'),
    [
        (dict(type='Unknown', data_root='nowhere'), 'there is no nowhere; for another folder'),
        (dict(type='Repeat', dataset=dict(type='mmpretrain.ImageNet', data_root='n')), 'ILSVRC'),
        (
            dict(type='Concat', datasets=[dict(type=ImageNet, data_root='n')]),
            'datasets.0.data_root',
        ),
        (dict(type='ImageNet', data_root='s3://bucket/imagenet'), None),
        (dict(type='ImageNet', data_root=''), None),
        (dict(type='Digits'), None),
        (None, None),
    ],
)
def test_other_data_sets(dataset, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = missing_data(dict(train_dataloader=dict(dataset=dataset), val_dataloader=None), LOADERS)
    assert text is None if said is None else said in text
