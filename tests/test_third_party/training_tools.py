"""Pruners, adapters, gradients of each image, averages; construction, copies and memory."""

from __future__ import annotations

import copy
import io
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn
from torch import distributed as dist
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from .case import Case, another, reference
from .table import REFUSED, Pairs, error_of, outputs, tool

NAMES = ('conv1', 'conv2')

PRUNING = 'Pruning'


@tool(PRUNING, '`torch.nn.utils.prune`: unstructured, structured, `remove`')
def torch_pruning(case: Case) -> Pairs:
    net, plain = case.net, copy.deepcopy(case.net)
    prune.l1_unstructured(net.conv1, 'weight', 0.4)
    prune.ln_structured(net.conv2, 'weight', 2, n=2, dim=0)
    sizes = plain.conv1.weight.abs().flatten().sort()
    plain.conv1.weight.data.flatten()[sizes.indices[: round(0.4 * 8 * 27)]] = 0
    filters = plain.conv2.weight.square().sum((1, 2, 3)).sort()
    plain.conv2.weight.data[filters.indices[:2]] = 0
    expected = reference(plain, case.x)
    pairs = [(net(case.x), expected)]
    for name in NAMES:
        prune.remove(net.get_submodule(name), 'weight')
    return [*pairs, (net(case.x), expected)]


@tool(PRUNING, 'Torch-Pruning: `MagnitudePruner`', REFUSED)
def structured_pruning(case: Case) -> Pairs:
    tp = pytest.importorskip('torch_pruning')
    for net in (case.net, case.twin):
        importance, options = tp.importance.MagnitudeImportance(), dict(pruning_ratio=0.5)
        tp.pruner.MagnitudePruner(
            net, case.x, importance, ignored_layers=[net.head], **options
        ).step()
        assert net.conv1.weight.shape == (4, 3, 3, 3) and net.head.in_features == 3
    return [(case.net(case.x), case.twin(case.x))]


ADAPTERS = 'Adapters, reparametrizations'


@contextmanager
def peft_folder() -> Iterator[ModuleType]:
    """The module peft, from where requirements/tools_apart.txt is installed, or from elsewhere."""
    folder = str(Path(sys.prefix) / 'tools')
    sys.path.append(folder)
    try:
        with torch.no_grad():
            yield pytest.importorskip('peft')
    finally:
        sys.path.remove(folder)


@tool(ADAPTERS, 'peft: `LoraConfig`, `merge_adapter`, `merge_and_unload`', REFUSED, slow=True)
def lora(case: Case) -> Pairs:
    with peft_folder() as peft:
        plain, config = copy.deepcopy(case.net), peft.LoraConfig(r=2, target_modules=list(NAMES))
        model = peft.get_peft_model(case.net, config)
        pairs = outputs(case, model)
        for name in NAMES:
            adapter, conv = model.base_model.model.get_submodule(name), plain.get_submodule(name)
            down, up = adapter.lora_A['default'].weight, adapter.lora_B['default'].weight
            nn.init.normal_(up)
            delta = torch.einsum('or,rikl->oikl', up[:, :, 0, 0], down)
            conv.weight.data += adapter.scaling['default'] * delta
        expected = reference(plain, case.x)
        pairs.append((model(case.x), expected))
        for change in (model.merge_adapter, model.unmerge_adapter):
            change()
            pairs.append((model(case.x), expected))
        return [*pairs, (model.merge_and_unload()(case.x), expected)]


@tool(
    ADAPTERS,
    'peft: `LoHaConfig`, `LoKrConfig`, `merge_and_unload`',
    REFUSED,
    same="padding='same' is not supported for strided convolutions",
    slow=True,
)
def hadamard_and_kronecker(case: Case) -> Pairs:
    pairs = []
    with peft_folder() as peft:
        for kind in (peft.LoHaConfig, peft.LoKrConfig):
            one, plain = another(case), copy.deepcopy(case.net)
            model = peft.get_peft_model(one.net, kind(r=2, target_modules=list(NAMES))).eval()
            for p in filter(lambda p: p.requires_grad, model.parameters()):
                nn.init.normal_(p, std=0.5)
            for name in NAMES:
                adapter = model.base_model.model.get_submodule(name)
                delta = adapter.get_delta_weight('default')
                plain.get_submodule(name).weight.data += delta
            expected = reference(plain, case.x)
            assert error_of(expected, case.expected) > 0.1
            pairs += [(model(case.x), expected), (model.merge_and_unload()(case.x), expected)]
    return pairs


