"""The backbones in mmdetection; what needs mmcv's compiled ops is left out where they are not."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from nf_plugins.datasets.coco_shapes import write_coco_shapes
from nf_plugins.layers import PWSConv2d

from ..tools import run_tool
from .common import FOLDER, decay, listed_parameters, load, norms

mmdet = pytest.importorskip('mmdet')
RETINANET = 'retinanet_nf-resnet50_fpn_1x_coco.py'
PWS = 'mask-rcnn_pws-resnet50_fpn_2x_coco.py'
DETECTORS = sorted(
    path.name for path in FOLDER.glob('*.py') if re.match('retinanet|mask-rcnn|ssd', path.name)
)
SMALL = [name for name in DETECTORS if 'shapes' in name]


def has_ops():
    try:
        import mmcv.ops  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_signal(tmp_path):
    options = ['--input-size', 64, '--batch-size', 4, '--unit-gain', '--out-dir', tmp_path]
    assert run_tool('spp_analysis', FOLDER / RETINANET, *options) == 0
    record = json.loads((tmp_path / 'spp.json').read_text())
    for block in record['blocks'][1:]:
        assert block['avg_var'] == pytest.approx(block['expected_var'], rel=0.25)
    assert record['verdicts'] == []


@pytest.mark.slow
@pytest.mark.skipif(has_ops(), reason='mmcv has its compiled ops')
def test_without_ops_training_fails_in_one_line(tmp_path, capsys):
    code = run_tool('train', FOLDER / RETINANET, '--work-dir', tmp_path / 'work')
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith('error: cannot build the model')
    assert not (tmp_path / 'work').exists()


needs_ops = pytest.mark.skipif(
    not has_ops(), reason="needs mmcv's compiled operators: `make ops` builds them"
)


@pytest.mark.versions
@pytest.mark.parametrize('name', DETECTORS)
def test_backbones_fit_their_necks(name):
    """Each output has the channels that the pyramid takes, at the strides of the anchors."""
    cfg = load(name)
    backbone = MODELS.build(cfg.model.backbone).eval()
    activate, pyramid = cfg.model.neck
    assert not norms(backbone) or 'pws' in name
    size = 320 if name.startswith('ssd') else 64
    with torch.no_grad():
        features = MODELS.build(activate)(backbone(torch.randn(1, 3, size, size)))
    assert [feature.shape[1] for feature in features] == list(pyramid['in_channels'])
    heads = cfg.model.get('rpn_head') or cfg.model.bbox_head
    strides = heads.anchor_generator.strides
    used = features[pyramid.get('start_level', 0) :]
    assert [math.ceil(size / stride) for stride in strides[: len(used)]] == [
        feature.shape[2] for feature in used
    ]
    assert not any((feature < 0).any() for feature in features if 'nfnet' not in name)


@pytest.mark.slow
def test_the_published_settings_of_mask_rcnn_with_pws():
    """As in configs/maskrcnn.py of the PWS authors' detection code."""
    cfg = load(PWS)
    backbone, neck = cfg.model.backbone, cfg.model.neck[1]
    wanted = dict(gamma=1e-4, mode='fan_in', initalpha=True)
    assert {k: backbone.conv_cfg[k] for k in wanted} == wanted
    assert (backbone.depth, backbone.frozen_stages) == (50, 1)
    wanted = dict(gamma=0.1, equiv=True, mode='fan_in', initalpha=True)
    heads = load('mask-rcnn_pws-resnet50_fpn-4conv1fc_2x_coco.py').model.roi_head
    for part in (neck, cfg.model.roi_head.mask_head, heads.bbox_head, heads.mask_head):
        assert {k: part.conv_cfg[k] for k in wanted} == wanted
    assert heads.bbox_head.type == 'Shared4Conv1FCBBoxHead'
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 2
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.0025, 0.9, 1e-4)
    assert cfg.param_scheduler[1].milestones == [16, 22]
    assert cfg.train_cfg.max_epochs == 24
    model = MODELS.build(backbone)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.partition('.')[0] for name in frozen} == {'conv1', 'norm1', 'layer1'}
    gammas = {m.gamma for m in model.modules() if isinstance(m, PWSConv2d)}
    assert gammas == {1e-4}


@pytest.mark.slow
def test_the_published_settings_of_ssd_with_pws():
    """As in train_cfgs/voc_ssd.json of the PWS authors' TensorFlow code."""
    cfg = load('ssd320_pws-resnet50_voc0712.py')
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.param_scheduler.milestones == [90, 170, 240]
    assert cfg.train_cfg.max_epochs == 250
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (1e-3, 5e-4)
    assert {cfg.model.backbone.conv_cfg.gamma, cfg.model.neck[1].conv_cfg.gamma} == {1e-3}
    train = cfg.train_dataloader.dataset
    assert train.times == 1
    years = [part.ann_file.split('/')[0] for part in train.dataset.datasets]
    assert years == ['VOC2007', 'VOC2012']
    for pipeline in (train.dataset.datasets[1].pipeline, cfg.val_dataloader.dataset.pipeline):
        assert [t.scale for t in pipeline if t.type == 'Resize'] == [(320, 320)]
    anchors = cfg.model.bbox_head.anchor_generator
    assert anchors.min_sizes == [32.0, 64.0, 118.4, 172.8, 227.2, 281.6]
    assert anchors.max_sizes == [*anchors.min_sizes[1:], 336.0]


