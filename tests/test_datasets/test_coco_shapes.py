import json

import cv2
import numpy as np
import pytest

from nf_plugins.datasets import Shapes
from nf_plugins.datasets.coco_shapes import main, outline, write_coco_shapes


def decode(segmentation):
    """COCO's run lengths: of zeros and ones in turn, column by column."""
    height, width = segmentation['size']
    values = [number % 2 for number in range(len(segmentation['counts']))]
    return np.repeat(values, segmentation['counts']).reshape(width, height).T


def test_images_boxes_and_masks(tmp_path):
    data = write_coco_shapes(tmp_path, 5, seed=3)
    assert json.loads((tmp_path / 'annotations.json').read_text()) == data
    assert [a['id'] for a in data['annotations']] == list(range(1, len(data['annotations']) + 1))
    for image, item in zip(data['images'], Shapes(5, seed=3)):
        assert np.array_equal(cv2.imread(str(tmp_path / image['file_name'])), item['img'])
        labels = np.zeros_like(item['gt_seg_map'])
        for annotation in data['annotations']:
            if annotation['image_id'] == image['id']:
                mask = decode(annotation['segmentation'])
                labels += (annotation['category_id'] * mask).astype(labels.dtype)
                left, top, width, height = annotation['bbox']
                inside = mask[top : top + height, left : left + width]
                assert inside.sum() == mask.sum() == annotation['area']
                for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                    assert edge.any()  # the box is tight
        assert np.array_equal(labels, item['gt_seg_map'])


@pytest.mark.parametrize('corner', [False, True])
def test_run_lengths(corner):
    mask = np.random.default_rng(0).random((5, 7)) > 0.5
    mask[0, 0] = corner
    assert np.array_equal(decode(outline(mask)['segmentation']), mask)


def test_pycocotools_reads_the_masks():
    masks = pytest.importorskip('pycocotools.mask')
    mask = np.random.default_rng(0).random((5, 7)) > 0.5
    coded = outline(mask)
    assert np.array_equal(masks.decode(masks.frPyObjects(coded['segmentation'], 5, 7)), mask)


def test_the_command_writes_two_splits(tmp_path, monkeypatch):
    monkeypatch.setattr('nf_plugins.datasets.coco_shapes.SPLITS', dict(train=2, val=1))
    main([str(tmp_path)])
    assert len(list(tmp_path.glob('train/*.png'))) == 2
    first = {split: (tmp_path / split / '000000.png').read_bytes() for split in ('train', 'val')}
    assert first['train'] != first['val']


@pytest.mark.parametrize('wrong', [dict(num_images=0), dict(num_images=1, size=8)])
def test_bad_sizes(wrong, tmp_path):
    with pytest.raises(ValueError, match='must be'):
        write_coco_shapes(tmp_path, **wrong)
