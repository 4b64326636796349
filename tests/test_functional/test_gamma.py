import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule

from nf_plugins.functional import GAMMA, activation_gamma, activation_name
from nf_plugins.layers import GammaAct

from ..conftest import DATA


@pytest.mark.parametrize('name', GAMMA)
def test_gamma_preserves_the_variance_of_a_unit_gaussian(name):
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2)
    density /= density.sum()
    y = GammaAct(name)(z)
    var = (density * y**2).sum() - (density * y).sum() ** 2
    # The official constants were estimated on samples.
    assert var.item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize('name', GAMMA)
def test_equals_deepmind(name):
    reference = np.load(DATA / 'wsconv_unit.npz')
    key = {'softsign': 'soft_sign'}.get(name, name)
    x = torch.from_numpy(reference['act/x'])
    kwargs = {'approximate': 'tanh'} if name == 'gelu' else {}
    np.testing.assert_allclose(
        GammaAct(name, **kwargs)(x), reference[f'act/{key}'], rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize(
    ('name', 'canonical'),
    [('ReLU', 'relu'), ('LeakyReLU', 'leaky_relu'), ('Swish', 'silu'), ('soft_sign', 'softsign')],
)
def test_spellings(name, canonical):
    assert activation_name(name) == canonical
    assert activation_gamma(name) == GAMMA[canonical]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown activation 'HSwish': .*relu"):
        activation_gamma('HSwish')
    with pytest.raises(TypeError, match='name of an activation must be a string'):
        activation_gamma(None)
    with pytest.raises(ValueError, match='unknown activation'):
        GammaAct('HSwish')
    assert GammaAct('HSwish', gamma=1.5).gamma == 1.5


@pytest.mark.parametrize('name', GAMMA)
def test_in_the_modules_of_mmcv(name):
    """ConvModule asks every activation to work in place."""
    module = ConvModule(3, 4, 1, act_cfg=dict(type='GammaAct', act=name))
    x = torch.randn(2, 3, 5, 5)
    expected = GammaAct(name)(module.conv(x))
    torch.testing.assert_close(module(x), expected)
    module(x).sum().backward()
    inplace = torch.stack([p.grad.norm() for p in module.parameters()])
    module.zero_grad()
    GammaAct(name)(module.conv(x)).sum().backward()
    torch.testing.assert_close(inplace, torch.stack([p.grad.norm() for p in module.parameters()]))
