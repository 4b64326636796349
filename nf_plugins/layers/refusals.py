"""Errors for tools that would compute with a weight before its standardization.

Two hooks check each layer that is registered in a module. Their errors name
:func:`nf_plugins.fold`.
"""

from __future__ import annotations

from typing import TypeGuard

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .standardized_conv import StandardizedConv2d


def _refuse_adapter(module: nn.Module, name: str, layer: nn.Module | None) -> None:
    """Raise if a layer is put into an adapter (such as peft's) that merges a weight into it.

    The merge itself, ``base_layer.weight.data += delta``, looks like a step of an optimizer. So
    the check is at the construction of the adapter.
    """
    if name == 'base_layer' and isinstance(layer, StandardizedConv2d) and hasattr(module, 'merge'):
        if not layer.deployed:
            raise TypeError(layer._advice(f'cannot be adapted by {type(module).__name__}'))


def _refuse_merger(module: nn.Module, name: str, new: nn.Module | None) -> None:
    """Raise if a module that was computed from standardized layers takes their place.

    Such modules are: ``branch_reparam`` of RepVGG (and ``reparam_conv``, ``lkb_reparam`` of
    similar networks), the result of ``fuse()`` of a timm block, and the layers of oneDNN.
    """
    old = module._modules.get(name)
    if old is None:
        merges = 'reparam' in name and isinstance(new, nn.Conv2d)
    else:
        fused = hasattr(old, 'fuse') or type(new).__module__ == 'torch.utils.mkldnn'
        merges = fused and new is not None and not any(map(_is_standardized, new.modules()))
    if merges:
        for layer in (module if old is None else old).modules():
            if _is_standardized(layer):
                raise TypeError(layer._advice(f'cannot be merged into a {type(new).__name__}'))


def _is_standardized(module: nn.Module) -> TypeGuard[StandardizedConv2d]:
    return isinstance(module, StandardizedConv2d) and not module.deployed


register_module_module_registration_hook(_refuse_adapter)
register_module_module_registration_hook(_refuse_merger)
