"""DyT and Derf: the papers' formulas, where mm takes layer norms, and in the networks of others."""

import copy
import math
import pickle

import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmengine.optim import build_optim_wrapper
from torch import nn

import nf_plugins
from nf_plugins.layers import Derf, DyT

timm = pytest.importorskip('timm')
torchvision = pytest.importorskip('torchvision')

LAYERS = {'DyT': DyT, 'Derf': Derf}


def expected(layer, x, axis):
    """The papers' formulas, number by number."""
    out, shift = torch.empty_like(x), getattr(layer, 'shift', torch.zeros(1)).item()
    function = math.erf if isinstance(layer, Derf) else math.tanh
    for place in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        channel = place[axis]
        y = function(layer.alpha.item() * x[tuple(place)].item() + shift)
        out[tuple(place)] = layer.weight[channel].item() * y + layer.bias[channel].item()
    return out


def random_layer(name, channels, **options):
    layer = LAYERS[name](channels, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.2, 1.5)
    return layer


FORMS = {  # shape -> axis of the 5 channels, option of the layer, option of the call
    'vector': ((4, 5), -1, {}, {}),
    'tokens': ((2, 3, 5), -1, {}, {}),
    'tokens, as many as channels': ((2, 5, 5), -1, {}, {}),
    'images': ((2, 5, 3, 4), 1, {}, {}),
    'images, last': ((2, 3, 4, 5), -1, {}, {}),
    'images, as many rows as channels': ((1, 5, 3, 5), 1, {}, {}),
    'square images, the call says so': ((1, 5, 5, 5), 1, {}, dict(data_format='channel_first')),
    'the call says last': ((1, 5, 5, 5), -1, {}, dict(data_format='channel_last')),
    'the layer says first': ((1, 5, 5, 5), 1, dict(data_format='channel_first'), {}),
    'the layer says last': ((1, 5, 5, 5), -1, dict(data_format='channel_last'), {}),
    'the call goes before the layer': (
        (1, 5, 5, 5), 1, dict(data_format='channel_last'), dict(data_format='channel_first'),
    ),
    'sequences, first': ((2, 5, 3), 1, dict(data_format='channel_first'), {}),
    'videos': ((2, 5, 2, 3, 2), 1, {}, {}),
}  # fmt: skip


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('form', FORMS)
def test_the_formula_wherever_the_channels_are(form, name):
    shape, axis, options, call = FORMS[form]
    layer = random_layer(name, 5, **options)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x, **call), expected(layer, x, axis), rtol=1e-12, atol=1e-12)


def test_initial_values_and_names_are_those_of_the_authors():
    assert list(dict(DyT(3).named_parameters())) == ['alpha', 'weight', 'bias']
    state = Derf(3).state_dict()
    assert {name: value.tolist() for name, value in state.items()} == {
        'alpha': [0.5], 'shift': [0.0], 'weight': [1.0] * 3, 'bias': [0.0] * 3,
    }  # fmt: skip
    assert DyT(3, alpha=0.8).alpha.item() == pytest.approx(0.8)
    assert Derf(3, shift=0.1).shift.item() == pytest.approx(0.1)


def test_options_of_layer_norm():
    x = torch.randn(2, 3, 4)
    assert not list(DyT(4, elementwise_affine=False).parameters())[1:]
    torch.testing.assert_close(DyT(4, elementwise_affine=False)(x), torch.tanh(x / 2))
    assert DyT(4, bias=False).bias is None
    layer = random_layer('DyT', (3, 4)).float()
    torch.testing.assert_close(layer(x), layer.weight * torch.tanh(layer.alpha * x) + layer.bias)


BAD = [
    (dict(alpha=0), ValueError, 'alpha must be a positive number, got 0'),
    (dict(alpha='0.5'), TypeError, 'alpha must be a positive number'),
    (dict(data_format='NCHW'), ValueError, 'data_format must be one of channel_first, channel_la'),
    (dict(normalized_shape=(3, 4), data_format='channel_first'), ValueError, 'takes one axis'),
]


