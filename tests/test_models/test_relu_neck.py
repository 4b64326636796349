import pytest
import torch
from mmengine.registry import MODELS

from nf_plugins.functional import activation_gamma
from nf_plugins.models import ReLUNeck


@pytest.mark.parametrize('name', ['ReLUNeck', 'nf_plugins.ReLUNeck'])
def test_norm_activation_and_pooling(name):
    neck = MODELS.build(dict(type=name, in_channels=4, norm_cfg=dict(type='GN', num_groups=1)))
    x = torch.randn(2, 4, 3, 5) * 7 + 2
    flat = x.flatten(1)
    normed = (flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)
    expected = normed.view_as(x).clamp_min(0)
    (pooled,) = neck((x,))
    torch.testing.assert_close(pooled, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    neck.avgpool = False
    torch.testing.assert_close(neck(x), expected, rtol=1e-4, atol=1e-5)


def test_scaled_activation():
    neck = ReLUNeck(4, act_cfg=dict(type='GammaAct', act='SiLU'), avgpool=False)
    x = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(neck(x), x * torch.sigmoid(x) * activation_gamma('silu'))
    a, b = neck((x, 2 * x))
    assert torch.equal(b, neck(2 * x))
    assert torch.equal(a, neck(x))


def test_all_outputs_of_a_backbone():
    """One norm for each input, and none without a norm."""
    inputs = tuple(torch.randn(2, c, s, s) * 3 + 1 for c, s in ((4, 6), (8, 3)))
    norm_cfg = dict(type='GN', num_groups=1)
    neck = ReLUNeck([4, 8], norm_cfg, avgpool=False)
    for x, out in zip(inputs, neck(inputs)):
        flat = x.flatten(1)
        normed = (flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)
        torch.testing.assert_close(out, normed.view_as(x).clamp_min(0), rtol=1e-4, atol=1e-5)
    for x, out in zip(inputs, ReLUNeck(avgpool=False)(inputs)):
        assert torch.equal(out, x.clamp_min(0))
    assert list(ReLUNeck(4, norm_cfg).state_dict()) == ['norm.weight', 'norm.bias']
    with pytest.raises(ValueError, match='needs in_channels'):
        ReLUNeck(norm_cfg=norm_cfg)
    with pytest.raises(ValueError, match='in_channels has 2 values, got 1 inputs'):
        neck(inputs[:1])
