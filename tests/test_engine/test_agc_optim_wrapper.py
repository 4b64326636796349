import copy
from functools import partial

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from nf_plugins.functional import adaptive_clip_grad_


def make(model, **clip_grad):
    clip_grad = dict(type='agc', clip_factor=0.01, **clip_grad)
    optimizer = dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    cfg = dict(type='AGCOptimWrapper', clip_grad=clip_grad, optimizer=optimizer)
    return build_optim_wrapper(model, cfg)


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def step(wrapper, model, x):
    with wrapper.optim_context(model):
        loss = model(x).square().sum()
    wrapper.update_params(loss)


def unclipped(wrapper, model):
    """The parameters whose large gradients a step leaves alone."""
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e3)
    wrapper._clip_grad()
    return [name for name, p in model.named_parameters() if p.grad.eq(1e3).all()]


def test_clips_before_weight_decay_and_momentum():
    """Three steps written out, with torch's SGD and the clipping in front of it."""
    model = network()
    twin = copy.deepcopy(model)
    wrapper = make(model, skip=['2.weight'])
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    for _ in range(3):
        x = torch.randn(5, 4)
        step(wrapper, model, x)
        sgd.zero_grad()
        twin(x).square().sum().backward()
        clipped = [p for name, p in twin.named_parameters() if name != '2.weight']
        adaptive_clip_grad_(clipped, 0.01)
        sgd.step()
    for p, q in zip(model.parameters(), twin.parameters()):
        assert torch.equal(p, q)
    assert 0 < wrapper.message_hub.get_scalar('train/agc_clipped').current() <= 1


def test_accumulated_gradients_are_clipped_once():
    model = network()
    twin = copy.deepcopy(model)
    cfg = dict(
        type='AGCOptimWrapper',
        accumulative_counts=2,
        clip_grad=dict(type='agc'),
        optimizer=dict(type='SGD', lr=0.1),
    )
    wrapper = build_optim_wrapper(model, cfg)
    wrapper.initialize_count_status(model, 0, 2)
    batches = torch.randn(2, 5, 4)
    for x in batches:
        step(wrapper, model, x)
    sum(twin(x).square().sum() / 2 for x in batches).backward()
    adaptive_clip_grad_(twin.parameters(), 0.01)
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q - 0.1 * q.grad)


def test_names_under_a_model_wrapper():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    from mmengine.registry import MODEL_WRAPPERS

    MODEL_WRAPPERS.register_module('TestWrapper', module=Wrapper, force=True)
    model = network()
    wrapper = make(model, skip=['0.weight'])
    wrapper.initialize_count_status(Wrapper(model), 0, 10)
    assert unclipped(wrapper, model) == ['0.weight']


def test_a_pattern_that_matches_nothing_lists_close_names():
    model = network()
    wrapper = make(model, skip=['2.wieght'])
    with pytest.raises(
        ValueError, match="skip='2.wieght' is in no parameter name; close names: 2.w"
    ):
        wrapper.initialize_count_status(model, 0, 10)


@pytest.mark.parametrize('name', ['AGCOptimWrapper', 'AGCAmpOptimWrapper'])
def test_both_names(name):
    assert OPTIM_WRAPPERS.get(f'nf_plugins.{name}') is OPTIM_WRAPPERS.get(name)


@pytest.mark.cuda
def test_amp_unscales_before_clipping():
    model = network().cuda()
    twin = copy.deepcopy(model)
    cfg = dict(
        type='AGCAmpOptimWrapper',
        dtype='float16',
        loss_scale=1024.0,
        clip_grad=dict(type='agc'),
        optimizer=dict(type='SGD', lr=0.1),
    )
    x = torch.randn(5, 4, device='cuda')
    step(build_optim_wrapper(model, cfg), model, x)
    with torch.autocast('cuda', dtype=torch.float16):
        loss = twin(x).square().sum()
    (loss * 1024).backward()
    for p in twin.parameters():
        p.grad /= 1024
    adaptive_clip_grad_(twin.parameters(), 0.01)
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q - 0.1 * q.grad)


