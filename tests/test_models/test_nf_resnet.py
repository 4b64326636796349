"""Against DeepMind's implementation (tests/data/cases.json says how its values were made)."""

import json

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from nf_plugins.functional import activation_gamma
from nf_plugins.layers import SameConv2d, ScaledWSConv2d
from nf_plugins.models import NFNet, NFRegNet, NFResNet, ReLUNeck
from nf_plugins.spp import analyze

from ..conftest import DATA, relative_error

CASES = {
    'nf_resnet_50_relu_se0_skip1_w1': dict(act_cfg=dict(type='ReLU'), attention=None),
    'nf_resnet_50_silu_se1_skip0_w1': dict(act_cfg=dict(type='SiLU'), attention='se'),
}


def load_haiku(net, params):
    """Copy haiku's parameters by hand, independently of any converter."""

    def fill(conv, name):
        state = dict(weight=torch.from_numpy(params.pop(f'{name}.w')).permute(3, 2, 0, 1))
        state.update({k: torch.from_numpy(params.pop(f'{name}.{k}')) for k in ('bias', 'gain')})
        conv.load_state_dict(state)

    fill(net.stem.conv1, 'NF_ResNet.initial_conv')
    for i, block in enumerate(b for stage in net.stages for b in stage):
        name = 'NF_ResNet.nf_res_block' + (f'_{i}' if i else '')
        for ours, theirs in (('conv1', 'conv0'), ('conv2', 'conv1'), ('conv3', 'conv2')):
            fill(getattr(block, ours), f'{name}.{theirs}')
        if block.downsample is not None:
            fill(block.downsample.conv, f'{name}.conv_shortcut')
        block.skip_gain.data = torch.from_numpy(params.pop(f'{name}.skip_gain')).reshape(())
        if block.attention is not None:
            for fc, linear in ((block.attention.fc0, 'linear'), (block.attention.fc1, 'linear_1')):
                prefix = f'{name}.squeeze_excite.{linear}'
                weight = torch.from_numpy(params.pop(f'{prefix}.w')).T
                fc.load_state_dict(
                    dict(weight=weight, bias=torch.from_numpy(params.pop(f'{prefix}.b')))
                )
    return params


@pytest.mark.parametrize('size', ['64x64', '65x71'])
@pytest.mark.parametrize('case', CASES)
def test_logits_features_and_metrics(case, size):
    data = np.load(DATA / f'{case}.npz')
    params = {k[len('params/') :]: data[k] for k in data if k.startswith('params/')}
    net = NFResNet(50, base_channels=16, **CASES[case]).eval()
    rest = load_haiku(net, params)
    assert set(rest) == {'NF_ResNet.linear.w', 'NF_ResNet.linear.b'}
    act = CASES[case]['act_cfg']['type']
    neck = ReLUNeck(net.feat_dim, act_cfg=dict(type='GammaAct', act=act))

    x = torch.from_numpy(data[f'input/{size}']).permute(0, 3, 1, 2)
    with torch.no_grad():
        pooled = neck(net(x))[0]
    theirs = {k.split('/')[-1]: data[k] for k in data if k.startswith(f'out/{size}/')}
    assert relative_error(pooled, theirs['pool']) < 1e-5
    logits = pooled.numpy() @ rest['NF_ResNet.linear.w'] + rest['NF_ResNet.linear.b']
    np.testing.assert_allclose(logits, theirs['logits'], rtol=1e-4, atol=1e-5)

    profile = analyze(net, x, mode='eval')
    assert len(profile.blocks) == 17
    for block in profile.blocks:
        i = block.index
        assert block.avg_sq_mean == pytest.approx(theirs[f'avg_sq_mean_{i}'], rel=1e-4)
        assert block.avg_var == pytest.approx(theirs[f'avg_var_{i}'], rel=1e-4)
        if i:
            expected = theirs[f'res_avg_var_{i - 1}']
            assert block.res_avg_var == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_signal_at_initialisation_is_the_official_one():
    """Within 3 % per block, over several draws of the weights, at 224 and batch 8."""
    case = json.loads((DATA / 'spp_jax.json').read_text())['DM_NF_ResNet50_w4_relu_skip1_b8_224']
    net = NFResNet(50, skipinit=1.0)
    x = torch.randn(8, 3, 224, 224)
    profile = analyze(net, x, mode='eval')
    for block in profile.blocks[1:]:
        official = case[f'avg_var_{block.index}']
        assert block.avg_var == pytest.approx(official, rel=0.03), block.name
        assert block.avg_sq_mean < 0.01
    theory = [block.expected_var for block in profile.blocks]
    ends = [theory[i] for i in (3, 7, 13, 16)]
    assert ends == pytest.approx([1.12, 1.16, 1.24, 1.12])


