"""Tables of the operations that the tracer tells apart, and what an operation does."""

from __future__ import annotations

from typing import Any

from torch import Tensor

ADDITIONS = {
    *('add', 'add_', 'sub', 'sub_', 'addcmul', 'addcmul_', 'addcdiv', 'addcdiv_', 'lerp', 'lerp_'),
    *('index_add', 'index_add_', 'scatter_add', 'scatter_add_'),
}
# The second operand is added to some positions of the first one.
PARTIAL_ADDITIONS = {'index_add', 'scatter_add', 'index_put', '_index_put_impl', 'index_add_'}
PARTIAL_ADDITIONS |= {'scatter_add_', 'index_put_', '_index_put_impl_'}
# Additions of a product: the operation that makes the product alone.
PRODUCT_ADDITIONS = {'addmm': 'mm', 'baddbmm': 'bmm', 'addmv': 'mv'}
REDUCTIONS = {'sum', 'mean'}
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
    *('real', 'view_as_real', 'view_as_complex', '_conj', 'resolve_conj', 'swapaxes'),
}
# They take values out of a tensor, or repeat them.
SLICES = {'slice', 'select', 'split', 'unsafe_split', 'split_with_sizes', 'unbind', 'narrow'}
GATHERS = SLICES | {
    *('index', 'index_select', 'gather', 'repeat', 'expand', 'as_strided', 'constant_pad_nd'),
    *('unsafe_split_with_sizes', 'split_with_sizes_copy', 'unfold', 'diagonal', 'take_along_dim'),
    *('reflection_pad1d', 'reflection_pad2d', 'replication_pad1d', 'replication_pad2d'),
    *('_reshape_copy', 'view', 'reshape', 'repeat_interleave'),
}
# They put tensors beside one another, or one into a part of another.
JOINS = {'cat', 'stack', 'copy_', 'slice_scatter', 'select_scatter', '_stack'}
SCALINGS = {'mul', 'mul_', 'div', 'div_', 'neg', 'neg_'}
# Beside HEAVY, NORMS and POOLINGS these let positions or channels see others.
MIXING = REDUCTIONS | {
    *('var', 'var_mean', 'std', 'std_mean', 'linalg_vector_norm', 'norm', 'amax', 'amin', 'max'),
    *('_softmax', '_log_softmax', 'cumsum', 'cumprod', 'cummax', 'logcumsumexp', 'median'),
    *('max_pool3d_with_indices', 'avg_pool3d', 'avg_pool1d', '_adaptive_avg_pool3d', 'im2col'),
    *('adaptive_max_pool2d', 'max_pool2d', 'grid_sampler_2d', 'grid_sampler_3d', '_cdist_forward'),
    *('mkldnn_rnn_layer', '_cudnn_rnn', 'embedding', 'topk', 'sort', 'argmax', 'argmin'),
    *('upsample_bilinear2d', 'upsample_bicubic2d', 'upsample_trilinear3d', 'upsample_linear1d'),
    *('_fft_c2c', '_fft_r2c', '_fft_c2r', 'lstm', 'gru', 'rnn_tanh', 'rnn_relu', 'scatter_reduce'),
}
# A shortcut has none of these; nor has it products of two activations (gates, attention).
BENDS = {
    name + suffix
    for name in (
        *('relu', 'leaky_relu', '_prelu_kernel', 'elu', 'celu', 'selu', 'gelu', 'silu', 'mish'),
        *('hardtanh', 'hardswish', 'hardsigmoid', 'sigmoid', 'tanh', 'softplus', 'threshold'),
        *('log_sigmoid_forward', 'rrelu_with_noise', 'glu', 'softshrink', 'hardshrink', 'exp'),
        *('_softmax', '_log_softmax', 'expm1', 'log', 'log1p', 'erf', 'sin', 'cos', 'abs', 'sign'),
        *('round', 'floor', 'clamp', 'clamp_min', 'clamp_max', 'pow', 'square', 'maximum', 'atan'),
        *('mkldnn_rnn_layer', '_cudnn_rnn', 'minimum', 'relu6', 'bernoulli'),
    )
    for suffix in ('', '_')
}
# A quotient is a norm, so is the product with one over a root: what is divided counts.
RECIPROCALS = {'rsqrt', 'reciprocal'}
# Their outputs have the shape of their input and nothing else of it.
SHAPES = ('zeros_like', 'ones_like', 'empty_like', 'full_like', 'rand', 'new_')


