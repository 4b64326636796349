"""After any change of the weights, the next output in evaluation mode uses the new weights.

Each way is tried on a layer in evaluation mode that has run before. The output is compared with
the formula, written down once more here, on the values that the way leaves.
"""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, stack_module_state
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nf_plugins.layers import PWSConv2d, ScaledWSConv2d

from ..conftest import relative_error

WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


def formula(conv, weight=None, scale=None):
    """The standardized weight in float64, from the papers."""
    w = (conv.weight if weight is None else weight).detach().double()
    n = w[0].numel()
    centred = w - w.mean((1, 2, 3), keepdim=True)
    var = centred.square().mean((1, 2, 3), keepdim=True)
    if isinstance(conv, ScaledWSConv2d):
        scale = conv.gain if scale is None else scale
        factor = conv.gamma / (n * var).clamp_min(conv.eps).sqrt()
    else:
        scale = conv.alpha if scale is None else scale
        factor = (2 / n / (var + conv.gamma)).sqrt()
    return centred * factor * scale.detach().double().view(-1, 1, 1, 1)


def noise(x):
    return torch.randn_like(x) + 0.3


def scale_of(conv):
    return 'gain' if isinstance(conv, ScaledWSConv2d) else 'alpha'


@way
def copy_(conv):
    with torch.no_grad():
        conv.weight.copy_(noise(conv.weight))


@way
def in_place_arithmetic(conv):
    with torch.no_grad():
        conv.weight.mul_(1.5).add_(noise(conv.weight))


@way
def data_copy_(conv):
    conv.weight.data.copy_(noise(conv.weight))


@way
def data_assigned(conv):
    conv.weight.data = noise(conv.weight.detach())


@way
def scale_in_place(conv):
    getattr(conv, scale_of(conv)).data.mul_(3)


@way
def scale_replaced(conv):
    old = getattr(conv, scale_of(conv))
    setattr(conv, scale_of(conv), nn.Parameter(old.detach() * 3))


@way
def one_element(conv):
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = 9


@way
def view_of_all_parameters(conv):
    vector = nn.utils.parameters_to_vector(conv.parameters()).detach()
    nn.utils.vector_to_parameters(vector + torch.linspace(-1, 1, len(vector)), conv.parameters())


@way
def numpy_view(conv):
    array = conv.weight.detach().numpy()
    array[:] = noise(conv.weight.detach()).numpy()


@way
def untyped_storage(conv):
    source = noise(conv.weight.detach()).contiguous()
    conv.weight.untyped_storage().copy_(source.untyped_storage())


@way
def dlpack(conv):
    torch.from_dlpack(conv.weight.detach()).copy_(noise(conv.weight.detach()))


@way
def another_process(conv):
    conv.share_memory()
    if os.fork() == 0:  # its children must not run the tests
        try:
            conv.weight.detach().numpy()[:] *= [[[[3, 1, -2]]]]
        finally:
            os._exit(0)
    os.wait()


@way
def load_state_dict(conv):
    conv.load_state_dict({name: noise(value) for name, value in conv.state_dict().items()})


@way
def load_state_dict_assign(conv):
    state = {name: noise(value) for name, value in conv.state_dict().items()}
    conv.load_state_dict(state, assign=True)


@way
def load_state_dict_by_swapping(conv):
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        conv.load_state_dict({name: noise(value) for name, value in conv.state_dict().items()})
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@way
def swap_tensors(conv):
    torch.utils.swap_tensors(conv.weight, nn.Parameter(noise(conv.weight.detach())))


@way
def register_parameter(conv):
    conv.register_parameter('weight', nn.Parameter(noise(conv.weight.detach())))


@way
def reset_parameters(conv):
    conv.reset_parameters()


@way
def init_functions(conv):
    nn.init.kaiming_uniform_(conv.weight)
    nn.init.uniform_(getattr(conv, scale_of(conv)), 1, 2)


@way
def to_double_and_back(conv):
    conv.double()
    conv.weight.data.add_(noise(conv.weight))
    conv.float()


@way
def channels_last(conv):
    conv.to(memory_format=torch.channels_last)
    conv.weight.data.add_(noise(conv.weight))


@way
def to_empty(conv):
    conv.to_empty(device='cpu')
    for p in conv.parameters():
        p.data.copy_(noise(p))


@way
def inference_mode_write(conv):
    with torch.inference_mode():
        conv.weight.copy_(noise(conv.weight))


@way
def gloo_broadcast_and_all_reduce(conv, tmp_path):
    dist.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        conv.weight.data.mul_(torch.linspace(1, 2, 3))
        dist.broadcast(conv.weight.data, 0)
        dist.all_reduce(conv.weight.data)
    finally:
        dist.destroy_process_group()


def step(conv, optimizer):
    """With gradients that no backward pass made, so that no forward pass came before."""
    for p in conv.parameters():
        p.grad = noise(p.detach())
    optimizer.step()


@way
def sgd(conv):
    step(conv, torch.optim.SGD(conv.parameters(), lr=1.0, foreach=False))


@way
def sgd_foreach(conv):
    step(conv, torch.optim.SGD(conv.parameters(), lr=1.0, foreach=True))


@way
def sgd_fused(conv):
    step(conv, torch.optim.SGD(conv.parameters(), lr=1.0, fused=True))


@way
def adam_fused(conv):
    step(conv, torch.optim.Adam(conv.parameters(), lr=1.0, fused=True))


