"""Each rule fires where it should, says why and what to do, and is silent elsewhere."""

import math
import re

import pytest
import timm
import torch
import torchvision
from mmengine.registry import MODELS
from torch import nn

from nf_plugins.models import NFNet, NFRegNet, NFResNet, PWSResNet, ResNetV2
from nf_plugins.spp import RULES, BlockSignal, SignalProfile, analyze
from nf_plugins.spp.analyze import first_non_finite
from nf_plugins.spp.evidence import Evidence, InputFact
from nf_plugins.spp.rules import names_of

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


@pytest.mark.slow
@pytest.mark.parametrize('name', HEALTHY)
def test_a_healthy_network_gets_no_verdict(name):
    assert not verdicts(HEALTHY[name]())


@pytest.mark.slow
def test_skipinit():
    net = built(NFResNet, depth=26)
    found = verdicts(net)
    assert set(found) == {'zero_branch'}
    verdict = found['zero_branch']
    assert (verdict['severity'], verdict['block']) == ('info', 1)
    for words in ('8 of 8 branches', 'flat', 'SkipInit', 'layer1.0.skip_gain', '--unit-gain'):
        assert words in verdict['message']
    assert not verdicts(net, unit_gain=True)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_convolution_initialised_at_zero_is_no_gain():
    from nf_plugins.models import FixupResNet

    net = built(FixupResNet, depth=26)
    found = verdicts(net, unit_gain=True)['zero_branch']
    assert 'conv3.weight' in found['message']
    assert '--unit-gain' not in found['message']


@pytest.mark.slow
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


@pytest.mark.slow
def test_nf_regnet_falls_by_its_pooled_shortcuts():
    found = verdicts(built(NFRegNet, arch='b0'))
    assert {'zero_branch', 'pooled_shortcut'} == set(found)
    assert '4 transitions' in found['pooled_shortcut']['message']
    assert 'stem_scale' not in found
    without = verdicts(built(NFRegNet, arch=dict(base='b0', downsample='conv')))
    assert 'pooled_shortcut' not in without


@pytest.mark.slow
def test_nfnet():
    assert {'zero_branch', 'pooled_shortcut'} == set(verdicts(built(NFNet, arch='f0')))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_folded_gamma_scales_all_stages_and_is_not_taken_for_a_missing_reset():
    net = built(NFResNet, depth=50, skipinit=1.0, gamma_at='conv')
    found = verdicts(net)
    assert set(found) == {'stem_scale'}
    usual = built(NFResNet, depth=50, skipinit=1.0)
    for block, other in zip(analyze(net, X).blocks, analyze(usual, X).blocks):
        assert block.avg_var == pytest.approx(1.7139588594436646**2 * other.avg_var, rel=1e-3)


@pytest.mark.slow
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


@pytest.mark.slow
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


# ------------------------------------------------------------------ what rules once got wrong
def one(profile_or_net, rule, x=X, **options):
    """The verdict of a rule, also where it is a symptom of another one; None without any."""
    profile = profile_or_net
    if isinstance(profile, nn.Module):
        profile = analyze(profile, x, **options)
    return next((v for v in profile.verdicts() if rule in names_of(v)), None)


def plain_layers(scale, depth=6):
    layers = [nn.Sequential(nn.Conv2d(3 if not i else 8, 8, 3), nn.ReLU()) for i in range(depth)]
    torch.manual_seed(0)
    for layer in layers:
        nn.init.kaiming_normal_(layer[0].weight, nonlinearity='relu').data.mul_(scale)
    return nn.Sequential(*layers)


def test_a_signal_that_recovers_does_not_explode():
    """The first block is dead, and what comes after it only recovers."""
    profile = blocks_with(avg_var=[1e-7, 1e-5, 1e-3, 1e-1])
    profile.evidence = Evidence('Net', inputs=[InputFact((4, 3, 8, 8), 0.0, 1.0)])
    assert [v['rule'] for v in profile.verdicts()] == ['attenuation']
    cause = profile.verdicts()[0]['cause']
    assert 'from 1 to 1e-07 at block 0' in cause


def test_what_an_explosion_says_fits_the_network():
    found = one(plain_layers(4.0), 'explosion')
    assert 'each layer multiplies' in found['message'] and 'branch' not in found['message']
    assert 'alpha' not in found['remedy'] and 'norm_cfg' not in found['remedy']
    jump = one(blocks_with(avg_var=[1.0, 1.0, 900.0, 900.0]), 'explosion')
    assert jump['rule'] == 'branch_jump' and jump['block'] == 2
    untrained = one(timm.create_model('resnet26', zero_init_last=False), 'norm_statistics',
                    mode='eval')  # fmt: skip
    assert 'those of a new layer' in untrained['cause']


