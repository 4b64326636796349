import copy
import csv
import gc
import io
import json
import math
import os
import socket
import weakref

import numpy as np
import pytest
import timm
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from timm.utils.model import avg_ch_var, avg_ch_var_residual, avg_sq_ch_mean, extract_spp_stats
from torch import nn
from torch.optim.swa_utils import AveragedModel

from nf_plugins.models import NFResNet, PWSResNet
from nf_plugins.spp import BlockSignal, SignalProfile, analyze, profiles_to_csv, zero_gains
from nf_plugins.spp.plot import METRICS, plot_profiles

from ..tools import run_ranks


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
    assert all(b.activated for b in profile.blocks[1:])


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


def test_what_cannot_be_measured_gets_a_clear_message():
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match='ReLU has nothing that can be measured'):
        analyze(nn.ReLU(), x)
    with pytest.raises(TypeError, match=r'model must be an nn.Module, got None .*eval\(\)'):
        analyze(None, x)


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


@pytest.mark.slow
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


@pytest.mark.parametrize('wrap', ['compile', 'parallel', 'ema', 'swa', 'all'])
def test_wrappers_are_taken_off(wrap):
    model = nn.Module()
    model.backbone = NFResNet(26, base_channels=4, skipinit=1.0)
    model.forward = lambda x: model.backbone(x)
    x = torch.randn(2, 3, 64, 64)
    expected = analyze(model.backbone, x)
    wrapped = model
    if wrap in ('compile', 'all'):
        wrapped = torch.compile(wrapped)
    if wrap in ('parallel', 'all'):
        wrapped = nn.DataParallel(wrapped)
    if wrap in ('ema', 'all'):
        wrapped = ExponentialMovingAverage(wrapped)
    if wrap == 'swa':
        wrapped = AveragedModel(wrapped)
    assert analyze(wrapped, x).blocks == expected.blocks


def test_a_compiled_part_runs_as_it_is_written():
    net, twin = (NFResNet(26, base_channels=4, skipinit=1.0) for _ in range(2))
    twin.load_state_dict(net.state_dict())
    net.layer1.compile()
    net.layer2 = torch.compile(net.layer2)
    x = torch.randn(2, 3, 64, 64)
    found = analyze(net, x).blocks
    expected = analyze(twin, x).blocks
    assert found == expected


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_statistics_are_float32_or_wider(dtype):
    torch.manual_seed(0)
    net = NFResNet(26, base_channels=4, skipinit=1.0)
    x = torch.randn(2, 3, 64, 64)
    exact = analyze(net, x)
    other = analyze(copy.deepcopy(net).to(dtype), x.to(dtype))
    for a, b in zip(exact.blocks, other.blocks):
        assert b.avg_var == pytest.approx(a.avg_var, rel=0.05 if dtype is torch.bfloat16 else 1e-5)


def test_the_gradient_by_hand():
    """Every curve of the backward pass, from retained gradients of a written-out forward."""
    torch.manual_seed(0)
    net = mmpretrain('ResNet', depth=18, base_channels=8, stem_channels=8, with_cp=True)
    net.train()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith('bn2.weight'):
                p.fill_(0.7)
    x = torch.randn(4, 3, 64, 64)
    before = copy.deepcopy(net.state_dict())
    profile = analyze(net, x, backward=True, seed=5)
    assert equal_states(net.state_dict(), before)
    assert all(p.grad is None for p in net.parameters())
    assert all(block.with_cp for block in net.layer1)

    y = net.maxpool(net.relu(net.norm1(net.conv1(x))))
    outputs, branches = [y], [None]
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            branch = block.norm2(block.conv2(block.relu(block.norm1(block.conv1(y)))))
            shortcut = y if block.downsample is None else block.downsample(y)
            y = block.relu(branch + shortcut)
            outputs.append(y)
            branches.append(branch)
    for tensor in [*outputs, *branches[1:]]:
        tensor.retain_grad()
    torch.manual_seed(5)
    y.backward(torch.randn(y.shape))
    for block, output, branch in zip(profile.blocks, outputs, branches):
        sq_mean, var = numpy_metrics(output.grad)
        assert block.grad_avg_sq_mean == pytest.approx(sq_mean, rel=1e-3, abs=1e-12)
        assert block.grad_avg_var == pytest.approx(var, rel=1e-3)
        if branch is not None:
            assert block.grad_res_avg_var == pytest.approx(numpy_metrics(branch.grad)[1], rel=1e-3)


