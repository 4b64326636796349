"""SAM against an implementation written here from the papers."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from nf_plugins.checkpoint import safe_load

from ..tools import run_ranks

LR, MOMENTUM, DECAY = 0.1, 0.9, 1e-2
SGD = dict(type='SGD', lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
AGC = dict(type='agc', clip_factor=0.02, eps=1e-3, skip=['fc.weight'])


class Net(BaseModel):
    """A convolution, a vector, a classifier, and a parameter that nothing uses."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.gain = nn.Parameter(torch.rand(3, 1, 1))
        self.fc = nn.Linear(48, 4)
        self.unused = nn.Parameter(torch.ones(3))
        self.seen = []

    def forward(self, inputs, data_samples=None, mode='loss'):
        self.seen.append(len(inputs))
        out = self.fc((self.conv(inputs) * self.gain).tanh().flatten(1))
        labels = torch.as_tensor(data_samples)
        return dict(loss=nn.functional.cross_entropy(out, labels), acc=out.sum().detach())


def batches(number, size=5):
    torch.manual_seed(1)
    return [
        dict(
            inputs=torch.randn(size, 2, 6, 6, dtype=torch.float64),
            data_samples=torch.randint(4, (size,)).tolist(),
        )
        for _ in range(number)
    ]


def make(seed=0):
    torch.manual_seed(seed)
    return Net().double()


class Reference:
    """SAM of Foret et al. 2021 with the clipping of Brock et al. 2021b and Nesterov's SGD."""

    def __init__(self, net, rho, ratio=1.0, agc=False):
        self.net, self.rho, self.ratio, self.agc = net, rho, ratio, agc
        self.names = [n for n, _ in net.named_parameters() if n != 'unused']
        self.buffers = {}

    def loss(self, weights, data, count=None):
        arguments = {key: value[:count] for key, value in data.items()}
        return torch.func.functional_call(self.net, weights, (), arguments)['loss']

    def gradient(self, weights, data, count=None):
        weights = {n: w.detach().requires_grad_() for n, w in weights.items()}
        grads = torch.autograd.grad(self.loss(weights, data, count), list(weights.values()))
        return dict(zip(weights, grads))

    def descent(self, data):
        """The gradient of the second pass."""
        weights = {n: self.net.get_parameter(n).detach() for n in self.names}
        count = math.ceil(self.ratio * len(data['inputs']))
        up = self.gradient(weights, data, count)
        norm = math.sqrt(sum(float((g**2).sum()) for g in up.values()))
        return self.gradient({n: w + self.rho * up[n] / norm for n, w in weights.items()}, data)

    def clip(self, name, weight, grad):
        if not self.agc or name == 'fc.weight':
            return grad
        units = range(len(weight)) if weight.squeeze().dim() > 1 else [...]
        grad = grad.clone()
        for unit in units:
            limit = 0.02 * max(float((weight[unit] ** 2).sum().sqrt()), 1e-3)
            norm = float((grad[unit] ** 2).sum().sqrt())
            if norm > limit:
                grad[unit] *= limit / norm
        return grad

    @torch.no_grad()
    def update(self, gradients):
        for name in self.names:
            weight = self.net.get_parameter(name)
            grad = self.clip(name, weight, gradients[name]) + DECAY * weight
            self.buffers[name] = MOMENTUM * self.buffers.get(name, 0) + grad
            weight -= LR * (grad + MOMENTUM * self.buffers[name])


def mean(gradients):
    return {n: sum(g[n] for g in gradients) / len(gradients) for n in gradients[0]}


CASES = {
    'plain': dict(),
    'large rho': dict(rho=0.5),
    'a part of the batch': dict(ratio=0.2),
    'a part that is rounded up': dict(ratio=0.5),
    'AGC': dict(clip_grad=AGC),
    'AGC and a part of the batch': dict(clip_grad=AGC, ratio=0.4, rho=0.2),
    'accumulated': dict(accumulative_counts=2),
    'accumulated, AGC': dict(accumulative_counts=5, clip_grad=AGC),
}


@pytest.mark.parametrize('case', CASES)
def test_ten_steps(case):
    options = CASES[case]
    net = make()
    twin = copy.deepcopy(net)
    cfg = dict(type='nf_plugins.SAMOptimWrapper', optimizer=SGD, **options)
    wrapper = build_optim_wrapper(net, cfg)
    rho, ratio = options.get('rho', 0.05), options.get('ratio', 1.0)
    reference = Reference(twin, rho, ratio, 'clip_grad' in options)
    number = options.get('accumulative_counts', 1)
    start = copy.deepcopy(net.state_dict())
    data = batches(10 * number)
    for step in range(10):
        part = data[step * number : (step + 1) * number]
        for batch in part:
            net.train_step(batch, wrapper)
        reference.update(mean([reference.descent(batch) for batch in part]))
    assert net.seen[:2] == [math.ceil(5 * ratio), 5]
    for name, value in twin.named_parameters():
        torch.testing.assert_close(net.get_parameter(name), value, rtol=1e-9, atol=1e-11)
        assert torch.equal(start[name], value) == (name == 'unused')
    if 'clip_grad' in options:
        assert 0 < wrapper.message_hub.get_scalar('train/agc_clipped').current() <= 1


def test_it_is_another_step_than_that_without_it():
    """And close to it for a small rho."""
    results = {}
    for rho in (1e-9, 0.5, None):
        net = make()
        kind = {} if rho is None else dict(type='SAMOptimWrapper', rho=rho)
        wrapper = build_optim_wrapper(net, dict(kind, optimizer=SGD))
        net.train_step(batches(1)[0], wrapper)
        results[rho] = net.fc.weight.detach()
    torch.testing.assert_close(results[1e-9], results[None], rtol=1e-6, atol=1e-9)
    assert (results[0.5] - results[None]).abs().max() > 1e-4


