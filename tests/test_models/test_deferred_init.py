"""A network on the meta device is a new network after ``to_empty`` and ``reset_parameters``."""

import copy
import pickle

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nf_plugins.layers import PWSConv2d

from .common import NETWORKS

OPTIONS = [
    *NETWORKS.items(),
    ('zero gains', dict(NETWORKS['NFResNet'], zero_init_residual=True, skipinit=0.3)),
    ('lecun', dict(NETWORKS['ResNetV2'], init='lecun', conv_cfg=dict(type='ScaledWS'))),
    ('PReLU', dict(NETWORKS['NFResNet'], act_cfg=dict(type='PReLU', gamma=1.0))),
    ('deployed', dict(NETWORKS['NFNet'], deploy=True)),
]


def deferred(config: dict) -> nn.Module:
    """As FSDP does: memory with any content, then module by module, parents first."""
    with torch.device('meta'):
        net = MODELS.build(config)
    assert all(p.is_meta for p in net.parameters())
    net.to_empty(device='cpu')
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.fill_(float('nan') if tensor.is_floating_point() else 77)
    for module in net.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        assert not own or hasattr(module, 'reset_parameters'), type(module)
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()
    return net


@pytest.mark.parametrize(('name', 'config'), OPTIONS, ids=[name for name, _ in OPTIONS])
def test_deferred_init(name, config):
    net, direct = deferred(config), MODELS.build(config)
    found, expected = net.state_dict(), direct.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        ours = found[key]
        assert ours.dtype == value.dtype and ours.isfinite().all(), key
        if value.numel() == 1 or value.float().std() == 0:
            assert torch.equal(ours, value), key
        else:  # numbers drawn anew: the same scale, a mean of about 0
            slack = 6 * value.numel() ** -0.5
            assert abs(ours.std() / value.std() - 1) < slack, key
            assert abs(ours.mean() - value.mean()) < slack * value.std(), key
            assert not torch.equal(ours, value), key
    out = net.train()(torch.randn(2, 3, 64, 64))[0]
    assert out.isfinite().all()


@pytest.mark.parametrize('name', ['NFNet', 'ResNetV2', 'FixupResNet'])
def test_a_copy_resets_itself(name):
    net = MODELS.build(NETWORKS[name])
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        before = {key: value.clone() for key, value in net.state_dict().items()}
        for module in twin.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert any(not torch.equal(value, before[key]) for key, value in twin.state_dict().items())


def initialised() -> PWSConv2d:
    conv = PWSConv2d(3, 4, 3, initalpha=True)
    conv(torch.randn(4, 3, 9, 9))
    assert conv.alpha_initialized
    return conv


@pytest.mark.parametrize('multi', [None, get_ema_multi_avg_fn(0.9)])
def test_averages_of_the_flag(multi):
    """The average of models has initialised alphas, whether the models were trained or not."""
    conv = PWSConv2d(3, 4, 3, initalpha=True)
    average = AveragedModel(conv, multi_avg_fn=multi, use_buffers=True)
    mm = ExponentialMovingAverage(conv, update_buffers=True)
    for _ in range(3):
        conv(torch.randn(4, 3, 9, 9))
        average.update_parameters(conv)
        mm.update_parameters(conv)
    for averaged in (average.module, mm.module):
        alpha = averaged.alpha.clone()
        averaged.train()(torch.randn(4, 3, 9, 9))
        assert torch.equal(averaged.alpha, alpha)


@pytest.mark.parametrize('flag', [True, False])
def test_flags_of_older_checkpoints(flag):
    """They are bools."""
    conv = PWSConv2d(3, 4, 3, initalpha=True)
    state = {**conv.state_dict(), 'alpha_initialized': torch.tensor(flag)}
    conv.load_state_dict(state)
    alpha = conv.alpha.clone()
    conv(torch.randn(4, 3, 9, 9))
    assert torch.equal(conv.alpha, alpha) is flag


@pytest.mark.parametrize('batch', ['constant', 'nan', 'inf'])
@pytest.mark.parametrize('compiled', [False, True])
def test_an_unusable_batch_leaves_initalpha_to_the_next(batch, compiled):
    torch.compiler.reset()
    conv = PWSConv2d(3, 4, 3, initalpha=True, bias=False)
    call = torch.compile(conv, fullgraph=True, backend='eager') if compiled else conv
    bad = torch.zeros(2, 3, 9, 9) + dict(constant=1, nan=float('nan'), inf=float('inf'))[batch]
    if batch == 'constant':
        bad.zero_()
    call(bad)
    assert torch.equal(conv.alpha, torch.ones_like(conv.alpha))
    out = call(torch.randn(8, 3, 9, 9))
    assert out.var().item() == pytest.approx(2, rel=1e-4)
    alpha = conv.alpha.clone()
    call(100 * torch.randn(8, 3, 9, 9))
    assert torch.equal(conv.alpha, alpha)
    conv.train()
    assert not conv._may_initialize


def test_reset_lets_initalpha_act_again():
    conv = initialised()
    conv.reset_parameters()
    assert not conv.alpha_initialized and torch.equal(conv.alpha, torch.ones_like(conv.alpha))
    conv(torch.randn(4, 3, 9, 9))
    assert conv.alpha_initialized
