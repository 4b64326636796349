"""Handwritten digits that are part of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from nf_plugins.registry import DATASETS
from nf_plugins.utils.checks import check_choice


@DATASETS.register_module()
class Digits(BaseDataset):
    """Data set of the 1,797 digits of the UCI test set: 8x8 grey images, no download.

    The images are shuffled with a fixed seed. The first 80 % (rounded) of each class are training
    images, 1,438 in total. The other 359 are test images.

    Args:
        split: 'train' or 'test'.
        pipeline: Transforms, see :class:`mmengine.dataset.BaseDataset`. An item has
            ``img``, uint8 of shape (8, 8) in 0..255, and ``gt_label``.
        **kwargs: As :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ValueError: ``split`` is unknown.
        ImportError: scikit-learn is missing.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI
    Machine Learning Repository), in the version of scikit-learn.

    Example:
        >>> len(Digits('train')), len(Digits('test'))
        (1438, 359)
    """

    METAINFO = {'classes': tuple('0123456789')}

    def __init__(self, split: str, pipeline: list = [], **kwargs: Any) -> None:
        self.split = check_choice('split', split, ('train', 'test'))
        super().__init__(pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                'the data set Digits needs scikit-learn: pip install scikit-learn'
            ) from error
        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        order = np.random.RandomState(0).permutation(len(images))
        chosen = []
        for label in range(10):
            members = order[digits.target[order] == label]
            cut = round(0.8 * len(members))
            chosen.append(members[:cut] if self.split == 'train' else members[cut:])
        return [
            dict(img=images[i], gt_label=int(digits.target[i]))
            for i in np.sort(np.concatenate(chosen))
        ]
