import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from nf_plugins.layers import PWSConv2d, SameConv2d, ScaledWSConv2d, fold

from ..conftest import DATA, relative_error

LAYERS = [
    (ScaledWSConv2d, {}),
    (ScaledWSConv2d, dict(eps_mode='add', gamma=1.7)),
    (ScaledWSConv2d, dict(gain_init=None)),
    (PWSConv2d, dict(gamma=1e-3)),
    (PWSConv2d, dict(gamma=0.1, equiv=True, mode='fan_out')),
]
GEOMETRIES = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding='same', stride=2, bias=False),
    dict(kernel_size=(1, 3), padding='same', groups=2, dilation=2),
    dict(kernel_size=3, padding=2, dilation=2, groups=4, padding_mode='reflect'),
    dict(kernel_size=1, stride=2),
]


def plain_conv(layer, x):
    """The layer, from the definitions: numpy weight, padding by hand, torch's convolution."""
    w = layer.weight.detach().double().numpy()
    fan_in = w[0].size
    mean = w.mean((1, 2, 3), keepdims=True)
    var = ((w - mean) ** 2).mean((1, 2, 3), keepdims=True)
    if isinstance(layer, ScaledWSConv2d):
        gain = np.ones(len(w)) if layer.gain is None else layer.gain.detach().numpy()
        if layer.eps_mode == 'clamp':
            std = np.sqrt(np.maximum(var * fan_in, 1e-4))
        else:
            std = np.sqrt((var + 1e-5) * fan_in)
        scale = layer.gamma * gain.reshape(-1, 1, 1, 1) / std
    else:
        fan_out = len(w) // layer.groups * w[0, 0].size
        fan = fan_in if layer.mode == 'fan_in' else fan_out
        gamma = 0.1 * 2 / fan if layer.equiv else 1e-3
        scale = np.sqrt(2 / fan) * layer.alpha.detach().numpy() / np.sqrt(var + gamma)
    weight = torch.from_numpy((w - mean) * scale).to(x)
    pads = []
    for axis in (1, 0):  # F.pad counts from the last axis
        kernel, stride, dilation = (
            values[axis] for values in (layer.kernel_size, layer.stride, layer.dilation)
        )
        if layer.padding == 'same':
            size = x.shape[axis - 2]
            total = max((int(np.ceil(size / stride)) - 1) * stride + (kernel - 1) * dilation, -1)
            total = max(total + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        else:
            pads += [layer.padding[axis]] * 2
    mode = 'constant' if layer.padding_mode == 'zeros' else layer.padding_mode
    x = F.pad(x, pads, mode=mode)
    return F.conv2d(x, weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


def make(layer, options, geometry, **more):
    conv = layer(8, 12, **geometry, **options, **more)
    with torch.no_grad():
        for name in ('gain', 'alpha', 'bias'):
            if getattr(conv, name, None) is not None:
                getattr(conv, name).uniform_(0.5, 2)
    return conv


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
@pytest.mark.parametrize(('layer', 'options'), LAYERS)
class TestEveryLayer:
    def test_output_equals_formula(self, layer, options, geometry):
        conv = make(layer, options, geometry).double()
        x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
        assert relative_error(conv(x), plain_conv(conv, x).detach()) < 1e-12

    def test_folds_into_a_plain_convolution(self, layer, options, geometry):
        conv = make(layer, options, geometry).eval()
        conv.weight.requires_grad_(False)
        x = torch.randn(2, 8, 9, 10)
        before, plain = conv(x), fold(conv)
        same = geometry.get('padding') == 'same' and geometry.get('stride', 1) > 1
        assert type(plain) is (SameConv2d if same else nn.Conv2d)
        assert same or plain.padding != 'same'
        assert set(plain.state_dict()) <= {'weight', 'bias'}
        assert not plain.weight.requires_grad
        assert relative_error(plain(x), before) < 1e-6
        assert relative_error(pickle.loads(pickle.dumps(plain))(x), before) < 1e-6
        assert torch.equal(conv(x), before)  # and it is unchanged

    def test_deploys_alone(self, layer, options, geometry):
        conv = make(layer, options, geometry).eval()
        x = torch.randn(2, 8, 9, 10)
        before = conv(x)
        conv.switch_to_deploy()
        assert set(conv.state_dict()) <= {'weight', 'bias'}
        net = nn.Sequential(conv)
        for deployed in (
            conv,
            copy.deepcopy(conv),
            pickle.loads(pickle.dumps(conv)),
            fold(conv),
            torch.jit.trace(conv, x),
            torch.jit.script(net),
            torch.fx.symbolic_trace(net),
        ):
            assert relative_error(deployed(x), before) < 1e-6
        # Now its weight is what is applied.
        bias = 0 if conv.bias is None else conv.bias.detach().view(1, -1, 1, 1)
        conv.weight = nn.Parameter(2 * conv.weight)
        conv.bias = None
        assert relative_error(conv(x), 2 * (before - bias)) < 1e-5

    def test_copies_and_round_trips(self, layer, options, geometry):
        conv = make(layer, options, geometry).eval()
        x = torch.randn(2, 8, 9, 10)
        with torch.no_grad():
            expected = conv(x)
            other = make(layer, options, geometry).eval()
            other(x)
            other.load_state_dict(conv.state_dict())
            for copied in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)), other):
                assert torch.equal(copied(x), expected)


