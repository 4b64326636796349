import numpy as np
import pytest
from mmengine.registry import DATASETS

from nf_plugins.datasets import Shapes


def build(**kwargs):
    return DATASETS.build(dict(type='nf_plugins.Shapes', num_images=3, **kwargs))


@pytest.mark.slow
def test_a_seed_fixes_the_images_and_another_changes_them():
    for a, b, c in zip(build(), build(), build(seed=1)):
        assert np.array_equal(a['img'], b['img'])
        assert np.array_equal(a['gt_seg_map'], b['gt_seg_map'])
        assert not np.array_equal(a['gt_seg_map'], c['gt_seg_map'])


@pytest.mark.slow
def test_the_forms_fill_as_much_of_their_box_as_they_should():
    """A disc fills pi/4 of its bounding box, a square all of it, a triangle half."""
    filled = {1: [], 2: [], 3: []}
    for item in Shapes(60, size=256):
        for label, shares in filled.items():
            rows, columns = np.nonzero(item['gt_seg_map'] == label)
            if len(rows):
                box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
                shares.append(len(rows) / box)
    for label, share in {1: np.pi / 4, 2: 1.0, 3: 0.5}.items():
        # The shape drawn last is whole, which is each a third of the time.
        assert np.mean(np.abs(np.array(filled[label]) - share) < 0.02) > 0.3


@pytest.mark.slow
def test_colours_do_not_tell_the_class():
    items = list(Shapes(200))
    means = [
        np.mean([i['img'][i['gt_seg_map'] == c].mean(0) for i in items if c in i['gt_seg_map']], 0)
        for c in (1, 2, 3)
    ]
    # Colours are uniform in 0..255: standard deviation 74, of the mean of 200 of them 5.2.
    assert np.abs(np.array(means) - 127.5).max() < 4 * 5.2


@pytest.mark.parametrize('wrong', [dict(num_images=0), dict(num_images=1, size=8)])
def test_bad_sizes(wrong):
    with pytest.raises(ValueError, match='num_images must be positive and size at least 16'):
        Shapes(**wrong)
