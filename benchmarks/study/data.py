"""Fashion-MNIST in memory, at 16x16."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple
from warnings import catch_warnings, simplefilter

import torch
from mmpretrain.datasets.mnist import read_image_file, read_label_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import ROOT
from nf_plugins.datasets import Digits
from nf_plugins.errors import UsageError, as_usage_error

DATA = ROOT / 'data/fashion_mnist'
VALIDATION = 5000
"""The last training images are validation images, for choosing."""


class Images(NamedTuple):
    """Images ``(N, 1, 16, 16)``, normalised, and labels ``(N,)``."""

    images: Tensor
    labels: Tensor


class Data(NamedTuple):
    """Training, validation and test images."""

    train: Images
    val: Images
    test: Images


@functools.cache
def load_data(folder: Path | None = None) -> Data:
    """Load the images. They are padded to 32x32, and each 2x2 pixels are averaged.

    Args:
        folder: The four unpacked files of Fashion-MNIST; None: data/fashion_mnist.

    Raises:
        UsageError: The files are missing or damaged.
    """
    folder = folder or DATA
    if not (folder / 'train-images-idx3-ubyte').exists():
        raise UsageError(f'no Fashion-MNIST in {folder}: `make fashion-mnist` unpacks it there')
    found = []
    for split in ('train', 't10k'):
        with as_usage_error(f'cannot read the {split} images of {folder}'), catch_warnings():
            simplefilter('ignore')  # the arrays are read-only, and are not written
            images = read_image_file(str(folder / f'{split}-images-idx3-ubyte'))
            labels = read_label_file(str(folder / f'{split}-labels-idx1-ubyte'))
        small = F.avg_pool2d(F.pad(images[:, None].float(), (2, 2, 2, 2)), 2)
        found.append(Images(small, labels))
    train, test = found
    mean, std = train.images.mean(), train.images.std()
    train, test = (Images((x - mean) / std, labels) for x, labels in (train, test))
    cut = max(1, len(train.labels) - VALIDATION)
    val = Images(*(x[cut:] for x in train))
    return Data(Images(*(x[:cut] for x in train)), val, test)


@functools.cache
def load_digits() -> tuple[Images, Images]:
    """Load the training and test images of scikit-learn's digits, enlarged to 16x16."""
    found = []
    for split in ('train', 'test'):
        digits = Digits(split)
        items = [digits[i] for i in range(len(digits))]
        images = torch.stack([torch.from_numpy(item['img']) for item in items])
        large = F.interpolate(images[:, None].float(), size=(16, 16), mode='bilinear')
        found.append(Images(large, torch.tensor([item['gt_label'] for item in items])))
    mean, std = found[0].images.mean(), found[0].images.std()
    train, test = (Images((x - mean) / std, labels) for x, labels in found)
    return train, test


def batches(images: int, batch_size: int, steps: int) -> list[Tensor]:
    """Return the indices of each batch, in random passes over the images."""
    passes = -(-steps * batch_size // images)
    order = torch.cat([torch.randperm(images) for _ in range(passes)])
    return list(order[: steps * batch_size].split(batch_size))
