"""Every shipped config folds: its model, and the config that the tool writes for it."""

import runpy

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import nf_plugins
from nf_plugins.layers import StandardizedConv2d

from ..conftest import ROOT, without_memory
from ..test_configs.test_configs import EVERY, shallow

FIXUP = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='FixupResNet', depth=26, base_channels=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=128),
)
default_scope = 'mmpretrain'
"""
CONV_CFG = """
conv_cfg = dict(type='ScaledWS', gamma=1.7)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, conv_cfg=conv_cfg),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
)
default_scope = 'mmpretrain'
"""


@pytest.fixture(scope='module')
def folded_config():
    return runpy.run_path(str(ROOT / 'tools/model_converters/fold.py'))['folded_config']


def build(cfg):
    init_default_scope(cfg.default_scope)
    model = {name: value for name, value in cfg.model.items() if name != 'data_preprocessor'}
    with without_memory():
        return MODELS.build(model)


def convolutions(model):
    return {name: str(m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def check(cfg, folded_config):
    model = nf_plugins.fold(build(cfg))
    assert not any(isinstance(m, StandardizedConv2d) for m in model.modules())
    cfg.model = folded_config(cfg.model)
    rebuilt = build(cfg)
    assert convolutions(rebuilt) == convolutions(model)
    shapes, expected = (
        {name: value.shape for name, value in m.state_dict().items()} for m in (rebuilt, model)
    )
    assert shapes == expected


@pytest.mark.slow
@pytest.mark.parametrize('name', EVERY)
def test_every_shipped_config_folds(name, folded_config):
    if name.startswith('downstream/'):
        pytest.importorskip('mmseg' if 'fcn' in name else 'pycocotools')
    check(shallow(Config.fromfile(ROOT / 'configs' / name), 2), folded_config)


@pytest.mark.parametrize('text', [FIXUP, CONV_CFG], ids=['FixupResNet', 'conv_cfg'])
def test_other_configs_fold(text, folded_config, tmp_path):
    (tmp_path / 'config.py').write_text(text)
    check(Config.fromfile(tmp_path / 'config.py'), folded_config)


def test_convolutions_of_heads_are_folded(folded_config):
    """mmsegmentation's heads take ``conv_cfg``, too, also in lists of heads."""
    cfg = dict(
        type='EncoderDecoder',
        backbone=dict(type='nf_plugins.NFResNet', depth=50),
        decode_head=dict(type='FCNHead', conv_cfg=dict(type='nf_plugins.ScaledWS', gamma=1.7)),
        auxiliary_head=[dict(type='FCNHead', conv_cfg=dict(type='PWS')), dict(type='FCNHead')],
        neck=dict(type='FPN', conv_cfg=dict(type='DCN')),
    )
    folded = folded_config(cfg)
    plain = dict(type='Conv2d')
    assert folded['backbone']['deploy'] is True
    assert folded['decode_head']['conv_cfg'] == folded['auxiliary_head'][0]['conv_cfg'] == plain
    assert folded['auxiliary_head'][1] == dict(type='FCNHead')
    assert folded['neck'] == cfg['neck']