@pytest.mark.parametrize('padding', ['same', 'symmetric'])
@pytest.mark.parametrize('attention', [None, 'se'])
@pytest.mark.parametrize('skipinit', [True, False, 0.7])
def test_deploys_to_plain_convolutions(padding, attention, skipinit):
    options = dict(
        depth=(1, 2, 1, 1),
        base_channels=4,
        act_cfg=dict(type='SiLU'),
        padding=padding,
        attention=attention,
        skipinit=skipinit,
        out_indices=(0, 1, 2, 3),
    )
    net = NFResNet(**options).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if 'gain' in name or 'bias' in name:
                p.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 65, 71)
    with torch.no_grad():
        before = net(x)
        net.switch_to_deploy()
        after = net(x)
    assert {type(m) for m in net.modules() if isinstance(m, nn.Conv2d)} <= {
        nn.Conv2d,
        SameConv2d,
    }
    for a, b in zip(after, before):
        assert relative_error(a, b) < 1e-5
    rebuilt = NFResNet(**options, deploy=True).eval()
    rebuilt.load_state_dict(net.state_dict())
    with torch.no_grad():
        for a, b in zip(rebuilt(x), before):
            assert relative_error(a, b) < 1e-5


def test_gamma_in_the_activation_is_the_same_network():
    """ScaledWS folds gamma and 1/beta into the weights; another convolution cannot."""
    net = NFResNet(26, base_channels=4, skipinit=1.0).double().eval()
    net.switch_to_deploy()
    # The same weights without the folded factors, in a network that multiplies activations.
    plain = NFResNet(26, base_channels=4, skipinit=1.0, conv_cfg=None).double().eval()
    state = net.state_dict()
    gamma = activation_gamma('relu')
    for name, block in plain.named_modules():
        if not hasattr(block, 'skip_gain'):
            continue
        for conv, factor in (
            ('conv1', gamma / block.beta),
            ('conv2', gamma),
            ('conv3', gamma),
            ('downsample.conv', gamma / block.beta),
        ):
            key = f'{name}.{conv}.weight'
            if key in state:
                state[key] = state[key] / factor
        for key in (f'{name}.conv3.weight', f'{name}.conv3.bias'):
            state[key] = state[key] / block.alpha
        state[f'{name}.skip_gain'] = torch.ones(())
    plain.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert relative_error(plain(x)[0], net(x)[0]) < 1e-12


BLOCKS = [
    (NFResNet, dict(depth=(1, 2, 1, 1), base_channels=4)),
    (NFResNet, dict(depth=(1, 2, 1, 1), base_channels=4, attention='se')),
    (NFResNet, dict(depth=(1, 2, 1, 1), base_channels=4, attention='eca', scale_by_keep=True)),
    (NFResNet, dict(depth=(1, 2, 1, 1), base_channels=4, conv_cfg=dict(type='PWS'))),
    (NFResNet, dict(depth=(1, 2, 1, 1), base_channels=4, conv_cfg=None)),
    (NFRegNet, dict(arch=dict(base='b0', width_mult=0.25, depths=(1, 2, 1, 1)))),
    (NFNet, dict(arch=dict(base='f0', width_mult=1 / 16, group_width=4, depths=(1, 2, 1, 1)))),
]


@pytest.mark.parametrize('drop_path_rate', [0.0, 0.5])
@pytest.mark.parametrize('skipinit', [True, 0.7, False])
@pytest.mark.parametrize(('family', 'options'), BLOCKS)
def test_scalars_in_the_weights_change_nothing(family, options, skipinit, drop_path_rate):
    """Blocks against their formula, with every factor on an activation, in float64."""
    net = family(**options, skipinit=skipinit, drop_path_rate=drop_path_rate).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith(('bias', 'gain')) and 'skip' not in name:
                p.uniform_(0.5, 1.5)

    def formula(block, x):
        out = block.act(x) * (block.gamma / block.beta)
        shortcut = x if block.downsample is None else block.downsample(out)
        out = block.conv1(out)
        out = block.conv2(block.act(out) * block.gamma)
        if block.conv2b is not None:
            out = block.conv2b(block.act(out) * block.gamma)
        if isinstance(net, NFRegNet) and block.attention is not None:
            out = block.attention(out)
        out = block.conv3(block.act(out) * block.gamma)
        if not isinstance(net, NFRegNet) and block.attention is not None:
            out = block.attention(out)
        branch = 0.2 * block.drop_path(out)
        return shortcut + (branch if block.skip_gain is None else block.skip_gain * branch)

    for block in (b for stage in net.stages[:4] for b in stage):
        channels = block.conv1.in_channels
        results = []
        for function in (block, lambda x, block=block: formula(block, x)):
            torch.manual_seed(0)
            x = torch.randn(16, channels, 6, 6, dtype=torch.float64, requires_grad=True)
            out = function(x)
            params = dict(block.named_parameters())
            grads = torch.autograd.grad(out.square().sum(), [x, *params.values()])
            results.append((out, *grads))
        for name, ours, theirs in zip(['out', 'x', *params], *results):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)
        if skipinit is True:
            assert results[0][2 + list(params).index('skip_gain')] != 0