@pytest.mark.parametrize(
    ('before', 'after', 'expected', 'fires'),
    [(1.0, 1.98, 2.0, False), (1.9, 1.98, 2.0, False), (1.94, 2.70, 1.04, True)],
)
def test_a_reset_is_compared_with_theory(before, after, expected, fires):
    profile = blocks_with(avg_var=[1.04, before, after], expected_var=[1.04, 1.9, expected])
    profile.blocks[0].kind = profile.blocks[2].kind = 'transition'
    found = one(profile, 'not_reset')
    assert (found is not None) == fires
    if fires:
        assert (
            f'{before:.3g} before, {after:.3g} after it, {expected:.3g} expected' in found['cause']
        )


def test_a_stem_of_zero_filters_is_seen():
    net = timm.create_model('resnet26', channels=(16, 16, 16, 16), zero_init_last=False)
    net.conv1.weight.data[:60] = 0
    found = one(net, 'constant_channels')
    assert found['rule'] == 'zero_weights' and '60 of the 64 filters of conv1' in found['cause']
    assert found['block'] == 0


def test_pixels_are_no_gamma_in_the_stem():
    found = one(built(NFResNet, depth=26, skipinit=1.0), 'stem_scale', X * 90)
    assert found['rule'] == 'bad_input' and 'not normalized' in found['cause']
    assert 'gamma' not in found['message']


def test_a_mean_that_has_a_reason_is_no_shift():
    """Of a max-pooled shortcut, of the stem, and of the one block that ends without a ReLU."""
    pooled = blocks_with(avg_sq_mean=[0.1, 2.0, 2.0, 2.1])
    pooled.blocks[1].max_pooled = True
    odd = blocks_with(avg_sq_mean=[0.1, 2.0, 2.0, 2.1])
    for i in (0, 1, 3):
        odd.blocks[i].activated = True
    stem = blocks_with(avg_sq_mean=[2.0, 2.0, 2.0, 2.0])
    stem.blocks[0].kind = 'stem'
    assert [one(p, 'mean_shift') for p in (pooled, odd, stem)] == [None] * 3
    assert one(blocks_with(avg_sq_mean=[0.1, 2.0, 2.0, 2.1]), 'mean_shift')


@pytest.mark.parametrize('name', ['Swin', 'ViT', 'ConvNeXt'])
def test_a_shift_before_norms_is_no_matter_of_relus(name):
    """No word of ReLU, ScaledWS or conv_cfg where there are linear layers, GELU and norms."""
    build = dict(
        Swin=lambda: timm.create_model(
            'swin_tiny_patch4_window7_224', img_size=64, window_size=4, embed_dim=24
        ),
        ViT=lambda: timm.create_model('vit_tiny_patch16_224', img_size=64, depth=4),
        ConvNeXt=lambda: timm.create_model('convnext_atto', ls_init_value=1.0),
    )[name]
    torch.manual_seed(0)
    net = build()
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.4)
    found = analyze(net, X[..., :64, :64]).verdicts()
    assert any('mean_shift' in names_of(v) for v in found), found
    for verdict in found:
        if verdict['rule'] in ('mean_shift', 'explosion', 'attenuation'):
            assert verdict['severity'] == 'info'
            assert not any(w in verdict['message'] for w in ('ReLU', 'ScaledWS', 'conv_cfg'))


SMALL = {
    'NF-ResNet': lambda: built(NFResNet, depth=26, base_channels=8),
    'ResNet-V2': lambda: built(ResNetV2, depth=26, base_channels=8),
    'torchvision': lambda: torchvision.models.resnet18(),
    'ViT': lambda: timm.create_model('vit_tiny_patch16_224', img_size=64, depth=3),
    'plain': lambda: plain_layers(1.0),
}


