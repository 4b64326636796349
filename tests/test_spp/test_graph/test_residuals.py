"""The residual additions of networks written to be hard, and of libraries' networks."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.checkpoint import checkpoint

from nf_plugins.layers import DropPath, DyT
from nf_plugins.spp import analyze, find_residuals
from nf_plugins.spp.graph.residuals import is_inside

from ...conftest import undrawn
from ...oracles import residual_counts


def branch(channels=8, out=None):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, out or channels, 3, padding=1),
    )


class Block(nn.Module):
    """A block whose last step is ``join(shortcut, branch)``."""

    def __init__(self, join, channels=8):
        super().__init__()
        self.branch = branch(channels)
        self.gain = nn.Parameter(torch.full((), 0.5))
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.drop_path = DropPath(0.9)
        self.join = join

    def forward(self, x):
        return self.join(self, x, self.branch(x))


def in_place(self, x, y):
    y += x
    return y


def add_underscore(self, x, y):
    return y.add_(x)


def into_the_shortcut(self, x, y):
    x = x.clone()
    x += y
    return x


JOINS = {
    'plus': (lambda self, x, y: x + y, 1.0),
    'reversed': (lambda self, x, y: y + x, 1.0),
    '+=': (in_place, 1.0),
    'add_': (add_underscore, 1.0),
    'into the shortcut': (into_the_shortcut, 1.0),
    'alpha': (lambda self, x, y: torch.add(x, y, alpha=0.3), 0.3),
    'scaled': (lambda self, x, y: x + 0.2 * y, 0.2),
    'divided': (lambda self, x, y: y / 4 + x, 0.25),
    'addcmul': (lambda self, x, y: torch.addcmul(x, y, self.gain, value=0.2), 0.1),
    'lerp': (lambda self, x, y: torch.lerp(x, y, 0.5), 0.5),
    'SkipInit': (lambda self, x, y: x + y.mul_(self.gain) * 0.2, 0.1),
    'LayerScale': (lambda self, x, y: x + self.scale * y, None),
    'DropPath': (lambda self, x, y: x + self.drop_path(y), 1.0),
    'post-activation': (lambda self, x, y: F.relu_(x + y), 1.0),
    'number, then gain': (lambda self, x, y: x + y * 0.2 * self.gain, 0.1),
    'gain, then number': (lambda self, x, y: x + y * self.gain * 0.2, 0.1),
    'difference': (lambda self, x, y: x - y, 1.0),
    'sum of a list': (lambda self, x, y: sum([x, y]), 1.0),
    'scaled shortcut': (lambda self, x, y: 1.5 * x + y, 1.0),
    'mask over the samples': (
        lambda self, x, y: x + y * torch.tensor([0.0, 2.0])[:, None, None, None],
        1.0,
    ),
    'torchvision stochastic depth': (
        lambda self, x, y: x + torchvision.ops.stochastic_depth(y, 0.5, 'row', self.training),
        1.0,
    ),
    'a swish behind': (lambda self, x, y: (lambda z: z * z.sigmoid())(x + y), 1.0),
    'views': (lambda self, x, y: (x.flatten(2) + y.flatten(2)).view_as(x), 1.0),
}


@pytest.mark.parametrize('name', JOINS)
def test_every_way_to_add(name):
    """The branch is measured before the addition and its factors change it."""
    join, gain = JOINS[name]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(Block(join), Block(join)))
    x = torch.randn(2, 3, 12, 12)
    stem, *blocks = analyze(net, x).blocks
    assert [b.name for b in blocks] == ['1.0', '1.1']
    assert [b.kind for b in blocks] == ['residual', 'residual']
    with torch.no_grad():
        net.eval()
        y = net[0](x)
        assert stem.avg_var == pytest.approx(variance(y), rel=1e-5)
        for block, module in zip(blocks, net[1]):
            bare = module.branch(y)
            assert block.res_avg_var == pytest.approx(variance(bare), rel=1e-5)
            total = y + bare if name == 'a swish behind' else module(y)
            if name == 'torchvision stochastic depth':  # which is random
                break
            assert block.avg_var == pytest.approx(variance(total), rel=1e-5)
            y = module(y)
            if gain is None:
                expected = module.scale.square().mean().sqrt().item()
                assert block.branch_gain == pytest.approx(expected)
            else:
                assert block.branch_gain == pytest.approx(gain)
    assert all(b.activated == (name == 'post-activation') for b in blocks)


def variance(x, axis=1):
    return x.movedim(axis, 0).flatten(1).double().var(1, correction=0).mean().item()


def test_a_gain_of_zero_hides_nothing():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Block(JOINS['SkipInit'][0]))
    nn.init.zeros_(net[1].gain)
    x = torch.randn(2, 3, 12, 12)
    block = analyze(net, x).blocks[1]
    assert block.res_avg_var == pytest.approx(variance(net[1].branch(net[0](x))), rel=1e-5)
    assert (block.branch_gain, block.zero_parameter) == (0.0, '1.gain')


class Transition(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, 2, 1)
        self.conv2 = nn.Conv2d(8, 16, 3, 1, 1)
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()
        self.downsample = nn.Conv2d(8, 16, 1, 1 if pool else 2)

    def forward(self, x):
        x = F.relu(x)
        return self.conv2(F.relu(self.conv1(x))) + self.downsample(self.pool(x))


COMPLEX = dict(
    number=lambda x: ((x * 2j) * -1j).real,
    reversed=lambda x: (1j * x / 0.5j).real,
    division=lambda x: (x / -0.5j).imag,
    tensor=lambda x: (x * torch.tensor(2j)).imag,
    divisor=lambda x: (x / torch.tensor(-0.5j)).imag,
    spectrum=lambda x: torch.fft.ifft2(torch.fft.fft2(x) * (2 + 0j)).real,
)


@pytest.mark.parametrize('name', COMPLEX)
def test_complex_factors(name):
    """With a gradient they pass; each of these doubles the branch."""

    class Block(nn.Module):
        def __init__(self, double):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.double = double

        def forward(self, x):
            return x + self.double(self.conv(x))

    net = nn.Sequential(nn.Conv2d(3, 4, 3), Block(COMPLEX[name]))
    twin = nn.Sequential(net[0], Block(lambda x: x + x))
    twin[1].conv = net[1].conv
    batch = torch.randn(2, 3, 8, 8)
    (found,), (expected,) = (analyze(n, batch).blocks[1:] for n in (net, twin))
    assert found.kind == expected.kind == 'residual'
    assert found.avg_var == pytest.approx(expected.avg_var, rel=1e-4)


@pytest.mark.parametrize('pool', [False, True])
def test_projections(pool):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Transition(pool), Block(in_place, 16))
    x = torch.randn(2, 3, 12, 12)
    stem, transition, identity = analyze(net, x).blocks
    assert stem.avg_var == pytest.approx(variance(net[0](x)), rel=1e-5)  # not behind the ReLU
    assert (transition.kind, transition.name, transition.pooled) == ('transition', '1', pool)
    assert identity.kind == 'residual'


class Layer(nn.Module):
    """A transformer layer over tokens, windows of which are shifted."""

    def __init__(self, dims=16, shift=0):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.qkv, self.proj = nn.Linear(dims, 3 * dims), nn.Linear(dims, dims)
        self.mlp = nn.Sequential(nn.Linear(dims, 4 * dims), nn.GELU(), nn.Linear(4 * dims, dims))
        self.shift = shift

    def attend(self, x):
        x = torch.roll(x, self.shift, 1)
        q, k, v = self.qkv(self.ln1(x)).chunk(3, -1)
        return torch.roll(self.proj(F.scaled_dot_product_attention(q, k, v)), -self.shift, 1)

    def forward(self, x):
        x = x + self.attend(x)
        return x + self.mlp(self.ln2(x))


class ParallelLayer(Layer):
    def forward(self, x):
        return x + self.attend(x) + self.mlp(self.ln2(x))


class PostNormLayer(Layer):
    def forward(self, x):
        x = self.ln1(x + self.attend(x))
        return self.ln2(x + self.mlp(x))


class Tokens(nn.Module):
    """Patches to tokens, a class token in front, a position embedding."""

    def __init__(self, layer, cls_token=True, spatial=False):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, 16)) if cls_token else None
        self.pos = nn.Parameter(torch.rand(1, 9 + cls_token, 16))
        self.layers = nn.ModuleList([layer(shift=i) for i in range(3)])
        self.spatial = spatial

    def embed(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        return x + self.pos

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x[:, 0]


@pytest.mark.parametrize('cls_token', [False, True])
@pytest.mark.parametrize('layer', [Layer, ParallelLayer, PostNormLayer])
def test_tokens(layer, cls_token):
    net, x = Tokens(layer, cls_token), torch.randn(2, 3, 12, 12)
    blocks = analyze(net, x).blocks
    assert [b.kind for b in blocks] == ['stem'] + ['residual'] * 6
    assert blocks[0].avg_var == pytest.approx(variance(net.embed(x), 2), rel=1e-4)
    assert blocks[0].shape == (2, 9 + cls_token, 16)
    y = net.layers[0](net.embed(x))
    if layer is not PostNormLayer:
        assert blocks[2].avg_var == pytest.approx(variance(y, 2), rel=1e-4)
    assert [b.name for b in blocks[1:]] == [
        f'layers.{i}.{n}' for i in range(3) for n in ('proj', 'mlp')
    ]


class AddsItself(nn.Sequential):
    """As mmcv's FFN: it adds what it is given."""

    def forward(self, x, identity):
        return identity + super().forward(x)


