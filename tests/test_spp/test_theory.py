"""Measured beside expected: the papers' claims."""

import math

import pytest
import torch
from mmengine.registry import MODELS

from nf_plugins.models import NFResNet, PWSResNet, ResNetV2
from nf_plugins.models.timm_models import TIMM_BACKBONES
from nf_plugins.spp import analyze

X = torch.randn(8, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def profile(build, **kwargs):
    torch.manual_seed(0)
    net = build(**kwargs)
    net.init_weights()
    return analyze(net, X).blocks


@pytest.mark.slow
@pytest.mark.parametrize(('order', 'branch'), [('bn_relu', 1 - 1 / math.pi), ('relu_bn', 1.0)])
def test_batch_norm(order, branch):
    """Brock et al. 2021a, 3.1: 0.68 a block with He's weights, 1 with 1/fan_in behind the norm."""
    blocks = profile(ResNetV2, depth=50, order=order)
    assert blocks[0].expected_var is None
    for before, block in zip([None, *blocks], blocks):
        if block.kind == 'stem':
            continue
        assert block.expected_res_var == pytest.approx(branch, rel=0.05)
        assert block.res_avg_var == pytest.approx(block.expected_res_var, rel=0.08)
        start = before.expected_var if block.kind == 'residual' else branch
        assert block.expected_var == pytest.approx(start + branch, rel=0.05)
        assert block.avg_var == pytest.approx(block.expected_var, rel=0.15)


@pytest.mark.slow
def test_no_theory_of_trained_or_evaluated_batch_norm():
    torch.manual_seed(0)
    net = ResNetV2(26)
    assert all(b.expected_var is None for b in analyze(net, X, mode='eval').blocks)
    for name, parameter in net.named_parameters():
        if 'norm' in name:
            parameter.data.uniform_(0.5, 1.5)
    assert all(b.expected_var is None for b in analyze(net, X).blocks)


@pytest.mark.slow
@pytest.mark.parametrize('alpha', [0.2, 0.5])
def test_normalizer_free(alpha):
    """Section 4: 1 at the stem, alpha^2 more per block, again 1 + alpha^2 at a transition."""
    blocks = profile(NFResNet, depth=50, alpha=alpha, skipinit=1.0)
    expected = 1.0
    for block in blocks[1:]:
        expected = (1.0 if block.kind == 'transition' else expected) + alpha**2
        assert block.expected_var == pytest.approx(expected)
        assert block.expected_res_var == 1.0
        assert block.avg_var == pytest.approx(expected, rel=0.15)
    assert blocks[0].expected_var == 1.0


@pytest.mark.slow
def test_timms_blocks_have_the_same_theory():
    import timm

    config = TIMM_BACKBONES['nf_resnet50']
    theirs = analyze(timm.create_model('nf_resnet50'), X[:1]).blocks
    ours = analyze(MODELS.build(config), X[:1]).blocks
    assert [b.expected_var for b in theirs] == pytest.approx([b.expected_var for b in ours])
    assert [b.kind for b in theirs] == [b.kind for b in ours]


@pytest.mark.parametrize(
    'build',
    [
        lambda: PWSResNet(18),
        lambda: NFResNet(26, conv_cfg=dict(type='Conv2d')),
        lambda: MODELS.build(dict(type='mmpretrain.ResNet', depth=18)),
        lambda: MODELS.build(dict(type='mmpretrain.ConvNeXt', arch='atto')),
    ],
)
def test_no_theory_elsewhere(build):
    assert all(b.expected_var is None for b in analyze(build(), X[:2]).blocks)


def test_the_theory_of_a_wrong_alpha_is_that_of_the_right_one():
    torch.manual_seed(0)
    wrong = NFResNet(26, base_channels=8, skipinit=1.0, alpha=1.0)
    right = NFResNet(26, base_channels=8, skipinit=1.0)
    x = torch.randn(2, 3, 64, 64)
    expected = [[b.expected_var for b in analyze(net, x).blocks] for net in (wrong, right)]
    assert expected[0] == pytest.approx(expected[1])
