import copy
import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from nf_plugins.models import NFResNet, PWSResNet
from nf_plugins.spp import BlockSignal, SignalProfile, analyze, find_blocks, profiles_to_csv
from nf_plugins.spp.plot import METRICS, plot_profiles


def mmpretrain(kind, **kwargs):
    if 'arch' not in kwargs:
        kwargs.setdefault('depth', 50)
    return MODELS.build(dict(type=f'mmpretrain.{kind}', **kwargs))


def numpy_metrics(x):
    x = x.numpy().astype(np.float64)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    return (mean**2).mean(), var.mean()


def test_a_bottleneck_resnet_by_hand():
    """Every number, from a forward pass written out block by block."""
    net = mmpretrain('ResNet', base_channels=8, stem_channels=8, zero_init_residual=False)
    net.train()
    x = torch.randn(2, 3, 64, 64)
    profile = analyze(net, x, mode='train')
    with torch.no_grad():
        y = net.maxpool(net.relu(net.norm1(net.conv1(x))))
        expected = [(None, *numpy_metrics(y))]
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            for block in stage:
                branch = block.relu(block.norm1(block.conv1(y)))
                branch = block.relu(block.norm2(block.conv2(branch)))
                branch = block.norm3(block.conv3(branch))
                shortcut = y if block.downsample is None else block.downsample(y)
                y = block.relu(branch + shortcut)
                expected.append((numpy_metrics(branch)[1], *numpy_metrics(y)))
    assert len(profile.blocks) == len(expected) == 17
    for block, (res_avg_var, avg_sq_mean, avg_var) in zip(profile.blocks, expected):
        assert block.avg_sq_mean == pytest.approx(avg_sq_mean, rel=1e-4)
        assert block.avg_var == pytest.approx(avg_var, rel=1e-4)
        if res_avg_var is not None:
            assert block.res_avg_var == pytest.approx(res_avg_var, rel=1e-4)
    kinds = [b.kind for b in profile.blocks]
    assert kinds[0] == 'stem'
    assert [i for i, kind in enumerate(kinds) if kind == 'transition'] == [1, 4, 8, 14]
    assert profile.blocks[0].res_avg_var is None
    assert all(b.expected_var is None for b in profile.blocks)


@pytest.mark.parametrize(
    ('kind', 'kwargs', 'count'),
    [
        ('ResNet', dict(depth=18), 8),
        ('ResNet_CIFAR', dict(depth=50), 16),
        ('ResNetV1d', dict(), 16),
        ('ResNeXt', dict(), 16),
        ('SEResNet', dict(), 16),
        ('SEResNeXt', dict(depth=101), 33),
        ('ResNeSt', dict(), 16),
        ('RegNet', dict(arch='regnetx_400mf'), 22),
    ],
)
def test_the_resnet_family_of_mmpretrain(kind, kwargs, count):
    net = mmpretrain(kind, **kwargs)
    profile = analyze(net, torch.randn(2, 3, 64, 64))
    assert len(profile.blocks) == 1 + count
    assert all(b.res_avg_var is not None and b.avg_var > 0 for b in profile.blocks[1:])


def test_other_backbones_get_a_clear_message():
    with pytest.raises(ValueError, match='VGG has no residual block that can be measured'):
        find_blocks(MODELS.build(dict(type='mmpretrain.VGG', depth=11)))


def test_a_whole_model_is_measured_at_its_backbone():
    model = nn.Module()
    model.backbone = NFResNet(26, base_channels=4)
    x = torch.randn(2, 3, 64, 64)
    assert analyze(model, x).blocks == analyze(model.backbone, x).blocks


def module_flags(net):
    return [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]


