"""Conversion of the convolutions or layer norms of any network into ours."""

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
    """Report of :func:`convert`: the convolutions that it replaced and those that it left.

    Attributes:
        type: The class of the new layers.
        replaced: Names of the replaced layers; of a shared one, all its names.
        left: Name of a layer that was left -> the reason.
        noun: What the layers are: convolutions or layer norms.
    """

    type: str
    replaced: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    noun: str = 'convolutions'

    @property
    def complete(self) -> bool:
        """Whether all layers of the kind have the new type now."""
        return all(why in (_ALREADY, POINTWISE_ALREADY) for why in self.left.values())

    def __str__(self) -> str:
        """Format a line of totals, then a line with names for each reason."""
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

    A convolution is replaced under two conditions. Its class is :class:`torch.nn.Conv2d` itself,
    or a class that computes the same: mmcv's wrapper ``Conv`` and ``Conv2dAdaptivePadding``, or
    :class:`SameConv2d`. Its fan-in, ``in_channels / groups * kh * kw``, is at least 2.

    All other convolutions are left, and the report says why. These are: subclasses with their own
    forward pass (timm's ``StdConv2d``, ``ScaledStdConv2d``, ``Conv2dSame``); transposed, 1-D and
    3-D convolutions; depthwise convolutions with a 1x1 kernel; convolutions whose weight is
    computed (weight norm, pruning, parametrizations).

    A layer norm is replaced if it computes the same as :class:`torch.nn.LayerNorm`, with channels
    last, or first as in ``LayerNorm2d`` of timm, torchvision and mmpretrain. Other norms are left.

    A new layer has the geometry, device, dtype, training mode and hooks of the old one. It also
    has the same parameter objects, so an optimizer and tied weights stay valid. A module that is
    used in several places is replaced by one module. New parameters (``gain``, ``alpha``) have
    their initial values; they are frozen if the weight is frozen. The outputs change.

    Args:
        model: Any network: from timm, torchvision, the mm libraries, or your own.
        type: 'ScaledWS' or 'PWS' for convolutions, 'DyT' or 'Derf' for layer norms, or a config
            with such a type.
        skip: One pattern or several. A layer whose name contains one of them is left.
        **options: Options of the layer: ``gamma``, ``eps``, ``eps_mode``, ``gain_init``,
            ``mode``, ...; ``alpha`` of DyT and Derf may be a dict from patterns of names to
            numbers.

    Returns:
        A report of what was replaced, what was left, and why. ``print`` shows it.

    Raises:
        ValueError: The type is unknown; a pattern is in no name of a layer; the model is such a
            layer itself; it is already wrapped for distributed training; or layer norms are to be
            replaced and the model has only batch norms.
        TypeError: The layer does not accept an option, or the model is a TorchScript module.

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
    # The model is changed only after all replacements are built.
    for name, module in modules:
        if name not in report.left and id(module) in made:
            parent, _, own = name.rpartition('.')
            model.get_submodule(parent)._modules[own] = made[id(module)]
            report.replaced.append(name)
    return report


def _layer(type: str | dict, options: dict) -> tuple[Any, Kind, dict]:
    """Return the class of a config or of its type, the kind of layer it replaces, and options."""
    if isinstance(type, dict):
        options = {**type, **options}
        type = options.pop('type', None)
    name = type if isinstance(type, str) else getattr(type, '__name__', repr(type))
    layer = MODELS.get(type) if isinstance(type, str) else type
    if inspect.isclass(layer) and issubclass(layer, StandardizedConv2d):
        layer(2, 2, 1, device='meta', **options)  # raises for bad options before anything changes
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
            f'the model is a {kind.singular} itself, and convert() can only replace the modules of '
            'a model: put it into an nn.Sequential'
        )
    for name, module in model.named_modules():
        where = f'{name or "the model"} is a {type(module).__name__}'
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f'{where}, which cannot be changed: convert the model before scripting')
        if is_model_wrapper(module) and not isinstance(module, nn.DataParallel):
            raise ValueError(
                f'{where}, which has registered its parameters: convert the model before wrapping'
            )


def _skipped(
    layers: dict[str, nn.Module], kind: Kind, patterns: str | Sequence[str]
) -> set[nn.Module]:
    """Return the layers for which any name contains one of the patterns."""
    skipped = set()
    for pattern in check_patterns(patterns):
        found = {layer for name, layer in layers.items() if pattern in name}
        if not found:
            close = ', '.join(difflib.get_close_matches(pattern, layers, n=3, cutoff=0.3))
            raise ValueError(
                f'skip={pattern!r} is in no name of a {kind.singular}; '
                f'close names: {close or "none"}'
            )
        skipped |= found
    return skipped


def _why_left(module: nn.Module) -> str | None:
    """Return why a convolution is left; None if it is replaced or is no convolution."""
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


@torch.inference_mode(False)  # tensors that are made in this mode cannot be trained later
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
