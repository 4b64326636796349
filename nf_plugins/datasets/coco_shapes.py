"""Drawn shapes in COCO's format, for detection and instance segmentation.

    python -m nf_plugins.datasets.coco_shapes data/coco_shapes

writes images and annotations that mmdet's ``CocoDataset`` reads; see :func:`write_coco_shapes`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.random import default_rng

from nf_plugins.utils.checks import check_integer
from nf_plugins.utils.files import atomic_write

from .shapes import Shapes, draw

SPLITS = dict(train=128, val=32)
"""Split -> its images."""


def write_coco_shapes(
    folder: str | Path, num_images: int, seed: int = 0, size: int = 64
) -> dict[str, list]:
    """Draw the images of :class:`Shapes`, and write them with annotations in COCO's format.

    Each shape is an object with a box and a mask, as far as no later shape covers it.

    Args:
        folder: Gets the images, ``000000.png`` and so on, and ``annotations.json``.
        num_images: Number of images.
        seed: Seed of the images, as for :class:`Shapes`.
        size: Height and width of the images.

    Returns:
        The annotations.

    Raises:
        ValueError: ``num_images`` or ``size`` is too small.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = write_coco_shapes(folder, 2)
        >>> [category['name'] for category in data['categories']]
        ['disc', 'square', 'triangle']
    """
    check_integer('num_images', num_images)
    check_integer('size', size, 16)
    folder = Path(folder)
    names = Shapes.METAINFO['classes'][1:]
    data: dict[str, list] = dict(
        images=[],
        annotations=[],
        categories=[dict(id=i, name=name) for i, name in enumerate(names, 1)],
    )
    for index in range(num_images):
        image, labels = draw(size, default_rng([seed, index]))
        name = f'{index:06d}.png'
        atomic_write(folder / name, cv2.imencode('.png', image)[1].tobytes())
        data['images'].append(dict(id=index, file_name=name, height=size, width=size))
        for label in np.unique(labels[labels > 0]).tolist():
            data['annotations'].append(
                dict(
                    id=len(data['annotations']) + 1,  # COCO's evaluation takes 0 for no object
                    image_id=index,
                    category_id=label,
                    **outline(labels == label),
                )
            )
    atomic_write(folder / 'annotations.json', json.dumps(data))
    return data


def outline(mask: np.ndarray) -> dict:
    """Return the box, the area and the mask of an object as COCO has them.

    Args:
        mask: Where the object is, of shape (height, width).

    Example:
        >>> outline(np.array([[False, True], [False, True]]))['segmentation']
        {'size': [2, 2], 'counts': [2, 2]}
    """
    rows, columns = np.nonzero(mask)
    left, top = int(columns.min()), int(rows.min())
    flat = mask.ravel(order='F')  # run lengths, column by column, from a run of zeros
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    return dict(
        bbox=[left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=dict(size=list(mask.shape), counts=[0, *counts] if flat[0] else counts),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Write drawn shapes in the format of COCO.')
    parser.add_argument('folder', help='gets the folders train and val')
    folder = Path(parser.parse_args(arguments).folder)
    for seed, (split, num_images) in enumerate(SPLITS.items()):
        write_coco_shapes(folder / split, num_images, seed)


if __name__ == '__main__':
    main()
