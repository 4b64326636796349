"""Standardized convolutions and point-wise norms in the places of the plain ones of any network."""

from __future__ import annotations

import difflib
import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d
from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from nf_plugins.functional.agc import check_patterns
from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import check_type

from .dyt import PointwiseNorm
from .norm_conversion import BATCH_NORM, LAYER_NORMS, POINTWISE_ALREADY
from .replacement import Kind, take_over, why_not_replaceable
from .same_conv import SameConv2d
from .standardized_conv import Pair, StandardizedConv2d

_PLAIN = (nn.Conv2d, WrappedConv2d, Conv2dAdaptivePadding, SameConv2d)


@dataclass
class Conversion:
    """What :func:`convert` did.

    Attributes:
        type: The class that the layers have now.
        replaced: Names of the layers that were replaced, all names of shared ones.
        left: Name -> why, of the layers that were not.
        noun: What the layers are: convolutions or layer norms.
    """

    type: str
    replaced: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    noun: str = 'convolutions'

    @property
    def complete(self) -> bool:
        """Whether all layers of the kind are of the new type now."""
        return all(why in (_ALREADY, POINTWISE_ALREADY) for why in self.left.values())

    def __str__(self) -> str:
        """A line of totals, then a line for each reason with the names that it concerns."""
        total = len(self.replaced) + len(self.left)
        lines = [f'{len(self.replaced)} of {total} {self.noun} are {self.type} now']
        for why, count in Counter(self.left.values()).most_common():
            names = [name for name, reason in self.left.items() if reason == why]
            more = ' ...' if count > 3 else ''
            lines.append(f'  {count} left, {why}: {", ".join(names[:3])}{more}')
        return '\n'.join(lines)


_ALREADY = 'standardized already'


def convert(
    model: nn.Module, type: str | dict, skip: str | Sequence[str] = (), **options: Any
) -> Conversion:
    """Replace the convolutions, or the layer norms, of any network by ours, in place.

    ``type`` says which. A convolution is replaced if its class is :class:`torch.nn.Conv2d` itself
    (or one of those that compute the same: mmcv's wrapper ``Conv`` and
    ``Conv2dAdaptivePadding``, :class:`SameConv2d`) and its fan-in,
    ``in_channels / groups * kh * kw``, is at least 2. All others are left, and the report says
    why: subclasses, whose forward pass is their own (timm's ``StdConv2d``, ``ScaledStdConv2d``,
    ``Conv2dSame``), transposed, 1-D and 3-D ones, depthwise ones with a 1x1 kernel, and those
    whose weight is computed (weight norm, pruning, parametrizations).

    A layer norm is replaced if it computes what :class:`torch.nn.LayerNorm` does, with channels
    last, or first as the ``LayerNorm2d`` of timm, torchvision and mmpretrain. Other norms are
    left.

    The new layers have the same parameters (the objects, so that an optimizer and tied
    weights stay right), geometry, device, dtype, training mode and hooks; a module that is
    used in several places stays one. New parameters (``gain``, ``alpha``) are at their
    initial values, and frozen where the weight is. The outputs change.

    Args:
        model: A network: of timm, torchvision, mm, your own.
        type: 'ScaledWS' or 'PWS' for convolutions, 'DyT' or 'Derf' for layer norms, or a config
            with such a type.
        skip: Patterns (substrings) of names of layers that are left, or one pattern.
        **options: Of the layer: ``gamma``, ``eps``, ``eps_mode``, ``gain_init``, ``mode``, ...;
            ``alpha`` of DyT and Derf may be a dict from patterns of names to numbers.

    Returns:
        What was replaced, and what was left and why: ``print`` it.

    Raises:
        ValueError: An unknown type, a pattern that is in no layer's name, a model that
            is such a layer itself, or that is wrapped for distributed training already; layer
            norms are to be replaced and the model has batch norms alone.
        TypeError: Options that the layer does not take, or a model of TorchScript.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8))
        >>> report = convert(net, 'ScaledWS', gamma=1.7139)
        >>> print(report)
        1 of 2 convolutions are ScaledWSConv2d now
          1 left, fan-in 1 (a single weight is its own mean): 2
        >>> net[0].__class__.__name__
        'ScaledWSConv2d'
    """
    layer, kind, options = _layer(type, options)
    _check_model(model, kind)
    modules = list(model.named_modules(remove_duplicate=False))
    skipped = _skipped({name: m for name, m in modules if isinstance(m, kind.base)}, kind, skip)
    report, made = Conversion(layer.__name__, noun=kind.noun), {}
    like = next(model.parameters(), None)
    for name, module in modules:
        why = 'named by skip' if module in skipped else kind.why_left(module)
        if why:
            report.left[name] = why
        elif isinstance(module, kind.base) and id(module) not in made:
            new = kind.replacement(module, layer, kind.of_name(options, name))
            if like is not None and not any(True for _ in module.parameters()):
                new.to(like.device, like.dtype)
            made[id(module)] = new
    if kind is LAYER_NORMS and not made and BATCH_NORM in report.left.values():
        raise ValueError(
            f'the model has batch norms and no layer norm to replace: {layer.__name__} takes the '
            'place of layer norm; its authors say that it struggles to take that of batch norm '
            '(arXiv 2503.10622, limitations)'
        )
    # Nothing is changed before all replacements could be built.
    for name, module in modules:
        if name not in report.left and id(module) in made:
            parent, _, own = name.rpartition('.')
            model.get_submodule(parent)._modules[own] = made[id(module)]
            report.replaced.append(name)
    return report


