"""Safe reading of numpy arrays and scalars in untrusted pickles.

If a pickle may call ``numpy.ndarray`` or set the state of a ``numpy.dtype``, it can forge object
pointers. So this module maps the names in pickles of arrays to functions that only make arrays of
plain items.
"""

from __future__ import annotations

import codecs
import math
import sys
from typing import Any, NoReturn

import numpy as np

from nf_plugins.errors import Refused, short

KINDS = 'biufcSUVMmO'
"""Accepted kinds of items: numbers, texts, structures, times, and objects of the pickle."""

_UNITS = ('Y', 'M', 'W', 'D', 'h', 'm', 's', 'ms', 'us', 'ns', 'ps', 'fs', 'as', 'generic')


def _refuse(what: str) -> NoReturn:
    raise Refused(f'{what} is refused')


class PickledDtype:
    """Stand-in for ``numpy.dtype``: made with a type code, then given its byte order or fields."""

    kinds = KINDS

    def __init__(self, code: str, *flags: Any) -> None:
        code = 'V1' if getattr(code, 'name', None) == 'numpy.record' else code
        try:
            dtype = np.dtype(code) if isinstance(code, str) and len(code) < 20 else None
        except TypeError:
            dtype = None
        if dtype is None or dtype.fields or dtype.subdtype or dtype.kind not in self.kinds:
            _refuse(f'an array of {short(code)}')
        if dtype.kind in 'SUV' and dtype.itemsize == 0:
            _refuse(f'an array of {short(code)}')
        self.dtype: np.dtype = dtype

    def __setstate__(self, state: tuple) -> np.dtype:
        """Set the byte order, the fields, or the unit of times.

        Returns:
            The real dtype, which replaces the stand-in.
        """
        _, order, subdtype, names, fields, *more = state
        if order not in ('<', '>', '=', '|') or subdtype is not None:
            _refuse(f'an array of {self.dtype} with the state {short(state)}')
        if self.dtype.kind == 'V' and names is not None:
            self.dtype = self._structure(names, fields, more[0])
        elif names is not None or fields is not None:
            _refuse(f'an array of {self.dtype} with fields')
        elif self.dtype.kind in 'mM' and len(more) > 3:
            unit, count, *_ = more[3][1]
            unit = unit.decode() if isinstance(unit, bytes) else unit
            if unit not in _UNITS or type(count) is not int:
                _refuse(f'an array of times in {short(unit)}')
            if unit != 'generic':
                self.dtype = np.dtype(f'{self.dtype.kind}8[{count}{unit}]')
        self.dtype = self.dtype.newbyteorder(order)
        return self.dtype

    def _structure(self, names: Any, fields: Any, size: Any) -> np.dtype:
        right = isinstance(names, tuple) and 0 < len(names) <= 1000 and type(size) is int
        if not right or not 0 < size < 1 << 20:
            _refuse('an array of malformed structures')
        formats = [_item_type(fields[name][0]) for name in names]
        offsets = [fields[name][1] for name in names]
        if any(item.hasobject for item in formats):
            _refuse('an array of structures with objects')
        return np.dtype(dict(names=names, formats=formats, offsets=offsets, itemsize=size))


class PickledNumberDtype(PickledDtype):
    """Stand-in for ``numpy.dtype`` in files whose arrays may only contain numbers."""

    kinds = 'biufc'


def _item_type(dtype: Any) -> np.dtype:
    """Make the dtype of an array's items anew, because the given one may be forged.

    It may be a real dtype with a forged state, from another unpickler.
    """
    if isinstance(dtype, PickledDtype):
        dtype = dtype.dtype
    if isinstance(dtype, np.dtype) and dtype.kind == 'V' and dtype.names:
        return dtype
    code = getattr(dtype, 'str', None)
    if not isinstance(code, str) or np.dtype(code).kind not in KINDS:
        _refuse(f'an array of {short(dtype)}')
    return np.dtype(code)


def _check_text(array: np.ndarray) -> None:
    """Refuse code points that a string of Python cannot have."""
    if array.dtype.kind == 'U' and array.size:
        points = np.frombuffer(array.tobytes(), array.dtype.byteorder.replace('|', '=') + 'u4')
        if points.max() > sys.maxunicode:
            _refuse('an array of invalid texts')


class PickledArray(np.ndarray):
    """Stand-in for ``numpy.ndarray``: made empty, then given its data; pickled as an array."""

    def __new__(cls, *args: Any, **kwargs: Any) -> PickledArray:
        _refuse('numpy.ndarray(...)')

    def __setstate__(self, state: tuple) -> None:
        if self.size:  # numpy would free memory that other arrays may still use
            _refuse('an array that gets its numbers twice')
        version, shape, dtype, is_fortran, data = state
        dtype = _item_type(dtype)
        sizes = isinstance(shape, tuple) and len(shape) <= 64  # the product of more may take hours
        if not sizes or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
            _refuse(f'an array of the shape {short(shape)}')
        if dtype.kind == 'O':
            if not isinstance(data, list) or len(data) != math.prod(shape):
                _refuse('an array of objects without its objects')
        elif not isinstance(data, (bytes, bytearray)):
            _refuse('an array without its data')
        elif len(data) != math.prod(shape) * dtype.itemsize:
            _refuse('an array with data of another size')
        else:
            data = bytes(data)
        # numpy's type stubs say numpy.bool, but its C code only accepts bool.
        super().__setstate__((version, shape, dtype, bool(is_fortran), data))  # type: ignore[arg-type]
        _check_text(self)

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()


class _Function:
    """Callable without attributes; a pickle may try to set some."""

    __slots__ = ()


class _Reconstruct(_Function):
    __slots__ = ()

    def __call__(self, subtype: Any, shape: tuple, code: Any) -> np.ndarray:
        # For subclasses such as numpy.memmap and numpy.matrix, only the numbers are read.
        return np.ndarray.__new__(PickledArray, (0,), 'u1')


class _Scalar(_Function):
    __slots__ = ()

    def __call__(self, dtype: Any, data: bytes) -> Any:
        dtype = _item_type(dtype)
        if not isinstance(data, bytes) or len(data) != dtype.itemsize or dtype.kind == 'O':
            _refuse('a number without its data')
        array = np.frombuffer(data, dtype=dtype, count=1)
        _check_text(array)
        return array[0]


class _FromBuffer(_Function):
    __slots__ = ()

    def __call__(self, buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        if not isinstance(buffer, (bytes, bytearray)):
            _refuse(f'an array over the memory of a {type(buffer).__name__}')
        dtype = _item_type(dtype)
        if dtype.kind == 'O':
            _refuse('an array of objects over bytes')
        array = np.frombuffer(bytes(buffer), dtype=dtype).reshape(shape, order=order)
        _check_text(array)
        return array


class _Encode(_Function):
    __slots__ = ()

    def __call__(self, text: str, encoding: str = 'latin1') -> bytes:
        if not isinstance(text, str):
            _refuse('bytes from an invalid text')
        return codecs.encode(text, 'latin1')


class _CreateArray(_Function):
    """Function that dill calls to make an array: first the object, then its state."""

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
"""(module, name) in a pickle -> the object that the unpickler uses for it."""

for _core in ('numpy.core', 'numpy._core'):  # numpy 1 and 2
    GLOBALS[f'{_core}.multiarray', '_reconstruct'] = reconstruct
    GLOBALS[f'{_core}.multiarray', 'scalar'] = _Scalar()
    GLOBALS[f'{_core}.numeric', '_frombuffer'] = _FromBuffer()
DILL_GLOBALS: dict[tuple[str, str], Any] = {('dill._dill', '_create_array'): _CreateArray()}
