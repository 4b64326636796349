"""Same weights, same input, same output as DeepMind's networks (through the converter)."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from nf_plugins.checkpoint.convert import convert
from nf_plugins.checkpoint.haiku import read_haiku
from nf_plugins.layers import SameConv2d, StandardizedConv2d
from nf_plugins.models import FixupResNet, NFNet, NFRegNet, NFResNet, ResNetV2, SkipInitResNet
from nf_plugins.models.weight_names import haiku_rename
from nf_plugins.spp import analyze

from ..conftest import DATA, relative_error, without_memory
from .official import CASES, F0W8, arrays, build


def load(case, model):
    source = {k: torch.from_numpy(v) for k, v in read_haiku(DATA / f'{case}.npz').items()}
    model.load_state_dict(convert(source, model, haiku_rename(model)))


def set_like_initial(model, skip_gain):
    """As the reference's `out_initlike`: gains 1, biases 0, the SkipInit gain of the case."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            leaf = name.split('.')[-1]
            if leaf in ('gain', 'skip_gain', 'bias'):
                p.fill_({'gain': 1.0, 'skip_gain': skip_gain, 'bias': 0.0}[leaf])


@pytest.mark.parametrize('kind', ['out', 'out_initlike'])
@pytest.mark.parametrize('size', ['64x64', '65x71'])
@pytest.mark.parametrize('case', CASES)
def test_equals_deepmind(case, size, kind):
    data, model = arrays(case), build(case)
    load(case, model)
    if kind == 'out_initlike':
        set_like_initial(model, CASES[case][2])
    theirs = {k.split('/')[-1]: v for k, v in data.items() if k.startswith(f'{kind}/{size}/')}
    x = torch.from_numpy(data[f'input/{size}']).permute(0, 3, 1, 2)
    with torch.no_grad():
        ours = model(x)
    for name in ('pool', 'logits'):
        assert relative_error(ours[name], theirs[name]) < 1e-4, name

    profile = analyze(model, x, mode='eval')
    assert sum(name.startswith('avg_var_') for name in theirs) == len(profile.blocks)
    for block in profile.blocks:
        for name in ('avg_sq_mean', 'avg_var'):
            expected = theirs[f'{name}_{block.index}']
            assert getattr(block, name) == pytest.approx(expected, rel=1e-4), (name, block)
        if block.index:
            expected = theirs[f'res_avg_var_{block.index - 1}']
            assert block.res_avg_var == pytest.approx(expected, rel=1e-4), block


@pytest.mark.parametrize('case', CASES)
def test_deploys(case):
    model, deployed = build(case), build(case, deploy=True)
    load(case, model)
    x = torch.from_numpy(arrays(case)['input/65x71']).permute(0, 3, 1, 2)
    with torch.no_grad():
        before = model(x)['logits']
        model.backbone.switch_to_deploy()
        after = model(x)['logits']
        deployed.load_state_dict(model.state_dict())
        rebuilt = deployed(x)['logits']
    assert not any(isinstance(m, StandardizedConv2d) for m in model.modules())
    assert relative_error(after, before) < 1e-5
    assert relative_error(rebuilt, before) < 1e-5


TABLE = json.loads((DATA / 'params_flops.json').read_text())
FAMILIES = {'NF_ResNet': NFResNet, 'NF_RegNet': NFRegNet, 'NFNet': NFNet}


def official(name, **kwargs):
    """The network of a name in the table of parameter counts."""
    if name.startswith('NF_ResNet'):
        depth = int(name.removeprefix('NF_ResNet').removesuffix('_SE'))
        return NFResNet(depth, attention='se' if name.endswith('_SE') else None, **kwargs)
    family, variant = name.split('-')
    return FAMILIES[family](variant, **kwargs)


LARGE = ('152', '200', '288', '600', 'F2', 'F3', 'F4', 'F5', 'F6', 'F7', 'B6', 'B7', 'B8')
LARGEST = ('288', '600', 'F5', 'F6', 'F7', 'B8')


def mark(name):
    marks = [pytest.mark.slow] * any(part in name for part in LARGE)
    marks += [pytest.mark.exhaustive] * any(part in name for part in LARGEST)
    return pytest.param(name, marks=marks)


def kernels(net):
    convs = ((name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d))
    return {name: (m.weight.shape, m.stride, m.dilation) for name, m in convs}


