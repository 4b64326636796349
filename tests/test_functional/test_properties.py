"""What holds for any shape, dtype, size and option, by hypothesis.

The references are numpy's, in wider arithmetic. Tolerances follow from the rounding unit u:
n roundings add up like a random walk, to about sqrt(n) u, of which four times as much is
allowed; where a mean far from zero is subtracted, the error grows with their ratio.
"""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nf_plugins.functional import (
    adaptive_clip_grad_,
    channel_statistics,
    parametric_standardize_weight,
    scaled_standardize_weight,
)
from nf_plugins.functional.standardization import (
    Standardization,
    kernels_c,
    standardize,
    standardized_conv2d,
)
from nf_plugins.layers import PWSConv2d, ScaledWSConv2d
from nf_plugins.models import NFNet, NFRegNet, NFResNet, PWSResNet
from nf_plugins.models.backbones.nf_block import NFBlock

from .test_standardization.test_conv import compiled, run_kernels

HALF = (torch.float16, torch.bfloat16)


def thorough(examples):
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def unit(dtype):
    """The rounding unit of what a dtype is computed in."""
    return torch.finfo(torch.float32 if dtype in HALF else dtype).eps / 2


def walk(count):
    """Rounding units after so many operations."""
    return 4 * math.sqrt(count) + 8


def exact(x):
    """The values of a tensor in numpy's widest floats."""
    return x.detach().double().numpy().astype(np.longdouble)


def draw_tensor(data, shape, dtype, low=-30, high=30, offsets=(0, 1, -30, 1000)):
    """Gaussian values of any size, around a mean that may be far from zero."""
    torch.manual_seed(data.draw(st.integers(0, 2**31), 'seed'))
    limits = (max(low, -3), min(high, 1)) if dtype == torch.float16 else (low, high)
    size = 10.0 ** data.draw(st.integers(*limits), 'exponent')
    offset = data.draw(st.sampled_from(offsets), 'offset')
    return (size * (torch.randn(shape, dtype=torch.float64) + offset)).to(dtype)


# ------------------------------------------------------------ standardization
fans = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.integers(1, 450), st.just(3), st.just(3)),
    st.tuples(st.integers(2, 4000), st.just(1), st.just(1)),
).filter(lambda fan: math.prod(fan) >= 2)
standardizations = st.fixed_dictionaries(
    dict(
        eps=st.sampled_from([0.0, 1e-12, 1e-5, 1e-4, 1.0, 1e3]),
        clamp=st.booleans(),
        constant=st.sampled_from([1.0, -0.3, 1.7139588594436646, 12.5]),
    )
)


def check_standardized(found, w, scale, fan, eps, clamp=False, constant=1.0):
    """Mean 0, the norm that the formula says, and each value as the formula says."""
    w, scale, dtype = exact(w.flatten(1)), exact(scale)[:, None], found.dtype
    found, count = exact(found.flatten(1)), w.shape[1]
    mean = w.mean(1, keepdims=True)
    var = ((w - mean) ** 2).mean(1, keepdims=True)
    v = np.maximum(fan * var, np.longdouble(eps)) if clamp else fan * (var + eps)
    norm = np.abs(constant * scale) * np.sqrt(count * var / v)

    condition = 1 + np.sqrt((w**2).mean(1, keepdims=True) / var)
    error = walk(count) * unit(dtype) * condition * norm  # of the 2-norm of the difference
    rounding = torch.finfo(dtype)  # of the result: of each value, and where values are tiny
    half = rounding.eps / 2 * norm if dtype in HALF else 0
    error = error + half + math.sqrt(count) * rounding.smallest_normal * rounding.eps

    def size(x):
        return np.sqrt((x**2).sum(1, keepdims=True))

    assert (np.abs(found.mean(1, keepdims=True)) * math.sqrt(count) <= error).all()
    assert (np.abs(size(found) - norm) <= error).all()
    assert (size(found - constant * scale * (w - mean) / np.sqrt(v)) <= error).all()


def draw_weight(data, dtype, fan=fans, **limits):
    shape = (data.draw(st.integers(1, 4), 'out_channels'), *data.draw(fan, 'fan'))
    w = draw_tensor(data, shape, dtype, **limits)
    assume((w.flatten(1) != w.flatten(1)[:, :1]).any(1).all())  # a constant filter is noise
    return w, torch.empty(len(w), dtype=dtype).uniform_(-2, 2)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, *HALF])
