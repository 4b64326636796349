"""What replacing convolutions and replacing norms have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

_HOOKS = [name for name in vars(nn.Module()) if '_hook' in name]


@dataclass(frozen=True)
class Kind:
    """A kind of layers that can be replaced.

    Args:
        noun: What they are called.
        base: The class of PyTorch.
        why_left: Module -> why a layer of the kind is left; None for one to replace, and for all
            modules of other kinds.
        replacement: Layer, class and options of the new one -> the new one.
        of_name: Options, name of a layer -> the options for it.
    """

    noun: str
    base: type[nn.Module]
    why_left: Callable[[nn.Module], str | None]
    replacement: Callable[[Any, Any, dict], nn.Module]
    of_name: Callable[[dict, str], dict] = lambda options, name: options

    @property
    def singular(self) -> str:
        return self.noun.removesuffix('s')


def why_not_replaceable(module: nn.Module) -> str | None:
    """Why a layer with a weight cannot be replaced, whatever its kind."""
    if parametrize.is_parametrized(module):
        return 'its weight or bias is parametrized'
    if set(module._parameters) != {'weight', 'bias'} or module._buffers or module._modules:
        return 'its weight is computed from others'
    if 'forward' in vars(module):
        return 'its forward was replaced'
    weight = module._parameters['weight']
    if weight is not None and not weight.is_floating_point():
        return f'its weight is {weight.dtype}'
    return None


def take_over(new: nn.Module, old: nn.Module) -> None:
    """Give a layer the parameters of another, its mode, its hooks, and what is noted on it."""
    # Not by setattr: a standardized convolution takes no new weight from others.
    new._parameters.update(old._parameters)
    weight = old._parameters['weight']
    for name, parameter in new.named_parameters():
        if name not in ('weight', 'bias') and weight is not None:
            parameter.requires_grad_(weight.requires_grad)
    new.training = old.training
    for name in _HOOKS:  # the dicts themselves, so that their handles stay valid
        hooks = vars(old)[name]
        if isinstance(hooks, dict):
            hooks.update(vars(new)[name])
        vars(new)[name] = hooks
    for name in vars(old).keys() - vars(new).keys():  # what users and libraries have noted
        vars(new)[name] = vars(old)[name]