def test_beta_and_drop_path_rates():
    net = NFResNet(50, drop_path_rate=0.16)
    blocks = [b for stage in net.stages for b in stage]
    assert [b.drop_path.drop_prob for b in blocks] == pytest.approx([0.01 * i for i in range(16)])
    betas = [b.conv1.gamma for b in blocks]
    gamma = activation_gamma('relu')
    var = [1.0, 1.04, 1.08, 1.12, 1.04, 1.08, 1.12, 1.16, 1.04, 1.08, 1.12, 1.16, 1.2, 1.24]
    expected = [gamma / v**0.5 for v in [*var, 1.04, 1.08]]
    assert betas == pytest.approx(expected)


def test_stochastic_depth_does_not_rescale():
    net = NFResNet(26, base_channels=4, skipinit=1.0, drop_path_rate=0.9).train()
    block = net.layer4[1]
    x = torch.randn(64, 128, 2, 2)
    out = block(x) - x
    dropped = out.flatten(1).abs().amax(1) == 0
    assert 0 < dropped.sum() < 64
    block.eval()
    torch.testing.assert_close(out[~dropped], (block(x) - x)[~dropped])


def test_mm_options():
    net = MODELS.build(
        dict(
            type='nf_plugins.NFResNet',
            depth=26,
            base_channels=4,
            in_channels=1,
            stem='cifar',
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            out_indices=(1, 3),
            frozen_stages=2,
            with_cp=True,
        )
    )
    frozen = {name.split('.')[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {'stem', 'layer1', 'layer2'}  # already, as DDP and optimizers look now
    net.train()
    assert not net.layer2.training
    assert net.layer3.training
    outs = net(torch.randn(2, 1, 16, 16))
    assert [tuple(out.shape) for out in outs] == [(2, 32, 8, 8), (2, 128, 8, 8)]
    frozen = {name.split('.')[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {'stem', 'layer1', 'layer2'}
    outs[-1].square().sum().backward()
    assert net.layer4[0].conv1.weight.grad is not None
    assert net.layer4[1].skip_gain.grad is not None


def test_inside_mmpretrain_models():
    backbone = MODELS.build(
        dict(
            type='mmpretrain.ResNet',
            depth=50,
            base_channels=4,
            stem_channels=4,
            conv_cfg=dict(type='ScaledWS'),
        )
    )
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 53
    assert all(isinstance(m, ScaledWSConv2d) for m in convs)
    backbone.init_weights()
    assert backbone(torch.randn(2, 3, 64, 64))[0].isfinite().all()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(depth=51), 'depth must be one of 26, 50, 101, 152, 200, 288, 600, got 51'),
        (dict(depth=(3, 4)), 'depth must be 4 positive integers'),
        (dict(depth=(3, 4, 0, 3)), 'depth must be 4 positive integers'),
        (dict(stem='7x7'), "stem must be one of imagenet, .*, got '7x7'"),
        (dict(padding='valid'), "padding must be one of same, symmetric, got 'valid'"),
        (dict(attention='cbam'), "attention must be one of .*se.*, got 'cbam'"),
        (dict(act_cfg=dict(type='Foo')), "unknown activation 'Foo': there are gains for"),
        (dict(alpha=0), 'alpha must be a positive number, got 0'),
        (dict(alpha=float('nan')), 'alpha must be a positive number'),
        (dict(drop_path_rate=1), r'drop_path_rate must be in \[0, 1\), got 1'),
        (dict(eps_mode='max'), 'eps_mode must be one of clamp, add'),
        (dict(strides=(1, 2, 2)), 'strides must be 4 positive integers'),
        (dict(out_indices=()), 'out_indices must be in'),
        (dict(base_channels=0), 'base_channels must be a positive integer, got 0'),
        (dict(conv_cfg=dict(type='WSConv')), "unknown convolution conv_cfg.type='WSConv'"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        NFResNet(**{'depth': 26, 'base_channels': 4, **kwargs})


def test_bad_types_are_refused():
    with pytest.raises(TypeError, match="act_cfg must be a dict with the key 'type', got 'ReLU'"):
        NFResNet(26, act_cfg='ReLU')
    with pytest.raises(TypeError, match='depth must be a sequence of 4 integers'):
        NFResNet(depth='50')
