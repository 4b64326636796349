"""Where the data sets of the configs come from, and how their folders look."""

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
    """A data set that somebody else publishes.

    Args:
        title: Its name.
        url: The page to get it from.
        folders: What its folder must hold.
        layout: How the files lie in there, in words.
        other_option: An option of the config that names the folder, too.
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
    """Say what is missing in the data folders of a config, and how to change that.

    Args:
        cfg: The config.
        loaders: The dataloaders to look at, e.g. ``['train_dataloader']``.

    Returns:
        One line, or None where nothing is seen to be missing.
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
    """Like :func:`as_usage_error`, and say what is missing in the data folders of a config."""
    try:
        with as_usage_error(about):
            yield
    except UsageError as error:
        missing = missing_data(cfg, loaders)
        raise UsageError(f'{about}: {missing}') if missing else error from error.__cause__


def _roots(cfg: Mapping, root: str) -> list[str]:
    """The keys of all data sets with a root."""
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    return [
        key
        for loader in loaders
        for key, dataset in _datasets((cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset')
        if dataset.get('data_root') == root
    ]


def _datasets(dataset: Any, key: str) -> Iterator[tuple[str, Mapping]]:
    """A data set's config with its key, or those that a wrapper holds."""
    if isinstance(dataset, Mapping):
        yield key, dataset
        yield from _datasets(dataset.get('dataset'), f'{key}.dataset')
        for number, inner in enumerate(dataset.get('datasets') or ()):
            yield from _datasets(inner, f'{key}.datasets.{number}')
