"""The backbones in mmsegmentation."""

import json
import math
import re

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, TRANSFORMS

from nf_plugins.datasets import Shapes
from nf_plugins.models import NFResNet

from ..conftest import ROOT
from ..tools import run_apart, run_tool
from .common import FOLDER, decay, listed_parameters, load, norms

pytest.importorskip('mmseg')
LARGE = 'fcn_nf-resnet50-d8_4xb4-80k_ade20k-512x512.py'
SMALL = 'fcn_nf-resnet26-d4_shapes.py'


def build(name, **backbone):
    cfg = load(name)
    cfg.model.backbone.update(backbone)
    return cfg, MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor})


def batch(size, classes, images=2):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(images):
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(classes, (1, *size))))
        sample.set_metainfo(dict(img_shape=size, ori_shape=size))
        samples.append(sample)
    inputs = [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in samples]
    return dict(inputs=inputs, data_samples=samples)


def test_dilations_keep_the_resolution_and_the_weights():
    backbone = build(LARGE)[1].backbone.eval()
    x = torch.randn(1, 3, 65, 96)
    with torch.no_grad():
        outputs = backbone(x)
    for out, channels, stride in zip(outputs, (256, 512, 1024, 2048), (4, 8, 8, 8)):
        assert out.shape == (1, channels, math.ceil(65 / stride), math.ceil(96 / stride))
    # Weights of ImageNet fit.
    with torch.device('meta'):
        classifier = NFResNet(50)
    shapes = {name: p.shape for name, p in classifier.state_dict().items()}
    assert shapes == {name: p.shape for name, p in backbone.state_dict().items()}
    # A later stage reads an output, and leaves it as it is.
    first = backbone.layer1(backbone.stem(x))
    torch.testing.assert_close(outputs[0], first)


@pytest.mark.slow
def test_the_variance_is_preserved_up_to_the_classifier():
    """Neck and head go on with unit variance; each factor that is forgotten costs 1.7^2."""
    _, model = build(LARGE, skipinit=1.0)
    model.init_weights()
    heads = [model.decode_head, model.auxiliary_head]
    convs = [module.conv for head in heads for module in head.modules() if hasattr(module, 'conv')]
    variances = []
    for conv in convs:
        conv.register_forward_hook(
            lambda module, args, out: variances.append(out.var(dim=(0, 2, 3)).mean().item())
        )
    assert len(convs) == 4
    with torch.no_grad():
        features = model.extract_feat(torch.randn(2, 3, 64, 64))
        for head in heads:
            head(features)
    # Neighbouring positions are alike, so there is less than 1 of it in a small image.
    assert all(0.5 < variance < 1.3 for variance in variances), variances


@pytest.mark.versions
def test_one_training_step():
    cfg, model = build(LARGE)
    model.init_weights()
    assert not norms(model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for name, value in decay(model, wrapper).items():
        assert value == (5e-4 if name.endswith('weight') else 0), name
    cfg.data_preprocessor.size = (64, 64)
    model.data_preprocessor = MODELS.build(cfg.data_preprocessor)
    losses = model.train_step(batch((64, 64), 150), wrapper)
    assert {'decode.loss_ce', 'aux.loss_ce'} <= losses.keys()
    # An untrained classifier of 150 classes gives ln(150), the auxiliary one 0.4 of it.
    assert losses['decode.loss_ce'].item() == pytest.approx(math.log(150), rel=0.1)
    assert losses['aux.loss_ce'].item() == pytest.approx(0.4 * math.log(150), rel=0.1)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('name', [LARGE, SMALL])
def test_pipelines_build(name):
    cfg = load(name)
    for loader in ('train_dataloader', 'val_dataloader'):
        for transform in cfg[loader].dataset.pipeline:
            TRANSFORMS.build(transform)


@pytest.mark.slow
@pytest.mark.parametrize('name', [LARGE, SMALL])
def test_the_parameters_in_the_metafile(name):
    _, model = build(name)
    assert sum(p.numel() for p in model.parameters()) == listed_parameters(name)


@pytest.mark.slow
def test_train_test_and_look_inside(tmp_path, capsys):
    """As a user does it. Chance is the best of the answers that are the same everywhere."""
    labels = np.stack([item['gt_seg_map'] for item in Shapes(64, seed=1)])
    share = np.bincount(labels.flat, minlength=4) / labels.size
    chance = 100 * max(share) / 4  # the IoU of that class is its share, the others' is 0

    def run(tool, *args):
        result = run_apart(tool, FOLDER / SMALL, *args)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout + result.stderr

    options = ['train_cfg.max_epochs=3', 'train_cfg.val_interval=3']
    options += ['default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=3']
    log = run('train', '--work-dir', tmp_path, '--cfg-options', *options)
    losses = [float(x) for x in re.findall(r' loss: ([\d.]+)', log)]
    assert len(losses) == 3 * 16
    assert np.mean(losses[-16:]) < 0.5 * np.mean(losses[:4])
    trained = float(re.findall(r'mIoU: ([\d.]+)', log)[-1])
    assert trained > 1.5 * chance
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob('*/spp/*.json'))]
    assert [record['epoch'] for record in records] == [0, 1, 2, 3]
    assert all(record['input']['shape'] == [8, 3, 64, 64] for record in records)

    checkpoint = tmp_path / 'epoch_3.pth'
    out = tmp_path / 'metrics.json'
    run('test', checkpoint, '--work-dir', tmp_path / 'test', '--out', out, '--out-item', 'metrics')
    assert json.loads(out.read_text())['mIoU'] == pytest.approx(trained, abs=0.01)

    options = ['--input', 'val', '--out-dir', tmp_path / 'spp']
    assert run_tool('spp_analysis', FOLDER / SMALL, checkpoint, *options) == 0
    record = json.loads((tmp_path / 'spp/spp.json').read_text())
    assert record['input'] == {'kind': 'val', 'shape': [8, 3, 64, 64]}
    assert [v for v in record['verdicts'] if v['severity'] == 'error'] == []
    capsys.readouterr()
    classifier = ROOT / 'configs/nf_resnet/nf-resnet_digits.py'
    assert run_tool('test', classifier, checkpoint) == 2
    assert 'is for another model' in capsys.readouterr().err


@pytest.mark.slow
def test_signal_of_the_large_one(tmp_path):
    options = ['--input-size', 64, '--batch-size', 4, '--unit-gain', '--out-dir', tmp_path]
    assert run_tool('spp_analysis', FOLDER / LARGE, *options) == 0
    record = json.loads((tmp_path / 'spp.json').read_text())
    blocks = record['blocks'][1:]
    assert [b['kind'] for b in blocks].count('transition') == 4
    assert [b['shape'][2] for b in blocks] == [16] * 3 + [8] * 13
    for block in blocks:
        assert block['avg_var'] == pytest.approx(block['expected_var'], rel=0.25)
    assert record['verdicts'] == []
