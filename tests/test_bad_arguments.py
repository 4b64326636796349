"""A table of bad arguments: each is refused by name, before anything is made of it."""

import contextlib

import pytest
import torch
from torch import nn

from nf_plugins.datasets import Digits
from nf_plugins.engine import AGCAmpOptimWrapper, AGCOptimWrapper, SPPHook
from nf_plugins.functional import (
    activation_gamma,
    adaptive_clip_grad_,
    channel_statistics,
    parametric_standardize_weight,
    scaled_standardize_weight,
    unitwise_norm,
)
from nf_plugins.functional.standardization import Standardization, standardized_conv2d
from nf_plugins.layers import (
    ECA,
    DropPath,
    GammaAct,
    PWSConv2d,
    ScaledWSConv2d,
    SqueezeExcite,
    build_activation,
)
from nf_plugins.models import (
    FixupResNet,
    NFNet,
    NFRegNet,
    NFResNet,
    PWSResNet,
    ReLUNeck,
    ResNetV2,
    SkipInitResNet,
)
from nf_plugins.models.timm_models import timm_config
from nf_plugins.spp import analyze
from nf_plugins.spp.inputs import image_files

NAN, INF, HUGE = float('nan'), float('inf'), 10**30

# What is accepted, to be spoilt one argument at a time.
ONES = torch.ones(4, 2, 3, 3)
SMALL = dict(depth=(1, 1, 1, 1), base_channels=4)
ARCH = dict(base='f0', depths=(1, 1, 1, 1), widths=(8, 8, 8, 8), group_width=4, stem_channels=4)


def nfnet(**fields):
    return NFNet(dict(ARCH, **fields))


def agc(wrapper=AGCOptimWrapper, **kwargs):
    sgd = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    return wrapper(**{'optimizer': sgd, **kwargs})


def clip_grad(**kwargs):
    return agc(clip_grad={'type': 'agc', **kwargs})


GOOD = {
    ScaledWSConv2d: dict(in_channels=4, out_channels=4, kernel_size=3),
    PWSConv2d: dict(in_channels=4, out_channels=4, kernel_size=3),
    SqueezeExcite: dict(channels=4, hidden_channels=2),
    ECA: dict(channels=4),
    NFResNet: SMALL,
    SkipInitResNet: SMALL,
    ResNetV2: SMALL,
    FixupResNet: SMALL,
    PWSResNet: dict(depth=18, base_channels=4, stem_channels=4),
    ReLUNeck: dict(in_channels=4),
    adaptive_clip_grad_: dict(params=[]),
    channel_statistics: dict(x=ONES),
    scaled_standardize_weight: dict(weight=ONES),
    parametric_standardize_weight: dict(weight=ONES),
    standardized_conv2d: dict(
        x=torch.ones(1, 2, 5, 5),
        weight=ONES,
        scale=torch.ones(4),
        constants=Standardization(var_factor=18, eps=1e-4),
    ),
    analyze: dict(model=nn.Identity(), inputs=ONES),
    agc: dict(clip_grad=dict(type='agc')),
    timm_config: dict(name='test_nfnet'),
}

# A type that is wrong altogether is a TypeError, a wrong number a ValueError.
INTEGERS = [
    ('3', TypeError),
    (None, TypeError),
    ([3], TypeError),
    (True, ValueError),
    (2.5, ValueError),
    (NAN, ValueError),
    (INF, ValueError),
    (0, ValueError),
    (-1, ValueError),
    (HUGE, ValueError),
    (10**12, ValueError),
]
NUMBERS = [
    ('1', TypeError),
    ([1.0], TypeError),
    (True, TypeError),
    (NAN, ValueError),
    (INF, ValueError),
    (-INF, ValueError),
    (10**400, ValueError),
]
POSITIVE = [*NUMBERS, (None, TypeError), (0, ValueError), (-1.5, ValueError)]
RATES = [*NUMBERS, (None, TypeError), (1, ValueError), (-0.1, ValueError)]
NOT_NEGATIVE = [*NUMBERS, (-1e-9, ValueError)]
STAGES = [
    ('1222', TypeError),
    (None, TypeError),
    (dict(a=1), TypeError),
    ((1, 2, 2), ValueError),
    ((1, 2, 2, 0), ValueError),
    ((1, 2, 2, -2), ValueError),
    ((1, 2, 2, 2.0), ValueError),
    ((1, 2, 2, '2'), ValueError),
    ((1, 2, 2, True), ValueError),
    ((1, 2, 2, HUGE), ValueError),
]
PAIRS = [
    ('3', TypeError),
    (None, TypeError),
    (0, ValueError),
    (-1, ValueError),
    (1.5, ValueError),
    (NAN, ValueError),
    (HUGE, ValueError),
    ((3,), ValueError),
    ((3, 3, 3), ValueError),
    ((3, 0), ValueError),
    ((3, 1.5), ValueError),
]
CONFIGS = [('Conv2d', TypeError), (dict(kind='x'), TypeError), ([1], TypeError), (7, TypeError)]
NAMES = [('x', ValueError), (7, ValueError), ([2], ValueError), ({}, ValueError)]
TENSORS = [('x', TypeError), (None, TypeError), (1.5, TypeError), ([1.0], TypeError)]

