"""Each rule fires where it should, says why and what to do, and is silent elsewhere."""

import math

import pytest
import timm
import torch
from mmengine.registry import MODELS
from torch import nn

from nf_plugins.models import NFNet, NFRegNet, NFResNet, PWSResNet, ResNetV2
from nf_plugins.spp import RULES, BlockSignal, SignalProfile, analyze
from nf_plugins.spp.analyze import first_non_finite

X = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def verdicts(net, x=X, **kwargs):
    return {v['rule']: v for v in analyze(net, x, **kwargs).verdicts()}


def built(build, **kwargs):
    torch.manual_seed(0)
    net = build(**kwargs)
    net.init_weights()
    return net


def mmpretrain(kind, **kwargs):
    return MODELS.build(dict(type=f'mmpretrain.{kind}', **kwargs))


HEALTHY = {
    'NF-ResNet': lambda: built(NFResNet, depth=50, skipinit=1.0),
    'ResNet-V2': lambda: built(ResNetV2, depth=50),
    'ResNet-V2, ReLU first': lambda: built(ResNetV2, depth=50, order='relu_bn'),
    'ResNet': lambda: built(mmpretrain, kind='ResNet', depth=50, zero_init_residual=False),
    'ViT': lambda: built(mmpretrain, kind='VisionTransformer', arch='deit-t', img_size=96),
    'PWS': lambda: built(PWSResNet, depth=50),
}


@pytest.mark.parametrize('name', HEALTHY)
def test_a_healthy_network_gets_no_verdict(name):
    assert not verdicts(HEALTHY[name]())


def test_skipinit():
    net = built(NFResNet, depth=26)
    found = verdicts(net)
    assert set(found) == {'zero_branch'}
    verdict = found['zero_branch']
    assert (verdict['severity'], verdict['block']) == ('info', 1)
    for words in ('8 of 8 branches', 'flat', 'SkipInit', 'layer1.0.skip_gain', '--unit-gain'):
        assert words in verdict['message']
    assert not verdicts(net, unit_gain=True)


@pytest.mark.parametrize(
    ('build', 'parameter', 'words'),
    [
        (lambda: timm.create_model('nf_resnet26'), 'conv3.gain', "branch's last convolution"),
        (lambda: mmpretrain('ResNet', depth=18), 'bn2.weight', 'zero_init_residual'),
        (lambda: timm.create_model('resnet18'), 'bn2.weight', 'zero_init_residual'),
    ],
)
def test_zero_initialised_last_layers(build, parameter, words):
    net = build()
    getattr(net, 'init_weights', lambda: None)()
    message = verdicts(net)['zero_branch']['message']
    assert parameter in message
    assert words in message
    assert 'zero_branch' not in verdicts(net, unit_gain=True)


def test_layer_scale():
    net = mmpretrain('ConvNeXt', arch='atto', layer_scale_init_value=1e-6)
    message = verdicts(net)['zero_branch']['message']
    assert '1e-06' in message
    assert 'LayerScale' in message


def test_a_convolution_initialised_at_zero_is_no_gain():
    from nf_plugins.models import FixupResNet

    net = built(FixupResNet, depth=26)
    found = verdicts(net, unit_gain=True)['zero_branch']
    assert 'conv3.weight' in found['message']
    assert '--unit-gain' not in found['message']


def test_timms_flat_plot_has_three_causes():
    """DESIGN: a zero gain, pooled shortcuts, and gamma folded into the stem's convolution."""
    torch.manual_seed(0)
    found = verdicts(timm.create_model('nf_resnet50'))
    assert {'zero_branch', 'pooled_shortcut', 'stem_scale'} == set(found)
    assert 'attenuation' in found['pooled_shortcut']['symptoms']
    assert found['pooled_shortcut']['severity'] == 'info'
    assert found['stem_scale']['block'] == 1
    assert '2.94' in found['stem_scale']['message']
    assert 'white noise' in found['pooled_shortcut']['message']


def test_nf_regnet_falls_by_its_pooled_shortcuts():
    found = verdicts(built(NFRegNet, arch='b0'))
    assert {'zero_branch', 'pooled_shortcut'} == set(found)
    assert '4 transitions' in found['pooled_shortcut']['message']
    assert 'stem_scale' not in found
    without = verdicts(built(NFRegNet, arch=dict(base='b0', downsample='conv')))
    assert 'pooled_shortcut' not in without