def is_constant(op: str) -> bool:
    """Whether the values of an operation's output do not depend on those of its input."""
    return op.startswith(SHAPES) or op.endswith('_like')


def real(factor: Any) -> float:
    """A number, or a tensor of one element, as a float; of a complex number the absolute value."""
    factor = factor.item() if isinstance(factor, Tensor) else factor
    return abs(factor) if isinstance(factor, complex) else float(factor)


def adds_zero(args: tuple) -> bool:
    """Whether an addition is ``0 + x``, as the first one of Python's ``sum`` is."""
    return any(isinstance(x, (int, float)) and x == 0 for x in args[:2])


def mixes(op: str) -> bool:
    """Whether positions or channels see others in an operation."""
    return op in MIXING or op in HEAVY or op in NORMS or op in POOLINGS or 'attention' in op


def addends(
    op: str, args: tuple, kwargs: dict[str, Any], known: Any
) -> tuple[Any, Any, list[float | Tensor], float] | None:
    """What an addition adds: both operands, factors of the second one, and its sign or alpha.

    Args:
        op: Name of the operation.
        args: Its arguments.
        kwargs: Its named arguments.
        known: The tensors of the graph.
    """
    a = args[0]
    alpha = kwargs.get('alpha', 1)
    if op.startswith('addc'):
        pair = [x for x in args[1:3] if x in known]
        if not pair or (op.startswith('addcdiv') and args[1] not in known):
            return None
        b = max(pair, key=lambda x: (x.shape == a.shape, known[x].depth))
        other = args[2] if b is args[1] else args[1]
        factor = 1 / other if op.startswith('addcdiv') else other
        return a, b, [factor, kwargs.get('value', 1)], 1
    if op.startswith('lerp'):
        return a, args[1], [args[2]], 1
    if op in PARTIAL_ADDITIONS:
        if 'index_put' in op:
            return (a, args[2], [], 1) if len(args) > 3 and args[3] else None
        return a, args[3], [], alpha
    return a, args[1], [], -alpha if op.startswith('sub') else alpha


def bends(op: str, parents: list) -> int:
    """How many operations that are not linear lead to the output of one.

    Args:
        op: Its name.
        parents: The nodes that it is computed from; a dividend comes first.
    """
    given = parents[0].bends
    if len(parents) > 1:
        product = op in ('mul', 'mul_')
        if op in ('div', 'div_') or (product and parents[1].op in RECIPROCALS):
            return given
        given = max(p.bends for p in parents)
        if product or op in PRODUCTS or op in CONVOLUTIONS:
            return given + 1
    return given + (op in BENDS or 'attention' in op)


def slice_range(
    op: str, args: tuple, outputs: list[Tensor], index: int
) -> tuple[int, int, int] | None:
    """Axis, start and stop of what an operation of :data:`SLICES` cuts out of a tensor."""
    x = args[0]
    if op in ('select', 'unbind'):
        axis = (args[1] if len(args) > 1 else 0) % x.dim()
        start = args[2] % x.shape[axis] if op == 'select' else index
        return axis, start, start + 1
    if op in ('slice', 'narrow'):
        axis = (args[1] if len(args) > 1 else 0) % x.dim()
        start = args[2] if len(args) > 2 and args[2] is not None else 0
        start = min(start + x.shape[axis] if start < 0 else start, x.shape[axis])
        step = args[4] if len(args) > 4 else 1
        return axis, start, start + (outputs[0].shape[axis] - 1) * step + 1
    axis = (args[2] if len(args) > 2 else 0) % x.dim()
    start = sum(out.shape[axis] for out in outputs[:index])
    return axis, start, start + outputs[index].shape[axis]


def stacked_axis(op: str, args: tuple) -> int:
    """The axis along which ``cat`` or ``stack`` puts tensors together."""
    return (args[1] if len(args) > 1 else 0) % (args[0][0].dim() + (op == 'stack'))


def is_alias(func: Any) -> bool:
    """Whether an operation returns memory of its arguments (a view, or a write in place)."""
    return any(r.alias_info is not None for r in func._schema.returns)
