"""Images of drawn shapes, for segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from numpy.random import Generator, default_rng

from nf_plugins.registry import DATASETS


@DATASETS.register_module()
class Shapes(BaseDataset):
    """Data set of discs, squares and triangles on noise, for semantic segmentation.

    It needs no download. Each image has one shape of each class. Size, place and colour are
    random, so only the form tells the class. Shapes may overlap.

    Args:
        num_images: Number of images.
        seed: Seed of the images; another seed gives other images.
        size: Height and width of the images.
        pipeline: Transforms, see :class:`mmengine.dataset.BaseDataset`. An item has the keys that
            mmseg's loading transforms set: ``img``, uint8 of shape (size, size, 3),
            ``gt_seg_map``, uint8 of shape (size, size), and their sizes.
        **kwargs: As :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ValueError: ``num_images`` is not positive, or ``size`` is below 16.

    Example:
        >>> item = Shapes(4)[0]
        >>> item['img'].shape, np.unique(item['gt_seg_map']).tolist()
        ((64, 64, 3), [0, 1, 2, 3])
    """

    METAINFO = {
        'classes': ('background', 'disc', 'square', 'triangle'),
        'palette': [[0, 0, 0], [220, 60, 60], [60, 180, 75], [60, 100, 220]],
    }

    def __init__(
        self, num_images: int, seed: int = 0, size: int = 64, pipeline: list = [], **kwargs: Any
    ) -> None:
        if num_images < 1 or size < 16:
            raise ValueError(
                'num_images must be positive and size at least 16, '
                f'got num_images={num_images!r} and size={size!r}'
            )
        self.num_images, self.seed, self.size = num_images, seed, size
        super().__init__(pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        shape = (self.size, self.size)
        items = []
        for index in range(self.num_images):
            image, labels = draw(self.size, default_rng([self.seed, index]))
            items.append(
                dict(
                    img=image,
                    gt_seg_map=labels,
                    seg_fields=['gt_seg_map'],
                    img_shape=shape,
                    ori_shape=shape,
                )
            )
        return items


def draw(size: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image and its labels."""
    image = rng.normal(128, 20, (size, size, 3))
    labels = np.zeros((size, size), np.uint8)
    y, x = np.mgrid[:size, :size]
    for label in rng.permutation([1, 2, 3]):
        radius = rng.uniform(size / 8, size / 4)
        left, top = rng.uniform(radius, size - radius, 2)
        dx, dy = x - left, y - top
        inside = {
            1: dx**2 + dy**2 <= radius**2,
            2: np.maximum(abs(dx), abs(dy)) <= 0.9 * radius,
            3: (dy <= radius / 2) & (3**0.5 * abs(dx) <= dy + radius),
        }[label]
        image[inside] = rng.uniform(0, 255, 3) + rng.normal(0, 20, (inside.sum(), 3))
        labels[inside] = label
    return image.clip(0, 255).astype(np.uint8), labels
