"""Point-wise functions in the places of layer norms."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from nf_plugins.functional.agc import check_patterns

from .dyt import PointwiseNorm
from .replacement import Kind, take_over, why_not_replaceable

POINTWISE_ALREADY = 'point-wise already'
BATCH_NORM = 'batch norm, which it does not replace well (arXiv 2503.10622, limitations)'


def layout(norm: nn.LayerNorm) -> str | None:
    """Where a layer norm expects the channels, by what it computes; None if that is no layer norm.

    A subclass may move axes before it normalizes, as the ``LayerNorm2d`` of timm, torchvision and
    mmpretrain do.
    """
    if type(norm).forward is nn.LayerNorm.forward:
        return 'channel_last'
    twin = copy.deepcopy(norm).to_empty(device='cpu').float()
    shape = twin.normalized_shape
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_()
        for name, x in dict(
            channel_first=torch.randn(2, shape[0], 3, 4), channel_last=torch.randn(2, 3, *shape)
        ).items():
            moved = x.movedim(1, -1) if name == 'channel_first' else x
            if len(shape) == 1 or name == 'channel_last':
                wanted = F.layer_norm(moved, shape, twin.weight, twin.bias, twin.eps)
                wanted = wanted.movedim(-1, 1) if name == 'channel_first' else wanted
                if _computes(twin, x, wanted):
                    return name
    return None


def _computes(norm: nn.Module, x: Tensor, wanted: Tensor) -> bool:
    try:
        found = norm.forward(x)
    except Exception:  # of any kind: the module is somebody else's
        return False
    return found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-5)


def _why_left(module: nn.Module) -> str | None:
    if isinstance(module, PointwiseNorm):
        return POINTWISE_ALREADY
    if isinstance(module, _NormBase):
        return BATCH_NORM if 'Batch' in type(module).__name__ else 'instance norm'
    if not isinstance(module, nn.LayerNorm):
        is_norm = re.search(r'^[^_]\w*Norm(\dd)?$', type(module).__name__)
        return f'a {type(module).__name__}, which is no layer norm' if is_norm else None
    why = why_not_replaceable(module)
    if why is None and layout(module) is None:
        return f'a {type(module).__name__}, which computes something else than a layer norm'
    return why


@torch.inference_mode(False)  # whose tensors could not be trained later
@torch.no_grad()
def _replacement(norm: nn.LayerNorm, layer: type[PointwiseNorm], options: dict) -> PointwiseNorm:
    like = norm.weight  # None without weight and bias
    new = layer(
        norm.normalized_shape,
        elementwise_affine=like is not None,
        bias=norm.bias is not None,
        data_format=layout(norm),
        device=None if like is None else like.device,
        dtype=None if like is None else like.dtype,
        **options,
    )
    take_over(new, norm)
    return new


def _of_name(options: dict, name: str) -> dict:
    """The options of one norm: ``alpha`` may be a dict from patterns of names to numbers."""
    alphas = options.get('alpha')
    if not isinstance(alphas, Mapping):
        return options
    found = {check_patterns(pattern)[0]: alpha for pattern, alpha in alphas.items()}
    chosen = [alpha for pattern, alpha in found.items() if pattern in name]
    rest = {key: value for key, value in options.items() if key != 'alpha'}
    return {**rest, 'alpha': chosen[0]} if chosen else rest


LAYER_NORMS = Kind('layer norms', nn.LayerNorm, _why_left, _replacement, _of_name)