@needs_ops
@pytest.mark.filterwarnings('ignore')  # of mmdet
@pytest.mark.parametrize('name', DETECTORS)
def test_the_detector_trains_and_detects(name, monkeypatch):
    from mmdet.models.dense_heads import SSDHead
    from mmdet.testing import demo_mm_inputs

    # It reads this attribute, which it does not have: open-mmlab/mmdetection issue 11063.
    monkeypatch.setattr(SSDHead, 'loss_cls', None, raising=False)
    cfg = load(name)
    model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == listed_parameters(name)
    model.init_weights()
    assert not norms(model) or 'pws' in name
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decays = cfg.optim_wrapper.paramwise_cfg.bias_decay_mult
    for parameter, value in decay(model, wrapper).items():
        full = cfg.optim_wrapper.optimizer.weight_decay
        if parameter.endswith('alpha'):
            assert value == 0, parameter
        elif 'norm' not in parameter:
            expected = full if parameter.endswith('weight') else full * decays
            assert value == (0 if parameter.endswith('gain') else expected), parameter
    classes = 3 if name in SMALL else 20 if name.startswith('ssd') else 80
    sizes = [[3, 320, 320]] * 2 if name.startswith('ssd') else [[3, 128, 160], [3, 96, 128]]
    options = dict(num_classes=classes, with_mask=name.startswith('mask'))
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    losses = model.train_step(demo_mm_inputs(2, sizes, **options), wrapper)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.isfinite().all() for p in model.parameters())
    changed = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert changed
    assert not changed & frozen
    model.eval()
    with torch.no_grad():
        found = model.test_step(demo_mm_inputs(1, sizes[:1], **options))
    assert found[0].pred_instances.bboxes.shape[1] == 4


@needs_ops
@pytest.mark.filterwarnings('ignore')
def test_pws_is_in_neck_and_heads_of_mask_rcnn():
    model = MODELS.build(load('mask-rcnn_pws-resnet50_fpn-4conv1fc_2x_coco.py').model)
    parts = {'neck': 8, 'roi_head.bbox_head': 4, 'roi_head.mask_head': 4, 'rpn_head': 0}
    for part, count in parts.items():
        convs = [m for m in model.get_submodule(part).modules() if isinstance(m, PWSConv2d)]
        assert len(convs) == count, part
        # Relative to the variance 2 / fan-in of He's weights.
        assert [conv.gamma for conv in convs] == [
            0.1 * 2 / conv.weight[0].numel() for conv in convs
        ]


@needs_ops
@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', SMALL)
def test_train_resume_test_and_look_inside(name, tmp_path, monkeypatch):
    """As a user does it, on shapes that are drawn here."""
    for seed, (split, images) in enumerate(dict(train=16, val=8).items()):
        write_coco_shapes(tmp_path / 'data/coco_shapes' / split, images, seed)
    monkeypatch.chdir(tmp_path)
    config = FOLDER / name
    # After a few steps RetinaNet is sure of nothing, and without boxes there are no metrics.
    part = 'rcnn.' if name.startswith('mask') else ''
    all_boxes = f'model.test_cfg.{part}score_thr=0.0'
    options = ['--cfg-options', 'default_hooks.logger.interval=1', all_boxes]

    def train(folder, epochs, *more):
        # A visualizer of this name: mmengine keeps those of a process.
        arguments = [
            *options,
            f'train_cfg.max_epochs={epochs}',
            f'visualizer.name={name}-{folder}{epochs}',
        ]
        assert run_tool('train', config, '--work-dir', folder, *more, *arguments) == 0

    def log(folder):
        lines = [
            json.loads(line)
            for file in sorted((tmp_path / folder).glob('*/vis_data/scalars.json'))
            for line in file.read_text().splitlines()
        ]
        return [line['loss'] for line in lines if 'loss' in line], lines

    train('whole', 3)
    losses, lines = log('whole')
    assert len(losses) == 3 * 4
    assert all(map(math.isfinite, losses))
    assert sum(losses[-4:]) < sum(losses[:4])
    trained = [line for line in lines if 'loss' in line]
    metrics = [line for line in lines if 'coco/bbox_mAP' in line]
    assert len(metrics) == 3
    assert ('coco/segm_mAP' in metrics[0]) == name.startswith('mask')

    train('parts', 2)
    train('parts', 3, '--resume')
    # It goes on where it was; images are flipped by other random numbers than without the break.
    resumed = [line for line in log('parts')[1] if 'loss' in line]
    assert [line['step'] for line in resumed] == list(range(1, 13))
    last = [sum(line['loss'] for line in run[-4:]) / 4 for run in (resumed, trained)]
    assert last[0] == pytest.approx(last[1], rel=0.3)

    out = tmp_path / 'metrics.json'
    checkpoint = tmp_path / 'whole/epoch_3.pth'
    tested = ['--work-dir', 'tested', '--out', out, '--out-item', 'metrics', *options]
    assert run_tool('test', config, checkpoint, *tested) == 0
    values = json.loads(out.read_text())
    assert values['coco/bbox_mAP'] == pytest.approx(metrics[-1]['coco/bbox_mAP'], abs=1e-3)

    assert run_tool('spp_analysis', config, checkpoint, '--input', 'val', '--out-dir', 'spp') == 0
    record = json.loads((tmp_path / 'spp/spp.json').read_text())
    assert record['input'] == {'kind': 'val', 'shape': [8, 3, 64, 64]}
    assert [v for v in record['verdicts'] if v['severity'] == 'error'] == []
    records = [json.loads(path.read_text()) for path in tmp_path.glob('whole/*/spp/*.json')]
    assert sorted(record['epoch'] for record in records) == [0, 1, 2, 3]
