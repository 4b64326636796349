"""Conversion of the plain convolutions of any network into standardized ones."""

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

from .same_conv import SameConv2d
from .standardized_conv import Pair, StandardizedConv2d

_PLAIN = (nn.Conv2d, WrappedConv2d, Conv2dAdaptivePadding, SameConv2d)
_HOOKS = [name for name in vars(nn.Module()) if '_hook' in name]


@dataclass
class Conversion:
    """Report of :func:`convert`: the convolutions that it replaced and those that it left.

    Attributes:
        type: The class of the new convolutions.
        replaced: Names of the replaced convolutions; of a shared one, all its names.
        left: Name of a convolution that was left -> the reason.
    """

    type: str
    replaced: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all convolutions of the model are standardized now."""
        return all(why == _ALREADY for why in self.left.values())

    def __str__(self) -> str:
        """Format a line of totals, then a line with names for each reason."""
        total = len(self.replaced) + len(self.left)
        lines = [f'{len(self.replaced)} of {total} convolutions are {self.type} now']
        for why, count in Counter(self.left.values()).most_common():
            names = [name for name, reason in self.left.items() if reason == why]
            more = ' ...' if count > 3 else ''
            lines.append(f'  {count} left, {why}: {", ".join(names[:3])}{more}')
        return '\n'.join(lines)


_ALREADY = 'standardized already'


def convert(
    model: nn.Module, type: str | dict, skip: str | Sequence[str] = (), **options: Any
) -> Conversion:
    """Replace the convolutions of any network by standardized ones, in place.

    A convolution is replaced under two conditions. Its class is :class:`torch.nn.Conv2d` itself,
    or a class that computes the same: mmcv's wrapper ``Conv`` and ``Conv2dAdaptivePadding``, or
    :class:`SameConv2d`. Its fan-in, ``in_channels / groups * kh * kw``, is at least 2.

    All other convolutions are left, and the report says why. These are: subclasses with their own
    forward pass (timm's ``StdConv2d``, ``ScaledStdConv2d``, ``Conv2dSame``); transposed, 1-D and
    3-D convolutions; depthwise convolutions with a 1x1 kernel; convolutions whose weight is
    computed (weight norm, pruning, parametrizations).

    A new layer has the geometry, device, dtype, training mode and hooks of the old one. It also
    has the same parameter objects, so an optimizer and tied weights stay valid. A module that is
    used in several places is replaced by one module. New parameters (``gain``, ``alpha``) have
    their initial values; they are frozen if the weight is frozen. The outputs change, because the
    weights are standardized.

    Args:
        model: Any network: from timm, torchvision, the mm libraries, or your own.
        type: 'ScaledWS' or 'PWS', or a ``conv_cfg`` with such a type.
        skip: One pattern or several. A convolution whose name contains one of them is left.
        **options: Options of the layer: ``gamma``, ``eps``, ``eps_mode``, ``gain_init``,
            ``mode``, ...

    Returns:
        A report of what was replaced, what was left, and why. ``print`` shows it.

    Raises:
        ValueError: The type is unknown; a pattern is in no name of a convolution; the model is
            a convolution itself; or it is already wrapped for distributed training.
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
    layer, options = _layer(type, options)
    _check_model(model)
    modules = list(model.named_modules(remove_duplicate=False))
    skipped = _skipped({name: m for name, m in modules if isinstance(m, _ConvNd)}, skip)
    report, made = Conversion(layer.__name__), {}
    for name, module in modules:
        why = 'named by skip' if module in skipped else _why_left(module)
        if why:
            report.left[name] = why
        elif isinstance(module, nn.Conv2d) and id(module) not in made:
            made[id(module)] = _replacement(module, layer, options)
    # The model is changed only after all replacements are built.
    for name, module in modules:
        if name not in report.left and id(module) in made:
            parent, _, own = name.rpartition('.')
            model.get_submodule(parent)._modules[own] = made[id(module)]
            report.replaced.append(name)
    return report


def _layer(type: str | dict, options: dict) -> tuple[Any, dict]:
    """Return the class of a ``conv_cfg`` or of its type, and the options."""
    if isinstance(type, dict):
        options = {**type, **options}
        type = options.pop('type', None)
    name = type if isinstance(type, str) else getattr(type, '__name__', repr(type))
    layer = MODELS.get(type) if isinstance(type, str) else type
    if not (inspect.isclass(layer) and issubclass(layer, StandardizedConv2d)):
        raise ValueError(f'type must be ScaledWS or PWS, got {name}')
    layer(2, 2, 1, device='meta', **options)  # raises for bad options before anything changes
    return layer, options


def _check_model(model: nn.Module) -> None:
    check_type('model', model, nn.Module)
    if isinstance(model, _ConvNd):
        raise ValueError(
            'the model is a convolution itself, and convert() can only replace the modules of a '
            'model: put it into an nn.Sequential'
        )
    for name, module in model.named_modules():
        where = f'{name or "the model"} is a {type(module).__name__}'
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f'{where}, which cannot be changed: convert the model before scripting')
        if is_model_wrapper(module) and not isinstance(module, nn.DataParallel):
            raise ValueError(
                f'{where}, which has registered its parameters: convert the model before wrapping'
            )


def _skipped(convs: dict[str, nn.Module], patterns: str | Sequence[str]) -> set[nn.Module]:
    """Return the convolutions for which any name contains one of the patterns."""
    skipped = set()
    for pattern in check_patterns(patterns):
        found = {conv for name, conv in convs.items() if pattern in name}
        if not found:
            close = ', '.join(difflib.get_close_matches(pattern, convs, n=3, cutoff=0.3))
            raise ValueError(
                f'skip={pattern!r} is in no name of a convolution; close names: {close or "none"}'
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
    if parametrize.is_parametrized(module):
        return 'its weight or bias is parametrized'
    if type(module) not in _PLAIN:
        return f'a {type(module).__name__}, which is not nn.Conv2d itself'
    if set(module._parameters) != {'weight', 'bias'} or module._buffers or module._modules:
        return 'its weight is computed from others'
    if 'forward' in vars(module):
        return 'its forward was replaced'
    if not module.weight.is_floating_point():
        return f'its weight is {module.weight.dtype}'
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
    # Not by setattr: the layer refuses a new parameter as its weight.
    new._parameters.update(conv._parameters)
    for name, parameter in new.named_parameters():
        if name not in ('weight', 'bias'):
            parameter.requires_grad_(weight.requires_grad)
    new.training = conv.training
    for name in _HOOKS:  # the same dict objects, so that their handles stay valid
        hooks = vars(conv)[name]
        if isinstance(hooks, dict):
            hooks.update(vars(new)[name])
        vars(new)[name] = hooks
    for name in vars(conv).keys() - vars(new).keys():  # attributes set by users and libraries
        vars(new)[name] = vars(conv)[name]
    return new