class FormedLayer(nn.Module):
    """A layer whose second sum is made inside a part of it."""

    def __init__(self, norm):
        super().__init__()
        self.norm1, self.norm2, self.proj = norm(16), norm(16), nn.Linear(16, 16)
        self.mlp = AddsItself(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x):
        x = x + self.proj(self.norm1(x))
        return self.mlp(self.norm2(x), x)


@pytest.mark.parametrize('norm', [nn.LayerNorm, DyT, nn.Identity])
def test_names_do_not_depend_on_the_norms(norm):
    """A block whose module holds another block is named by its own part of it."""
    net = Tokens(lambda shift: FormedLayer(norm))
    names = [b.name for b in analyze(net, torch.randn(2, 3, 12, 12)).blocks[1:]]
    assert names == [f'layers.{i}.{n}' for i in range(3) for n in ('proj', 'mlp')]


class NHWC(nn.Module):
    """ConvNeXt-like, with the channels last in the stream, of four or five dimensions."""

    def __init__(self, dims):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
            for _ in range(2)
        )
        self.dims = dims

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        if self.dims == 5:
            x = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2], 8)
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.parametrize('dims', [4, 5])
def test_channels_last(dims):
    net, x = NHWC(dims), torch.randn(2, 3, 16, 8)
    found = find_residuals(net, x)
    assert [r.channel_dim for r in found] == [dims - 1] * 2
    blocks = analyze(net, x).blocks
    assert blocks[-1].avg_var == pytest.approx(variance(net(x), dims - 1), rel=1e-4)


