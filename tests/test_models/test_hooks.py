"""Forward hooks see every module that computes, and what they return is what follows."""

from collections import Counter
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from nf_plugins.models import ReLUNeck

from .common import NETWORKS, build, images


def computing(net: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in net.named_modules()
        if name and not isinstance(module, nn.ModuleList)
    }


def calls_of(net: nn.Module) -> tuple[Counter, Counter]:
    """Calls of each module's forward, and of hooks on it, in one pass (and backward)."""
    computed, hooked = Counter(), Counter()

    def counted(name: str, forward):
        def call(*args, **kwargs):
            computed[name] += 1
            return forward(*args, **kwargs)

        return call

    for name, module in computing(net).items():
        module.forward = counted(name, module.forward)

        def hook(module, args, out, name=name):
            hooked[name] += 1
            assert args and all(isinstance(x, Tensor) for x in args), name
            assert isinstance(out, Tensor), name

        module.register_forward_hook(hook)
    x = images(64, 64).requires_grad_()
    with set_checkpoint_early_stop(False):  # which leaves the last module half way
        net(x)[0].sum().backward()
    return computed, hooked


@pytest.mark.parametrize('mode', ['train', 'eval', 'with_cp', 'deploy'])
@pytest.mark.parametrize('name', NETWORKS)
def test_every_module_is_called(name, mode):
    net = build(name, mode == 'deploy', drop_path_rate=0.5, with_cp=mode == 'with_cp')
    net.train(mode in ('train', 'with_cp')).requires_grad_()
    computed, hooked = calls_of(net)
    assert computed == hooked
    assert set(hooked) == set(computing(net))
    blocks = [m for m in hooked if m.count('.') == 1 and m.startswith('layer') and m[-1].isdigit()]
    for block in blocks:
        twice = 2 if mode == 'with_cp' else 1
        for leaf in ('conv1', 'conv2', 'conv3', 'attention', 'drop_path', 'se'):
            if isinstance(getattr(net.get_submodule(block), leaf, None), nn.Module):
                assert hooked[f'{block}.{leaf}'] == twice


@pytest.mark.parametrize('mode', ['train', 'eval', 'deploy'])
@pytest.mark.parametrize('leaf', ['attention', 'drop_path', 'conv3', 'inner_act', 'se'])
@pytest.mark.parametrize('name', NETWORKS)
def test_what_a_hook_returns_is_what_follows(name, leaf, mode):
    """A branch that ends in zeros adds nothing; hooks keep what they saw."""
    net = build(name, mode == 'deploy', drop_path_rate=0.5).train(mode == 'train')
    block = net.layer2[1]
    module = getattr(block, leaf, None)
    if not isinstance(module, nn.Module):
        pytest.skip(f'there is no {leaf}')
    x = torch.randn(64, block.conv1.in_channels, 6, 6)  # drop path keeps some of them for sure
    seen = []
    with torch.no_grad():
        handle = module.register_forward_hook(lambda m, a, out: seen.append((out, out.clone())))
        before = block(x)
        assert seen and all(torch.equal(kept, copied) for kept, copied in seen)
        handle.remove()
        module.register_forward_hook(lambda m, a, out: torch.zeros_like(out))
        after = block(x)
    if leaf in ('drop_path', 'attention', 'se') and not getattr(block, 'attention_inside', False):
        expected = x if not hasattr(block, 'bias1a') else torch.relu(x + block.bias1a)
        torch.testing.assert_close(after, expected)
    else:
        assert not torch.equal(before, after)


@pytest.mark.parametrize('name', ['NFResNet', 'PWSResNet'])
def test_the_activation_of_a_branch_is_one_module(name):
    """Whether hooks look or not: a PReLU has weights, those of another would be wrong."""
    net = build(name, **({'act_cfg': dict(type='PReLU', gamma=1.0)} if name == 'NFResNet' else {}))
    with torch.no_grad():
        for key, p in net.named_parameters():
            if key.endswith('inner_act.weight'):
                p.fill_(-0.7)
        x = images(64, 64)
        before = net(x)[0]
        for module in computing(net).values():
            module.register_forward_hook(lambda *args: None)
        torch.testing.assert_close(net(x)[0], before)


def test_the_neck_is_called_once():
    neck, hook = ReLUNeck(), mock.Mock(return_value=None)
    neck.register_forward_hook(hook)
    neck(torch.randn(1, 2, 3, 3))
    assert hook.call_count == 1