# (what, its argument, values with the exceptions that they raise)
SWEEPS = [
    *((conv, size, INTEGERS)
      for conv in (ScaledWSConv2d, PWSConv2d)
      for size in ('in_channels', 'out_channels', 'groups')),
    *((ScaledWSConv2d, pair, PAIRS) for pair in ('kernel_size', 'stride', 'dilation')),
    (ScaledWSConv2d, 'gamma', [*NUMBERS, (None, TypeError)]),
    (ScaledWSConv2d, 'eps', NOT_NEGATIVE),
    (ScaledWSConv2d, 'eps_mode', [*NAMES, (None, ValueError)]),
    (ScaledWSConv2d, 'gain_init', NUMBERS),
    (PWSConv2d, 'gamma', [*NOT_NEGATIVE, (None, TypeError)]),
    (PWSConv2d, 'mode', [*NAMES, (None, ValueError)]),
    (SqueezeExcite, 'channels', INTEGERS),
    (SqueezeExcite, 'hidden_channels', INTEGERS),
    (SqueezeExcite, 'factor', [*NUMBERS, (None, TypeError)]),
    (ECA, 'channels', INTEGERS),
    (ECA, 'factor', [*NUMBERS, (None, TypeError)]),
    (DropPath, 'drop_prob', RATES),
    (GammaAct, 'act', [('x', ValueError), (None, TypeError), (7, TypeError), ([2], TypeError)]),
    (GammaAct, 'gamma', POSITIVE[:-3]),
    (build_activation, 'act_cfg', [*CONFIGS, (None, TypeError)]),
    *((net, 'base_channels', INTEGERS) for net in (NFResNet, SkipInitResNet, ResNetV2)),
    *((net, 'in_channels', INTEGERS) for net in (NFResNet, ResNetV2, PWSResNet)),
    (FixupResNet, 'base_channels', INTEGERS),
    (FixupResNet, 'in_channels', INTEGERS),
    (PWSResNet, 'base_channels', INTEGERS),
    (PWSResNet, 'stem_channels', INTEGERS),
    *((net, axis, STAGES)
      for net in (NFResNet, ResNetV2, FixupResNet, PWSResNet)
      for axis in ('strides', 'dilations')),
    *((net, 'drop_path_rate', RATES) for net in (NFResNet, ResNetV2, FixupResNet, PWSResNet)),
    *((net, 'depth', [(51, ValueError), ((3, 4), ValueError), ('50', TypeError),
                      ((1, 1, 1, 10**9), ValueError)])
      for net in (NFResNet, ResNetV2, FixupResNet)),
    (PWSResNet, 'depth', [*NAMES, (None, ValueError), (20, ValueError), (18.5, ValueError)]),
    *((net, 'out_indices', [((), ValueError), ((9,), ValueError), (-1, ValueError),
                            (1.5, ValueError), ('3', ValueError), ((0.0,), ValueError)])
      for net in (NFResNet, ResNetV2, FixupResNet, PWSResNet)),
    *((net, 'frozen_stages', [(9, ValueError), (-2, ValueError), ('1', ValueError),
                              (None, ValueError), (NAN, ValueError)])
      for net in (NFResNet, ResNetV2, FixupResNet, PWSResNet)),
    *((net, 'stem', NAMES) for net in (NFResNet, ResNetV2, FixupResNet, PWSResNet)),
    *((net, 'padding', NAMES) for net in (NFResNet, ResNetV2, FixupResNet)),
    *((net, 'conv_cfg', CONFIGS) for net in (NFResNet, ResNetV2, PWSResNet)),
    *((net, 'act_cfg', [*CONFIGS, (None, TypeError)]) for net in (NFResNet, ResNetV2, NFRegNet)),
    (ResNetV2, 'norm_cfg', [*CONFIGS, (None, TypeError)]),
    (PWSResNet, 'norm_cfg', CONFIGS),
    (PWSResNet, 'num_stages', [(5, ValueError), (0, ValueError), ('4', ValueError)]),
    (PWSResNet, 'style', NAMES),
    (ResNetV2, 'order', NAMES),
    (ResNetV2, 'init', NAMES),
    (ResNetV2, 'attention', NAMES),
    (NFResNet, 'attention', [('x', ValueError), (7, ValueError), ([2], ValueError)]),
    (NFResNet, 'alpha', POSITIVE),
    (NFResNet, 'eps_mode', NAMES),
    (NFResNet, 'gamma_at', NAMES),
    (NFResNet, 'downsample', NAMES),
    (NFResNet, 'se_ratio', POSITIVE),
    (NFResNet, 'channel_divisor', INTEGERS[:2] + INTEGERS[3:]),
    (NFResNet, 'skipinit', [value for value in NUMBERS if value[0] is not True]),
    *((nfnet, field, POSITIVE) for field in ('width_mult', 'bottleneck_ratio', 'se_ratio')),
    *((nfnet, field, [value for value in INTEGERS if value[0] is not None])
      for field in ('group_width', 'stem_channels')),
    (nfnet, 'channel_divisor', INTEGERS),
    *((nfnet, field, STAGES) for field in ('depths', 'widths', 'strides')),
    (nfnet, 'depths', [((1, 1, 1, 10**9), ValueError)]),  # would be built for ever
    (nfnet, 'final_ratio', [(2, TypeError), ((2, 0), ValueError), ((2, 1, 1), ValueError),
                            ((0.5, 1), ValueError)]),
    (nfnet, 'num_3x3', [(3, ValueError), ('2', ValueError), (None, ValueError)]),
    (nfnet, 'base', [('f9', ValueError), (None, ValueError), (3, ValueError)]),
    *((net, 'arch', [('x', ValueError), (None, TypeError), (7, TypeError), ([2], TypeError)])
      for net in (NFRegNet, NFNet)),
    (ReLUNeck, 'in_channels', [case for case in INTEGERS if case[0] not in (None, [3])]),
    (ReLUNeck, 'norm_cfg', CONFIGS),
    (ReLUNeck, 'act_cfg', [*CONFIGS, (None, TypeError)]),
    (ReLUNeck, 'drop_rate', RATES),
    (timm_config, 'name', [*NAMES, (None, ValueError)]),
    (timm_config, 'num_classes', INTEGERS),
    (Digits, 'split', [*NAMES, ('val', ValueError), (None, ValueError)]),
    (SPPHook, 'interval', INTEGERS),
    (SPPHook, 'batch_size', INTEGERS),
    (SPPHook, 'input_size', [value for value in PAIRS if value[0] is not None]),
    (SPPHook, 'seed', [('0', TypeError), (None, TypeError), (0.5, ValueError),
                       (2**64, ValueError)]),
    (SPPHook, 'input', [*NAMES, (None, ValueError)]),
    (SPPHook, 'mode', [*NAMES, (None, ValueError)]),
    (SPPHook, 'stop_on', [('exploded', ValueError), (7, TypeError), (None, TypeError)]),
    (agc, 'optimizer', [('SGD', TypeError), (None, TypeError)]),
    (agc, 'clip_grad', [('agc', TypeError), (1.0, TypeError), ([1], TypeError)]),
    *((owner, limit, POSITIVE)
      for owner in (clip_grad, adaptive_clip_grad_)
      for limit in ('clip_factor', 'eps')),
    (clip_grad, 'skip', [(7, TypeError), (None, TypeError)]),
    (clip_grad, 'type', [('norm', ValueError)]),
    (activation_gamma, 'name', [('x', ValueError), (None, TypeError), (7, TypeError)]),
    *((function, 'x', TENSORS) for function in (channel_statistics, unitwise_norm)),
    *((function, 'weight', TENSORS)
      for function in (scaled_standardize_weight, parametric_standardize_weight)),
    (scaled_standardize_weight, 'gain', TENSORS[:1] + TENSORS[2:]),
    (scaled_standardize_weight, 'eps', NOT_NEGATIVE),
    (scaled_standardize_weight, 'gamma', [*NUMBERS, (None, TypeError)]),
    (scaled_standardize_weight, 'eps_mode', [*NAMES, (None, ValueError)]),
    (parametric_standardize_weight, 'alpha', TENSORS[:1] + TENSORS[2:]),
    (parametric_standardize_weight, 'gamma', [*NOT_NEGATIVE, (None, TypeError)]),
    (parametric_standardize_weight, 'fan', [value for value in INTEGERS if value[0] is not None]),
    (analyze, 'inputs', TENSORS),
    (analyze, 'model', TENSORS),
    (analyze, 'mode', [*NAMES, (None, ValueError)]),
]  # fmt: skip