class TokenMixer(nn.Module):
    """MLP-Mixer: the last axis of the branch's product is the tokens'."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.mix = nn.Sequential(nn.Linear(9, 20), nn.GELU(), nn.Linear(20, 9))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)


def test_token_mixing():
    (found,) = find_residuals(TokenMixer(), torch.randn(2, 3, 12, 12))
    assert found.channel_dim == 2


class RepVGG(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv3, self.conv1 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return F.relu(self.conv3(x) + self.conv1(x) + self.norm(x))


class Pyramid(nn.Module):
    """Three residual stages, and a top-down path over them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 2, 2), Block(in_place), Block(in_place)) for _ in range(3)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))

    def forward(self, x):
        x, outs = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            outs.append(x)
        top = self.lateral[2](outs[2])
        for i in (1, 0):
            top = self.lateral[i](outs[i]) + F.interpolate(top, scale_factor=2)
        return top


class Hierarchical(nn.Module):
    """Res2Net's block: sums within the branch."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv3 = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.convs = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))

    def forward(self, x):
        parts = list(self.conv1(x).split(2, 1))
        for i, conv in enumerate(self.convs):
            parts[i + 1] = conv(parts[i] + parts[i + 1])
        return x + self.conv3(torch.cat(parts, 1))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc1, self.fc2 = branch(), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x):
        y = self.body(x)
        gate = self.fc2(F.relu(self.fc1(y.mean((2, 3), keepdim=True))))
        return x + y * gate.sigmoid()


class LongSkip(nn.Module):
    """Super-resolution's skip around all blocks is no block."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(*(Block(in_place) for _ in range(3)), nn.Conv2d(8, 8, 1))

    def forward(self, x):
        x = self.stem(x)
        return x + self.body(x)


class TwoStreams(nn.Module):
    """RevViT's coupling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.f, self.g = (nn.ModuleList(branch() for _ in range(2)) for _ in range(2))

    def forward(self, x):
        a = b = self.stem(x)
        for f, g in zip(self.f, self.g):
            a = a + f(b)
            b = b + g(a)
        return a, b


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), branch()
        self.use_reentrant = use_reentrant

    def inner(self, x):
        return x + self.body(x)

    def forward(self, x):
        return checkpoint(self.inner, self.stem(x), use_reentrant=self.use_reentrant)


class Written(nn.Module):
    """Writes the branch into slices of the stream."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), branch(4)
        self.last = Block(in_place)

    def forward(self, x):
        x = self.stem(x)
        x[:, :4] += self.body(x[:, :4])
        return self.last(x)