def reparametrized(case: Case, change: Callable[[nn.Module], object]) -> Pairs:
    """The weight is what the change makes of it; an unfolded layer standardizes it after that."""
    for name in NAMES:
        change(case.net.get_submodule(name))
    case.net.eval()(case.x).sum().backward()
    return [(case.net(case.x), reference(case.net, case.x))]


@tool(ADAPTERS, '`weight_norm`, old and new')
def weight_norm(case: Case) -> Pairs:
    other = another(case)
    pairs = reparametrized(case, nn.utils.weight_norm)
    pairs += reparametrized(other, parametrizations.weight_norm)
    return [*pairs, *outputs(case, case.net, other.net)]  # which changes no weight by itself


@tool(ADAPTERS, '`spectral_norm`, old and new')
def spectral_norm(case: Case) -> Pairs:
    other = another(case)
    pairs = reparametrized(case, nn.utils.spectral_norm)
    return [*pairs, *reparametrized(other, parametrizations.spectral_norm)]


@tool(ADAPTERS, '`parametrize.register_parametrization`, `remove_parametrizations`')
def parametrization(case: Case) -> Pairs:
    plain = copy.deepcopy(case.net)
    for name in NAMES:
        plain.get_submodule(name).weight.data.tanh_()
    register = parametrize.register_parametrization
    pairs = reparametrized(case, lambda conv: register(conv, 'weight', nn.Tanh()))
    for name in NAMES:
        parametrize.remove_parametrizations(case.net.get_submodule(name), 'weight')
    return [*pairs, (case.net(case.x), reference(plain, case.x))]


SAMPLES = 'Gradients of each image'


def without_norms(case: Case) -> nn.Module:
    """Batch norm and gradients of each image exclude each other."""
    case.net.bn1, case.net.bn2 = nn.Identity(), nn.Identity()
    return case.net.train()