@pytest.mark.parametrize(('layer', 'options'), LAYERS)
def test_gradients(layer, options):
    conv = layer(4, 4, 3, stride=2, padding='same', groups=2, **options).double()
    names, params = zip(*conv.named_parameters())

    def function(x, *params):
        return torch.func.functional_call(conv, dict(zip(names, params)), (x,))

    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, (x, *params))
    assert gradgradcheck(function, (x, *params))


@pytest.mark.parametrize('case', range(12))
def test_scaled_ws_equals_deepmind(case):
    reference = np.load(DATA / 'wsconv_unit.npz')

    def array(name):
        return torch.from_numpy(reference[f'{case}/{name}'])

    w = array('w').permute(3, 2, 0, 1).contiguous()
    meta = eval(str(reference[f'{case}/meta']))
    conv = ScaledWSConv2d(
        meta['cin'], meta['cout'], meta['k'], meta['stride'], 'same', groups=meta['groups']
    )
    conv.load_state_dict(dict(weight=w, gain=array('gain'), bias=array('bias')))
    y = conv(array('x').permute(0, 3, 1, 2))
    torch.sin(y).sum().backward()
    # Filter 3 is constant: its weight is 0, where theirs is rounding noise times 100.
    kept = [i for i in range(meta['cout']) if i != 3]

    def error(ours, theirs):
        return relative_error(ours[kept], theirs[kept])

    assert relative_error(y[:, kept], array('y').permute(0, 3, 1, 2)[:, kept]) < 1e-5
    assert error(conv.weight.grad, array('grad_w').permute(3, 2, 0, 1)) < 1e-4
    assert error(conv.gain.grad, array('grad_gain')) < 1e-4
    assert error(conv.bias.grad, array('grad_bias')) < 1e-4


def test_evaluation_of_an_ensemble_with_vmap():
    convs = [ScaledWSConv2d(3, 4, 3).eval() for _ in range(2)]
    params, _ = torch.func.stack_module_state(convs)
    x = torch.randn(1, 3, 5, 5)

    def call(params):
        return torch.func.functional_call(convs[0], params, (x,))

    with torch.no_grad():
        out = torch.vmap(call)(params)
        for conv, result in zip(convs, out):
            torch.testing.assert_close(result, conv(x))


@pytest.mark.slow
@pytest.mark.parametrize(('layer', 'options'), [*LAYERS, (PWSConv2d, dict(initalpha=True))])
@pytest.mark.parametrize('training', [True, False])
def test_compiles_to_one_graph(layer, options, training):
    torch.compiler.reset()
    conv = make(layer, options, dict(kernel_size=3, stride=2, padding='same')).train(training)
    twin = copy.deepcopy(conv)
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    x = torch.randn(2, 8, 9, 9)
    for _ in range(2):
        ours, theirs = compiled(x), twin(x)
        assert relative_error(ours, theirs.detach()) < 1e-6
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for (name, p), q in zip(conv.named_parameters(), twin.parameters()):
        torch.testing.assert_close(p, q, msg=name)
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize(('layer', 'options'), LAYERS)
def test_autocast_standardizes_in_float32(layer, options):
    conv = make(layer, options, dict(kernel_size=3, bias=False))
    with torch.no_grad():
        conv.weight.mul_(1e-3).add_(1)  # bfloat16 would not see the weights differ
    x = torch.randn(2, 8, 9, 9)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = conv(x)
        assert conv.standardize().dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), conv(x).detach()) < 0.01