def sequence(*modules):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *modules)


NETS = {
    'parallel branches': (lambda: sequence(RepVGG(), RepVGG()), 0),
    'feature pyramid': (Pyramid, 6),
    'hierarchical sums': (lambda: sequence(Hierarchical(), Hierarchical()), 2),
    'squeeze and excite': (lambda: sequence(SqueezeExcite(), SqueezeExcite()), 2),
    'long skip': (LongSkip, 3),
    'two streams': (TwoStreams, 4),
    'checkpoint': (lambda: Checkpointed(False), 1),
    'reentrant checkpoint': (lambda: Checkpointed(True), 1),
    'written into slices': (Written, 2),
    'the same block twice': (lambda: sequence(*[Block(in_place)] * 2), 2),
    'torch encoder': (
        lambda: Tokens(lambda shift: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)),
        6,
    ),
    'torchvision resnet18': (torchvision.models.resnet18, 8),
    'torchvision swin_t': (torchvision.models.swin_t, 24),
    'torchvision convnext_tiny': (torchvision.models.convnext_tiny, 18),
    'torchvision efficientnet_b0': (torchvision.models.efficientnet_b0, 9),
    'torchvision densenet121': (torchvision.models.densenet121, 0),
    'timm resnetv2_50': (lambda: timm.create_model('resnetv2_50'), 16),
    'timm nf_resnet26': (lambda: timm.create_model('nf_resnet26'), 8),
    'timm dm_nfnet_f0': (lambda: timm.create_model('dm_nfnet_f0'), 12),
    'timm vit_tiny': (lambda: timm.create_model('vit_tiny_patch16_224'), 24),
    'timm mobilenetv3': (lambda: timm.create_model('mobilenetv3_small_100'), 6),
    'fx graph': (lambda: torch.fx.symbolic_trace(torchvision.models.resnet18()), 8),
    'scripted': (lambda: torch.jit.script(torchvision.models.resnet18()), 8),
    'timm repvgg_a0': (lambda: timm.create_model('repvgg_a0'), 0),
}


# Of the reentrant checkpoint, as no gradient is wanted.
@pytest.mark.filterwarnings('ignore:None of the inputs have requires_grad:UserWarning')
@pytest.mark.parametrize('name', NETS)
def test_counts(name):
    build, count = NETS[name]
    net = build().eval()
    size = 12 if isinstance(net, Tokens) else 224 if 'tiny' in name or 'swin' in name else 64
    profile = analyze(net, torch.randn(2, 3, size, size), mode='eval')
    kinds = [b.kind for b in profile.blocks]
    assert sum(kind in ('residual', 'transition') for kind in kinds) == count
    if not count:
        assert set(kinds) == {'plain'}
        assert len(kinds) > 1


@pytest.mark.slow
def test_graph_modules_have_names_and_a_stem():
    net = torchvision.models.resnet18().eval()
    x = torch.randn(2, 3, 64, 64)
    traced = analyze(torch.fx.symbolic_trace(net), x, mode='eval')
    expected = analyze(net, x, mode='eval')
    assert [b.name for b in traced.blocks] == [b.name for b in expected.blocks]
    assert [b.kind for b in traced.blocks] == [b.kind for b in expected.blocks]
    assert analyze(torch.jit.trace(net, x), x, mode='eval').blocks


def test_every_block_of_an_efficientnet_is_there():
    net = timm.create_model('efficientnet_b0').eval()
    found = [b.name for b in analyze(net, torch.randn(1, 3, 64, 64), mode='eval').blocks]
    blocks = [n for n, m in net.named_modules() if type(m).__name__ == 'InvertedResidual']
    assert set(blocks) <= set(found)


def test_blocks_without_a_shortcut_stand_among_the_others():
    net = torchvision.models.mobilenet_v2().eval()
    profile = analyze(net, torch.randn(1, 3, 64, 64), mode='eval')
    shortcuts = {
        name: module.use_res_connect
        for name, module in net.named_modules()
        if hasattr(module, 'use_res_connect')
    }
    found = {b.name: b.kind == 'residual' for b in profile.blocks if b.kind != 'stem'}
    assert found == shortcuts


