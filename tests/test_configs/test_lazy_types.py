"""Every shipped config with classes for types, as mmengine's new style has them.

Such a config is built as it is; mmengine dumps it into a work dir with import paths for
types, and that file is read and built, too.
"""

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from mmengine import registry
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyObject
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmpretrain.registry import BATCH_AUGMENTS
from torch import nn

from nf_plugins.checkpoint import safe_load
from nf_plugins.cli.runner import use_mixed_precision
from nf_plugins.config import load_config
from nf_plugins.errors import UsageError
from nf_plugins.layers import ScaledWSConv2d
from nf_plugins.models import NFNet, NFResNet, PWSResNet, ResNetV2
from nf_plugins.registry import class_of
from nf_plugins.spp.inputs import image_batch

from ..conftest import ROOT, without_memory
from ..tools import run_tool
from .test_configs import CONFIGS, load, mark, shallow

KINDS = [r for r in vars(registry).values() if isinstance(r, registry.Registry)]
KINDS += [BATCH_AUGMENTS]
# Of clip_grad; of norm_cfg: mmpretrain's transformers take names alone.
NOT_CLASSES = ('agc', 'LN', 'nf_plugins.DyT', 'nf_plugins.Derf')


@contextmanager
def lazily():
    ConfigDict.lazy = True
    try:
        yield
    finally:
        ConfigDict.lazy = False


@cache
def lazy_class(name):
    (found, *_) = filter(None, (class_of(name, r) for r in KINDS))
    return LazyObject(found.__module__, found.__name__)


