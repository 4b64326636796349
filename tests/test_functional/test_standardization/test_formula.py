"""Against formulas written anew in numpy float64, DeepMind's values and timm."""

import json

import numpy as np
import pytest
import torch
from timm.layers import ScaledStdConv2d
from torch.autograd import gradcheck, gradgradcheck

from nf_plugins.functional import parametric_standardize_weight, scaled_standardize_weight

from ...conftest import DATA, relative_error

SHAPES = [(5, 3, 3, 3), (4, 1, 3, 3), (8, 64, 1, 1), (2, 2, 5, 3)]


def numpy_scaled(w, gain, gamma, eps, mode):
    rows = w.reshape(len(w), -1)
    n = rows.shape[1]
    mean = rows.sum(1, keepdims=True) / n
    var = ((rows - mean) ** 2).sum(1, keepdims=True) / n
    if mode == 'clamp':
        std = np.sqrt(np.maximum(var * n, eps))
    else:
        std = np.sqrt(var + eps) * np.sqrt(n)
    return (gamma * gain[:, None] * (rows - mean) / std).reshape(w.shape)


@pytest.mark.slow
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(('mode', 'eps'), [('clamp', 1e-4), ('clamp', 0.5), ('add', 1e-5)])
def test_scaled_formula_and_gradients(shape, mode, eps):
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gain = torch.rand(shape[0], dtype=torch.float64, requires_grad=True)
    ours = scaled_standardize_weight(w, gain, 1.7, eps, mode)
    theirs = numpy_scaled(w.detach().numpy(), gain.detach().numpy(), 1.7, eps, mode)
    assert relative_error(ours, theirs) < 1e-12

    def function(w, gain):
        return scaled_standardize_weight(w, gain, 1.7, eps, mode)

    assert gradcheck(function, (w, gain))
    assert gradgradcheck(function, (w, gain))


@pytest.mark.slow
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('gamma', [1e-5, 0.1])
def test_parametric_formula_and_gradients(shape, gamma):
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    alpha = torch.rand(shape[0], 1, 1, 1, dtype=torch.float64, requires_grad=True)
    array = w.detach().numpy()
    mean = array.mean((1, 2, 3), keepdims=True)
    var = ((array - mean) ** 2).mean((1, 2, 3), keepdims=True)
    fan = 17
    theirs = np.sqrt(2 / fan) * alpha.detach().numpy() * (array - mean) / np.sqrt(var + gamma)
    assert relative_error(parametric_standardize_weight(w, alpha, gamma, fan), theirs) < 1e-12

    def function(w, alpha):
        return parametric_standardize_weight(w, alpha, gamma, fan)

    assert gradcheck(function, (w, alpha))
    assert gradgradcheck(function, (w, alpha))


@pytest.mark.parametrize('case', range(12))
def test_scaled_equals_deepmind(case):
    reference = np.load(DATA / 'wsconv_unit.npz')
    w = torch.from_numpy(reference[f'{case}/w']).permute(3, 2, 0, 1)
    gain = torch.from_numpy(reference[f'{case}/gain'])
    assert json.loads(str(reference[f'{case}/meta']))['fan_in'] == w[0].numel()
    theirs = reference[f'{case}/std_w'].transpose(3, 2, 0, 1)
    ours = scaled_standardize_weight(w, gain)
    np.testing.assert_allclose(ours[:3], theirs[:3], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours[4:], theirs[4:], rtol=1e-4, atol=1e-6)
    # Filter 3 is constant, so the answer is 0; theirs holds the rounding of W * s - mean * s.
    assert not ours[3].any()
    assert abs(theirs[3]).max() < 1e-4


def test_additive_eps_equals_timm():
    conv = ScaledStdConv2d(512, 4, 3, padding=0, gamma=1.7, eps=1e-5, gain_init=0.7)
    x = torch.randn(1, 512, 3, 3)
    with torch.no_grad():
        theirs = conv(x)
        weight = scaled_standardize_weight(conv.weight, conv.gain.flatten(), 1.7, None, 'add')
        ours = torch.nn.functional.conv2d(x, weight, conv.bias)
    assert relative_error(ours, theirs) < 1e-5
    # The two ways to keep the variance off zero differ visibly at this fan-in.
    official = scaled_standardize_weight(conv.weight, conv.gain.flatten(), 1.7)
    var = conv.weight.var(dim=(1, 2, 3), correction=0, keepdim=True)
    ratio = (1 + 1e-5 / var) ** -0.5
    assert ratio.max() < 0.95
    torch.testing.assert_close(weight, official * ratio, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_is_standardized_in_float32(dtype):
    w = (torch.randn(8, 64, 3, 3) * 1e-2 + 1).to(dtype)  # the mean cancels badly in 8 bits
    ours = scaled_standardize_weight(w)
    assert ours.dtype == dtype
    theirs = scaled_standardize_weight(w.double())
    assert relative_error(ours.double(), theirs) < 2 * torch.finfo(dtype).eps