@pytest.mark.parametrize('depth', [11, 16])
def test_a_plain_network_is_measured_convolution_by_convolution(depth):
    net = MODELS.build(dict(type='mmpretrain.VGG', depth=depth))
    blocks = analyze(net, torch.randn(1, 3, 64, 64), mode='eval').blocks
    assert len(blocks) == depth - 3  # without the fully connected layers
    assert {b.kind for b in blocks} == {'plain'}


SMALL = [
    dict(type='ResNet', depth=18),
    dict(type='Res2Net', depth=50, scales=4, base_width=26),
    dict(type='SEResNeXt', depth=50),
    dict(type='HRNet', arch='w18'),
    dict(type='VisionTransformer', arch='deit-t'),
    dict(type='SwinTransformerV2', arch='t', img_size=256),
    dict(type='T2T_ViT'),
    dict(type='TNT', arch='s'),
    dict(type='RevVisionTransformer', arch='deit-s'),
    dict(type='VAN', arch='tiny'),
    dict(type='PoolFormer', arch='s12'),
    dict(type='MlpMixer', arch='b'),
    dict(type='ConvMixer', arch='768/32'),
    dict(type='EdgeNeXt', arch='xxsmall'),
    dict(type='MViT', arch='tiny'),
    dict(type='HiViT', arch='tiny'),
    dict(type='XCiT', patch_size=16, embed_dims=192, depth=12, num_heads=4, mlp_ratio=4),
    dict(type='MobileOne', arch='s0'),
    dict(type='ShuffleNetV1'),
    dict(type='CSPResNet', depth=50),
    dict(type='LeViT', arch='128s'),
    dict(type='DaViT', arch='t'),
    dict(type='LeNet5'),
]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Unnecessary conv bias:UserWarning')
@pytest.mark.parametrize('cfg', SMALL, ids=lambda cfg: cfg['type'])
def test_a_sample_of_mmpretrain(cfg):
    """The count that was read from the sources of the blocks."""
    init_default_scope('mmpretrain')
    net = MODELS.build(cfg)
    size = cfg.get('img_size', 32 if cfg['type'] == 'LeNet5' else 224)
    x = torch.randn(1, 1 if cfg['type'] == 'LeNet5' else 3, size, size)
    net.eval()
    counted = residual_counts.count_residuals(net)
    profile = analyze(net, x, mode='eval')
    found = [b for b in profile.blocks if b.kind in ('residual', 'transition')]
    assert len(found) == sum(counted.values())
    for name in counted:  # every block is there, by the name of itself, a part, or the whole
        assert any(is_inside(name, b.name) or is_inside(b.name, name) for b in found)


def test_two_streams_that_fuse():
    """Conformer: ten additions of features to the tokens are taken for residual ones.

    So they are, but for their source. Three blocks whose shortcut is a projection are missed:
    two, since the other stream reads their branch, and the last one, which reads both streams.
    """
    init_default_scope('mmpretrain')
    net = MODELS.build(dict(type='Conformer', arch='tiny'))
    net.eval()
    found = [r.name for r in find_residuals(net, torch.randn(1, 3, 224, 224))]
    assert sum(residual_counts.count_residuals(net).values()) == 47
    assert len(found) == 47 + 10 - 3


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_a_backbone_of_every_type_in_the_configs_of_mmpretrain():
    """On the meta device, where nothing is computed; spp_coverage.py runs them all."""
    first = {}
    for case in residual_counts.distinct_backbones():
        first.setdefault(case.cfg['type'], case)
    assert len(first) > 70
    init_default_scope('mmpretrain')
    wrong = []
    for kind, case in first.items():
        with undrawn():
            net = residual_counts.build(case.cfg)
        # They index with masks, or initialise themselves, for which values are needed.
        if kind in ('T2T_ViT', 'SparseResNet', 'SparseConvNeXt', 'LoRAModel'):
            continue
        net.to('meta').eval()
        x = torch.empty(1, case.channels, *case.size, device='meta')
        found = find_residuals(net, x)
        if len(found) != sum(residual_counts.count_residuals(net).values()):
            wrong.append(kind)
    assert wrong == ['Conformer']  # see below


@pytest.mark.slow
def test_masked_pretraining_backbones_see_the_whole_image():
    init_default_scope('mmpretrain')
    net = MODELS.build(dict(type='MAEViT', arch='b', mask_ratio=0.75))
    blocks = analyze(net, torch.randn(1, 3, 224, 224), mode='eval').blocks
    assert blocks[-1].shape == (1, 197, 768)
