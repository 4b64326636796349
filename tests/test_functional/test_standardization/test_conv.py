"""The convolution with kernels of its own, against the formula in float64."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer
from torch.autograd import gradcheck, gradgradcheck
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nf_plugins.functional.standardization import (
    Standardization,
    kernels_c,
    standardize,
    standardized_conv2d,
)
from nf_plugins.layers import ScaledWSConv2d

from ...conftest import relative_error

compiled = pytest.mark.skipif(not kernels_c.supports(torch.empty(1)), reason='needs a C compiler')
OPTIONS = [
    dict(eps=1e-4, clamp=True, constant=1.7),
    dict(eps=1e3, clamp=True, constant=-0.3),  # clamped
    dict(eps=1e-5),
    dict(eps=0.0, constant=2.0),
]


def formula(w, scale, var_factor, eps, clamp=False, constant=1.0):
    """Weight and its derivative for a gradient g, in numpy float64, filter by filter."""
    w = np.asarray(w, np.float64).reshape(len(w), -1)
    n = w.shape[1]
    equal = np.ptp(w, axis=1, keepdims=True) == 0
    centred = np.where(equal, 0, w - w.mean(1, keepdims=True))
    v = var_factor * (centred**2).mean(1, keepdims=True)
    fixed = v < eps if clamp else np.zeros_like(v, bool)
    v = np.where(fixed, eps, v) if clamp else v + var_factor * eps
    if eps == 0:  # equal weights: 0, without a gradient
        v = np.where(equal, np.inf, v)
    root = np.sqrt(v)
    outer = constant * np.asarray(scale, np.float64).reshape(-1, 1)

    def gradients(g):
        g = np.asarray(g, np.float64).reshape(w.shape)
        along = (g * centred).sum(1, keepdims=True)
        inner = np.where(fixed, 0, along * var_factor / n / v) * centred
        return outer / root * (g - g.mean(1, keepdims=True) - inner), constant * along / root

    return outer * centred / root, gradients


def run_kernels(kernels, w, scale, g, **options):
    """What the kernels make of a weight, and of the gradient of the result, in place."""
    constants = Standardization(**options)
    out, again = torch.full_like(w, torch.nan), torch.full_like(w, torch.nan)
    stats = kernels.forward(w, scale, out, constants)
    kernels.recompute(w, scale, again, stats, constants.constant)
    grad = g.clone()
    grad_scale = kernels.backward(grad, w, grad, scale, stats, constants.constant)
    return out, again, grad, grad_scale


def check_kernels(kernels, w, options, tolerance=1e-5):
    torch.manual_seed(0)
    scale, g = torch.randn(len(w), dtype=w.dtype), torch.randn_like(w)
    options = dict(options, var_factor=float(w[0].numel()))
    out, again, grad, grad_scale = run_kernels(kernels, w, scale, g, **options)
    expected, gradients = formula(w, scale, **options)
    expected_grad, expected_scale = gradients(g)
    assert relative_error(out.flatten(1), expected) < tolerance
    assert relative_error(again.double(), out.double()) < tolerance / 10
    assert relative_error(grad.flatten(1), expected_grad) < tolerance
    assert relative_error(grad_scale[:, None], expected_scale) < tolerance


@compiled
@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('shape', [(5, 9), (3, 20000), (130, 64), (257, 1153), (1, 3)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_c_kernels(shape, options, dtype):
    torch.manual_seed(1)
    check_kernels(kernels_c, torch.randn(shape, dtype=dtype) + 1, options, 2e-5)


@compiled
@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('size', [1e-30, 1e-12, 1e12, 1e30])
def test_c_kernels_at_any_size(size, options):
    torch.manual_seed(1)
    w = size * (torch.randn(6, 100) + 1)
    if options['eps'] == 0 or size < 1 or options.get('clamp'):
        check_kernels(kernels_c, w, options)
    scale = torch.ones(6)
    if size > 1:  # eps does not count: the norm is that of the scale
        options = dict(options, var_factor=100.0)
        for out in (
            run_kernels(kernels_c, w, scale, w, **options)[0],
            standardize(w, scale, Standardization(**options)),
        ):
            expected = abs(options.get('constant', 1.0))
            torch.testing.assert_close(out.norm(dim=1), torch.full((6,), expected))
            assert out.mean(1).abs().max() < 1e-6


@compiled
def test_a_large_mean_does_not_cancel():
    w = torch.randn(4, 4608) + 1000
    check_kernels(kernels_c, w, OPTIONS[0], 1e-4)


EQUAL = [0.0, 0.1, -0.3, 7.0, 1 / 3, 1e-20, 3e12]


def equal_filters(size, dtype):
    """Filters of equal weights, between filters of different ones."""
    torch.manual_seed(1)
    w = torch.randn(2 * len(EQUAL), size, dtype=dtype)
    w[::2] = torch.tensor(EQUAL, dtype=dtype)[:, None]
    return w


def check_equal_filters(kernels, size, options, dtype=torch.float32):
    w = equal_filters(size, dtype)
    scale, g = torch.ones(len(w), dtype=dtype), torch.randn_like(w)
    options = dict(options, var_factor=float(size))
    out, again, grad, grad_scale = run_kernels(kernels, w, scale, g, **options)
    assert out[::2].eq(0).all() and again[::2].eq(0).all() and grad_scale[::2].eq(0).all()
    if options['eps'] == 0:
        assert grad[::2].eq(0).all()
    expected, gradients = formula(w, scale, **options)
    assert relative_error(out, expected) < 1e-5
    assert relative_error(grad, gradients(g)[0]) < 1e-5


EQUAL_OPTIONS = [*OPTIONS, dict(eps=0.0, clamp=True)]


@compiled
@pytest.mark.parametrize('options', EQUAL_OPTIONS)
@pytest.mark.parametrize('size', [3, 9, 27, 513, 4608])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_filters_of_equal_weights_in_c(size, options, dtype):
    check_equal_filters(kernels_c, size, options, dtype)


@pytest.mark.parametrize('options', EQUAL_OPTIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_filters_of_equal_weights_in_the_formula(options, dtype):
    w = equal_filters(27, dtype).requires_grad_()
    scale = torch.ones(len(w), dtype=dtype, requires_grad=True)
    out = standardize(w, scale, Standardization(27.0, **options))
    assert out[::2].eq(0).all()
    g = torch.randn_like(out)
    grad, grad_scale = torch.autograd.grad(out, (w, scale), g, create_graph=True)
    assert grad_scale[::2].eq(0).all()
    expected = formula(w.detach().double(), scale.detach().double(), 27.0, **options)[1](g)[0]
    if options['eps'] == 0:
        assert grad[::2].eq(0).all()
    assert relative_error(grad.double(), expected) < (0.01 if dtype == torch.bfloat16 else 1e-5)
    if options['eps'] == 0:
        second = torch.autograd.grad(grad.square().sum() + grad_scale.sum(), (w, scale))
        assert all(x.isfinite().all() for x in second)


@pytest.mark.parametrize('how', ['kernels', 'plain', 'compiled'])
@pytest.mark.parametrize('value', [0.0, 0.1])
@pytest.mark.parametrize(
    'layer', [dict(type='ScaledWS', eps_mode=mode, eps=0) for mode in ('add', 'clamp')]
    + [dict(type='PWS', gamma=0)],
)  # fmt: skip
def test_layers_with_filters_of_equal_weights(layer, value, how, monkeypatch):
    if how == 'plain':
        monkeypatch.setattr(kernels_c, '_library', dict)
    conv = build_conv_layer(dict(layer, type=f'nf_plugins.{layer["type"]}'), 3, 4, 3, bias=False)
    with torch.no_grad():
        conv.weight[1] = value
    forward = torch.compile(conv, backend='eager') if how == 'compiled' else conv
    out = forward(torch.randn(2, 3, 8, 8))
    assert out[:, 1].eq(0).all() and out[:, 0].var() > 0
    out.square().sum().backward()
    assert conv.weight.grad[1].eq(0).all() and conv.weight.grad[0].norm() > 0
    assert all(p.grad.isfinite().all() for p in conv.parameters())


TRITON = """
import sys
sys.path[:0] = [{root!r}]
import torch
from nf_plugins.functional.standardization import Standardization, kernels_triton
from tests.test_functional.test_standardization.test_conv import (
    EQUAL_OPTIONS, OPTIONS, check_equal_filters, check_kernels, formula, run_kernels
)