@thorough(60)
@given(data=st.data(), options=standardizations)
def test_the_plain_formula(dtype, data, options):
    w, scale = draw_weight(data, dtype)
    fan = data.draw(st.sampled_from([1.0, w[0].numel(), w[0].numel() / 2]))
    found = standardize(w, scale, Standardization(fan, **options))
    assert found.dtype == (torch.float32 if dtype in HALF else dtype)
    check_standardized(found, w, scale, fan, **options)


@compiled
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@thorough(60)
@given(data=st.data(), options=standardizations)
def test_the_c_kernels(dtype, data, options):
    w, scale = draw_weight(data, dtype)
    fan = float(w[0].numel())
    out, again, _, _ = run_kernels(
        kernels_c, w.contiguous(), scale, torch.ones_like(w), var_factor=fan, **options
    )
    for found in (out, again):
        check_standardized(found, w, scale, fan, **options)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, *HALF])
@thorough(40)
@given(data=st.data())
def test_the_public_functions(dtype, data):
    w, scale = draw_weight(data, dtype)
    fan = w[0].numel()
    eps_mode = data.draw(st.sampled_from(['clamp', 'add']))
    gamma = data.draw(st.sampled_from([1.0, 1.7881293296813965]))
    found = scaled_standardize_weight(w, scale, gamma, eps_mode=eps_mode)
    assert found.dtype == dtype
    clamp = eps_mode == 'clamp'
    check_standardized(found, w, scale, fan, 1e-4 if clamp else 1e-5, clamp, gamma)
    gamma = data.draw(st.sampled_from([0.0, 1e-5, 1e-2]))
    fan = data.draw(st.integers(1, 5000))
    found = parametric_standardize_weight(w, scale.view(-1, 1, 1, 1), gamma, fan)
    assert found.dtype == dtype
    check_standardized(found, w, scale, fan / 2, gamma)


@pytest.mark.parametrize('kernels', [True, False])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@thorough(30)
@given(data=st.data(), options=standardizations)
def test_the_convolution_of_impulses(dtype, kernels, data, options):
    """The response to impulses is the standardized weight, with kernels and without."""
    small = st.tuples(st.integers(1, 8), st.integers(1, 3), st.integers(1, 4))
    w, scale = draw_weight(data, dtype, small.filter(lambda fan: math.prod(fan) >= 2))
    fan = w[0].numel()
    impulses = torch.eye(fan, dtype=dtype).view(fan, *w.shape[1:])
    with pytest.MonkeyPatch.context() as patch:
        if not kernels:
            patch.setattr(kernels_c, '_library', dict)
        found = standardized_conv2d(impulses, w, scale, Standardization(float(fan), **options))
    check_standardized(found.view(fan, len(w)).T, w, scale, fan, **options)


@pytest.mark.slow
# ------------------------------------------------------------ statistics
@thorough(150)
@given(data=st.data())
def test_statistics_merge_in_any_order(data):
    """Any split, merged in any order, is what numpy measures at once."""
    shape = [data.draw(st.integers(1, most)) for most in (12, 4, 6, 6)]
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    offsets = (0, 1, -1000, 1e6)
    x = draw_tensor(data, shape, dtype, low=-15, high=15, offsets=offsets)
    parts = [channel_statistics(part) for part in split(data, x)]
    whole = channel_statistics(x)
    while len(parts) > 1:  # any tree
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        second = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(first + second)

    values = np.moveaxis(exact(x), 1, 0).reshape(shape[1], -1)
    count = values.shape[1]
    mean, m2 = values.mean(1), ((values - values.mean(1, keepdims=True)) ** 2).sum(1)
    size = np.sqrt((values**2).mean(1))
    slack = walk(count) * unit(torch.float64)
    for stats in (*parts, whole):
        assert stats.count == count
        assert (np.abs(exact(stats.mean) - mean) <= slack * size).all()
        # Of a sum of squares of values that each are off by `slack * size`.
        noise = slack * size * math.sqrt(count)
        assert (
            np.abs(exact(stats.m2) - m2) <= slack * m2 + noise * (2 * np.sqrt(m2) + noise)
        ).all()


def split(data, x):
    """Consecutive pieces along the batch."""
    cuts = data.draw(st.lists(st.integers(1, len(x)), max_size=5), 'cuts')
    edges = sorted({0, len(x), *cuts})
    return [x[a:b] for a, b in itertools.pairwise(edges)]