def test_parameters_come_back_to_the_bit_and_also_after_an_exception():
    net = make().float()
    wrapper = build_optim_wrapper(net, dict(type='SAMOptimWrapper', optimizer=dict(SGD, lr=0.0)))
    before = copy.deepcopy(net.state_dict())
    batch = batches(1)[0]
    batch['inputs'] = batch['inputs'].float()
    net.train_step(batch, wrapper)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    def fail():
        assert not torch.equal(net.fc.weight, before['fc.weight'])
        raise KeyError('of the network')

    with wrapper.optim_context(net):
        loss = net(**batch)['loss']
    with pytest.raises(KeyError, match='of the network'):
        wrapper.update_params(loss, closure=fail)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_loop_of_ones_own():
    """Without mm's train_step: the loss is computed once more by a closure."""
    net, twin = make(), make()
    wrapper = build_optim_wrapper(net, dict(type='SAMOptimWrapper', optimizer=SGD))
    (batch,) = batches(1)

    def loss():
        return net(**batch)['loss']

    with wrapper.optim_context(net):
        first = loss()
    wrapper.update_params(first, closure=loss)
    reference = Reference(twin, 0.05)
    reference.update(reference.descent(batch))
    torch.testing.assert_close(net.conv.weight, twin.conv.weight, rtol=1e-9, atol=1e-11)

    with wrapper.optim_context(net):
        first = loss() + loss()
    with pytest.raises(RuntimeError, match='and there were 2: give update_params a closure'):
        wrapper.update_params(first)
    with pytest.raises(RuntimeError, match='and there were 0'):
        wrapper.update_params(net.conv.weight.sum())


BAD = [
    (dict(rho=0), ValueError, 'rho must be a positive number, got 0'),
    (dict(rho='0.05'), TypeError, 'rho must be a positive number'),
    (dict(ratio=0.0), ValueError, 'ratio must be a positive number'),
    (dict(ratio=1.5), ValueError, 'ratio must be at most 1, got 1.5'),
    (dict(clip_grad=dict(type='agc', clip=1)), ValueError, 'takes clip_factor, eps and skip'),
]


@pytest.mark.parametrize(('options', 'error', 'message'), BAD)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        build_optim_wrapper(make(), dict(type='SAMOptimWrapper', optimizer=SGD, **options))


@pytest.mark.parametrize('name', ['SAMOptimWrapper', 'SAMAmpOptimWrapper'])
def test_both_names(name):
    assert OPTIM_WRAPPERS.get(f'nf_plugins.{name}') is OPTIM_WRAPPERS.get(name)


def test_clipping_of_mmengine():
    net = make()
    cfg = dict(type='SAMOptimWrapper', optimizer=dict(type='SGD', lr=1.0))
    wrapper = build_optim_wrapper(net, dict(cfg, clip_grad=dict(max_norm=1e-3)))
    before = [p.detach().clone() for p in net.parameters()]
    net.train_step(batches(1)[0], wrapper)
    moved = [float((p.detach() - b).norm()) for p, b in zip(net.parameters(), before)]
    assert math.hypot(*moved) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize('broken', [False, True])
def test_mixed_precision(broken, monkeypatch):
    """The scale of the loss does not matter, and a step that is not finite is skipped."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper as amp

    monkeypatch.setattr(amp, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    results = []
    for scale in (1.0, 2.0**12):
        net = make().float()
        cfg = dict(type='SAMAmpOptimWrapper', dtype='bfloat16', loss_scale=scale, optimizer=SGD)
        wrapper = build_optim_wrapper(net, dict(cfg, clip_grad=AGC))
        before = copy.deepcopy(net.state_dict())
        batch = batches(1)[0]
        batch['inputs'] = batch['inputs'].float() * (float('inf') if broken else 1)
        with torch.autocast('cpu', torch.bfloat16):
            net.train_step(batch, wrapper)
        same = all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert same == broken
        results.append(net.fc.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------ two processes
COUNTS = {'each': 1, 'accumulated': 2}


def worker(rank, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    results = {}
    for name, count in COUNTS.items():
        net = MMDistributedDataParallel(module=make(), find_unused_parameters=True)
        cfg = dict(type='SAMOptimWrapper', optimizer=SGD, ratio=0.4, accumulative_counts=count)
        wrapper = build_optim_wrapper(net, cfg)
        for batch in batches(8)[rank::2]:
            net.train_step(batch, wrapper)
        results[name] = {n: p.detach() for n, p in net.module.named_parameters()}
    torch.save(results, f'{folder}/rank{rank}.pt')
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason='needs torch.distributed')
def test_processes_go_up_alone_and_down_together(tmp_path):
    run_ranks(worker, str(tmp_path))
    ranks = [safe_load(tmp_path / f'rank{rank}.pt') for rank in range(2)]
    for name, count in COUNTS.items():
        twin = make()
        reference = Reference(twin, 0.05, 0.4)
        data = batches(8)
        for step in range(4 // count):
            part = data[2 * count * step : 2 * count * (step + 1)]
            reference.update(mean([reference.descent(batch) for batch in part]))
        for rank in ranks:
            for key in reference.names:
                torch.testing.assert_close(
                    rank[name][key], twin.get_parameter(key).detach(), rtol=1e-9, atol=1e-11
                )