def amp_on_cpu(monkeypatch, model, loss_scale):
    """AGCAmpOptimWrapper with torch's scaler for CPUs; mmengine's accepts accelerators alone."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper as amp

    monkeypatch.setattr(amp, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    cfg = dict(
        type='AGCAmpOptimWrapper',
        dtype='bfloat16',
        loss_scale=loss_scale,
        clip_grad=dict(type='agc', clip_factor=0.01),
        optimizer=dict(type='SGD', lr=0.1, momentum=0.9),
    )
    return build_optim_wrapper(model, cfg)


def test_amp_unscales_before_clipping_on_cpu(monkeypatch):
    model = network()
    twin = copy.deepcopy(model)
    wrapper = amp_on_cpu(monkeypatch, model, 2.0**12)
    x = torch.randn(5, 4)
    wrapper.update_params(model(x).square().sum())
    twin(x).square().sum().backward()
    raw = [p.grad.clone() for p in twin.parameters()]
    adaptive_clip_grad_(twin.parameters(), 0.01)
    assert any(not torch.equal(g, p.grad) for g, p in zip(raw, twin.parameters()))
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q - 0.1 * q.grad)


@pytest.mark.parametrize('value', [float('inf'), float('nan')])
def test_amp_skips_a_step_that_is_not_finite(value, monkeypatch):
    """Clipping must not make such a gradient look finite to the scaler."""
    model = network()
    wrapper = amp_on_cpu(monkeypatch, model, dict(init_scale=1024.0))
    x = torch.randn(5, 4)
    wrapper.update_params(model(x).square().sum())
    before = copy.deepcopy(model.state_dict())
    momentum = [wrapper.optimizer.state[p]['momentum_buffer'].clone() for p in model.parameters()]
    wrapper.update_params(model(x).square().sum() * value)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    for p, buffer in zip(model.parameters(), momentum):
        assert torch.equal(wrapper.optimizer.state[p]['momentum_buffer'], buffer)
    assert wrapper.loss_scaler.get_scale() == 512
    wrapper.update_params(model(x).square().sum())
    assert not torch.equal(model[0].weight, before['0.weight'])


def test_parameters_that_the_loss_does_not_reach_are_found_and_left():
    """As ``detect_anomalous_params`` does it, between the forward pass and the update."""
    from mmengine.model import detect_anomalous_params

    model = network()
    model.register_parameter('unused', nn.Parameter(torch.ones(3)))
    wrapper = make(model)
    with wrapper.optim_context(model):
        loss = model(torch.randn(5, 4)).square().sum()
    detect_anomalous_params(loss, model)
    wrapper.update_params(loss)
    assert torch.equal(model.unused, torch.ones(3))
    assert model.unused.grad is None


def test_a_single_pattern():
    model = network()
    wrapper = make(model, skip='2.weight')
    wrapper.initialize_count_status(model, 0, 10)
    assert unclipped(wrapper, model) == ['2.weight']


@pytest.mark.parametrize('kind', ['replaced', 'tied', 'weight_norm'])
def test_a_head_that_changes_is_skipped(kind):
    """The names mean the parameters of each step."""
    model = network()
    if kind == 'tied':
        model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        model[2].weight = model[0].weight
    if kind == 'weight_norm':
        torch.nn.utils.parametrizations.weight_norm(model[2])
    wrapper = make(model, skip=['2.weight'])
    step(wrapper, model, torch.randn(5, model[0].in_features))
    if kind == 'replaced':
        model[2] = nn.Linear(8, 3)
        wrapper.optimizer.add_param_group(dict(params=model[2].parameters()))
    names = dict(
        replaced=['2.weight'],
        tied=['0.weight'],
        weight_norm=[f'2.parametrizations.weight.original{i}' for i in range(2)],
    )
    assert unclipped(wrapper, model) == names[kind]


def test_without_a_model_it_needs_no_names():
    model = network()
    model(torch.randn(5, 4)).square().sum().mul(1e3).backward()
    make(model)._clip_grad()
    with pytest.raises(RuntimeError, match='has not seen the model'):
        make(model, skip='0')._clip_grad()