torch.manual_seed(1)
for options in OPTIONS:
    for shape in [(5, 9), (3, 20000), (130, 64), (9, 1153)]:
        check_kernels(kernels_triton, torch.randn(shape) + 1, options)
    check_kernels(kernels_triton, 1e-12 * torch.randn(6, 100), options)
    check_kernels(kernels_triton, 1e30 * torch.randn(6, 100), options)
for options in EQUAL_OPTIONS:
    for size in (3, 9, 27, 1153):
        check_equal_filters(kernels_triton, size, options)
# A result, and its gradient, in the dtype of the convolution.
w, scale = torch.randn(8, 27), torch.rand(8)
options = dict(var_factor=27.0, eps=1e-4, clamp=True, constant=1.0)
out = torch.empty(8, 27, dtype=torch.bfloat16)
stats = kernels_triton.forward(w, scale, out, Standardization(**options))
expected, gradients = formula(w, scale, **options)
assert (out.double() - torch.from_numpy(expected)).abs().max() < 0.01
g, grad = torch.randn(8, 27).bfloat16(), torch.empty(8, 27)
kernels_triton.backward(g, w, grad, scale, stats, 1.0)
assert (grad.double() - torch.from_numpy(gradients(g.double())[0])).abs().max() < 1e-4
print('as the formula')
"""


@pytest.mark.slow
def test_triton_kernels_in_the_interpreter():
    pytest.importorskip('triton')
    code = TRITON.format(root=str(Path(__file__).parents[3]))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'as the formula\n'


@pytest.mark.cuda
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_on_cuda_as_on_the_cpu(dtype, memory_format):
    x, w, scale, g = (t.double() for t in example())
    expected = reference(x, w, scale, g)
    tensors = [t.float().cuda() for t in (x, w, scale)]
    tensors = [t.to(memory_format=memory_format) if t.dim() == 4 else t for t in tensors]
    tensors = [t.requires_grad_() for t in tensors]
    with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
        out = standardized_conv2d(*tensors, CONSTANTS, **CONV)
    out.backward(g.to(out))
    found = [out, *(t.grad for t in tensors)]
    assert out.dtype == dtype
    for a, b in zip(found, expected):
        assert relative_error(a.detach().double().cpu(), b) < (1e-5 if dtype == w.dtype else 0.03)


CONV = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
CONSTANTS = Standardization(var_factor=36.0, eps=1e-4, clamp=True, constant=1.7)


def example(dtype=torch.float32, shapes=((3, 8, 9, 8), (6, 4, 3, 3), (6,), (3, 6, 5, 4))):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def reference(x, w, scale, g):
    """Output and gradients, with numpy's weight and torch's gradient of a convolution."""
    weight, gradients = formula(w, scale, **asdict(CONSTANTS))
    weight = torch.from_numpy(weight).view(w.shape).requires_grad_()
    x = x.clone().requires_grad_()
    out = F.conv2d(x, weight, None, *CONV.values())
    out.backward(g)
    grad_w, grad_scale = gradients(weight.grad)
    return out.detach(), x.grad, torch.from_numpy(grad_w).view(w.shape), grad_scale[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('how', ['kernels', 'plain'])
def test_convolution_and_gradients(how, memory_format, monkeypatch):
    if how == 'plain':
        monkeypatch.setattr(kernels_c, '_library', dict)
    x, w, scale, g = example(torch.float64)
    expected = reference(x, w, scale, g)
    x, w = (t.to(memory_format=memory_format) for t in (x, w))
    inputs = [t.requires_grad_() for t in (x, w, scale)]
    out = standardized_conv2d(*inputs, CONSTANTS, **CONV)
    assert ('StandardizedConv2d' in out.grad_fn.name()) == (how == 'kernels')
    out.backward(g)
    for a, b in zip([out, *(t.grad for t in inputs)], expected):
        assert relative_error(a.detach(), b) < 1e-12

    def function(x, w, scale):
        return standardized_conv2d(x, w, scale, CONSTANTS, **CONV)

    small = example(torch.float64, ((2, 4, 4, 5), (4, 2, 3, 3), (4,)))
    x, w = (t.to(memory_format=memory_format) for t in small[:2])
    inputs = [t.requires_grad_() for t in (x, w, small[2])]
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize('frozen', [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_what_needs_no_gradient_gets_none(frozen):
    x, w, scale, g = example(torch.float64)
    expected = reference(x, w, scale, g)
    inputs = [t.requires_grad_(i not in frozen) for i, t in enumerate((x, w, scale))]
    standardized_conv2d(*inputs, CONSTANTS, **CONV).backward(g)
    for i, t in enumerate(inputs):
        if i in frozen:
            assert t.grad is None
        else:
            assert relative_error(t.grad, expected[i + 1]) < 1e-12


def test_two_graphs_at_once():
    """The standardized weights of several passes are not mixed up."""
    x, w, scale, g = example(torch.float64)
    expected = reference(x, w, scale, g)
    w.requires_grad_()
    first = standardized_conv2d(x, w, scale, CONSTANTS, **CONV)
    other = standardized_conv2d(x, w.detach() * 3 + 1, scale, CONSTANTS, **CONV)
    second = standardized_conv2d(x, w, scale, CONSTANTS, **CONV)
    assert relative_error(other, expected[0]) < 1e-12  # invariant
    (first + 2 * second).backward(g)
    assert relative_error(w.grad, 3 * expected[2]) < 1e-12


def test_threads_do_not_disturb_each_other():
    """Convolutions of different weights at the same time, forward and backward."""
    cases = [example(torch.float64) for _ in range(4)]
    for factor, case in enumerate(cases, start=1):
        case[1] = factor * case[1] + torch.rand_like(case[1])
    expected = [reference(*case) for case in cases]

    def work(number):
        x, w, scale, g = cases[number]
        w = w.requires_grad_()
        errors = []
        for _ in range(25):
            out = standardized_conv2d(x, w, scale, CONSTANTS, **CONV)
            (grad,) = torch.autograd.grad(out, w, g)
            errors += [relative_error(out.detach(), expected[number][0])]
            errors += [relative_error(grad, expected[number][2])]
        return max(errors)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(4))) < 1e-12


def test_a_mode_may_keep_the_standardized_weight():
    """What sees the weight of a convolution finds the same values in it afterwards."""

    class Keeps(TorchFunctionMode):
        kept = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.conv2d:
                self.kept.append((args[1], args[1].clone()))
            return func(*args, **(kwargs or {}))

    x, w, scale, _ = example()
    with Keeps() as mode:
        for factor in (1, 2):
            standardized_conv2d(x, w, factor * scale, CONSTANTS, **CONV)
    assert len(mode.kept) == 2
    assert all(torch.equal(weight, before) for weight, before in mode.kept)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_an_input_of_another_dtype_than_the_weight(dtype):
    """PyTorch's own error, before anything is written to memory of another size."""
    x, w, scale, _ = example()
    with pytest.raises(RuntimeError, match='type'):
        standardized_conv2d(x.to(dtype), w, scale, CONSTANTS, **CONV)


