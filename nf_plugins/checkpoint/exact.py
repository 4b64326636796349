"""Conversion of weights to other types. It keeps every value, or fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(array: np.ndarray) -> Tensor:
    """Convert a numpy array of any byte order to a tensor of the same type.

    Raises:
        TypeError: torch has no such type.
    """
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder('='))
    if array.dtype.name == 'bfloat16':  # a type from ml_dtypes
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def check_numbers(value: Any) -> None:
    """Raise a ValueError unless ``value`` is a dense tensor with numbers.

    Example:
        >>> check_numbers(torch.ones(1, device='meta'))
        Traceback (most recent call last):
        ...
        ValueError: a meta tensor, which has no numbers
    """
    if not isinstance(value, Tensor):
        raise ValueError(f'no array of numbers but a {type(value).__name__}')
    if value.is_meta:
        raise ValueError('a meta tensor, which has no numbers')
    if value.is_quantized:
        raise ValueError(f'quantized ({_name(value.dtype)})')
    if value.is_nested or value.layout is not torch.strided:
        raise ValueError(f'no dense tensor ({_name(value.layout)}, nested: {value.is_nested})')


def cast_exactly(value: Any, dtype: torch.dtype) -> Tensor:
    """Cast a tensor, or raise if its values would change.

    A float may be rounded to the nearest float of the new type. It may not become infinite, and a
    nonzero float may not become zero. An integer must stay exactly equal, also as a float.
    Booleans and complex numbers are never cast.

    Args:
        value: A dense tensor.
        dtype: The new type.

    Raises:
        ValueError: A value would change, or the tensor has no numbers.

    Example:
        >>> cast_exactly(torch.tensor([0.1, 1e300], dtype=torch.float64), torch.float32)
        Traceback (most recent call last):
        ...
        ValueError: 1e+300 does not fit float32
    """
    check_numbers(value)
    if value.dtype == dtype:
        return value
    kinds = {_kind(value.dtype), _kind(dtype)}
    if kinds & {'bool', 'complex'}:
        raise ValueError(f'{_name(value.dtype)}, not {_name(dtype)}')
    try:
        cast = value.to(dtype)
        kept = _is_rounded(value, cast) if kinds == {'float'} else _is_equal(value, cast)
    except (RuntimeError, NotImplementedError):  # torch can store this type but not compute
        raise ValueError(f'{_name(value.dtype)}, not {_name(dtype)}') from None
    if not kept.all():
        first = value.flatten()[int((~kept).flatten().nonzero()[0])].item()
        raise ValueError(f'{first!r} does not fit {_name(dtype)}')
    return cast


def _is_rounded(value: Tensor, cast: Tensor) -> Tensor:
    value, cast = value.double(), cast.double()
    same_kind = (value.isfinite() == cast.isfinite()) & (value.isnan() == cast.isnan())
    return same_kind & ((value == 0) == (cast == 0))


def _is_equal(value: Tensor, cast: Tensor) -> Tensor:
    """Return whether integers and floats are equal; False for a float outside int64."""
    kept = torch.ones_like(value, dtype=torch.bool)
    whole = []
    for tensor in (value, cast):
        if _kind(tensor.dtype) == 'float':
            wide = tensor.double()
            inside = (wide.abs() < 2.0**63) & (wide == wide.round())
            tensor = torch.where(inside, wide, 0.0).long()
        else:
            tensor, unsigned = tensor.long(), tensor.dtype == torch.uint64
            inside = tensor >= 0 if unsigned else torch.ones_like(kept)
        kept &= inside
        whole.append(tensor)
    return kept & (whole[0] == whole[1])


def _kind(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return 'bool'
    if dtype.is_complex:
        return 'complex'
    return 'float' if dtype.is_floating_point else 'integer'


def _name(thing: Any) -> str:
    return str(thing).removeprefix('torch.')