@pytest.mark.parametrize('name', [mark(name) for name in TABLE])
def test_parameters_and_multiply_adds(name):
    with without_memory():
        net = official(name).eval()
    count = sum(p.numel() for p in net.parameters()) + (net.feat_dim + 1) * 1000
    assert count == TABLE[name]['params']
    small = sum(
        p.numel()
        for key, p in net.named_parameters()
        if key.endswith('gain') or (key.endswith('.bias') and 'attention' not in key)
    )
    assert small == TABLE[name]['gain_bias_skip_params']

    # Folded, as then a convolution is all that there is to run; without memory ReLU is fast.
    with without_memory():
        folded = official(name, deploy=True, act_cfg=dict(type='ReLU')).eval()
    assert kernels(folded) == kernels(net)
    macs = [k for k in TABLE[name] if k.startswith('true_macs_conv_')]
    assert macs
    total = 0

    def count_conv(conv, args, out):
        nonlocal total
        total += out[0].numel() * conv.weight[0].numel()

    for module in folded.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count_conv)
    for key in macs:
        size, total = int(key.rsplit('_', 1)[1]), 0
        with torch.no_grad():
            folded(torch.empty(1, 3, size, size, device='meta'))
        assert total == TABLE[name][key], key


SPP = json.loads((DATA / 'spp_jax.json').read_text())


@pytest.mark.parametrize(
    ('order', 'case', 'branch'),
    [
        ('bn_relu', 'BN_ResNet50_he_bnrelu_b8_224', 1 - 1 / np.pi),
        ('relu_bn', 'BN_ResNet50_lecun_relubn_b8_224', 1.0),
    ],
)
@pytest.mark.slow
def test_resnet_v2_has_the_official_signal_at_initialisation(order, case, branch):
    profile = analyze(ResNetV2(50, order=order), torch.randn(8, 3, 224, 224), mode='train')
    theirs = SPP[case]
    for block in profile.blocks[1:]:
        i = block.index
        assert block.res_avg_var == pytest.approx(theirs[f'res_avg_var_{i - 1}'], rel=0.05)
        assert block.res_avg_var == pytest.approx(branch, rel=0.05)
        assert block.avg_var == pytest.approx(theirs[f'avg_var_{i}'], rel=0.05)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_nf_resnet_600_at_initialisation():
    """Late stages have few positions, so that the channels correlate and the variance sags."""
    net = NFResNet(600, skipinit=1.0)
    profile = analyze(net, torch.randn(8, 3, 224, 224), mode='eval')
    theirs = SPP['DM_NF_ResNet600_w4_relu_skip1_b8_224']
    for end in (50, 100, 150, 200):
        expected = theirs[f'avg_var_{end}']
        assert profile.blocks[end].avg_var == pytest.approx(expected, rel=0.1), end
        assert profile.blocks[end].expected_var == pytest.approx(3.0)


def plain_convolutions(net):
    return {
        name: m
        for name, m in net.named_modules()
        if type(m) in (nn.Conv2d, SameConv2d) and m.weight.numel() > 5000
    }


@pytest.mark.parametrize(
    ('net', 'names'),
    [
        (lambda: SkipInitResNet(26, base_channels=32), ''),
        (lambda: NFResNet(26, base_channels=32, conv_cfg=None), ''),
        (lambda: FixupResNet(26, base_channels=64), 'stem'),
    ],
)
@pytest.mark.parametrize('again', [False, True])
def test_plain_convolutions_start_as_those_of_haiku(net, names, again):
    """``hk.Conv2D``: a Gaussian of variance 1 / fan-in, cut at two deviations, and a zero bias.

    The standard deviation of a standard Gaussian within (-2, 2) is 0.8796.
    """
    convs = plain_convolutions(net())
    assert len(convs) > 20
    for name, conv in convs.items():
        if not name.startswith(names):
            continue
        if again:  # as after a build on the meta device
            conv.reset_parameters()
        relative = conv.weight.detach() * conv.weight[0].numel() ** 0.5
        assert relative.std() == pytest.approx(0.8796, rel=0.05), name
        assert relative.abs().max() <= 2 + 1e-6
        assert conv.bias is None or not conv.bias.any()


@pytest.mark.parametrize('family', [SkipInitResNet, FixupResNet])
def test_earlier_unnormalised_networks_start_as_identities(family):
    """Their branches are 0 at initialisation, and they train from there."""
    net = family(26, base_channels=4).train()
    x = torch.randn(2, 3, 64, 64)
    block, features = net.layer2[1], torch.randn(2, 32, 8, 8).relu()
    torch.testing.assert_close(block(features), features)
    net(x)[0].square().mean().backward()
    gains = [p for name, p in net.named_parameters() if name.endswith(('skip_gain', 'scale'))]
    assert len(gains) == 8
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.isfinite().all() for w in weights)
    if family is SkipInitResNet:
        assert not any(isinstance(m, StandardizedConv2d) for m in net.modules())
        assert any(p.grad.abs() > 0 for p in gains)
        assert net.stem.conv1.bias is None
        assert block.conv1.bias is not None
    else:
        assert net.layer1[0].conv3.weight.grad.abs().sum() > 0


