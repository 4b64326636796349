"""Refusals of what other tools compute from a weight before its standardization.

The hooks look at each layer that is put into a module. They name :func:`nf_plugins.fold`.
"""

from __future__ import annotations

from typing import TypeGuard

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .standardized_conv import StandardizedConv2d


def _refuse_adapter(module: nn.Module, name: str, layer: nn.Module | None) -> None:
    """Refuse to put a layer into an adapter (as peft's) that merges its own weight into it.

    ``base_layer.weight.data += delta`` changes a parameter as an optimizer does, so only the
    construction of the adapter can be told apart from that.
    """
    if name == 'base_layer' and isinstance(layer, StandardizedConv2d) and hasattr(module, 'merge'):
        if not layer.deployed:
            raise TypeError(layer._advice(f'cannot be adapted by {type(module).__name__}'))


def _refuse_merger(module: nn.Module, name: str, new: nn.Module | None) -> None:
    """Refuse what others compute from the weights of layers to put it into their place.

    That is the convolution ``branch_reparam`` (``reparam_conv``, ``lkb_reparam``) of RepVGG and
    its kind, beside the branches; what ``fuse()`` of a block of timm returns; and oneDNN's.
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