def test_gradients_pass_constants():
    """alpha and the SkipInit gain scale what reaches the end of the branch."""
    net = NFResNet(26, base_channels=4, skipinit=0.5)
    for block in analyze(net, torch.randn(2, 3, 64, 64), backward=True).blocks[1:]:
        ratio = block.grad_res_avg_var / block.grad_avg_var
        assert ratio == pytest.approx((0.2 * 0.5) ** 2, rel=1e-4)
    assert analyze(net, torch.randn(2, 3, 64, 64)).blocks[1].grad_avg_var is None


def test_gains_at_one():
    """As if built so; the gains are zero again afterwards."""
    x = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    net = NFResNet(26, base_channels=4)
    torch.manual_seed(0)
    twin = NFResNet(26, base_channels=4, skipinit=1.0)
    opened = analyze(net, x, unit_gain=True)
    assert [b.avg_var for b in opened.blocks] == [b.avg_var for b in analyze(twin, x).blocks]
    assert opened.unit_gain
    assert opened.to_dict()['unit_gain'] is True
    assert not any(gain.any() for gain in zero_gains(net).values())
    assert len(zero_gains(net)) == 8

    resnet = mmpretrain('ResNet', depth=18)  # zero-initialised norms
    resnet.init_weights()
    assert all(name.endswith('bn2.weight') for name in zero_gains(resnet))
    assert len(zero_gains(resnet)) == 8
    assert analyze(resnet, x, unit_gain=True).blocks[1].res_avg_var == pytest.approx(1, rel=1e-3)


def test_the_same_tensors_as_timms():
    """timm's own statistics, of which the variance is unbiased."""
    torch.manual_seed(0)
    model = timm.create_model('nf_resnet26')
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith('conv3.gain'):
                p.uniform_(0.5, 1.5)
    shape = [2, 3, 96, 96]
    torch.manual_seed(1)
    theirs = extract_spp_stats(
        copy.deepcopy(model),
        ['stages.?.?', 'stages.?.?', 'stages.?.?.conv3'],
        [avg_sq_ch_mean, avg_ch_var, avg_ch_var_residual],
        shape,
    )
    torch.manual_seed(1)
    ours = analyze(model, torch.normal(0.0, 1.0, shape)).blocks[1:]
    assert [b.name for b in ours] == [
        n for n, _ in model.named_modules() if n.count('.') == 2 and n.startswith('stages')
    ]
    for number, block in enumerate(ours):
        count = block.shape[0] * block.shape[2] * block.shape[3]
        biased = (count - 1) / count
        sq_mean, var, res_var = (theirs[key][number] for key in theirs)
        assert block.avg_sq_mean == pytest.approx(sq_mean, rel=1e-4, abs=1e-9)
        assert block.avg_var == pytest.approx(var * biased, rel=1e-4)
        assert block.res_avg_var == pytest.approx(res_var * biased, rel=1e-4)


def analyze_on_a_rank(rank, port, folder):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    net = NFResNet(26, base_channels=4, skipinit=1.0)
    net.load_state_dict(torch.load(f'{folder}/net.pth'))
    torch.set_num_threads(1)
    x = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    profile = analyze(net, x[:2] if rank == 0 else x[2:], sync=True)
    torch.save(
        [(b.avg_sq_mean, b.avg_var, b.res_avg_var or 0) for b in profile.blocks],
        f'{folder}/{rank}.pt',
    )
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_are_merged_exactly(tmp_path):
    """Two ranks with 2 and 4 images give the statistics of the 6."""
    net = NFResNet(26, base_channels=4, skipinit=1.0)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    run_ranks(analyze_on_a_rank, str(port), str(tmp_path))
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))
    assert first == second
    x = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for found, block in zip(first, analyze(net, x).blocks):
        expected = (block.avg_sq_mean, block.avg_var, block.res_avg_var or 0)
        assert found == pytest.approx(expected, rel=1e-5)


