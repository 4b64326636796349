"""The backbones in mmdetection, as far as mmcv's compiled ops are not needed."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from ..tools import run_tool
from .common import FOLDER, decay, listed_parameters, load, norms

mmdet = pytest.importorskip('mmdet')
RETINANET = 'retinanet_nf-resnet50_fpn_1x_coco.py'


def has_ops():
    try:
        import mmcv.ops  # noqa: F401
    except ImportError:
        return False
    return True


def test_backbone_and_pyramid():
    """Each level has ceil(size / stride) positions, with the strides of the config's anchors."""
    pytest.importorskip('mmseg')  # its FPN is mmdet's, and needs no ops
    cfg = load(RETINANET)
    backbone = MODELS.build(cfg.model.backbone)
    neck = MODELS.build([{'_scope_': 'mmseg', **layer} for layer in cfg.model.neck])
    assert not norms(backbone)
    assert not norms(neck)
    height, width = 129, 160
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, height, width))
        levels = neck(features)
    for feature, channels, stride in zip(features, cfg.model.neck[1].in_channels, (4, 8, 16, 32)):
        assert feature.shape == (1, channels, math.ceil(height / stride), math.ceil(width / stride))
    strides = cfg.model.bbox_head.anchor_generator.strides
    assert strides == [8, 16, 32, 64, 128]
    assert len(levels) == len(strides)
    for level, stride in zip(levels, strides):
        assert level.shape == (1, 256, math.ceil(height / stride), math.ceil(width / stride))


def test_the_config_differs_from_that_of_mmdet_in_the_backbone_alone():
    folder = Path(mmdet.__path__[0], '.mim/configs/retinanet')
    theirs = unscoped(Config.fromfile(folder / 'retinanet_r50_fpn_1x_coco.py').to_dict())
    ours = unscoped(load(RETINANET).to_dict())
    assert ours['model'].pop('neck')[1] == theirs['model'].pop('neck')
    for part in (ours, theirs):
        del part['model']['backbone']
    compared = ['model', 'train_dataloader', 'val_dataloader', 'val_evaluator', 'default_hooks']
    for name in [*compared, 'default_scope', 'param_scheduler', 'train_cfg', 'visualizer']:
        assert ours[name] == theirs[name], name
    assert ours['optim_wrapper']['optimizer'] == theirs['optim_wrapper']['optimizer']
    assert ours['auto_scale_lr']['base_batch_size'] == theirs['auto_scale_lr']['base_batch_size']


def unscoped(value):
    """Without the ``_scope_`` that inheritance from another package writes."""
    if isinstance(value, dict):
        return {k: unscoped(v) for k, v in value.items() if k != '_scope_'}
    return [unscoped(v) for v in value] if isinstance(value, list) else value


def test_signal(tmp_path):
    options = ['--input-size', 64, '--batch-size', 4, '--unit-gain', '--out-dir', tmp_path]
    assert run_tool('spp_analysis', FOLDER / RETINANET, *options) == 0
    record = json.loads((tmp_path / 'spp.json').read_text())
    for block in record['blocks'][1:]:
        assert block['avg_var'] == pytest.approx(block['expected_var'], rel=0.25)
    assert record['verdicts'] == []


@pytest.mark.skipif(has_ops(), reason='mmcv has its compiled ops')
def test_without_ops_training_fails_in_one_line(tmp_path, capsys):
    code = run_tool('train', FOLDER / RETINANET, '--work-dir', tmp_path / 'work')
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith('error: cannot build the model')
    assert not (tmp_path / 'work').exists()


@pytest.mark.skipif(not has_ops(), reason='needs the compiled ops of mmcv')
def test_the_detector_trains_and_detects():
    from mmdet.testing import demo_mm_inputs

    cfg = load(RETINANET)
    model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == listed_parameters(RETINANET)
    model.init_weights()
    assert not norms(model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for name, value in decay(model, wrapper).items():
        assert value == (1e-4 if name.endswith('weight') else 0), name
    data = demo_mm_inputs(2, [[3, 128, 160], [3, 96, 128]], num_classes=80)
    losses = model.train_step(data, wrapper)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        found = model.test_step(demo_mm_inputs(1, [[3, 128, 160]], num_classes=80))
    assert found[0].pred_instances.bboxes.shape[1] == 4