def test_nfnet():
    assert {'zero_branch', 'pooled_shortcut'} == set(verdicts(built(NFNet, arch='f0')))


def test_mean_shift_of_he_initialised_weights_and_its_absence_with_scaled_ws():
    """Brock et al. 2021a, figure 2: an NF-ResNet without Scaled WS."""
    he = built(
        NFResNet,
        depth=50,
        skipinit=1.0,
        conv_cfg=dict(type='Conv2d'),
        act_cfg=dict(type='ReLU', gamma=1.0),
        init_cfg=dict(type='Kaiming', layer='Conv2d', mode='fan_in', nonlinearity='relu'),
    )
    verdict = verdicts(he)['mean_shift']
    assert verdict['severity'] == 'warning'
    assert "conv_cfg=dict(type='ScaledWS')" in verdict['message']
    assert 'mean_shift' not in verdicts(HEALTHY['NF-ResNet']())


def test_a_folded_gamma_scales_all_stages_and_is_not_taken_for_a_missing_reset():
    net = built(NFResNet, depth=50, skipinit=1.0, gamma_at='conv')
    found = verdicts(net)
    assert set(found) == {'stem_scale'}
    usual = built(NFResNet, depth=50, skipinit=1.0)
    for block, other in zip(analyze(net, X).blocks, analyze(usual, X).blocks):
        assert block.avg_var == pytest.approx(1.7139588594436646**2 * other.avg_var, rel=1e-3)


def test_large_gradients_of_batch_norm_are_no_error():
    found = verdicts(built(ResNetV2, depth=101), backward=True)
    assert {rule: verdict['severity'] for rule, verdict in found.items()} == {
        'gradient_explosion': 'info'
    }
    plain = built(ResNetV2, depth=50, norm_cfg=dict(type='NoNorm'))
    found = verdicts(plain, backward=True)['explosion']
    assert 'gradient_explosion' in found['symptoms']
    assert found['severity'] == 'error'
    assert not verdicts(HEALTHY['NF-ResNet'](), backward=True)


def test_a_network_without_norms_explodes_and_is_not_reset():
    net = built(ResNetV2, depth=50, norm_cfg=dict(type='NoNorm'))
    found = verdicts(net)
    assert found['explosion']['severity'] == 'error'
    assert 'times per block' in found['explosion']['message']
    assert {'not_reset', 'mean_shift'} <= set(found['explosion']['symptoms'])


def test_a_signal_that_dies():
    net = built(ResNetV2, depth=50, norm_cfg=dict(type='NoNorm'))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith('weight') and p.dim() == 4:
                p.mul_(0.3)
    found = verdicts(net)
    assert "He's, 2 / fan_in, for ReLU" in found['attenuation']['message']
    assert 'explosion' not in found


def test_dead_branches_and_constant_channels():
    net = built(ResNetV2, depth=26)
    with torch.no_grad():
        for name, module in net.named_modules():
            if name.endswith('layer2.1'):
                module.norm3.bias.fill_(-100.0)  # its ReLU never fires
    found = verdicts(net)
    assert set(found) == {'dead_units'}
    assert found['dead_units']['block'] == 4
    assert 'dead_branch' in found['dead_units']['symptoms']
    assert 'layer2.1' in found['dead_units']['message']

    cut = nn.Sequential(nn.Conv2d(3, 8, 3), *[nn.Sequential(nn.Conv2d(8, 8, 3)) for _ in range(3)])
    with torch.no_grad():
        cut[2][0].weight[:4] = 0
    verdict = verdicts(cut)['zero_weights']
    assert '4 of the 8 filters of 2.0' in verdict['cause']
    assert 'constant_channels' in verdict['symptoms']
    assert '50%' in verdict['message']


def test_gains_that_have_hardly_left_zero():
    """No weight decay need have been at work: the advice names a short training, too."""
    net = built(NFResNet, depth=26)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith('skip_gain'):
                parameter.fill_(1.0)
            elif name.endswith('conv3.gain'):
                parameter.fill_(1e-9)
    verdict = verdicts(net, state='trained')['dead_branch']
    assert 'weight decay has shrunk them' in verdict['remedy']
    assert 'started at zero and have hardly moved: train for longer' in verdict['remedy']


