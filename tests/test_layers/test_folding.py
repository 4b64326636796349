"""``nf_plugins.fold``; what other tools do before and after it is in tests/test_third_party."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import nf_plugins
from nf_plugins.layers import PWSConv2d, SameConv2d, ScaledWSConv2d, StandardizedConv2d
from nf_plugins.models import FixupResNet, NFNet, NFRegNet, NFResNet, PWSResNet, ResNetV2

from ..conftest import relative_error

LAYERS = [ScaledWSConv2d, PWSConv2d]


@pytest.mark.parametrize('name', ['base_layer', 'inner'])
def test_adapters_that_merge_are_refused(name):
    """As all of peft's, which write into ``base_layer.weight.data``."""

    class Adapter(nn.Module):
        def merge(self):
            self.base_layer.weight.data += 1

    conv = ScaledWSConv2d(4, 4, 3)
    if name == 'base_layer':
        with pytest.raises(TypeError, match=r'cannot be adapted by Adapter.*nf_plugins\.fold'):
            setattr(Adapter(), name, conv)
        setattr(Adapter(), name, nf_plugins.fold(conv))
    else:
        setattr(Adapter(), name, conv)


class Branches(nn.Module):
    """As the blocks of RepVGG and its kind."""

    def __init__(self, conv):
        super().__init__()
        self.branch = nn.Sequential(conv, nn.BatchNorm2d(4))

    def fuse(self):
        return nn.Conv2d(4, 4, 3)


@pytest.mark.parametrize('name', ['branch_reparam', 'reparam_conv', 'rbr_reparam', 'fuse'])
def test_mergers_of_branches_are_refused(name):
    def merge(block):
        if name == 'fuse':
            net = nn.Sequential(block)
            net[0] = block.fuse()
        else:
            setattr(block, name, nn.Conv2d(4, 4, 3))

    block = Branches(PWSConv2d(4, 4, 3))
    before = list(block.modules())
    with pytest.raises(TypeError, match=r'cannot be merged into a Conv2d.*nf_plugins\.fold'):
        merge(block)
    assert list(block.modules()) == before
    merge(nf_plugins.fold(block))
    merge(Branches(nn.Conv2d(4, 4, 3)))


def test_blocks_that_could_be_fused_may_be_wrapped_or_removed():
    net = nn.Sequential(Branches(ScaledWSConv2d(4, 4, 3)))
    net[0] = nn.DataParallel(net[0])
    net[0] = Branches(ScaledWSConv2d(4, 4, 3))
    net[0] = None
    assert not list(net.parameters())


def test_a_standardized_convolution_may_be_called_reparam():
    """As RepVGG built for deployment."""
    net = nn.Module()
    net.branch_reparam = ScaledWSConv2d(4, 4, 3)
    assert type(nf_plugins.fold(net).branch_reparam) is nn.Conv2d


def weight_norm(conv):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(conv)


def spectral_norm(conv):
    return nn.utils.spectral_norm(conv, n_power_iterations=3)


def pruned(conv):
    prune.random_unstructured(conv, 'weight', 0.5)
    prune.random_unstructured(conv, 'bias', 0.5)
    return conv


def scale_pruned(conv):
    prune.random_unstructured(conv, 'gain' if hasattr(conv, 'gain') else 'alpha', 0.5)
    return conv


def squashed(conv):
    parametrize.register_parametrization(conv, 'weight', nn.Tanh())
    parametrize.register_parametrization(conv, 'bias', nn.Softplus())
    return conv


REPARAMETRIZATIONS = [
    weight_norm,
    parametrizations.weight_norm,
    spectral_norm,
    parametrizations.spectral_norm,
    pruned,
    scale_pruned,
    squashed,
]


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('layer', [*LAYERS, nn.Conv2d])
@pytest.mark.parametrize('change', REPARAMETRIZATIONS, ids=lambda change: change.__name__)
def test_reparametrized_layers_are_baked_in(change, layer, training):
    if layer is nn.Conv2d and change is scale_pruned:
        pytest.skip('a plain convolution has no scale')
    conv = layer(4, 6, 3, padding='same')
    nn.init.uniform_(conv.bias)
    net, x = nn.Sequential(change(conv)), torch.randn(2, 4, 8, 8)
    net.train(training)
    net(x)
    expected = copy.deepcopy(net.state_dict()), net.eval()(x).detach()
    net.train(training)
    nf_plugins.fold(net)
    if layer is nn.Conv2d:
        assert net[0] is conv  # not ours: as it was
        return
    assert type(net[0]) is nn.Conv2d
    assert set(net.state_dict()) == {'0.weight', '0.bias'}
    assert net[0].weight.requires_grad
    assert relative_error(net.eval()(x), expected[1]) < 1e-6
    assert all(torch.equal(conv.state_dict()[k[2:]], v) for k, v in expected[0].items())