def test_fixup_block_by_hand():
    net = FixupResNet(26, base_channels=4)
    with torch.no_grad():
        for p in net.parameters():
            p.uniform_(-0.5, 0.5)
    block = net.layer2[0]
    x = torch.randn(2, 16, 8, 8)
    p = dict(block.named_parameters())
    y = x + p['bias1a']
    out = torch.relu(block.conv1(y) + p['bias1b'])
    out = torch.relu(block.conv2(out + p['bias2a']) + p['bias2b'])
    out = block.conv3(out + p['bias3a']) * p['scale'] + p['bias3b']
    torch.testing.assert_close(block(x), torch.relu(out + block.downsample(y)))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: NFNet('f9'), 'arch must be one of f0, f0\\+, f1, .*, got .f9'),
        (lambda: NFRegNet('b9'), 'arch must be one of b0, .*b8'),
        (lambda: NFNet(dict(width=3)), 'an arch dict needs base'),
        (lambda: NFNet(dict(base='f0', width=3)), 'a field of arch must be one of depths, widths'),
        (lambda: NFNet(dict(base='f0', widths=(3, 4))), 'widths must be 4 positive integers'),
        (lambda: NFNet(dict(base='f0', widths=(8, 8, 8, 8))), 'group_width=128 leaves no channels'),
        (lambda: NFNet('f0', out_indices=(5,)), r'out_indices must be in 0..4'),
        (lambda: NFRegNet('b0', attention='cbam'), 'attention must be one of'),
        (lambda: NFRegNet('b0', downsample='max'), 'downsample must be one of conv, avg'),
        (lambda: NFRegNet('b0', channel_divisor=0), 'channel_divisor must be a positive'),
        (lambda: ResNetV2(50, order='relu'), 'order must be one of bn_relu, relu_bn'),
        (lambda: ResNetV2(50, init='xavier'), 'init must be one of None, he, lecun'),
        (lambda: FixupResNet(51), 'depth must be one of'),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with torch.device('meta'), pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize('conv_cfg', [None, dict(type='PWS', gamma=1e-3)])
@pytest.mark.parametrize('family', ['NF_ResNet50', 'NF_RegNet-B0', 'NFNet-F0'])
def test_other_convolutions_deploy(family, conv_cfg):
    """Their gains stand at the activations, and fold as well."""
    small = {
        'NF_ResNet50': dict(depth=26, base_channels=4),
        'NF_RegNet-B0': dict(arch=dict(base='b0', width_mult=0.25)),
        'NFNet-F0': dict(arch=F0W8),
    }[family]
    options = dict(**small, conv_cfg=conv_cfg, skipinit=-0.5)
    make = FAMILIES[family.split('-')[0].removesuffix('50')]
    net = make(**options).eval()
    x = torch.randn(1, 3, 65, 71)
    with torch.no_grad():
        before = net(x)[0]
        net.switch_to_deploy()
        after = net(x)[0]
        deployed = make(**options, deploy=True).eval()
        deployed.load_state_dict(net.state_dict())
        rebuilt = deployed(x)[0]
    assert relative_error(after, before) < 1e-5
    assert relative_error(rebuilt, before) < 1e-5


def test_what_cannot_be_folded_is_refused():
    net = NFResNet(26, base_channels=4, conv_cfg=dict(type='ConvWS'), padding='symmetric')
    with pytest.raises(ValueError, match='cannot fold a ConvWS2d into a plain convolution'):
        net.switch_to_deploy()


def test_theory_only_where_it_applies():
    x = torch.randn(1, 3, 64, 64)
    for net in (
        SkipInitResNet(26, base_channels=4),
        NFResNet(26, base_channels=4, conv_cfg=None),
        NFResNet(26, base_channels=4, rescale_input=False),
    ):
        assert {b.expected_var for b in analyze(net, x).blocks} == {None}


def test_fixup_is_measured():
    profile = analyze(FixupResNet(26, base_channels=4), torch.randn(1, 3, 64, 64))
    assert [b.res_avg_var for b in profile.blocks[1:]] == [0.0] * 8


def test_lazy_configs_and_other_spellings():
    from nf_plugins.layers import ScaledWSConv2d

    net = NFResNet(
        26, base_channels=4, conv_cfg=dict(type=ScaledWSConv2d), act_cfg=dict(type=nn.SiLU)
    )
    assert isinstance(net.layer1[0].conv1, ScaledWSConv2d)
    assert isinstance(net.layer1[0].act, nn.SiLU)
    assert isinstance(ResNetV2(26, 4, act_cfg=dict(type='silu')).layer1[0].act, nn.SiLU)
    assert NFResNet(26, base_channels=4, attention=False).arch.attention is None
    with pytest.raises(ValueError, match="eps_mode='add' needs conv_cfg"):
        NFResNet(26, conv_cfg=None, eps_mode='add')


def test_fixup_freezes_and_stays_frozen():
    net = FixupResNet(26, base_channels=4, frozen_stages=4).train()
    assert not any(p.requires_grad for p in net.parameters())
    net = FixupResNet(26, base_channels=4).requires_grad_(False).train()
    assert not net.bias1.requires_grad