@contextlib.contextmanager
def small_memory(limit=2**32):
    """Make each request for a tensor of more than ``limit`` bytes fail, so that memory is safe."""
    made = torch.empty

    def empty(*args, **kwargs):
        tensor = made(*args, **{**kwargs, 'device': 'meta'})
        assert tensor.nbytes <= limit, f'asks for {tensor.nbytes} bytes'
        return made(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'empty', empty)
        yield


@pytest.mark.parametrize(
    ('call', 'argument', 'values'),
    SWEEPS,
    ids=[f'{call.__name__}-{argument}' for call, argument, _ in SWEEPS],
)
def test_a_bad_value_is_named(call, argument, values):
    for value, error in values:
        with small_memory(), pytest.raises(error) as raised:
            call(**{**GOOD.get(call, {}), argument: value})
        message = str(raised.value)
        assert repr(value) in message, (value, message)
        assert argument in message or argument in UNNAMED.get(call, ()), (value, message)


# The message is about what the argument is.
UNNAMED = {GammaAct: ('act',), activation_gamma: ('name',), nfnet: ('base',)}


@pytest.mark.parametrize(
    ('call', 'kwargs', 'error', 'message'),
    [
        # What fits together in no way.
        (ScaledWSConv2d, dict(in_channels=1, kernel_size=1), ValueError, 'fan-in 1'),
        (ScaledWSConv2d, dict(groups=4, kernel_size=1), ValueError, 'groups=4.*fan-in 1'),
        (ScaledWSConv2d, dict(groups=3), ValueError, 'divisible'),
        (ScaledWSConv2d, dict(groups=8), ValueError, 'groups=8.*fan-in 0'),
        (ScaledWSConv2d, dict(padding='full'), ValueError, 'Invalid padding string'),
        (ScaledWSConv2d, dict(stride=2, padding='same', padding_mode='reflect'), ValueError,
         "padding_mode='zeros' only, got 'reflect'"),
        (ScaledWSConv2d, dict(colour='red'), TypeError, 'colour'),
        (NFResNet, dict(colour='red'), TypeError, 'colour'),
        (NFResNet, dict(conv_cfg=None, eps_mode='add'), ValueError, "eps_mode='add' needs"),
        (NFResNet, dict(conv_cfg=dict(type='WSConv')), ValueError, "conv_cfg.type='WSConv'"),
        (NFResNet, dict(act_cfg=dict(type='Foo')), ValueError, "unknown activation 'Foo'"),
        (NFResNet, dict(act_cfg=dict(type='ReLU', gamma=-1)), ValueError, 'gamma.*got -1'),
        (NFResNet, dict(zero_init_residual=True, conv_cfg=dict(type='ScaledWS', gain_init=None)),
         ValueError, 'zero_init_residual needs a gain'),
        (nfnet, dict(width=3), ValueError, 'a field of arch must be one of depths.*width'),
        (nfnet, dict(group_width=128), ValueError, 'group_width=128 leaves no channels'),
        (nfnet, dict(width_mult=1e30), ValueError, 'channels must be at most'),
        (nfnet, dict(se_ratio=1e30), ValueError, 'hidden_channels must be at most'),
        (agc, dict(clip_grad=None), ValueError, "needs clip_grad=dict\\(type='agc'"),
        (agc, dict(wrapper=AGCAmpOptimWrapper, clip_grad={}), ValueError, 'AGCAmpOptimWrapper'),
        (clip_grad, dict(max_norm=1.0), ValueError, 'takes clip_factor, eps and skip.*max_norm'),
        (clip_grad, dict(skip=['head', 7]), TypeError, 'skip must be a str, got 7'),
        (adaptive_clip_grad_, dict(params=['w']), TypeError, "must be a Tensor, got 'w'"),
        (SPPHook, dict(stop_on=['exploded']), ValueError, "stop_on.*got 'exploded'"),
        (Digits, dict(split='test', pipeline=[dict(type='Fly')]), KeyError, 'Fly'),
        # Tensors of other shapes.
        (scaled_standardize_weight, dict(weight=torch.ones(3)), ValueError, r'got \(3,\)'),
        (scaled_standardize_weight, dict(weight=torch.ones(0, 3)), ValueError, r'got \(0, 3\)'),
        (scaled_standardize_weight, dict(weight=torch.ones(3, 0)), ValueError, r'got \(3, 0\)'),
        (scaled_standardize_weight, dict(gain=torch.ones(3)), ValueError,
         r'gain needs a value for each of 4 filters, got \(3,\)'),
        (parametric_standardize_weight, dict(alpha=torch.ones(3, 1, 1, 1)), ValueError,
         r'alpha needs a value for each of 4 filters, got \(3, 1, 1, 1\)'),
        (standardized_conv2d, dict(scale=torch.ones(3)), ValueError,
         r'scale needs the shape \(4,\), got \(3,\)'),
        (standardized_conv2d, dict(scale=torch.ones(())), ValueError, r'got \(\)'),
        (standardized_conv2d, dict(shift=1.0), TypeError, 'shift'),
        (channel_statistics, dict(x=torch.ones(0, 3)), ValueError, r'got one of shape \(0, 3\)'),
        (channel_statistics, dict(x=torch.ones(2, 3), channel_dim=2), ValueError,
         'channel_dim=2 is no axis'),
        (channel_statistics, dict(x=torch.ones(())), ValueError, 'channel_dim=1 is no axis'),
        (analyze, dict(inputs=torch.ones(0, 3, 8, 8)), ValueError, 'nothing|needs values'),
        (image_files, dict(path='no/such'), ValueError, 'there is no file or folder no/such'),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(call, kwargs, error, message):
    with small_memory(), pytest.raises(error, match=message):
        call(**{**GOOD.get(call, {}), **kwargs})


@pytest.mark.parametrize('call', [call for call in GOOD if call is not analyze])
def test_the_table_starts_from_what_is_accepted(call):
    call(**GOOD[call])


NETS = {
    'NFResNet': lambda: NFResNet(**SMALL, skipinit=1.0),
    'NFResNet, symmetric': lambda: NFResNet(**SMALL, padding='symmetric', downsample='avg'),
    'NFResNet, SE': lambda: NFResNet(**SMALL, attention='se'),
    'NFResNet, ECA': lambda: NFResNet(**SMALL, attention='eca'),
    'NFRegNet': lambda: NFRegNet(dict(base='b0', width_mult=0.25, depths=(1, 1, 1, 1))),
    'NFNet': nfnet,
    'PWSResNet': lambda: PWSResNet(18, base_channels=4, stem_channels=4),
    'ResNetV2': lambda: ResNetV2(**SMALL, norm_cfg=dict(type='GN', num_groups=2)),
    'FixupResNet': lambda: FixupResNet(**SMALL),
}


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (2, 3), (5, 5), (33, 17)])
@pytest.mark.parametrize('net', NETS)
def test_small_and_odd_images_one_at_a_time(net, size):
    """A batch of one image, of one pixel: each stage still has a position, all of it finite."""
    net = NETS[net]()
    x = torch.randn(1, 3, *size, requires_grad=True)
    out = net(x)[-1]
    assert out.shape == (1, net.feat_dim, *(-(-side // 32) for side in size))
    assert out.isfinite().all()
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