# ------------------------------------------------------------ folding
def randomize(net):
    """Parameters as after some training: none at zero or one."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.dim() < 2 or name.endswith('alpha'):
                p.add_(torch.randn_like(p) * 0.3)


def tolerance(net, x):
    """Relative, of an output: every convolution adds the roundings of its sums."""
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    return unit(x.dtype) * sum(walk(m.weight[0].numel()) for m in convs)


def check_same(found, expected, slack):
    """Equal up to rounding, which the gates of a large signal enlarge: a sigmoid turns the
    absolute error of its argument into a relative one."""
    slack = slack * (1 + max(expected[0].abs().max().item(), 1))
    for a, b in zip(found, expected):
        assert (a - b).norm() <= slack * b.norm()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Using padding=.same. with even kernel:UserWarning')
@thorough(60)
@given(data=st.data())
def test_a_folded_layer_gives_the_same(data):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    groups = data.draw(st.sampled_from([1, 2, 4]))
    options = dict(
        kernel_size=data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        stride=data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        dilation=data.draw(st.integers(1, 2)),
        padding=data.draw(st.sampled_from(['same', 'valid', 0, 1, (2, 1)])),
        groups=groups,
        bias=data.draw(st.booleans()),
    )
    kinds = [
        (ScaledWSConv2d, dict(eps_mode=data.draw(st.sampled_from(['clamp', 'add'])), gamma=1.7)),
        (ScaledWSConv2d, dict(gain_init=None, eps=1.0)),
        (PWSConv2d, dict(gamma=1e-2, equiv=data.draw(st.booleans()), mode='fan_out')),
    ]
    layer, constants = data.draw(st.sampled_from(kinds))
    conv = layer(2 * groups, 4, **options, **constants).double().eval()
    randomize(conv)
    x = torch.randn(2, 2 * groups, *data.draw(st.tuples(*[st.integers(7, 11)] * 2))).double()
    with torch.no_grad():
        before = conv(x)
        conv.switch_to_deploy()
        assert type(conv)(4, 4, 1)(torch.ones(1, 4, 1, 1)).shape == (1, 4, 1, 1)  # a plain class
        check_same([conv(x)], [before], tolerance(conv, x))


@st.composite
def networks(draw):
    """A small network of any normalizer-free family, with any options."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    depths = draw(st.tuples(*[st.integers(1, 2)] * 4))
    strides = draw(st.tuples(*[st.integers(1, 2)] * 4))
    options = dict(
        act_cfg=dict(type=draw(st.sampled_from(['ReLU', 'SiLU', 'GELU', 'Identity']))),
        alpha=draw(st.sampled_from([0.2, 1.0])),
        skipinit=draw(st.sampled_from([True, False, 0.7])),
        padding=draw(st.sampled_from(['same', 'symmetric'])),
        downsample=draw(st.sampled_from(['conv', 'avg'])),
        attention=draw(st.sampled_from([False, 'se', 'eca'])),
        dilations=draw(st.tuples(*[st.integers(1, 2)] * 4)),
        rescale_input=draw(st.booleans()),
        conv_cfg=draw(st.sampled_from([dict(type='ScaledWS'), dict(type='PWS'), None])),
        drop_path_rate=draw(st.sampled_from([0.0, 0.5])),
        scale_by_keep=draw(st.booleans()),
    )
    arch = dict(depths=depths, strides=strides, gamma_at=draw(st.sampled_from(['act', 'conv'])))
    family = draw(st.sampled_from(['NFResNet', 'NFRegNet', 'NFNet']))
    if family == 'NFResNet':
        stem = draw(st.sampled_from(['imagenet', 'cifar']))
        arch['depth'] = arch.pop('depths')
        net = NFResNet(base_channels=4, stem=stem, **arch, **options)
    elif family == 'NFRegNet':
        net = NFRegNet(dict(base='b0', width_mult=0.25, **arch), **options)
    else:
        small = dict(widths=(16, 16, 32, 32), group_width=4, stem_channels=8)
        net = NFNet(dict(base='f0', **small, **arch), **options)
    net = net.double()
    randomize(net)
    return net, torch.randn(2, 3, *draw(st.tuples(*[st.integers(1, 40)] * 2)), dtype=torch.double)