@pytest.mark.parametrize(('options', 'error', 'message'), BAD)
def test_bad_options(options, error, message):
    for layer in LAYERS.values():
        with pytest.raises(error, match=message):
            layer(**{'normalized_shape': 4, **options})


@pytest.mark.parametrize('name', LAYERS)
def test_gradients(name):
    layer = random_layer(name, 4)
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters.values()))


@pytest.mark.parametrize('name', LAYERS)
def test_half_precision_compilation_pickle_and_meta(name):
    layer = random_layer(name, 4).float()
    x = torch.randn(2, 4, 3, 5)
    with torch.autocast('cpu', torch.bfloat16):
        mixed = layer(x.bfloat16())
    torch.testing.assert_close(mixed.float(), layer(x), atol=0.02, rtol=0.02)
    torch.testing.assert_close(torch.compile(layer, backend='eager', fullgraph=True)(x), layer(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), layer(x))
    meta = LAYERS[name](4, device='meta').to_empty(device='cpu')
    meta.reset_parameters()
    torch.testing.assert_close(meta(x), LAYERS[name](4)(x))
    torch.testing.assert_close(
        layer.bfloat16()(x.bfloat16()).float(), mixed.float(), atol=0.1, rtol=0.1
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', LAYERS)
def test_gradients_of_the_compiled_layer(name):
    layer, x = random_layer(name, 4).float(), torch.randn(2, 4, 3, 5, requires_grad=True)
    grads = []
    for module in (layer, torch.compile(layer, backend='aot_eager', fullgraph=True)):
        loss = module(x).square().sum()
        grads.append(torch.autograd.grad(loss, [x, *layer.parameters()]))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('norm_first', [True, False])
def test_no_fast_path_takes_it_for_a_layer_norm(norm_first):
    """torch's encoder computes norms itself in eval mode, from their weights."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    nf_plugins.convert(net, 'DyT')
    x = torch.randn(2, 3, 8)
    trained = net(x)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), trained)


# ------------------------------------------------------------ mm
CHANNELS = dict(depths=[1, 1, 2, 1], channels=[8, 12, 16, 24])
CONVNEXT = dict(type='ConvNeXt', arch=CHANNELS, layer_scale_init_value=1.0)
TINY = dict(img_size=32, patch_size=8, drop_rate=0.0)
ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)
BACKBONES = {
    'ViT': (dict(type='VisionTransformer', arch=ARCH, out_type='avg_featmap', **TINY), 24),
    'DeiT': (dict(type='DistilledVisionTransformer', arch=ARCH, **TINY), 24),
    'Swin': (
        dict(
            type='SwinTransformer', img_size=32, patch_size=2, window_size=2,
            arch=dict(embed_dims=12, depths=[1] * 4, num_heads=[2] * 4),
            patch_cfg=dict(norm_cfg=dict(type='TYPE')),
            stage_cfgs=dict(block_cfgs=dict(norm_cfg=dict(type='TYPE')),
                            downsample_cfg=dict(norm_cfg=dict(type='TYPE'))),
        ),
        96,
    ),
    'ConvNeXt': (CONVNEXT, 24),
    'ConvNeXt of convolutions': (
        dict(CONVNEXT, linear_pw_conv=False, gap_before_final_norm=False), 24
    ),
}  # fmt: skip


def with_type(config, name):
    if isinstance(config, dict):
        return {key: with_type(value, name) for key, value in config.items()}
    return f'nf_plugins.{name}' if config == 'TYPE' else config


def classifier(backbone, channels, name):
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    backbone = with_type(dict(backbone, norm_cfg=dict(type='TYPE', eps=1e-6)), name)
    head = dict(type='LinearClsHead', num_classes=3, in_channels=channels)
    neck = None
    if backbone['type'] == 'DistilledVisionTransformer':
        head.update(type='DeiTClsHead')
    elif backbone['type'] == 'SwinTransformer' or not backbone.get('gap_before_final_norm', True):
        neck = dict(type='GlobalAveragePooling')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head))
    model.init_weights()
    return model


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('kind', BACKBONES)
def test_networks_of_mmpretrain_train_with_it(kind, name):
    from mmpretrain.structures import DataSample

    torch.manual_seed(0)
    model = classifier(*BACKBONES[kind], name)
    assert not any(isinstance(m, nn.LayerNorm) for m in model.modules())
    layers = [m for m in model.modules() if isinstance(m, LAYERS[name])]
    assert len(layers) >= 5
    wrapper = build_optim_wrapper(
        model,
        dict(
            constructor='nf_plugins.NFOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05),
        ),
    )
    own = {id(p) for layer in layers for p in layer.parameters()}
    for group in wrapper.optimizer.param_groups:
        if id(group['params'][0]) in own:
            assert group['weight_decay'] == 0
    images, samples = (
        torch.randn(6, 3, 32, 32),
        [DataSample().set_gt_label(i % 3) for i in range(6)],
    )
    before = copy.deepcopy(model.state_dict())
    if kind == 'DeiT':  # whose head has no loss in mmpretrain
        losses = [fit(model, wrapper, images) for _ in range(15)]
    else:
        data = dict(inputs=images, data_samples=samples)
        losses = [model.train_step(data, wrapper)['loss'].item() for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0]
    moved = [key for key in before if not torch.equal(before[key], model.state_dict()[key])]
    assert any(key.endswith('alpha') for key in moved)


def fit(model, wrapper, images):
    labels = torch.arange(len(images)) % 3
    scores = model.backbone(images)[-1]
    loss = nn.functional.cross_entropy(model.head.layers.head(scores[0]), labels)
    wrapper.update_params(loss)
    return loss.item()


def test_what_mmcv_builds():
    name, layer = build_norm_layer(dict(type='nf_plugins.Derf', requires_grad=False), 4, postfix=1)
    assert type(layer) is Derf and name.endswith('1')
    assert not any(p.requires_grad for p in layer.parameters())


# ------------------------------------------------------------ the converter
class Plain(nn.Module):
    """What the authors' converters put into the place of a layer norm."""

    def __init__(self, norm, function, first):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.function, self.first = function, first

    def forward(self, x):
        x = self.function(0.5 * x)
        axes = (slice(None), None, None) if self.first else ()
        return x * self.weight[axes] + self.bias[axes]


def by_hand(net, function):
    """Replace layer norms by what their class is known to be."""
    for child_name, child in list(net.named_children()):
        if isinstance(child, nn.LayerNorm):
            setattr(net, child_name, Plain(child, function, '2d' in type(child).__name__))
        else:
            by_hand(child, function)
    return net


NETS = {
    'timm vit': lambda: timm.create_model('vit_tiny_patch16_224', depth=2, img_size=32),
    'timm deit': lambda: timm.create_model('deit_tiny_distilled_patch16_224', depth=2, img_size=32),
    'timm convnext': lambda: timm.create_model('convnext_atto', depths=(1, 1, 1, 1)),
    'timm convnext of convolutions': lambda: timm.create_model(
        'convnext_atto', depths=(1, 1, 1, 1), conv_mlp=True
    ),
    'timm swin': lambda: timm.create_model(
        'swin_tiny_patch4_window7_224', depths=(1, 1, 1, 1), img_size=64, window_size=2
    ),
    'torchvision vit': lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32),
    'torchvision swin': lambda: torchvision.models.SwinTransformer(
        [2, 2], 12, [2, 2], [1, 1], [3, 3], num_classes=5
    ),
    'torchvision convnext': lambda: torchvision.models.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(8, 16, 1),
         torchvision.models.convnext.CNBlockConfig(16, None, 1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('kind', NETS)
def test_networks_of_others(kind, name):
    net = NETS[kind]().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    count = sum(isinstance(m, nn.LayerNorm) for m in net.modules())
    wanted = by_hand(copy.deepcopy(net), torch.erf if name == 'Derf' else torch.tanh)
    state = torch.get_rng_state()
    report = nf_plugins.convert(net, name)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(report.replaced) == count and not report.left and report.complete
    assert str(report) == f'{count} of {count} layer norms are {name} now'
    x = torch.randn(2, 3, 64 if 'timm swin' in kind else 32, 64 if 'timm swin' in kind else 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), wanted(x))


@pytest.mark.parametrize('name', LAYERS)
def test_batch_norm_is_refused_with_the_reason(name):
    for net in (
        torchvision.models.resnet18(),
        nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)),
    ):
        with pytest.raises(ValueError, match=f'{name} takes the place of layer norm; its authors'):
            nf_plugins.convert(net, name)
        assert not any(isinstance(m, LAYERS[name]) for m in net.modules())


