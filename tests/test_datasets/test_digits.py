from collections import Counter

import numpy as np
import pytest
from mmengine.registry import DATASETS
from sklearn.datasets import load_digits

from nf_plugins.datasets import Digits


@pytest.mark.slow
def test_the_split_is_fixed_stratified_and_complete():
    raw = load_digits()
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)
    everything = Counter((image.tobytes(), label) for image, label in zip(images, raw.target))
    seen = Counter()
    for split, share in (('train', 0.8), ('test', 0.2)):
        data = DATASETS.build(dict(type='nf_plugins.Digits', split=split))
        again = DATASETS.build(dict(type='nf_plugins.Digits', split=split))
        assert all(np.array_equal(a['img'], b['img']) for a, b in zip(data, again))
        labels = Counter(item['gt_label'] for item in data)
        for label, total in Counter(raw.target.tolist()).items():
            assert abs(labels[label] - share * total) <= 0.5
        seen.update((item['img'].tobytes(), item['gt_label']) for item in data)
    assert seen == everything


def test_the_statistics_in_the_config():
    from mmengine.config import Config

    from ..conftest import ROOT

    cfg = Config.fromfile(str(ROOT / 'configs/_base_/datasets/digits.py'))
    images = np.stack([item['img'] for item in Digits('train')])
    assert cfg.data_preprocessor.mean == [pytest.approx(images.mean(), abs=0.05)]
    assert cfg.data_preprocessor.std == [pytest.approx(images.std(), abs=0.05)]
