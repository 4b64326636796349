"""Sources of the data sets of the configs, and the layout of their folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.registry import type_name


@dataclass(frozen=True)
class Source:
    """Source of a data set that others publish.

    Args:
        title: Its name.
        url: Its web page.
        folders: The subfolders that its folder must have.
        layout: The layout of its files, in words.
        other_option: Another option of the config that contains the folder.
    """

    title: str
    url: str
    folders: tuple[str, ...]
    layout: str
    other_option: str = ''


_CIFAR = 'https://www.cs.toronto.edu/~kriz/cifar.html'
SOURCES = {
    'ImageNet': Source(
        'ImageNet-1k (ILSVRC 2012)',
        'https://image-net.org/download',
        ('train', 'val'),
        'train/<class>/*.JPEG and val/<class>/*.JPEG, with classes such as n01440764',
    ),
    'CIFAR10': Source(
        'CIFAR-10 (python version)',
        _CIFAR,
        ('cifar-10-batches-py',),
        'cifar-10-batches-py/data_batch_1 and so on, unpacked',
    ),
    'CIFAR100': Source(
        'CIFAR-100 (python version)',
        _CIFAR,
        ('cifar-100-python',),
        'cifar-100-python/train and test, unpacked',
    ),
    'FashionMNIST': Source(
        'Fashion-MNIST',
        'https://github.com/zalandoresearch/fashion-mnist',
        ('train-images-idx3-ubyte', 't10k-images-idx3-ubyte'),
        'four unpacked files, {train,t10k}-{images-idx3,labels-idx1}-ubyte',
    ),
    'VOCDataset': Source(
        'PASCAL VOC 2007 and 2012',
        'http://host.robots.ox.ac.uk/pascal/VOC',
        ('VOC2007', 'VOC2012'),
        'VOC2007 and VOC2012, each with JPEGImages, Annotations and ImageSets',
    ),
    'ADE20KDataset': Source(
        'ADE20K (ADEChallengeData2016)',
        'http://sceneparsing.csail.mit.edu',
        ('images', 'annotations'),
        'images/{training,validation}/*.jpg and annotations/{training,validation}/*.png',
    ),
    'CocoDataset': Source(
        'COCO 2017',
        'https://cocodataset.org/#download',
        ('annotations', 'train2017', 'val2017'),
        'annotations/instances_{train,val}2017.json, train2017/*.jpg and val2017/*.jpg',
        'val_evaluator.ann_file=FOLDER/annotations/instances_val2017.json',
    ),
}
"""Type of a data set -> its source."""


def missing_data(cfg: Mapping, loaders: Sequence[str]) -> str | None:
    """Describe what is missing in the data folders of a config, and the remedy.

    Args:
        cfg: The config.
        loaders: The dataloaders to look at, e.g. ``['train_dataloader']``.

    Returns:
        One line, or None if nothing seems to be missing.
    """
    for loader in loaders:
        for key, dataset in _datasets((cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset'):
            root = dataset.get('data_root')
            if not isinstance(root, str) or not root or '://' in root:
                continue
            source = SOURCES.get(type_name(dataset.get('type')).rpartition('.')[2])
            folders = source.folders if source else ('',)
            missing = [folder for folder in folders if not Path(root, folder).exists()]
            if not missing:
                continue
            names = ' and '.join(str(Path(root, folder)) for folder in missing)
            options = [f'{k}.data_root=FOLDER' for k in _roots(cfg, root) or [key]]
            text = f'there is no {names}'
            if source:
                text += f': {source.title} is expected in {root} as {source.layout}; get it from '
                text += source.url
                options += [source.other_option] * bool(source.other_option)
            return f'{text}; for another folder: --cfg-options {" ".join(options)}'
    return None


@contextmanager
def as_usage_error_with_data(about: str, cfg: Mapping, loaders: Sequence[str]) -> Iterator[None]:
    """Do as :func:`as_usage_error`, but report missing data of a config if there are any."""
    try:
        with as_usage_error(about):
            yield
    except UsageError as error:
        missing = missing_data(cfg, loaders)
        raise UsageError(f'{about}: {missing}') if missing else error from error.__cause__


def _roots(cfg: Mapping, root: str) -> list[str]:
    """Return the keys of all data sets with this ``data_root``."""
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    return [
        key
        for loader in loaders
        for key, dataset in _datasets((cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset')
        if dataset.get('data_root') == root
    ]


def _datasets(dataset: Any, key: str) -> Iterator[tuple[str, Mapping]]:
    """Yield the config of a data set with its key, then those of the data sets inside it."""
    if isinstance(dataset, Mapping):
        yield key, dataset
        yield from _datasets(dataset.get('dataset'), f'{key}.dataset')
        for number, inner in enumerate(dataset.get('datasets') or ()):
            yield from _datasets(inner, f'{key}.datasets.{number}')
