"""Numpy arrays and scalars in untrusted pickles.

A pickle that may call ``numpy.ndarray`` or set the state of a ``numpy.dtype`` can forge
object pointers. So the names that pickles of arrays use stand here for objects that
make arrays of plain numbers and nothing else.
"""

from __future__ import annotations

import codecs
import pickle
from typing import Any

import numpy as np

KINDS = 'biufc'
"""Kinds of numbers that an array may hold."""


def _refuse(what: str) -> None:
    raise pickle.UnpicklingError(f'{what} is refused')


class PickledDtype:
    """Stands for ``numpy.dtype`` in a pickle: a type code and a byte order."""

    def __init__(self, code: str, *flags: Any) -> None:
        try:
            dtype = np.dtype(code) if isinstance(code, str) else None
        except TypeError:
            dtype = None
        if dtype is None or dtype.fields or dtype.subdtype or dtype.kind not in KINDS:
            _refuse(f'an array of {code!r}')
        self.dtype = dtype

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in '<>=|' or any(part is not None for part in state[2:5]):
            _refuse(f'an array of {self.dtype} with the state {state!r}')
        self.dtype = self.dtype.newbyteorder(state[1])


def _numbers(dtype: Any) -> np.dtype:
    """A dtype of plain numbers, made anew: the given one may be forged.

    A real dtype comes where somebody else allowed ``numpy.dtype``, as mmengine's loader.
    """
    code = dtype.dtype.str if isinstance(dtype, PickledDtype) else getattr(dtype, 'str', None)
    if not isinstance(code, str) or np.dtype(code).kind not in KINDS:
        _refuse(f'an array of {dtype!r}')
    return np.dtype(code)


class PickledArray(np.ndarray):
    """Stands for ``numpy.ndarray``: made empty, then given its data; pickles as an array."""

    def __new__(cls, *args: Any, **kwargs: Any) -> PickledArray:
        _refuse('numpy.ndarray(...)')

    def __setstate__(self, state: tuple) -> None:
        if self.size:  # its memory would be freed, whoever else looks at it
            _refuse('an array that gets its numbers twice')
        version, shape, dtype, is_fortran, data = state
        if not isinstance(data, (bytes, bytearray)):
            _refuse('an array without numbers')
        super().__setstate__((version, shape, _numbers(dtype), is_fortran, bytes(data)))

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()


class _Function:
    """A callable without attributes, as a pickle may try to set them."""

    __slots__ = ()


class _Reconstruct(_Function):
    __slots__ = ()

    def __call__(self, subtype: type, shape: tuple, code: Any) -> np.ndarray:
        if subtype not in (PickledArray, np.ndarray):
            _refuse(f'an array of type {subtype!r}')
        return np.ndarray.__new__(PickledArray, (0,), 'u1')


class _Scalar(_Function):
    __slots__ = ()

    def __call__(self, dtype: Any, data: bytes) -> Any:
        return np.frombuffer(data, dtype=_numbers(dtype), count=1)[0]


class _FromBuffer(_Function):
    __slots__ = ()

    def __call__(self, buffer: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
        if not isinstance(buffer, (bytes, bytearray)):
            _refuse(f'an array over the memory of a {type(buffer).__name__}')
        return np.frombuffer(bytes(buffer), dtype=_numbers(dtype)).reshape(shape, order=order)


class _Encode(_Function):
    __slots__ = ()

    def __call__(self, text: str, encoding: str = 'latin1') -> bytes:
        return codecs.encode(text, 'latin1')


class _CreateArray(_Function):
    """dill's way to pickle an array: the object, then its state."""

    __slots__ = ()

    def __call__(self, function: Any, args: tuple, state: tuple, attributes: Any = None) -> Any:
        array = reconstruct(*args)
        array.__setstate__(state)
        return array


reconstruct = _Reconstruct()
GLOBALS: dict[tuple[str, str], Any] = {
    ('numpy', 'ndarray'): PickledArray,
    ('numpy', 'dtype'): PickledDtype,
    ('_codecs', 'encode'): _Encode(),
}
"""(module, name) in a pickle -> what it gets."""

for _core in ('numpy.core', 'numpy._core'):  # numpy 1 and 2
    GLOBALS[f'{_core}.multiarray', '_reconstruct'] = reconstruct
    GLOBALS[f'{_core}.multiarray', 'scalar'] = _Scalar()
    GLOBALS[f'{_core}.numeric', '_frombuffer'] = _FromBuffer()
DILL_GLOBALS: dict[tuple[str, str], Any] = {('dill._dill', '_create_array'): _CreateArray()}