@pytest.mark.parametrize('where', ['weight', 'overflow', 'input'])
def test_the_module_that_first_made_a_non_finite_value(where):
    net, x = built(NFResNet, depth=26, skipinit=1.0), X.clone()
    if where == 'weight':
        net.layer2[1].conv2.bias.data[3] = math.nan
        module = 'layer2.1.conv2'
    elif where == 'overflow':
        net = built(ResNetV2, depth=26, norm_cfg=dict(type='NoNorm'))
        net.layer3[0].conv1.weight.data.fill_(1e38)
        module = 'layer3.0.conv1'
    else:
        x[0, 0, 0, 0] = math.inf
        module = 'the input'
    found = verdicts(net, x)
    assert list(found) == ['non_finite']
    assert module in found['non_finite']['message']
    assert found['non_finite']['severity'] == 'error'


@pytest.fixture
def unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_memory_that_nobody_has_written_is_no_value(unwritten_memory_is_nan):
    assert torch.empty(1).isnan()
    net = built(NFResNet, depth=26, skipinit=1.0, drop_path_rate=0.5).train()
    assert first_non_finite(net, X) is None
    net.layer2[1].conv2.bias.data[3] = math.nan
    assert first_non_finite(net, X).startswith('layer2.1.conv2 ')


def blocks_with(**curves):
    count = len(next(iter(curves.values())))
    return SignalProfile(
        [
            BlockSignal(
                i,
                f'b{i}',
                'residual',
                (1, 4, 2, 2),
                **{'avg_sq_mean': 0.0, 'avg_var': 1.0, **{k: v[i] for k, v in curves.items()}},
            )
            for i in range(count)
        ],
        'train',
    )


@pytest.mark.parametrize(
    ('curves', 'rule'),
    [
        (dict(avg_var=[1.0, 6.0, 36.0, 201.0]), 'explosion'),
        (dict(avg_var=[1.0, 1.0, 11.0, 11.0]), 'branch_jump'),
        (dict(avg_var=[1.0, 0.049]), 'attenuation'),
        (dict(avg_sq_mean=[0.0, 1.1]), 'mean_shift'),
        (dict(constant_channels=[0.0, 0.36]), 'constant_channels'),
        (
            dict(res_avg_var=[1.0, 0.0], branch_gain=[1.0, 1.0], constant_branch=[0.0, 1.0]),
            'dead_branch',
        ),
        (dict(grad_avg_var=[1001.0, 1.0], grad_avg_sq_mean=[0.0, 0.0]), 'gradient_explosion'),
        (dict(grad_avg_var=[0.0009, 1.0], grad_avg_sq_mean=[0.0, 0.0]), 'gradient_attenuation'),
        (dict(grad_avg_var=[1.0, 1.0], grad_avg_sq_mean=[0.0, 1.1]), 'gradient_mean_shift'),
    ],
)
def test_thresholds(curves, rule):
    assert [v['rule'] for v in blocks_with(**curves).verdicts()] == [rule]


@pytest.mark.parametrize(
    'curves',
    [
        dict(avg_var=[1.0, 6.0, 36.0, 199.0]),
        dict(avg_var=[1.0, 1.0, 9.0, 9.0]),
        dict(avg_var=[1.0, 0.051]),
        dict(avg_sq_mean=[0.0, 0.99]),
        dict(constant_channels=[0.0, 0.34]),
        dict(res_avg_var=[1.0, 1e-5], branch_gain=[1.0, 1.0], constant_branch=[0.0, 1.0]),
        dict(res_avg_var=[1.0, 1e-9], branch_gain=[1.0, 1.0], constant_branch=[0.0, 0.5]),
        dict(grad_avg_var=[999.0, 1.0], grad_avg_sq_mean=[0.0, 0.0]),
        dict(grad_avg_var=[0.0011, 1.0], grad_avg_sq_mean=[0.0, 0.0]),
        dict(grad_avg_var=[1.0, 1.0], grad_avg_sq_mean=[0.0, 0.99]),
    ],
)
def test_this_side_of_the_thresholds(curves):
    assert blocks_with(**curves).verdicts() == []


NAMES = """non_finite low_precision explosion attenuation mean_shift branch_jump zero_branch
dead_branch not_reset pooled_shortcut stem_scale off_theory constant_channels dead_units
saturated_units zero_weights duplicate_channels collapsed_images collapsed_tokens
attention_saturated norm_missing norm_statistics bad_input high_dropout no_gradient frozen_weights
shared_weights gradient_explosion gradient_attenuation gradient_mean_shift""".split()
"""The names that others rely on."""


def test_every_rule_has_a_reason_in_its_docstring():
    assert all(rule.__doc__ for rule in RULES.values())
    assert set(NAMES) == set(RULES)