def lazy(value, key=None):
    """The config with a lazy class for each name of one."""
    if isinstance(value, dict):
        return {k: lazy(v, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(lazy(v) for v in value)
    if key in ('type', 'act', 'constructor', 'ema_type') and value not in NOT_CLASSES:
        return lazy_class(value)
    return value


def types(value):
    if isinstance(value, dict):
        yield from ([value['type']] if 'type' in value else [])
        for inner in value.values():
            yield from types(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from types(inner)


def build(cfg):
    """The names and shapes of the parameters, and their settings."""
    with without_memory():
        model = MODELS.build({**cfg.model, 'train_cfg': None})
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): name for name, p in model.named_parameters()}
    for transform in cfg.train_dataloader.dataset.pipeline + cfg.test_dataloader.dataset.pipeline:
        TRANSFORMS.build(transform)
    settings = {
        names[id(p)]: (tuple(p.shape), group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    return type(wrapper), settings


@pytest.mark.parametrize('name', [mark(name) for name in CONFIGS])
def test_shipped_configs_with_classes_for_types(name, tmp_path):
    plain = shallow(load(name), 2)
    expected = build(plain)
    with lazily():
        cfg = Config(lazy(plain.to_dict()))
    assert not any(
        isinstance(kind, str) for kind in types(cfg._cfg_dict) if kind not in NOT_CLASSES
    )
    assert build(cfg) == expected

    dumped = tmp_path / 'dumped.py'
    cfg.dump(dumped)
    read = load_config(str(dumped))
    assert all('.' in kind for kind in types(read._cfg_dict.to_dict()) if kind not in NOT_CLASSES)
    assert build(read) == expected


RELU = ['ReLU', 'relu', 'torch.nn.ReLU', 'torch.nn.modules.activation.ReLU', 'mmengine.ReLU',
        'mmpretrain.ReLU', 'nf_plugins.ReLU', 'mmcv.ReLU', nn.ReLU]  # fmt: skip
SCALED = ['ScaledWS', 'nf_plugins.ScaledWS', 'nf_plugins.layers.ScaledWSConv2d',
          'nf_plugins.layers.standardized_conv.ScaledWSConv2d']  # fmt: skip
GN = ['GN', 'torch.nn.GroupNorm', nn.GroupNorm]
SMALL = dict(base_channels=4)
PLACES = {
    'act_cfg': (RELU, lambda t: NFResNet([1] * 4, act_cfg=dict(type=t), **SMALL)),
    'act_cfg of NFNet': (
        ['GELU', 'torch.nn.GELU', nn.GELU],
        lambda t: NFNet(
            dict(base='f0', depths=(1,) * 4, widths=(8,) * 4, group_width=2),
            act_cfg=dict(type=t, approximate='tanh'),
        ),
    ),
    'act_cfg of ResNetV2': (RELU, lambda t: ResNetV2([1] * 4, act_cfg=dict(type=t), **SMALL)),
    'Swish': (
        ['Swish', 'SiLU', 'mmcv.Swish', 'mmcv.cnn.Swish', 'torch.nn.SiLU', nn.SiLU],
        lambda t: NFResNet([1] * 4, act_cfg=dict(type=t), **SMALL),
    ),
    'conv_cfg': (
        [*SCALED, ScaledWSConv2d],
        lambda t: NFResNet([1] * 4, conv_cfg=dict(type=t), **SMALL),
    ),
    'plain conv_cfg': (
        ['Conv2d', 'mmcv.Conv2d', 'torch.nn.Conv2d', nn.Conv2d],
        lambda t: NFResNet([1] * 4, conv_cfg=dict(type=t), **SMALL),
    ),
    'conv_cfg of PWS': (
        ['PWS', 'nf_plugins.PWS', 'nf_plugins.layers.PWSConv2d'],
        lambda t: PWSResNet(18, conv_cfg=dict(type=t), stem_channels=4, **SMALL),
    ),
    'norm_cfg': (
        GN,
        lambda t: PWSResNet(18, norm_cfg=dict(type=t, num_groups=1), stem_channels=4, **SMALL),
    ),
    'GammaAct': (RELU, lambda t: MODELS.build(dict(type='nf_plugins.GammaAct', act=t))),
}


@pytest.mark.parametrize('place', PLACES)
def test_every_way_to_write_a_type_gives_the_same_network(place):
    kinds, make = PLACES[place]
    x = torch.randn(2, 3, 32, 32)
    outputs = []
    for kind in kinds:
        torch.manual_seed(0)
        with torch.no_grad():
            out = make(kind)(x)
        outputs.append(out if isinstance(out, torch.Tensor) else out[-1])
    for out in outputs[1:]:
        torch.testing.assert_close(out, outputs[0])
    assert outputs[0].isfinite().all()


class ReLU(nn.Module):
    """One of a user's own, with a known name."""

    def forward(self, x):
        return x.clamp(0, 6)


def test_an_activation_with_a_known_name_is_not_exchanged_for_the_known_one():
    with pytest.raises(ValueError, match=r'unknown activation .*test_lazy_types\.ReLU'):
        NFResNet([1] * 4, act_cfg=dict(type=ReLU), **SMALL)
    net = NFResNet([1] * 4, act_cfg=dict(type=ReLU, gamma=1.8), **SMALL)
    assert isinstance(net.layer1[0].act, ReLU)


AMP = {
    'AmpOptimWrapper': ['OptimWrapper', 'mmengine.OptimWrapper', 'mmengine.optim.OptimWrapper',
                        'AmpOptimWrapper', 'mmengine.optim.AmpOptimWrapper'],
    'AGCAmpOptimWrapper': ['AGCOptimWrapper', 'nf_plugins.AGCOptimWrapper',
                           'nf_plugins.engine.AGCOptimWrapper', 'nf_plugins.AGCAmpOptimWrapper'],
    'SAMAmpOptimWrapper': ['SAMOptimWrapper', 'nf_plugins.SAMOptimWrapper'],
}  # fmt: skip


@pytest.mark.parametrize(('wanted', 'kind'), [(w, k) for w, kinds in AMP.items() for k in kinds])
def test_mixed_precision_of_every_way_to_write_a_type(wanted, kind):
    init_default_scope('mmpretrain')
    as_class = registry.OPTIM_WRAPPERS.get(kind)
    for value in (kind, as_class):
        cfg = ConfigDict(type=value)
        use_mixed_precision(cfg)
        found = cfg.type
        found = registry.OPTIM_WRAPPERS.get(found) if isinstance(found, str) else found
        assert found.__name__ == wanted
        assert cfg.loss_scale == 'dynamic'
    bare = ConfigDict(optimizer=dict(type='SGD'))
    use_mixed_precision(bare)
    assert bare.type == 'AmpOptimWrapper'


def test_mixed_precision_of_something_else_is_refused():
    with pytest.raises(UsageError, match='--amp takes the optim_wrapper.type OptimWrapper, AGC'):
        use_mixed_precision(ConfigDict(type='OptimWrapperDict'))


def test_images_through_a_pipeline_of_classes(tmp_path):
    """What `spp_analysis.py --input FOLDER` reads."""
    import cv2
    import numpy as np

    cfg = load('nf_resnet/nf-resnet50_8xb32_in1k.py')
    image = np.arange(300 * 300 * 3).reshape(300, 300, 3) % 251
    cv2.imwrite(str(tmp_path / 'a.png'), image.astype(np.uint8))
    arguments = ([tmp_path / 'a.png'], (224, 224), 3, 0)
    with lazily():
        other = Config(lazy(cfg.to_dict()))
    torch.testing.assert_close(image_batch(other, *arguments), image_batch(cfg, *arguments))


NEW_STYLE = """
from mmengine.config import Config
from mmengine.dataset import default_collate
from torch.nn import ReLU
from torch.optim import SGD
from nf_plugins.engine import AGCOptimWrapper
from nf_plugins.layers import GammaAct, ScaledWSConv2d
from nf_plugins.models import NFResNet, ReLUNeck

globals().update(Config.fromfile({base!r}))
model['backbone'].update(type=NFResNet, base_channels=4, act_cfg=dict(type=ReLU),
                         conv_cfg=dict(type=ScaledWSConv2d))
model['neck'].update(type=ReLUNeck, in_channels=128, act_cfg=dict(type=GammaAct, act=ReLU))
model['head'].update(in_channels=128)
optim_wrapper.update(type=AGCOptimWrapper, clip_grad=dict(type='agc', skip=['head.fc.weight']))
optim_wrapper['optimizer'].update(type=SGD)
train_dataloader['collate_fn'] = dict(type=default_collate)
train_dataloader['dataset']['indices'] = val_dataloader['dataset']['indices'] = 64
train_cfg['max_epochs'] = 1
"""


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_what_a_lazy_training_dumps_trains_again(tmp_path):
    config = tmp_path / 'new_style.py'
    config.write_text(NEW_STYLE.format(base=str(ROOT / 'configs/nf_resnet/nf-resnet_digits.py')))
    for work_dir in ('first', 'second'):
        assert run_tool('train', config, '--work-dir', tmp_path / work_dir) == 0
        config = tmp_path / work_dir / config.name
        assert "type='torch.nn.ReLU'" in config.read_text()
    states = [safe_load(tmp_path / w / 'epoch_1.pth')['state_dict'] for w in ('first', 'second')]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
