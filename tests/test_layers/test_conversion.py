import copy

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding, build_conv_layer
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d
from mmengine.model import BaseModule
from torch import nn
from torch.nn.utils import parametrizations, prune

import nf_plugins
from nf_plugins.functional import parametric_standardize_weight, scaled_standardize_weight
from nf_plugins.layers import PWSConv2d, ScaledWSConv2d

PLAIN = dict(
    usual=lambda: nn.Conv2d(4, 6, 3, padding=1),
    stride=lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False),
    dilated=lambda: nn.Conv2d(4, 6, (3, 1), dilation=2, padding=(2, 1)),
    groups=lambda: nn.Conv2d(4, 6, 3, groups=2),
    depthwise=lambda: nn.Conv2d(4, 4, 3, groups=4),
    pointwise=lambda: nn.Conv2d(4, 6, 1),
    same=lambda: nn.Conv2d(4, 6, 3, padding='same'),
    valid=lambda: nn.Conv2d(4, 6, 3, padding='valid'),
    circular=lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode='circular'),
    double=lambda: nn.Conv2d(4, 6, 3).double(),
    mm=lambda: WrappedConv2d(4, 6, 3, padding=1),
    mm_same=lambda: Conv2dAdaptivePadding(4, 6, 3, stride=2),
)


@pytest.mark.parametrize('kind', PLAIN)
def test_the_same_convolution_with_standardized_weights(kind):
    net = nn.Sequential(PLAIN[kind](), nn.ReLU())
    twin = copy.deepcopy(net)
    x = torch.randn(2, 4, 9, 8, dtype=net[0].weight.dtype)
    report = nf_plugins.convert(net, 'ScaledWS', gamma=1.7, eps_mode='add')
    assert report.replaced == ['0'] and not report.left and report.complete
    assert type(net[0]) is ScaledWSConv2d
    with torch.no_grad():
        twin[0].weight.copy_(scaled_standardize_weight(twin[0].weight, None, 1.7, None, 'add'))
    torch.testing.assert_close(net(x), twin(x))


def test_options_of_pws_and_a_config():
    net = nn.Sequential(nn.Conv2d(4, 6, 3))
    weight = net[0].weight
    nf_plugins.convert(net, dict(type='nf_plugins.PWS', mode='fan_out'), gamma=1e-3)
    expected = parametric_standardize_weight(weight, gamma=1e-3, fan=6 * 9)
    assert type(net[0]) is PWSConv2d
    torch.testing.assert_close(net[0].standardize(), expected)


class Bag(nn.Conv2d):
    """A subclass with a forward pass of its own."""


def patched():
    conv = nn.Conv2d(4, 4, 3)
    conv.forward = lambda x: x
    return conv


class Filter(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4, 3, 3))


LEFT = {
    'a Bag, which is not nn.Conv2d itself': lambda: Bag(4, 4, 3),
    'a Conv1d, which is not nn.Conv2d itself': lambda: nn.Conv1d(4, 4, 3),
    'a Conv3d, which is not nn.Conv2d itself': lambda: nn.Conv3d(4, 4, 3),
    'a ConvTranspose2d, which is not nn.Conv2d itself': lambda: nn.ConvTranspose2d(4, 4, 3),
    'a LazyConv2d, which is not nn.Conv2d itself': lambda: nn.LazyConv2d(4, 3),
    'a Filter, which is no nn.Conv2d': Filter,
    'fan-in 1': lambda: nn.Conv2d(4, 4, 1, groups=4),
    'its weight is computed': lambda: prune.l1_unstructured(nn.Conv2d(4, 4, 3), 'weight', 3),
    'its weight or bias is parametrized': lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    'its forward was replaced': patched,
    'its weight is torch.complex64': lambda: nn.Conv2d(4, 4, 3, dtype=torch.complex64),
    'standardized already': lambda: ScaledWSConv2d(4, 4, 3),
    'named by skip': lambda: nn.Sequential(nn.Conv2d(4, 4, 3)),
}


@pytest.mark.filterwarnings('ignore:Lazy modules are a new feature')
@pytest.mark.parametrize('why', LEFT)
def test_what_is_left_and_why(why):
    net = nn.ModuleDict(dict(stem=nn.Conv2d(3, 4, 3), other=LEFT[why](), act=nn.ReLU()))
    before = dict(net.named_modules())
    skip = ['other'] if why == 'named by skip' else []
    report = nf_plugins.convert(net, 'ScaledWS', skip=skip)
    (left,) = report.left
    assert report.replaced == ['stem'] and left.startswith('other')
    assert report.left[left].startswith(why) and report.complete == (why == 'standardized already')
    assert all(net.get_submodule(n) is m for n, m in before.items() if n.startswith('other'))
    assert str(report).splitlines() == [
        '1 of 2 convolutions are ScaledWSConv2d now',
        f'  1 left, {report.left[left]}: {left}',
    ]


def test_what_hangs_on_a_convolution_stays():
    conv = nn.Conv2d(4, 6, 3).eval()
    net = nn.Sequential(conv)
    weight, bias = conv.weight.requires_grad_(False), conv.bias
    conv.noted = 'by a library'
    calls = []
    handles = [
        conv.register_forward_hook(lambda *_: calls.append('forward')),
        conv.register_forward_pre_hook(lambda m, a, k: calls.append('pre'), with_kwargs=True),
        conv.register_full_backward_hook(lambda *_: calls.append('backward')),
    ]
    state = torch.get_rng_state()
    nf_plugins.convert(net, 'PWS')
    assert torch.equal(torch.get_rng_state(), state)
    new = net[0]
    assert new.weight is weight and new.bias is bias and new.noted == 'by a library'
    assert not new.training and not new.alpha.requires_grad and new.bias.requires_grad
    net(torch.randn(1, 4, 5, 5, requires_grad=True)).sum().backward()
    assert calls == ['pre', 'forward', 'backward']
    for handle in handles:
        handle.remove()
    net(torch.randn(1, 4, 5, 5))
    assert len(calls) == 3