class Doubled(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


class Logged(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) + 0.0


LEFT = {
    'batch norm, which it does not replace well': lambda: nn.BatchNorm2d(4),
    'a GroupNorm, which is no layer norm': lambda: nn.GroupNorm(2, 4),
    'a RMSNorm, which is no layer norm': lambda: nn.RMSNorm(4),
    'instance norm': lambda: nn.InstanceNorm2d(4),
    'point-wise already': lambda: DyT(4),
    'a Doubled, which computes something else': lambda: Doubled(4),
    'its weight or bias is parametrized': lambda: nn.utils.parametrizations.weight_norm(
        nn.LayerNorm((2, 4))
    ),
}


@pytest.mark.parametrize('why', LEFT)
def test_what_is_left_and_why(why):
    net = nn.ModuleDict(dict(norm=nn.LayerNorm(4), other=LEFT[why](), act=nn.GELU()))
    other = net['other']
    report = nf_plugins.convert(net, 'DyT')
    assert report.replaced == ['norm'] and net['other'] is other
    assert report.left['other'].startswith(why)
    assert report.complete == (why == 'point-wise already')


def test_what_hangs_on_a_norm_stays():
    norm = Logged(4).eval().double()
    norm.weight.requires_grad_(False)
    norm.noted = 'by a library'
    net = nn.ModuleDict(dict(a=norm, b=norm, c=nn.LayerNorm(4, elementwise_affine=False)))
    calls = []
    norm.register_forward_hook(lambda *_: calls.append(1))
    report = nf_plugins.convert(net, dict(type='nf_plugins.DyT'), alpha={'a': 0.8, 'c': 0.2})
    new = net['a']
    assert report.replaced == ['a', 'b', 'c'] and net['b'] is new
    assert new.weight is norm.weight and new.bias is norm.bias and new.noted == 'by a library'
    assert not new.training and not new.alpha.requires_grad and new.bias.requires_grad
    assert new.alpha.dtype == torch.float64 and new.alpha.item() == pytest.approx(0.8)
    assert net['c'].weight is None and net['c'].alpha.item() == pytest.approx(0.2)
    assert net['c'].alpha.dtype == torch.float64  # as the parameters of the network
    new(torch.randn(2, 4, dtype=torch.float64))
    assert calls == [1]


BAD_CONVERSIONS = [
    (dict(type='DyT', gamma=1.0), TypeError, 'gamma'),
    (dict(type='DyT', alpha=-1.0), ValueError, 'alpha must be a positive number'),
    (dict(type='DyT', alpha={'0': 0}), ValueError, 'alpha must be a positive number'),
    (dict(type='Derf', skip='attn'), ValueError, "skip='attn' is in no name of a layer norm"),
]


@pytest.mark.parametrize(('arguments', 'error', 'message'), BAD_CONVERSIONS)
def test_bad_arguments_change_nothing(arguments, error, message):
    net = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    before = list(net)
    with pytest.raises(error, match=message):
        nf_plugins.convert(net, **arguments)
    assert all(a is b for a, b in zip(net, before))


def test_a_layer_norm_itself_has_no_place():
    with pytest.raises(ValueError, match='the model is a layer norm itself'):
        nf_plugins.convert(nn.LayerNorm(4), 'DyT')