@pytest.mark.parametrize('name', SMALL)
def test_no_remedy_names_an_option_that_the_network_has_not(name):
    """The rules of the curves are made to fire, as if the network had no norms."""
    data = analyze(SMALL[name](), X[..., :64, :64]).to_dict()
    fired = set()
    for field, factor in (
        ('avg_var', 9.0), ('avg_var', 0.1), ('avg_sq_mean', 9.0), ('res_avg_var', 0.0),
    ):  # fmt: skip
        profile = SignalProfile.from_dict(data)
        for i, block in enumerate(profile.blocks):
            block.pre_norm, block.norms, block.normalized, block.activated = False, 0, False, False
            if (value := getattr(block, field)) is not None:
                setattr(block, field, (value + 0.1 * (field == 'avg_sq_mean')) * factor**i)
        for verdict in profile.verdicts():
            fired.add(verdict['rule'])
            named = set(re.findall(r'\b\w+_\w+(?==|\))', verdict['remedy']))
            assert named <= set(profile.evidence.options) | {'unit_gain'}, verdict
    assert {'explosion', 'attenuation', 'mean_shift'} & fired


def test_masks_of_minus_infinity_are_no_broken_values():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = layer, nn.Linear(8, 8)
            self.divide = False

        def forward(self, x):
            mask = torch.full((5, 5), -math.inf).triu(1)
            for _ in range(2):
                x = x + self.attention(x, x, x, attn_mask=mask)[0]
            x = self.out(x)
            return x / (x - x) if self.divide else x

    net, x = Net(), torch.randn(2, 5, 8)
    assert one(net, 'non_finite', x) is None
    net.divide = True
    found = one(net, 'non_finite', x)
    assert '(div)' in found['cause'] and 'masked' not in found['cause']


def test_a_head_that_is_not_finite_is_seen_although_all_blocks_are():
    net = timm.create_model('resnet26', channels=(16, 16, 16, 16), zero_init_last=False)
    net.fc.bias.data[3] = math.inf
    (found,) = analyze(net, X).verdicts()
    assert found['rule'] == 'non_finite' and found['severity'] == 'error'
    assert 'the signal of all blocks is' in found['cause'] and 'fc.bias' in found['cause']


def test_tokens_that_are_all_the_same():
    net = nn.Sequential(nn.Embedding(9, 8), *[nn.TransformerEncoderLayer(8, 2, 16)] * 1)
    tokens = torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(0))
    assert one(net, 'bad_input', tokens) is None
    assert 'samples' in one(net, 'bad_input', tokens[:1].repeat(4, 1))['cause']
    assert 'constant, 3' in one(net, 'bad_input', torch.full((4, 6), 3))['cause']


def test_a_head_or_a_stem_that_is_far_too_large():
    torch.manual_seed(0)
    head = timm.create_model('vit_tiny_patch16_224', img_size=64, depth=4)
    nn.init.normal_(head.head.weight, std=1.0)
    assert 'head' in one(head, 'branch_jump', X[..., :64, :64])['cause']
    stem = plain_layers(1.0)
    assert one(stem, 'branch_jump') is None
    stem[0][0].weight.data.mul_(30)
    assert 'times the variance of the input' in one(stem, 'branch_jump')['cause']


def test_a_branch_that_something_multiplies():
    torch.manual_seed(0)
    net = timm.create_model('vit_tiny_patch16_224', img_size=64, depth=4)
    net.blocks[2].mlp.fc2.register_forward_hook(lambda m, args, out: out * 12)
    found = one(net, 'branch_jump', X[..., :64, :64])
    assert found['name'] == 'blocks.2.mlp' and 'multiplied by 12' in found['cause']


def test_a_table_that_weights_are_made_of_is_used():
    """The bias of relative positions is read from a table, by a function of its own."""
    torch.manual_seed(0)
    net = timm.create_model('coatnet_pico_rw_224', img_size=64)
    assert one(net, 'no_gradient', X[..., :64, :64]) is None


def test_a_part_that_all_blocks_share_is_meant():
    """CoaT hands one position encoding to all its blocks; a list [block] * n is another matter."""

    class Block(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part, self.out = part, nn.Linear(8, 8)

        def forward(self, x):
            return x + self.out(torch.relu(self.part(x)))

    part, x = nn.Linear(8, 8), torch.randn(4, 6, 8)
    alike = nn.Sequential(*(Block(part) for _ in range(4)))
    assert one(alike, 'shared_weights', x)['severity'] == 'info'
    block = Block(part)
    assert one(nn.Sequential(block, block), 'shared_weights', x)['severity'] == 'warning'


def test_units_after_a_norm_that_starts_at_zero_are_not_dead():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x):
            return x + nn.functional.silu(self.norm(self.conv(x)))

    net = nn.Sequential(nn.Conv2d(3, 8, 1), *(Block() for _ in range(3)))
    assert one(net, 'dead_units') is None
    assert one(net, 'zero_branch')['severity'] == 'info'