def test_shared_modules_and_weights_stay_shared():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(4, 4, 3, padding=1)
            self.second = nn.Sequential(self.first)
            self.third = nn.Conv2d(4, 4, 3, padding=1)
            self.third.weight = self.first.weight

    net = Net()
    report = nf_plugins.convert(net, 'ScaledWS')
    assert report.replaced == ['first', 'second.0', 'third']
    assert net.first is net.second[0] and net.third.weight is net.first.weight
    net = Net()
    report = nf_plugins.convert(net, 'ScaledWS', skip='second')
    assert report.replaced == ['third'] and net.first is net.second[0]


@pytest.mark.parametrize('device', ['meta', 'cpu'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_device_and_dtype(device, dtype):
    net = nn.Sequential(nn.Conv2d(4, 6, 3, device=device, dtype=dtype))
    nf_plugins.convert(net, 'ScaledWS')
    assert {(p.device.type, p.dtype) for p in net.parameters()} == {(device, dtype)}


BAD = [
    (dict(type='Conv2d'), ValueError, 'type must be ScaledWS, PWS, DyT or Derf, got Conv2d'),
    (dict(type='NoSuch'), ValueError, 'got NoSuch'),
    (dict(type=nn.Linear), ValueError, 'got Linear'),
    (dict(type=dict(gamma=1.0)), ValueError, 'got None'),
    (dict(type='ScaledWS', gamma='auto'), TypeError, 'gamma must be a finite number'),
    (dict(type='ScaledWS', nonsense=1), TypeError, 'nonsense'),
    (dict(type='ScaledWS', stride=2), TypeError, 'stride'),
    (dict(type='ScaledWS', skip='haed'), ValueError, "skip='haed' is in no name"),
    (dict(type='ScaledWS', skip=''), ValueError, 'must not be empty'),
]


@pytest.mark.parametrize(('arguments', 'error', 'message'), BAD)
def test_bad_arguments_change_nothing(arguments, error, message):
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3))
    before = list(net)
    with pytest.raises(error, match=message):
        nf_plugins.convert(net, **arguments)
    assert all(a is b for a, b in zip(net, before))


def test_bad_models():
    with pytest.raises(TypeError, match='model must be a Module'):
        nf_plugins.convert('resnet18', 'ScaledWS')
    with pytest.raises(ValueError, match='is a convolution itself'):
        nf_plugins.convert(nn.Conv2d(2, 2, 3), 'ScaledWS')


@pytest.mark.parametrize('library', ['torchvision', 'timm', 'mmpretrain'])
def test_networks_of_other_libraries_train(library):
    if library == 'torchvision':
        net = pytest.importorskip('torchvision').models.shufflenet_v2_x0_5(num_classes=3)
    elif library == 'timm':
        net = pytest.importorskip('timm').create_model('resnet10t', num_classes=3)
    else:
        models = pytest.importorskip('mmpretrain.models')
        net = nn.Sequential(models.SEResNet(50, stem_channels=8, base_channels=8), nn.Identity())
    total = sum(isinstance(m, nn.Conv2d) for m in net.modules())
    report = nf_plugins.convert(net, 'ScaledWS', gamma=1.7139)
    assert report.complete and len(report.replaced) == total > 10
    out = net(torch.randn(2, 3, 32, 32))
    out = out[-1] if isinstance(out, tuple) else out
    out.square().mean().backward()
    assert all(m.gain.grad.isfinite().all() for m in net.modules() if hasattr(m, 'gain'))


@pytest.mark.parametrize('type', ['ScaledWS', 'PWS'])
@pytest.mark.parametrize('init', ['Kaiming', 'Normal', 'TruncNormal', 'Uniform', 'Xavier'])
def test_init_cfg_of_mmengine_reaches_the_layers(type, init):
    """By the name of their base: ``layer='Conv2d'``."""

    class Net(BaseModule):
        def __init__(self):
            super().__init__(init_cfg=dict(type=init, layer='Conv2d', bias=0.5))
            self.conv = build_conv_layer(dict(type=f'nf_plugins.{type}'), 4, 6, 3)

    net = Net()
    before = net.conv.weight.clone()
    net.init_weights()
    assert not torch.equal(net.conv.weight, before) and net.conv.bias.eq(0.5).all()


def test_a_folded_network_is_converted():
    net, x = (
        nn.Sequential(ScaledWSConv2d(3, 8, 3, stride=2, padding='same')),
        torch.randn(2, 3, 8, 9),
    )
    before = net(x).detach()
    plain = copy.deepcopy(nf_plugins.fold(net))
    report = nf_plugins.convert(net, 'ScaledWS')
    assert report.complete and type(net[0]) is ScaledWSConv2d
    assert net[0].weight.shape == plain[0].weight.shape
    # A standardized weight is standardized already.
    torch.testing.assert_close(net(x), before)


def test_a_deployed_layer_is_reported():
    net = nn.Sequential(ScaledWSConv2d(3, 8, 3))
    net[0].switch_to_deploy()
    report = nf_plugins.convert(net, 'ScaledWS')
    assert report.left == {'0': 'deployed, its weight is applied as it is'}
    assert not report.complete


def test_in_inference_mode_for_later_training():
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    with torch.inference_mode():
        nf_plugins.convert(net, 'PWS')
    net(torch.randn(1, 3, 5, 5)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