@way
def backward_then_step(conv):
    conv(torch.randn(2, 4, 6, 6)).square().sum().backward()
    torch.optim.SGD(conv.parameters(), lr=1.0, fused=True).step()


@way
def moving_average_swapped_in(conv):
    average = AveragedModel(conv, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(conv)
    for p in conv.parameters():
        p.data.add_(noise(p.detach()))
    average.update_parameters(conv)
    for p, q in zip(conv.parameters(), average.module.parameters()):
        p.data.copy_(q.data)


@way
def tied_to_another_layer(conv):
    other = copy.deepcopy(conv)
    conv.register_parameter('weight', other.weight)
    with torch.no_grad():
        other.weight.copy_(noise(other.weight))


@way
def foreach(conv):
    with torch.no_grad():
        torch._foreach_add_(list(conv.parameters()), [noise(p) for p in conv.parameters()])


@way
def gamma_of_the_layer(conv):
    conv.gamma = 3.0


@way
def eps_of_the_layer(conv):
    conv.eps = 1e6  # PWS has none, and does not read it


@way
def pruning(conv):
    prune.random_unstructured(conv, 'weight', 0.4)
    prune.l1_unstructured(conv, scale_of(conv), 2)


@way
def pruning_removed(conv):
    prune.random_unstructured(conv, 'weight', 0.4)
    prune.remove(conv, 'weight')


@way
def parametrization(conv):
    parametrize.register_parametrization(conv, 'weight', nn.Tanh())
    with torch.no_grad():
        conv.parametrizations.weight.original.mul_(2)


@way
def parametrized_by_weight_norm(conv):
    parametrizations.weight_norm(conv)
    conv.parametrizations.weight.original1.data.copy_(noise(conv.weight.detach()))


@way
def parametrization_removed(conv):
    parametrize.register_parametrization(conv, 'weight', nn.Tanh())
    parametrize.remove_parametrizations(conv, 'weight')


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize('layer', [ScaledWSConv2d, PWSConv2d])
@pytest.mark.parametrize('name', WAYS)
@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')
def test_no_output_is_stale(name, layer, context, tmp_path):
    conv, x = layer(4, 6, 3, padding='same').eval(), torch.randn(2, 4, 6, 6)
    with context():
        before = conv(x).detach().clone()
    change = WAYS[name]
    change(*(conv, tmp_path)[: change.__code__.co_argcount])
    conv.eval()
    with context():
        found = conv(x)
    expected = F.conv2d(x.double(), formula(conv), conv.bias.double(), padding=1)
    assert relative_error(found.detach().double(), expected) < 1e-6
    if not (name == 'eps_of_the_layer' and layer is PWSConv2d):
        assert relative_error(found, before) > 1e-3  # the way did change something


@pytest.mark.parametrize('layer', [ScaledWSConv2d, PWSConv2d])
class TestOtherWeightsForOneCall:
    def make(self, layer):
        conv, x = layer(4, 6, 3, bias=False).eval(), torch.randn(2, 4, 6, 6)
        with torch.no_grad():
            conv(x)
        return conv, x, noise(conv.weight.detach())

    @torch.no_grad()
    def test_functional_call(self, layer):
        conv, x, weight = self.make(layer)
        found = functional_call(conv, dict(weight=weight), (x,))
        assert relative_error(found.double(), F.conv2d(x.double(), formula(conv, weight))) < 1e-6
        assert relative_error(conv(x).double(), F.conv2d(x.double(), formula(conv))) < 1e-6

    @torch.no_grad()
    def test_vmap_over_an_ensemble(self, layer):
        convs = [layer(4, 6, 3, bias=False).eval() for _ in range(3)]
        x = torch.randn(2, 4, 6, 6)
        params, _ = stack_module_state(convs)
        found = torch.vmap(lambda p: functional_call(convs[0], p, (x,)))(params)
        for conv, out in zip(convs, found):
            assert relative_error(out.double(), F.conv2d(x.double(), formula(conv))) < 1e-6

    @torch.no_grad()
    def test_forward_mode_dual_tensors(self, layer):
        conv, x, tangent = self.make(layer)
        conv, x, tangent = conv.double(), x.double(), tangent.double()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(conv.weight.detach(), tangent)
            out = functional_call(conv, dict(weight=dual), (x,))
            slope = forward_ad.unpack_dual(out).tangent
        weight, h = conv.weight.detach(), 1e-6
        ends = [F.conv2d(x, formula(conv, weight + s * h * tangent)) for s in (1, -1)]
        assert relative_error(slope, (ends[0] - ends[1]) / (2 * h)) < 1e-6

    def test_half_precision(self, layer):
        conv, x, weight = self.make(layer)
        conv = conv.half()
        with torch.no_grad():
            conv.weight.copy_(weight)
            found = conv(x.half())
        assert relative_error(found.double(), F.conv2d(x.double(), formula(conv))) < 2e-3


class Tempered(ScaledWSConv2d):
    """A subclass with a parameter of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.temperature = nn.Parameter(torch.ones(()))

    def filter_scale(self):
        return super().filter_scale() / self.temperature


def test_a_parameter_of_a_subclass():
    conv, x = Tempered(4, 6, 3, bias=False).eval(), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        for temperature in (1.0, 4.0, 0.5):
            conv.temperature.fill_(temperature)
            expected = F.conv2d(x.double(), formula(conv) / temperature)
            assert relative_error(conv(x).double(), expected) < 1e-6