def loop(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """One backward pass for each image."""
    names, params = zip(*net.named_parameters())
    losses = [net(image[None]).square().sum() for image in x]
    rows = [torch.autograd.grad(loss, params) for loss in losses]
    return {name: torch.stack(grads) for name, grads in zip(names, zip(*rows))}


@tool(SAMPLES, 'opacus: `GradSampleModule`')
def opacus(case: Case) -> Pairs:
    module = pytest.importorskip('opacus').GradSampleModule
    net = without_norms(case)
    expected = loop(net, case.x)
    wrapped = module(net, loss_reduction='sum')
    wrapped(case.x).square().sum().backward()
    return [(p.grad_sample, expected[name]) for name, p in net.named_parameters()]


@tool(SAMPLES, '`torch.func`: `vmap(grad(...))`')
def per_sample_gradients(case: Case) -> Pairs:
    net = without_norms(case)
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(params: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(net, params, (image[None],)).square().sum()

    found = vmap(grad(loss), (None, 0))(params, case.x)
    return [(found[name], value) for name, value in loop(net, case.x).items()]


@tool(SAMPLES, '`torch.nn.utils._per_sample_grad`', 'Expanded Weights encountered')
def expanded_weights(case: Case) -> Pairs:
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    net = without_norms(case)
    expected = loop(net, case.x)
    call_for_per_sample_grads(net, loss_reduction='sum')(case.x).square().sum().backward()
    return [(p.grad_sample, expected[name]) for name, p in net.named_parameters()]


AVERAGES = 'Averages of weights'


@torch.no_grad()
def averages(case: Case, average: nn.Module, update: Callable, share: float) -> Pairs:
    """After one change of the weights, of which the average takes a share."""
    mean = copy.deepcopy(case.net)
    for p in case.net.parameters():
        p.add_(torch.rand_like(p))
    update(case.net)
    for p, new in zip(mean.parameters(), case.net.parameters()):
        p.lerp_(new, share)
    return [(average.module.eval()(case.x), reference(mean, case.x))]


@tool(AVERAGES, '`AveragedModel`, with and without `use_buffers`')
def averaged_model(case: Case) -> Pairs:
    pairs = []
    for use_buffers in (False, True):
        for average_fn, share in ((None, 0.5), (get_ema_multi_avg_fn(0.9), 0.1)):
            one = another(case)
            options = dict(multi_avg_fn=average_fn, use_buffers=use_buffers)
            average = AveragedModel(one.net, **options)
            average.update_parameters(one.net)
            pairs += averages(one, average, average.update_parameters, share)
    return pairs


@tool(AVERAGES, '`ExponentialMovingAverage` of mmengine (`EMAHook`)')
def mmengine_average(case: Case) -> Pairs:
    average = ExponentialMovingAverage(case.net, momentum=0.25, update_buffers=True)
    average.update_parameters(case.net)
    return averages(case, average, average.update_parameters, 0.25)


@tool(AVERAGES, 'timm: `ModelEmaV2`, `ModelEmaV3`')
def timm_average(case: Case) -> Pairs:
    utils, pairs = pytest.importorskip('timm.utils'), []
    for kind in (utils.ModelEmaV2, utils.ModelEmaV3):
        one = another(case)
        average = kind(one.net, 0.75)
        pairs += averages(one, average, average.update, 0.25)
    return pairs


@tool(AVERAGES, '`torch.optim.swa_utils.update_bn`')
def batch_norm_statistics(case: Case) -> Pairs:
    batches, bn = [case.x, case.x + 1], case.net.bn1
    channels = [reference(case.net, x, 'conv1').transpose(0, 1).flatten(1) for x in batches]
    update_bn(batches, case.net)
    return [
        (bn.running_mean, sum(rows.mean(1) for rows in channels) / 2),
        (bn.running_var, sum(rows.var(1) for rows in channels) / 2),
    ]


COPIES = 'Construction, copies, memory'


@tool(COPIES, '`torch.device("meta")`, then `load_state_dict`, with and without `assign=True`')
def deferred_loading(case: Case) -> Pairs:
    nets = []
    for assign in (False, True):
        net = copy.deepcopy(case.net).to('meta')
        net = net if assign else net.to_empty(device='cpu')
        net.load_state_dict(case.net.state_dict(), assign=assign)
        nets.append(net)
    return outputs(case, *nets)


@tool(COPIES, '`torch.device("meta")`, `to_empty`, `reset_parameters` of each module')
def deferred_start(case: Case) -> Pairs:
    net = copy.deepcopy(case.net).to('meta').to_empty(device='cpu')
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.fill_(float('nan') if tensor.is_floating_point() else 77)
    for module in net.modules():
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()
    return [(net(case.x), reference(net, case.x))]


@tool(COPIES, '`copy.deepcopy`, `pickle`, `torch.save`, `torch.load`, safetensors')
def copies(case: Case) -> Pairs:
    from safetensors import torch as safetensors

    def emptied() -> nn.Module:
        net = copy.deepcopy(case.net)
        for p in net.parameters():
            p.data.zero_()
        return net

    def saved(value: object, weights_only: bool) -> object:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=weights_only)

    nets = [copy.deepcopy(case.net), pickle.loads(pickle.dumps(case.net)), saved(case.net, False)]
    state = case.net.state_dict()
    for loaded in (saved(state, True), safetensors.load(safetensors.save(state))):
        nets.append(emptied())
        nets[-1].load_state_dict(loaded)
    return outputs(case, *nets)


@tool(COPIES, '`share_memory()`, and another process that writes')
def shared(case: Case) -> Pairs:
    net = case.net.share_memory()
    if os.fork() == 0:  # its children must not run the tests
        try:
            net.conv1.weight.detach().numpy()[:] *= [[[[3, 1, -2]]]]
        finally:
            os._exit(0)
    os.wait()
    return [(net(case.x), reference(net, case.x))]


@tool(COPIES, '`channels_last`, `double()`')
def layouts(case: Case) -> Pairs:
    last, double = copy.deepcopy(case.net).to(memory_format=torch.channels_last), case.net.double()
    return outputs(
        case,
        lambda x: last(x.to(memory_format=torch.channels_last)),
        lambda x: double(x.double()),
    )


@tool(COPIES, '`DataParallel`: its replicas')
def replicas(case: Case) -> Pairs:
    """On the CPU: what copies to several devices is replaced by a copy."""

    def copied(tensors: list[Tensor], devices: list[int], detach: bool) -> list[list[Tensor]]:
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[nn.parallel.replicate.__module__]
        patch.setattr(module, '_broadcast_coalesced_reshape', copied)
        return outputs(case, *nn.parallel.replicate(case.net, [0, 1]))


@tool(COPIES, '`DistributedDataParallel`: one step')
def distributed(case: Case) -> Pairs:
    x, y = case.x.clone().requires_grad_(), case.x.double().requires_grad_()
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group('gloo', f'file://{folder}/store', rank=0, world_size=1)
        try:
            out = nn.parallel.DistributedDataParallel(case.net)(x)
            out.sum().backward()
        finally:
            dist.destroy_process_group()
    (expected,) = torch.autograd.grad(case.twin.double()(y).sum(), y)
    return [(out, case.expected), (x.grad, expected)]