@pytest.mark.parametrize('layer', ['ScaledWS', 'PWS'])
def test_spectral_norm_of_conv_module(layer):
    module = ConvModule(4, 6, 3, padding=1, conv_cfg=dict(type=layer), with_spectral_norm=True)
    x = torch.randn(2, 4, 8, 8)
    module(x)
    before = module.eval()(x)
    nf_plugins.fold(module)
    assert type(module.conv) is nn.Conv2d
    assert relative_error(module(x), before) < 1e-6


def subclass(**own):
    return type('Own', (ScaledWSConv2d,), own)(8, 8, 3)


def hooked(net):
    net[1].register_forward_hook(lambda module, args, out: out * 2)


def pre_hooked(net):
    net[1].register_forward_pre_hook(lambda module, args: None)


def backward_hooked(net):
    net[1].register_full_backward_hook(lambda module, grads, out: None)


def with_own_forward(net):
    net[1] = subclass(forward=lambda self, x: ScaledWSConv2d.forward(self, x) * 2)


def with_own_call(net):
    net[1] = subclass(__call__=lambda self, x: ScaledWSConv2d.__call__(self, x) * 2)


def with_own_padding(net):
    net[1] = subclass(_pad=lambda self, x: (F.pad(x, (1, 1, 1, 1)), (0, 0)))


def with_own_standardization(net):
    net[1] = subclass(standardize=lambda self, *args: self.weight)


def with_replaced_forward(net):
    net[1].forward = lambda x: x


def of_another_shape(net):
    net[1].weight.data = torch.randn(8, 4, 3, 3)


@pytest.mark.parametrize(
    'change',
    [
        hooked,
        pre_hooked,
        backward_hooked,
        with_own_forward,
        with_own_call,
        with_own_padding,
        with_own_standardization,
        with_replaced_forward,
        of_another_shape,
    ],
)
def test_what_cannot_be_folded_leaves_the_model_unchanged(change):
    net = nn.Sequential(ScaledWSConv2d(3, 8, 3), ScaledWSConv2d(8, 8, 3))
    change(net)
    before, modules = state_of(net), list(net.modules())
    with pytest.raises(ValueError, match='cannot fold'):
        nf_plugins.fold(net)
    assert list(net.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match='cannot fold'):
        net[1].switch_to_deploy()
    assert net.state_dict().keys() == before.keys()


def test_a_network_is_folded_whole_or_not_at_all():
    net, x = NFResNet(26, base_channels=4, skipinit=0.7).eval(), torch.randn(1, 3, 64, 64)
    before = net(x)[0]
    handle = net.layer4[1].conv3.register_forward_hook(lambda module, args, out: None)
    with pytest.raises(ValueError, match='with hooks'):
        net.switch_to_deploy()
    assert torch.equal(net(x)[0], before)
    assert sum(isinstance(m, StandardizedConv2d) for m in net.modules()) == 29
    handle.remove()
    net.switch_to_deploy()
    assert relative_error(net(x)[0], before) < 1e-5


def test_a_shared_layer_is_replaced_in_all_places():
    conv = ScaledWSConv2d(4, 4, 3, padding='same')
    net = nn.Sequential(conv, nn.Sequential(conv, nn.ReLU()), conv).eval()
    x = torch.randn(2, 4, 6, 6)
    before = net(x)
    nf_plugins.fold(net)
    assert net[0] is net[1][0] is net[2]
    assert type(net[0]) is nn.Conv2d
    assert relative_error(net(x), before) < 1e-6


