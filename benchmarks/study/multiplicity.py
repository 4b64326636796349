"""A training with several augmentations of an image in a batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nf_plugins.datasets import MultiplicitySampler

from .data import Images
from .fitting import fit
from .runs import Run

IMAGES = 2000
"""The training images of this part: so few that they are seen several times."""
SHIFT = 2


def augment(images: Tensor) -> Tensor:
    """Move each image by up to two pixels, and mirror half of them."""
    number, _, height, width = images.shape
    padded = F.pad(images, (SHIFT,) * 4, value=float(images.min()))
    tops, lefts = torch.randint(2 * SHIFT + 1, (2, number)).tolist()
    mirrored = torch.rand(number) < 0.5
    moved = [
        image[:, top : top + height, left : left + width].flip([-1] if flip else [])
        for image, top, left, flip in zip(padded, tops, lefts, mirrored.tolist())
    ]
    return torch.stack(moved)


def order_of(run: Run, images: int) -> list[Tensor]:
    """Return the indices of each batch, as `MultiplicitySampler` gives them to a dataloader."""
    sampler = MultiplicitySampler(range(images), run.multiplicity, seed=run.seed)

    def indices() -> Iterator[int]:
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            yield from sampler

    chosen = list(itertools.islice(indices(), run.steps * run.batch_size))
    return list(torch.tensor(chosen).split(run.batch_size))


def fit_multiplied(run: Run, model: nn.Module, optimizer: Any, images: Images) -> list[float]:
    """Train on the first images, with augmentation.

    The steps and the sizes of the batches are the same for each number of augmentations.
    """
    few = Images(*(x[:IMAGES] for x in images))
    order = order_of(run, len(few.labels))
    return fit(run, model, optimizer, few, order=order, augment=augment)