@pytest.mark.cuda
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(('layer', 'options'), LAYERS)
def test_autocast_on_cuda(layer, options, dtype):
    conv = make(layer, options, dict(kernel_size=3, bias=False)).cuda()
    x = torch.randn(2, 8, 9, 9, device='cuda')
    with torch.autocast('cuda', dtype=dtype):
        out = conv(x)
    assert out.dtype == dtype
    assert relative_error(out.float().cpu(), conv(x).detach().cpu()) < 0.02


class TestInitalpha:
    def make(self):
        return PWSConv2d(8, 12, 3, padding=1, initalpha=True)

    def test_first_training_batch_sets_alpha(self):
        conv = self.make().double()
        x = torch.randn(4, 8, 9, 9, dtype=torch.float64)
        out = F.conv2d(x, conv.standardize(), conv.bias, padding=1).detach()
        conv.eval()(x)
        assert torch.equal(conv.alpha, torch.ones_like(conv.alpha))
        after = conv.train()(x)
        expected = np.sqrt(2 / out.numpy().var(ddof=1))
        np.testing.assert_allclose(conv.alpha.detach(), expected, rtol=1e-6)
        assert after.var().item() == pytest.approx(2, rel=1e-6)

    def test_does_not_fire_again(self):
        conv = self.make()
        conv(torch.randn(4, 8, 9, 9))
        alpha = conv.alpha.detach().clone()
        resumed = self.make()
        resumed.load_state_dict(conv.state_dict())
        for again in (conv, resumed, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
            again.train()(100 * torch.randn(4, 8, 9, 9))
            assert torch.equal(again.alpha, alpha)

    def test_weights_from_elsewhere_are_not_touched(self):
        source = PWSConv2d(8, 12, 3, padding=1)  # no flag among its keys
        conv = self.make()
        conv.load_state_dict(source.state_dict(), strict=True)
        conv(100 * torch.randn(4, 8, 9, 9))
        assert torch.equal(conv.alpha, source.alpha)

    def test_a_saved_untrained_model_still_initialises(self):
        conv = self.make()
        conv.load_state_dict(self.make().state_dict())
        conv(100 * torch.randn(4, 8, 9, 9))
        assert not torch.equal(conv.alpha, torch.ones_like(conv.alpha))

    def test_a_batch_without_variance_leaves_it_to_the_next(self):
        conv = self.make()
        conv(torch.zeros(4, 8, 9, 9))
        assert torch.equal(conv.alpha, torch.ones_like(conv.alpha))
        out = conv(torch.randn(4, 8, 9, 9))
        assert out.var().item() == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize('name', ['ScaledWS', 'nf_plugins.ScaledWS', 'PWS', 'nf_plugins.PWS'])
def test_builds_from_conv_cfg(name):
    conv = build_conv_layer(dict(type=name), 8, 4, 3, stride=2, padding=1, bias=False)
    assert type(conv) is (ScaledWSConv2d if 'Scaled' in name else PWSConv2d)
    assert conv.bias is None


@pytest.mark.parametrize('assign', [True, False])
def test_the_flag_of_version_0_1_0_stays_a_number(assign):
    conv = PWSConv2d(3, 4, 3, initalpha=True)
    old = conv.state_dict() | dict(alpha_initialized=torch.tensor(True))
    conv.load_state_dict(old, assign=assign)
    assert conv.alpha_initialized.is_floating_point() and conv.alpha_initialized == 1
    average = torch.optim.swa_utils.AveragedModel(conv, use_buffers=True)
    for _ in range(2):
        average.update_parameters(conv)
    assert average.module.alpha_initialized == 1