def equal_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('was_training', [True, False])
def test_the_model_comes_back_unchanged_to_the_bit(mode, was_training):
    torch.manual_seed(3)
    nets = [
        mmpretrain('ResNet', base_channels=8, stem_channels=8, drop_path_rate=0.3),
        PWSResNet(18, base_channels=8, stem_channels=8, conv_cfg=dict(type='PWS', initalpha=True)),
        NFResNet(26, base_channels=4, drop_path_rate=0.5, frozen_stages=1),
    ]
    for net in nets:
        net.train(was_training)
        net(torch.randn(2, 3, 32, 32))[0].sum().backward()
        if isinstance(net, PWSResNet) and was_training:  # untrained again, with gradients
            for module in net.modules():
                if getattr(module, 'initalpha', False):
                    module.load_state_dict(
                        {**module.state_dict(), 'alpha_initialized': torch.tensor(False)}
                    )
        before = copy.deepcopy(net.state_dict())
        gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
        flags = [
            (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()
        ]
        requires_grad = [p.requires_grad for p in net.parameters()]
        rng = torch.get_rng_state()
        analyze(net, torch.randn(2, 3, 32, 32, generator=torch.Generator()), mode=mode)
        assert equal_states(net.state_dict(), before)
        assert torch.equal(torch.get_rng_state(), rng)
        assert requires_grad == [p.requires_grad for p in net.parameters()]
        assert flags == module_flags(net)
        for p, gradient in zip(net.parameters(), gradients):
            assert p.grad is None if gradient is None else torch.equal(p.grad, gradient)


def test_initalpha_still_fires_after_an_analysis():
    net = PWSResNet(18, base_channels=8, stem_channels=8, conv_cfg=dict(type='PWS', initalpha=True))
    analyze(net, torch.randn(2, 3, 32, 32), mode='train')
    assert torch.equal(net.conv1.alpha, torch.ones_like(net.conv1.alpha))
    net.train()(torch.randn(2, 3, 32, 32))
    assert not torch.equal(net.conv1.alpha, torch.ones_like(net.conv1.alpha))


def test_an_analysis_never_sees_a_cached_weight():
    net, x = NFResNet(26, base_channels=4).eval(), torch.randn(1, 3, 64, 64)
    before = analyze(net, x, mode='eval')
    for module in net.modules():
        if getattr(module, 'gain', None) is not None:
            module.gain.data.mul_(2)  # invisible to autograd
    assert analyze(net, x, mode='eval').blocks != before.blocks


def test_hooks_are_removed_after_an_exception():
    net = NFResNet(26, base_channels=4)
    with pytest.raises(RuntimeError, match='channels'):
        analyze(net, torch.randn(2, 5, 32, 32))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_stochastic_depth_is_off():
    x = torch.randn(2, 3, 64, 64)
    net = NFResNet(26, base_channels=4, skipinit=1.0, drop_path_rate=0.9)
    twin = NFResNet(26, base_channels=4, skipinit=1.0)
    twin.load_state_dict(net.state_dict())
    assert analyze(net, x, mode='train').blocks == analyze(twin, x, mode='train').blocks


def test_the_flat_plot_of_skipinit():
    """With the default SkipInit gain of 0 a residual block changes nothing."""
    x = torch.randn(2, 3, 64, 64)
    flat = analyze(NFResNet(26, base_channels=8), x)
    grows = analyze(NFResNet(26, base_channels=8, skipinit=1.0), x)
    for i in (2, 4, 6, 8):
        assert flat.blocks[i].avg_var == flat.blocks[i - 1].avg_var
        assert flat.blocks[i].res_avg_var > 0.1
        assert grows.blocks[i].avg_var > 1.01 * grows.blocks[i - 1].avg_var


def test_the_exploding_mean_of_a_network_without_norms():
    def digits(norm_cfg):
        torch.manual_seed(0)
        net = mmpretrain(
            'ResNet_CIFAR',
            depth=50,
            base_channels=16,
            stem_channels=16,
            norm_cfg=norm_cfg,
            zero_init_residual=False,
            init_cfg=dict(type='Kaiming', layer='Conv2d', mode='fan_in'),
        )
        net.init_weights()
        return analyze(net, torch.randn(8, 3, 32, 32))

    plain, bn = digits(dict(type='NoNorm')), digits(dict(type='BN'))
    _, mean = plain.curve('avg_sq_mean')
    assert mean[-1] > 1e4 * mean[0]
    assert max(bn.curve('avg_sq_mean')[1]) < 5


def test_bad_mode():
    with pytest.raises(ValueError, match="mode must be 'train' or 'eval', got 'test'"):
        analyze(NFResNet(26, base_channels=4), torch.randn(1, 3, 32, 32), mode='test')


def profile_with(*values):
    blocks = [
        BlockSignal(i, f'layer{i}', 'transition' if i % 2 else 'residual', (1, 2), v, v, v)
        for i, v in enumerate(values)
    ]
    return SignalProfile(blocks, 'eval', label='net')


def test_json_is_strict_and_names_the_first_block_that_is_not_finite():
    profile = profile_with(1.0, math.inf, math.nan)
    text = json.dumps(profile.to_dict(), allow_nan=False)
    record = json.loads(text)
    assert record['schema'] == 'nf_plugins.spp/1'
    assert [b['avg_var'] for b in record['blocks']] == [1.0, None, None]
    (verdict,) = record['verdicts']
    assert (verdict['rule'], verdict['severity'], verdict['block']) == ('non_finite', 'error', 1)
    assert 'layer1' in verdict['message']
    assert profile_with(1.0, 2.0).verdicts() == []


def test_csv_and_table():
    profile = profile_with(1.0, 1e-7, 12345.678)
    rows = list(csv.DictReader(io.StringIO(profiles_to_csv([profile, profile]))))
    assert len(rows) == 6
    assert float(rows[2]['avg_var']) == 12345.678
    assert rows[0]['shape'] == '1x2'
    lines = profile.table().splitlines()
    assert len(lines) == 5
    assert '1.235e+04' in lines[-1]


class TestPlot:
    def test_three_panels_with_the_data(self):
        profiles = [profile_with(1.0, 1.5, 1.2), profile_with(1.0, 1.1, 1.2)]
        figure = plot_profiles(profiles, title='two')
        assert [ax.get_ylabel() for ax in figure.axes] == list(METRICS.values())
        for ax in figure.axes:
            assert ax.get_xlabel() == 'Block index'
            curves = [line for line in ax.lines if line.get_label() == 'net']
            assert [list(c.get_ydata()) for c in curves] == [[1.0, 1.5, 1.2], [1.0, 1.1, 1.2]]
            assert ax.get_yscale() == 'linear'
        figure.savefig(io.BytesIO(), format='png')

    @pytest.mark.parametrize(
        ('values', 'scale'),
        [
            ((1, 1000), 'log'),
            ((0, 1, 1000), 'symlog'),
            ((0, 0), 'linear'),
            ((1, math.inf), 'linear'),
        ],
    )
    def test_scale(self, values, scale):
        figure = profile_with(*map(float, values)).plot()
        assert figure.axes[1].get_yscale() == scale
        figure.savefig(io.BytesIO(), format='svg')

    def test_into_an_axis(self):
        from matplotlib.figure import Figure

        ax = Figure().subplots()
        assert profile_with(1.0, 2.0).plot(ax=ax, metric='avg_sq_mean') is ax.figure
        assert list(ax.lines[0].get_ydata()) == [1.0, 2.0]
        with pytest.raises(ValueError, match=r"metric must be one of .*, got 'variance'"):
            profile_with(1.0).plot(ax=ax, metric='variance')