@pytest.mark.slow
@thorough(25)
@given(case=networks())
def test_a_folded_network_gives_the_same(case):
    net, x = case
    net.eval()
    with torch.no_grad():
        before = net(x)
        net.switch_to_deploy()
        check_same(net(x), before, tolerance(net, x))


@pytest.mark.slow
@thorough(25)
@given(case=networks(), training=st.booleans())
def test_the_scale_of_a_branch_in_the_weights_or_behind_them(case, training):
    """NFBlock.fold_scale changes neither the output nor the gradients."""
    net, x = case
    net.train(training)
    results = []
    for fold_scale in (True, False):
        twin, leaf = copy.deepcopy(net), x.clone().requires_grad_()
        for module in twin.modules():
            if isinstance(module, NFBlock):
                module.fold_scale = fold_scale
        torch.manual_seed(7)  # of stochastic depth
        out = twin(leaf)[-1]
        (out * torch.randn_like(out)).sum().backward()
        grads = [p.grad for p in twin.parameters() if p.grad is not None]
        results.append((out.detach(), leaf.grad, torch.cat([g.flatten() for g in grads])))
    check_same(*results, 10 * tolerance(net, x))


@pytest.mark.slow
@thorough(10)
@given(data=st.data())
def test_a_folded_pws_resnet_gives_the_same(data):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    net = PWSResNet(
        data.draw(st.sampled_from([18, 50])),
        base_channels=4,
        stem_channels=4,
        stem=data.draw(st.sampled_from(['imagenet', 'cifar'])),
        style=data.draw(st.sampled_from(['pytorch', 'caffe'])),
        avg_down=data.draw(st.booleans()),
        conv_cfg=dict(
            type='PWS', gamma=1e-3, mode=data.draw(st.sampled_from(['fan_in', 'fan_out']))
        ),
    )
    net = net.double().eval()
    randomize(net)
    x = torch.randn(2, 3, 33, 40, dtype=torch.float64)
    with torch.no_grad():
        before = net(x)
        net.switch_to_deploy()
        check_same(net(x), before, tolerance(net, x))


# ------------------------------------------------------------ adaptive gradient clipping
shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(1, 40)),
    st.tuples(*[st.integers(1, 12)] * 2),
    st.tuples(*[st.integers(1, 5)] * 4),
)


@pytest.mark.slow
@thorough(150)
@given(data=st.data())
def test_clipped_gradients_keep_to_their_limit(data):
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    clip_factor = data.draw(st.sampled_from([1e-3, 0.01, 0.16, 1.0, 30.0]))
    eps = data.draw(st.sampled_from([1e-6, 1e-3, 1.0]))
    params = []
    for _ in range(data.draw(st.integers(1, 4))):
        shape = data.draw(shapes, 'shape')
        p = torch.nn.Parameter(draw_tensor(data, shape, dtype, -15, 15))
        p.grad = draw_tensor(data, shape, dtype, -15, 15)
        p.grad *= torch.rand(shape[:1] + (1,) * (len(shape) - 1), dtype=dtype) > 0.2
        params.append(p)
    before = [p.grad.clone() for p in params]
    fraction = adaptive_clip_grad_(params, clip_factor, eps)

    units, least, most = 0, 0, 0
    for p, old in zip(params, before):
        whole = sum(size > 1 for size in p.shape) <= 1  # a vector is one unit
        w, g, new = (exact(x).reshape(1 if whole else len(p), -1) for x in (p, old, p.grad))
        limit = clip_factor * np.maximum(np.sqrt((w**2).sum(1)), eps)
        norm, found = (np.sqrt((x**2).sum(1)) for x in (g, new))
        slack = 2 * walk(w.shape[1]) * unit(dtype)  # of two norms
        changed = (g != new).any(1)
        assert (found <= limit * (1 + slack)).all()
        assert not changed[norm < limit * (1 - slack)].any()  # to the bit
        over = norm > limit * (1 + slack)
        assert changed[over].all()
        # As long as the limit, unless that is below the 1e-6 that divisors have at least.
        wanted = limit * np.minimum(norm / 1e-6, 1)
        assert (np.abs(found - wanted)[over] <= slack * wanted[over]).all()
        cosine = (g * new).sum(1)[over] / (norm * found)[over]
        assert (np.abs(cosine - 1) <= slack).all()
        units += len(w)
        least, most = least + over.sum(), most + (norm >= limit * (1 - slack)).sum()
    assert least - 0.01 <= fraction.item() * units <= most + 0.01