def test_nothing_is_kept_that_a_convolution_would_not_keep():
    x, w, scale, _ = example()
    w.requires_grad_()
    scale.requires_grad_()
    own = {t.untyped_storage().data_ptr() for t in (x, w, scale)}
    kept = []

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        standardized_conv2d(x, w, scale, CONSTANTS, **CONV)
    assert sum(t.numel() for t in kept) <= 3 * len(w)  # mean, factor and slope of each filter


def test_modes_see_plain_operations():
    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.__name__.partition('.')[0])
            return func(*args, **(kwargs or {}))

    x, w, scale, _ = example()
    with Names() as seen:
        out = standardized_conv2d(x, w, scale, CONSTANTS, **CONV)
    assert {'var_mean', 'convolution'} <= set(seen.names)
    assert relative_error(out, standardized_conv2d(x, w, scale, CONSTANTS, **CONV)) < 1e-6


def test_batched_gradients():
    conv = ScaledWSConv2d(4, 6, 3).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    out, wanted = conv(x), (x, conv.weight, conv.gain, conv.bias)
    grads = torch.randn(3, *out.shape, dtype=torch.float64)
    one_by_one = [torch.autograd.grad(out, wanted, g, retain_graph=True) for g in grads]
    batched = torch.autograd.grad(out, wanted, grads, is_grads_batched=True)
    for found, expected in zip(batched, zip(*one_by_one)):
        torch.testing.assert_close(found, torch.stack(expected))
