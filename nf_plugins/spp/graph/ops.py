"""Tables of the operations that the tracer tells apart, and what an operation does."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_iter

ADDITIONS = {'add', 'add_', 'sub', 'sub_', 'addcmul', 'addcmul_', 'lerp', 'lerp_'}
CONVOLUTIONS = {'convolution', '_convolution', 'convolution_overrideable', 'linear'}
PRODUCTS = {'mm', 'addmm', 'bmm', 'baddbmm', 'addbmm', 'addmv', 'mv'}
HEAVY = CONVOLUTIONS | PRODUCTS | {'conv_transpose'}
BATCH_NORMS = {
    'native_batch_norm',
    'cudnn_batch_norm',
    '_native_batch_norm_legit',
    '_native_batch_norm_legit_no_training',
    '_batch_norm_with_update',
    '_batch_norm_no_update',
    'batch_norm_elemt',
    'miopen_batch_norm',
}
NORMS = BATCH_NORMS | {'native_group_norm', 'native_layer_norm', '_fused_rms_norm'}
POOLINGS = {'avg_pool2d', 'max_pool2d_with_indices', '_adaptive_avg_pool2d'}
# Those that are part of others (a swish of x * sigmoid(x)) are not among them.
ACTIVATIONS = {
    name + suffix
    for name in (
        *('relu', 'leaky_relu', '_prelu_kernel', 'elu', 'celu', 'selu', 'gelu', 'silu', 'mish'),
        *('hardtanh', 'hardswish'),
    )
    for suffix in ('', '_')
}
# They move values about, or copy them, and change none.
MOVES = {
    *('view', '_unsafe_view', 'reshape', '_reshape_alias', '_reshape_copy', 'alias', 'detach'),
    *('permute', 'transpose', 't', 'squeeze', 'unsqueeze', 'clone', '_to_copy', 'contiguous'),
    *('roll', 'flip', 'lift_fresh', 'expand', 'as_strided', 'pixel_shuffle', 'pixel_unshuffle'),
}
SCALINGS = {'mul', 'mul_', 'div', 'div_'}


def real(factor: Any) -> float:
    """A number, or a tensor of one element, as a float; of a complex number the absolute value."""
    factor = factor.item() if isinstance(factor, Tensor) else factor
    return abs(factor) if isinstance(factor, complex) else float(factor)


def adds_zero(args: tuple) -> bool:
    """Whether an addition is ``0 + x``, as the first one of Python's ``sum`` is."""
    return any(isinstance(x, (int, float)) and x == 0 for x in args[:2])


def is_alias(func: Any) -> bool:
    """Whether an operation returns memory of its arguments (a view, or a write in place)."""
    return any(r.alias_info is not None for r in func._schema.returns)


def written_tensors(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The arguments that an operation writes into."""
    values = [
        args[i] if i < len(args) else kwargs.get(argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [x for x in tree_iter(values) if isinstance(x, Tensor)]