def test_nothing_of_the_activations_is_kept():
    alive = []

    class Watch(nn.Conv2d):
        def forward(self, x):
            out = super().forward(x)
            alive.append(weakref.ref(out))
            return out

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Watch(4, 4, 3, padding=1), Watch(4, 4, 3, padding=1)

        def forward(self, x):
            assert sum(ref() is not None for ref in alive) <= 2
            return x + self.b(self.a(x).relu())

    net = nn.Sequential(Watch(3, 4, 3), *(Block() for _ in range(10)))
    analyze(net, torch.randn(1, 3, 16, 16))
    gc.collect()
    assert len(alive) == 21
    assert not any(ref() is not None for ref in alive)


def test_what_a_forward_pass_leaves_in_its_modules_is_taken_back():
    class Messy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.register_buffer('count', torch.zeros(()))
            self.register_buffer('filled', None)
            self._calls, self.seen, self.cache = 0, [], {}

        def forward(self, x):
            self.count = self.count + 1
            self.filled = torch.ones(3)
            if not hasattr(self, 'mask'):
                self.register_buffer('mask', torch.ones(len(x)))
            self._calls += 1
            self.seen.append(x)
            self.cache['x'] = x
            return x + self.conv(torch.relu(self.conv(x)))

    net = nn.Sequential(Messy(), Messy())
    before = copy.deepcopy(net.state_dict())
    analyze(net, torch.randn(2, 3, 8, 8))
    assert equal_states(net.state_dict(), before)
    for module in net:
        assert (module._calls, module.seen, module.cache) == (0, [], {})
        assert module.filled is None
        assert not hasattr(module, 'mask')


def test_scripted_modules_keep_their_mode():
    net = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    with pytest.raises(ValueError, match='nothing that can be measured'):
        analyze(net, torch.randn(2, 3, 8, 8), mode='train')
    assert not any(module.training for module in net.modules())


def test_lazy_modules_are_refused():
    with pytest.raises(ValueError, match='run it once first'):
        analyze(nn.Sequential(nn.LazyConv2d(4, 3)), torch.randn(1, 3, 8, 8))


def test_a_finite_signal_beyond_the_square_root_of_float32():
    """It explodes, which is another thing than not finite."""

    class Loud(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return x + 1e4 * self.b(self.a(x))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), *(Loud() for _ in range(7)))
    profile = analyze(net, torch.randn(2, 3, 8, 8))
    assert profile.blocks[-1].avg_var > 1e38
    assert 'explosion' in {v['rule'] for v in profile.verdicts()}
    assert 'non_finite' not in {v['rule'] for v in profile.verdicts()}


@pytest.mark.slow
def test_modules_with_a_train_method_of_their_own():
    """LeViT keeps a table of its biases in evaluation mode, and drops it in training mode."""
    net = mmpretrain('LeViT', arch='128s')
    x = torch.randn(2, 3, 224, 224)
    for was_training in (True, False):
        net.train(was_training)
        for mode in ('eval', 'train'):
            attention = net.stages[0][0].block
            before = hasattr(attention, 'ab')
            analyze(net, x, mode=mode)
            assert hasattr(attention, 'ab') == before
            assert all(m.training == was_training for m in net.modules())


def profile_with(*values):
    blocks = [
        BlockSignal(i, f'layer{i}', 'transition' if i % 2 else 'residual', (1, 2), v, v, v)
        for i, v in enumerate(values)
    ]
    return SignalProfile(blocks, 'eval', label='net')


def test_json_is_strict():
    profile = profile_with(1.0, math.inf, math.nan)
    record = json.loads(json.dumps(profile.to_dict(), allow_nan=False))
    assert record['schema'] == 'nf_plugins.spp/2'
    assert [b['avg_var'] for b in record['blocks']] == [1.0, None, None]


def test_csv_and_table():
    profile = profile_with(1.0, 1e-7, 12345.678)
    rows = list(csv.DictReader(io.StringIO(profiles_to_csv([profile, profile]))))
    assert len(rows) == 6
    assert float(rows[2]['avg_var']) == 12345.678
    assert rows[0]['shape'] == '1x2'
    lines = profile.table().splitlines()
    assert len(lines) == 5
    assert '1.235e+04' in lines[-1]


def test_a_profile_without_blocks_has_no_verdicts():
    assert SignalProfile([], 'train').verdicts() == []


class TestPlot:
    def test_many_long_labels_fit(self):
        profiles = [profile_with(1.0, 2.0) for _ in range(9)]
        for profile in profiles:
            profile.label = 'a network with quite a long name ' * 2
        figure = plot_profiles(profiles)
        figure.canvas.draw()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width

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