def test_folding_again_changes_nothing():
    net = nf_plugins.fold(NFNet(dict(base='f0', width_mult=1 / 16, group_width=4)))
    modules, state = list(net.modules()), state_of(net)
    nf_plugins.fold(net)
    assert list(net.modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_random_numbers_and_modes_stay():
    net = NFResNet(26, base_channels=4, frozen_stages=1).train()
    modes = {name: module.training for name, module in net.named_modules()}
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    random = torch.get_rng_state()
    nf_plugins.fold(net)
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == {
        name for name in frozen if not name.endswith(('gain', 'skip_gain'))
    }


@pytest.mark.parametrize('context', [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize('deploy', [nf_plugins.fold, lambda net: net[0].switch_to_deploy()])
def test_what_is_folded_in_any_mode_can_be_trained(context, deploy):
    net = nn.Sequential(ScaledWSConv2d(3, 4, 3))
    with context():
        deploy(net)
    net(torch.randn(1, 3, 5, 5)).sum().backward()
    before = net[0].weight.detach().clone()
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    net = NFResNet(26, base_channels=4, skipinit=0.7).to(dtype).eval()
    x = torch.randn(1, 3, 32, 32, dtype=dtype)
    with torch.no_grad():
        before = net(x)[0]
        nf_plugins.fold(net)
        assert all(p.dtype == dtype for p in net.parameters())
        assert relative_error(net(x)[0].double(), before.double()) < 20 * torch.finfo(dtype).eps


@pytest.mark.slow
def test_wrapped_models():
    x = torch.randn(2, 3, 32, 32)
    torch.compiler.reset()
    for wrap in (
        lambda net: torch.compile(net, backend='eager'),
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
    ):
        net = NFResNet(26, base_channels=4, skipinit=0.7).eval()
        model = wrap(net).eval()
        with torch.no_grad():
            before = model(x)[0]
            assert nf_plugins.fold(model) is model
            assert not any(isinstance(m, StandardizedConv2d) for m in model.modules())
            assert relative_error(model(x)[0], before) < 1e-5


NETWORKS = {
    'NFResNet': lambda **o: NFResNet(26, base_channels=4, **o),
    'NFResNet-se': lambda **o: NFResNet(26, base_channels=4, attention='se', **o),
    'NFRegNet': lambda **o: NFRegNet(dict(base='b0', width_mult=0.25), **o),
    'NFNet': lambda **o: NFNet(dict(base='f0', width_mult=1 / 16, group_width=4), **o),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_folded_networks_have_integer_padding(name):
    """But where no integer is right for every size; deploy=True builds equal networks."""
    net, built = NETWORKS[name](), NETWORKS[name](deploy=True)
    nf_plugins.fold(net)
    for network in (net, built):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                strided = max(module.stride) > 1 and max(module.kernel_size) > 1
                assert type(module) is (SameConv2d if strided else nn.Conv2d)
                assert strided or all(isinstance(pad, int) for pad in module.padding)
    assert str(net) == str(built)


@pytest.mark.parametrize('kernel', [1, 2, 3, 5])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.filterwarnings('ignore:Using padding=.same. with even kernel:UserWarning')
def test_same_padding_folds(kernel, stride, dilation):
    conv = ScaledWSConv2d(4, 4, kernel, stride, 'same', dilation).eval()
    plain = nf_plugins.fold(conv)
    for size in ((2, 4, 8, 9), (2, 4, 7, 5), (4, 8, 7)):  # the last one without a batch
        x = torch.randn(size)
        assert relative_error(plain(x), conv(x).detach()) < 1e-6
    if kernel == 1 or (stride == 1 and kernel % 2):
        assert plain.padding == ((kernel - 1) * dilation // 2,) * 2


def test_counters_see_all_convolutions_of_a_folded_network():
    """4,038,656: counted by hand, from the outputs of the convolutions."""
    from mmengine.analysis import get_model_complexity_info

    net, macs = nf_plugins.fold(NFResNet(26, base_channels=8).eval()), 0

    def count(conv, args, out):
        nonlocal macs
        macs += out[0].numel() * conv.weight[0].numel()

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        net(torch.randn(1, 3, 64, 64))
        for handle in handles:
            handle.remove()
        assert macs == 4_038_656
        with FlopCounterMode(display=False) as counter:
            net(torch.randn(1, 3, 64, 64))
    assert counter.get_total_flops() == 2 * macs
    found = get_model_complexity_info(net, (3, 64, 64), show_table=False, show_arch=False)
    assert found['flops'] >= macs


@pytest.mark.parametrize(
    'make',
    [
        lambda: PWSResNet(18, base_channels=4, stem_channels=4),
        lambda: ResNetV2(26, base_channels=4, conv_cfg=dict(type='ScaledWS')),
        lambda: FixupResNet(26, base_channels=4),
    ],
)
def test_other_backbones(make):
    net, x = make().eval(), torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        before = net(x)[0]
        net.switch_to_deploy()
        assert not any(isinstance(m, StandardizedConv2d) for m in net.modules())
        assert relative_error(net(x)[0], before) < 1e-5


def test_every_module_takes_and_gives_tensors():
    net = NFResNet(26, base_channels=4, skipinit=0.7, attention=None)
    seen = []

    def check(module, args, kwargs, out):
        seen.append(type(module))
        assert all(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values()))

    for module in net.modules():
        module.register_forward_hook(check, with_kwargs=True)
    net(torch.randn(1, 3, 32, 32))
    assert ScaledWSConv2d in seen


@pytest.mark.parametrize('layer', LAYERS)
def test_padding_tells_the_truth(layer):
    conv = layer(4, 6, 3, stride=2, padding='same')
    assert conv.padding == 'same'
    twin = type(conv)(4, 6, conv.kernel_size, conv.stride, conv.padding)
    assert twin(torch.randn(1, 4, 7, 8)).shape == conv(torch.randn(1, 4, 7, 8)).shape
    with pytest.raises(RuntimeError, match='same'):  # whoever applies it in torch's way
        F.conv2d(torch.randn(1, 4, 7, 8), conv.weight, None, conv.stride, conv.padding)


def test_a_pickle_of_version_0_1_0():
    conv, x = ScaledWSConv2d(4, 6, 3, stride=2, padding='same'), torch.randn(1, 4, 7, 8)
    state = conv.__getstate__() | dict(padding=(0, 0), _strided_same=True, _cached=None)
    old = ScaledWSConv2d.__new__(ScaledWSConv2d)
    old.__setstate__(state)
    assert torch.equal(old(x), conv(x))