def _layer(type: str | dict, options: dict) -> tuple[Any, Kind, dict]:
    """The class that a config or its type means, what it replaces, and the options."""
    if isinstance(type, dict):
        options = {**type, **options}
        type = options.pop('type', None)
    name = type if isinstance(type, str) else getattr(type, '__name__', repr(type))
    layer = MODELS.get(type) if isinstance(type, str) else type
    if inspect.isclass(layer) and issubclass(layer, StandardizedConv2d):
        layer(2, 2, 1, device='meta', **options)  # complains about bad options now
        return layer, _CONVOLUTIONS, options
    if inspect.isclass(layer) and issubclass(layer, PointwiseNorm):
        alphas = options.get('alpha')
        for pattern in alphas if isinstance(alphas, dict) else ('',):
            layer(2, device='meta', **LAYER_NORMS.of_name(options, pattern))
        return layer, LAYER_NORMS, options
    raise ValueError(f'type must be ScaledWS, PWS, DyT or Derf, got {name}')


def _check_model(model: nn.Module, kind: Kind) -> None:
    check_type('model', model, nn.Module)
    if isinstance(model, kind.base):
        raise ValueError(
            f'the model is a {kind.singular} itself, which has no place to be replaced in: put it '
            'into an nn.Sequential'
        )
    for name, module in model.named_modules():
        where = f'{name or "the model"} is a {type(module).__name__}'
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f'{where}, whose code is fixed: convert it before scripting')
        if is_model_wrapper(module) and not isinstance(module, nn.DataParallel):
            raise ValueError(f'{where}, which knows its parameters already: convert before that')


def _skipped(
    layers: dict[str, nn.Module], kind: Kind, patterns: str | Sequence[str]
) -> set[nn.Module]:
    """The layers that the patterns name, by any of their names."""
    skipped = set()
    for pattern in check_patterns(patterns):
        found = {layer for name, layer in layers.items() if pattern in name}
        if not found:
            close = ', '.join(difflib.get_close_matches(pattern, layers, n=3, cutoff=0.3))
            raise ValueError(
                f'skip={pattern!r} is in no name of a {kind.singular}; close are {close or "none"}'
            )
        skipped |= found
    return skipped


def _why_left(module: nn.Module) -> str | None:
    """Why a module that convolves is left; None for one to replace, and for all others."""
    if not isinstance(module, _ConvNd):
        weight = module._parameters.get('weight')
        is_filter = weight is not None and weight.dim() == 4
        return f'a {type(module).__name__}, which is no nn.Conv2d' if is_filter else None
    if isinstance(module, StandardizedConv2d):
        return 'deployed, its weight is applied as it is' if module.deployed else _ALREADY
    if type(module) not in _PLAIN and not parametrize.is_parametrized(module):
        return f'a {type(module).__name__}, which is not nn.Conv2d itself'
    why = why_not_replaceable(module)
    if why:
        return why
    if module.weight[0].numel() < 2:
        return 'fan-in 1 (a single weight is its own mean)'
    return None


@torch.inference_mode(False)  # whose tensors could not be trained later
@torch.no_grad()
def _replacement(
    conv: nn.Conv2d, layer: type[StandardizedConv2d], options: dict
) -> StandardizedConv2d:
    same = isinstance(conv, Conv2dAdaptivePadding)
    weight = conv.weight
    with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
        new = layer(
            conv.in_channels,
            conv.out_channels,
            cast(Pair, conv.kernel_size),
            cast(Pair, conv.stride),
            'same' if same else cast('str | Pair', conv.padding),
            cast(Pair, conv.dilation),
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device=weight.device,
            dtype=weight.dtype,
            **options,
        )
    take_over(new, conv)
    return new


_CONVOLUTIONS = Kind('convolutions', _ConvNd, _why_left, _replacement)
