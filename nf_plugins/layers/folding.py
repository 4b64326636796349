"""Folding: plain convolutions in the place of standardized ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from nf_plugins.functional import fixed_same_padding
from nf_plugins.registry import MODELS

from .pws import PWSConv2d
from .same_conv import SameConv2d
from .standardized_conv import Pair, StandardizedConv2d

DERIVED = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
"""Hooks that compute a weight from other parameters before each forward pass."""

KNOWN = (StandardizedConv2d, PWSConv2d)
COMPUTING = ('__call__', 'forward', '_pad', 'standardize')
"""Methods that a subclass may not override, because a fold only computes the standardization."""


PLAIN = (nn.Conv2d, Conv2dAdaptivePadding, SameConv2d)
"""Convolutions that apply their weight as it is."""


@torch.inference_mode(False)  # tensors that are made in this mode cannot be trained later
@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Replace the standardized convolutions of a model by plain ones, in place.

    The outputs in evaluation mode stay the same, and inference is as fast as that of a network of
    plain convolutions. After the fold any tool may read and write the weights. The convolutions
    have new parameters. So build optimizers, and wrappers that synchronize gradients, after the
    fold.

    The new weights include the effect of pruning, ``weight_norm``, ``spectral_norm`` and
    parametrizations. Pruned weights do not stay zero, because the standardization subtracts the
    mean of the filter from them.

    The blocks of normalizer-free networks also fold their constant factors and the SkipInit gain.
    They have two methods for this. ``conv_factors()`` returns a dict: convolution of the block ->
    factor of its input and factor of its output. The fold multiplies the weight and the bias by
    these factors. After ``drop_factors()`` the block does not apply the factors itself.

    Args:
        model: Any module with standardized convolutions: a network, a classifier, a detector, or
            a wrapper (parallel, averaged, compiled) of one of these.

    Returns:
        The model. For a single layer, the convolution that replaces it.

    Raises:
        ValueError: A convolution cannot be folded: it has hooks, it has its own forward pass, its
            class is not supported, or it is part of two blocks. The model is unchanged.

    Example:
        >>> from nf_plugins.layers import ScaledWSConv2d
        >>> net = nn.Sequential(ScaledWSConv2d(3, 8, 3, padding='same'), nn.BatchNorm2d(8))
        >>> fold(net)[0]
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    # Any: PyTorch's types do not know methods that only some modules have.
    owners: list[Any] = [part for part in model.modules() if hasattr(part, 'conv_factors')]
    plain: dict[nn.Module, nn.Conv2d] = {}
    for owner in owners:
        for conv, factors in owner.conv_factors().items():
            if conv in plain:
                raise ValueError(f'cannot fold a {type(conv).__name__} that is in two blocks')
            if _is_of_others(conv) and all(isinstance(f, float) and f == 1 for f in factors):
                continue  # such as mmcv's ConvWS2d: it stays, as in the networks of others
            plain[conv] = plain_convolution(conv, *factors)
    for module in model.modules():
        if isinstance(module, StandardizedConv2d) and module not in plain:
            plain[module] = plain_convolution(module)

    for owner in owners:
        owner.drop_factors()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if _builds_standardized(getattr(module, 'conv_cfg', None)):
            module.conv_cfg = None  # RepVGG, for example, builds another convolution later
        if name and module in plain:
            parent, _, leaf = name.rpartition('.')
            setattr(model.get_submodule(parent), leaf, plain[module])
    return plain.get(model, model)


@torch.inference_mode(False)
@torch.no_grad()
def plain_convolution(
    conv: nn.Module, factor: float = 1.0, output_factor: float | Tensor = 1.0
) -> nn.Conv2d:
    """Make a plain convolution with the outputs of a convolution, times two factors.

    Args:
        conv: A standardized convolution, a :class:`torch.nn.Conv2d`, a :class:`SameConv2d` or
            mmcv's ``Conv2dAdaptivePadding``. It is not changed.
        factor: A factor of the input.
        output_factor: A factor of the output.

    Returns:
        The plain convolution. This is ``conv`` itself if it is plain and both factors are 1.

    Raises:
        ValueError: See :func:`fold`.
    """
    kind = _check_foldable(conv)
    conv = cast(nn.Conv2d, conv)  # the check has made sure of this
    derived = [hook for hook in conv._forward_pre_hooks.values() if isinstance(hook, DERIVED)]
    changed = derived or parametrize.is_parametrized(conv) or kind is None
    if not changed and factor == 1 and isinstance(output_factor, float) and output_factor == 1:
        return conv
    with _evaluation(conv):
        for hook in derived:
            hook(conv, ())
        if isinstance(conv, StandardizedConv2d):
            if isinstance(output_factor, Tensor):
                weight = conv.standardize(factor, output_factor)
            else:
                weight = conv.standardize(factor * output_factor)
        else:
            weight = conv.weight * factor * output_factor
        bias = None if conv.bias is None else conv.bias * output_factor
    shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
    if type(weight) not in (Tensor, nn.Parameter) or weight.shape != shape:
        raise ValueError(
            f'cannot fold a {type(conv).__name__} whose weight is a {type(weight).__name__} of '
            f'shape {tuple(weight.shape)}, not a tensor of shape {shape}'
        )

    plain = _plain_like(conv, kind, bias is not None)
    for name, value in dict(weight=weight, bias=bias).items():
        if value is not None:
            setattr(plain, name, nn.Parameter(value.detach(), _is_trained(conv, name)))
    return plain.train(conv.training)


def _is_of_others(conv: nn.Module) -> bool:
    """Return whether a convolution is neither standardized by this package nor plain."""
    kind = parametrize.type_before_parametrizations(conv)
    return not isinstance(conv, StandardizedConv2d) and kind not in PLAIN


def _check_foldable(conv: nn.Module) -> type[nn.Conv2d] | None:
    """Return the class of a plain convolution, or None for a standardized one, else raise."""
    kind: type | None = parametrize.type_before_parametrizations(conv)
    name = type(conv).__name__
    if isinstance(conv, StandardizedConv2d):
        own = [n for n in COMPUTING if not any(getattr(kind, n) is getattr(k, n) for k in KNOWN)]
        if own:
            raise ValueError(
                f'cannot fold a {name} into a plain convolution: it has its own {", ".join(own)}'
            )
        kind = None
    elif _is_of_others(conv):
        raise ValueError(f'cannot fold a {name} into a plain convolution')
    if 'forward' in vars(conv):
        raise ValueError(f'cannot fold a {name} whose forward was replaced')
    before = [hook for hook in conv._forward_pre_hooks.values() if not isinstance(hook, DERIVED)]
    if before or conv._forward_hooks or conv._backward_hooks or conv._backward_pre_hooks:
        raise ValueError(f'cannot fold a {name} with hooks, which would be lost: remove them first')
    return kind


def _builds_standardized(config: object) -> bool:
    """Return whether a value is the config of a standardized convolution."""
    kind = config.get('type') if isinstance(config, dict) else None
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    return isinstance(kind, type) and issubclass(kind, StandardizedConv2d)


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Set a module and its parts to evaluation mode, where they do no power iteration."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _is_trained(conv: nn.Module, name: str) -> bool:
    """Return whether a parameter has ``requires_grad``, or one from which it is computed."""
    own = (n.removeprefix('parametrizations.').startswith(name) for n, _ in conv.named_parameters())
    return any(p.requires_grad for mine, p in zip(own, conv.parameters()) if mine)


def _plain_like(conv: nn.Conv2d, kind: type[nn.Conv2d] | None, bias: bool) -> nn.Conv2d:
    """Build a plain convolution with the shape of another; its parameters have no memory yet."""
    padding = conv.padding
    if padding == 'same':
        axes = zip(conv.kernel_size, conv.stride, conv.dilation)
        sizes = [fixed_same_padding(*axis) for axis in axes]
        fixed = tuple(size for size in sizes if size is not None)
        padding = fixed if len(fixed) == len(sizes) else 'same'
    adaptive = kind is Conv2dAdaptivePadding or (padding == 'same' and max(conv.stride) > 1)
    with torch.device('meta'):
        return (SameConv2d if adaptive else nn.Conv2d)(
            conv.in_channels,
            conv.out_channels,
            cast(Pair, conv.kernel_size),
            cast(Pair, conv.stride),
            0 if adaptive else cast('str | Pair', padding),
            cast(Pair, conv.dilation),
            conv.groups,
            bias,
            **({} if adaptive else dict(padding_mode=conv.padding_mode)),
        )
