"""Every backbone gives the same outputs when compiled, in channels_last and with checkpointing."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from nf_plugins.models.backbones.residual_block import may_overwrite

from ..conftest import relative_error, sample

CONFIGS = {
    'NFResNet': dict(type='NFResNet', depth=(1, 2, 1, 1), base_channels=4, skipinit=1.0),
    'NFResNet, SE': dict(
        type='NFResNet', depth=(1, 2, 1, 1), base_channels=4, skipinit=1.0, attention='se'
    ),
    'NFRegNet': dict(
        type='NFRegNet', arch=dict(base='b0', width_mult=0.25, depths=(1, 2, 1, 1)), skipinit=1.0
    ),
    'NFNet': dict(
        type='NFNet',
        arch=dict(base='f0', width_mult=1 / 16, group_width=4, depths=(1, 2, 1, 1)),
        skipinit=1.0,
    ),
    # Not 4 channels: the backward pass of oneDNN in channels_last, of a 1x1 convolution with
    # stride 2 from 4 to 8 channels, writes beyond its memory (torch 2.12 on the CPU).
    'PWSResNet': dict(type='PWSResNet', depth=18, base_channels=8, stem_channels=8),
    'ResNetV2': dict(type='ResNetV2', depth=(1, 2, 1, 1), base_channels=4),
    'SkipInitResNet': dict(
        type='SkipInitResNet', depth=(1, 2, 1, 1), base_channels=4, skipinit=1.0
    ),
    'FixupResNet': dict(type='FixupResNet', depth=(1, 2, 1, 1), base_channels=4),
}


def step(net, x):
    """Output and the gradients of a training step."""
    out = net(x)[0]
    out.square().mean().backward()
    return out.detach(), [p.grad.clone() for p in net.parameters()]


def check(ours, theirs, tolerance=1e-4):
    assert relative_error(ours[0], theirs[0]) < tolerance
    whole = torch.cat([g.flatten() for g in theirs[1]])
    assert relative_error(torch.cat([g.flatten() for g in ours[1]]), whole) < tolerance


@pytest.fixture
def case(request):
    net = MODELS.build(CONFIGS[request.param]).train()
    return net, torch.randn(4, 3, 64, 64)


@pytest.mark.parametrize('case', CONFIGS, indirect=True)
def test_channels_last(case):
    net, x = case
    expected = step(copy.deepcopy(net), x)
    net = net.to(memory_format=torch.channels_last)
    found = step(net, x.to(memory_format=torch.channels_last))
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for p in net.parameters():  # what the kernels leave has the layout of the parameter
        assert p.grad.stride() == p.stride()
    check(found, expected)


@pytest.mark.parametrize('case', CONFIGS, indirect=True)
def test_checkpointing(case):
    net, x = case
    expected = step(copy.deepcopy(net), x)
    blocks = [m for m in net.modules() if hasattr(m, 'with_cp')]
    for block in blocks:
        block.with_cp = True
    assert blocks
    x.requires_grad_()
    first = next(m for m in blocks[0].modules() if isinstance(m, nn.Conv2d))
    calls = []
    first.register_forward_pre_hook(lambda *args: calls.append(None))
    check(step(net, x), expected, 1e-6)
    assert len(calls) == 2  # and once more in the backward pass


@pytest.mark.parametrize('case', CONFIGS, indirect=True)
def test_hooks_keep_what_they_see(case):
    """Branches work in place, except for the output of a convolution with a hook."""
    net, x = case
    expected = step(copy.deepcopy(net), x)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    seen, grads = [], []
    x.requires_grad_()
    for conv in convs:
        conv.register_forward_hook(lambda m, args, out: seen.append((out, out.clone())))
        conv.register_full_backward_hook(lambda m, inputs, outputs: grads.append(m))
    check(step(net, x), expected, 1e-6)
    assert len(seen) == len(convs)
    assert all(torch.equal(kept, copied) for kept, copied in seen)
    assert set(grads) == set(convs)


COMPILED = sample(
    [name for name in CONFIGS if name != 'NFResNet'],  # which is a part of that with SE
    {'NFResNet, SE', 'NFNet', 'PWSResNet'}.__contains__,
)


@pytest.mark.slow
@pytest.mark.parametrize('case', COMPILED, indirect=True)
def test_compiles_to_one_graph(case):
    torch.compiler.reset()
    net, x = case
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend='aot_eager')
    check(step(compiled, x), step(net, x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('case', 'backend'),
    # What works in place is traced again by one backend alone; in a NFNet is all of it.
    [
        pytest.param(
            *name.values, 'aot_eager' if name.values[0] == 'NFNet' else 'eager', marks=name.marks
        )
        for name in COMPILED
    ],
    indirect=['case'],
)
def test_compiles_to_one_graph_in_evaluation(case, backend):
    torch.compiler.reset()
    net, x = case
    net.eval()
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend=backend)
    with torch.no_grad():
        assert relative_error(compiled(x)[0], net(x)[0]) < 1e-5


@pytest.mark.parametrize('kind', ['forward', 'forward_pre', 'full_backward', 'full_backward_pre'])
def test_no_memory_is_overwritten_that_a_hook_on_all_modules_may_see(kind):
    conv = nn.Conv2d(1, 1, 1)
    assert may_overwrite(conv)
    hook = getattr(nn.modules.module, f'register_module_{kind}_hook')(lambda *args: None)
    try:
        assert not may_overwrite(conv)
    finally:
        hook.remove()
    assert may_overwrite(conv)
