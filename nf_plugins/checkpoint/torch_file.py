"""Reading of files of ``torch.save``, without executing anything from them.

PyTorch's own reader is not used for three reasons. Its list of allowed names belongs to the whole
process. It has no limits. It may see another content of an archive than Python's check.
"""

from __future__ import annotations

import io
import math
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nf_plugins.errors import Refused, short

from .archive import entry_bytes, is_archive, open_archive, read_entry
from .inert import Name
from .unpickler import COPIES, Limits, SafeUnpickler
from .values import CONSTANTS, FUNCTIONS

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""First bytes of files from PyTorch before 1.6."""

STORAGES: dict[str, torch.dtype] = {
    'BFloat16Storage': torch.bfloat16,
    'BoolStorage': torch.bool,
    'ByteStorage': torch.uint8,
    'CharStorage': torch.int8,
    'ComplexDoubleStorage': torch.complex128,
    'ComplexFloatStorage': torch.complex64,
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'IntStorage': torch.int32,
    'LongStorage': torch.int64,
    'QInt32Storage': torch.qint32,
    'QInt8Storage': torch.qint8,
    'QUInt2x4Storage': torch.quint2x4,
    'QUInt4x2Storage': torch.quint4x2,
    'QUInt8Storage': torch.quint8,
    'ShortStorage': torch.int16,
    'UntypedStorage': torch.uint8,
}
"""Name of a storage in pickles -> the type of its numbers."""

_VALUES = (torch.dtype, torch.layout, torch.qscheme)


class _Stored:
    """Class of a storage, as a pickle names it."""

    def __init__(self, name: str) -> None:
        self.dtype = STORAGES[name]


def _constant(module: str, name: str) -> Any:
    if module in ('torch', 'torch.cuda', 'torch.storage') and name in STORAGES:
        return _Stored(name)
    value = vars(torch).get(name.removeprefix('torch.')) if module.startswith('torch') else None
    return value if isinstance(value, _VALUES) else CONSTANTS.get((module, name))


def _whole(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


class _Tensors:
    """Functions that make the tensors of one file; no tensor sees memory outside its storage.

    Args:
        size: Size of the file.
        map_location: As in :func:`torch.load`.
    """

    def __init__(self, size: int, map_location: Any) -> None:
        self.left = 16 * size + COPIES  # limit for expanded tensors
        self.map_location = map_location
        self.functions: dict[str, Callable[..., Any]] = {
            'torch.Size': self.size,
            'torch.device': self.device,
            'torch.nn.parameter.Parameter': self.parameter,
            'torch.serialization._get_layout': self.layout,
            'torch._tensor._rebuild_from_type_v2': self.subclass,
            'torch._utils._rebuild_meta_tensor_no_storage': self.meta,
            'torch._utils._rebuild_parameter': self.parameter,
            'torch._utils._rebuild_parameter_with_state': self.parameter_with_state,
            'torch._utils._rebuild_qtensor': self.quantized,
            'torch._utils._rebuild_sparse_tensor': self.sparse,
            'torch._utils._rebuild_tensor': self.tensor,
            'torch._utils._rebuild_tensor_v2': self.tensor,
            'torch._utils._rebuild_tensor_v3': self.typed_tensor,
            'torch._utils._rebuild_wrapper_subclass': self.wrapper,
        }

    def move(self, storage: torch.UntypedStorage, location: Any) -> torch.UntypedStorage:
        """Move a storage to the device of ``map_location``."""
        if not isinstance(location, str):
            raise Refused('a storage has no device')
        to = self.map_location
        if callable(to):
            moved = to(storage, location)
            if moved is not None:
                return moved
        elif isinstance(to, dict):
            location = to.get(location, location)
        elif to is not None:
            location = str(to)
        return torch.serialization.default_restore_location(storage, location)

    def _check(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any) -> None:
        typed = isinstance(dtype, torch.dtype)
        if not typed or not isinstance(storage, torch.storage.TypedStorage):
            raise Refused('a tensor has no storage')
        shaped = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
        if not shaped or not _whole(offset, *size, *stride) or len(size) > 64:
            raise Refused('a tensor has an invalid shape')
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        held = storage._untyped_storage.nbytes() // dtype.itemsize
        if dtype in (torch.quint4x2, torch.quint2x4):  # several numbers in a byte
            held *= 2 if dtype is torch.quint4x2 else 4
        if (count and last >= held) or offset > held:
            raise Refused('a tensor reaches beyond its storage')
        self.left -= count * dtype.itemsize
        if self.left < 0:
            raise Refused('its tensors are far larger than the file')

    def tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False,
        hooks: Any = None, metadata: Any = None,
    ) -> Tensor:  # fmt: skip
        view = offset, size, stride, requires_grad, hooks
        return self.typed_tensor(storage, *view, getattr(storage, 'dtype', None), metadata)

    def typed_tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any,
        dtype: Any, metadata: Any = None,
    ) -> Tensor:  # fmt: skip
        self._check(storage, offset, size, stride, dtype)
        untyped = storage._untyped_storage
        tensor = torch.empty(0, dtype=dtype, device=untyped.device)
        tensor = tensor.set_(untyped, offset, size, stride)
        for bit, view in (('conj', torch.conj), ('neg', torch._neg_view)):
            if isinstance(metadata, dict) and metadata.get(bit) is True:
                tensor = view(tensor)
        return tensor.requires_grad_(requires_grad is True)

    def parameter(self, data: Any, requires_grad: Any = True, hooks: Any = None) -> Tensor:
        if not isinstance(data, Tensor):
            raise Refused('a parameter has no tensor')
        return torch.nn.Parameter(data, requires_grad is True)

    def parameter_with_state(self, data: Any, requires_grad: Any, hooks: Any, state: Any) -> Tensor:
        return self._set(self.parameter(data, requires_grad), state)

    def subclass(self, function: Any, kind: Any, args: Any, state: Any) -> Tensor:
        """Make a tensor with attributes, or a tensor of a class that the user trusts."""
        make = self.functions.get(function.name) if isinstance(function, Name) else None
        if make is None or not isinstance(args, tuple):
            raise Refused('a tensor is made by something else than PyTorch')
        tensor = make(*args)
        if isinstance(kind, type) and issubclass(kind, Tensor):
            tensor = tensor if type(tensor) is kind else tensor.as_subclass(kind)
        elif kind not in (Name('torch', 'Tensor'), Name('torch.nn.parameter', 'Parameter')):
            raise Refused(f'it names {kind.name if isinstance(kind, Name) else short(kind)}')
        return self._set(tensor, state)

    def _set(self, tensor: Tensor, state: Any) -> Tensor:
        """Set attributes of plain data that do not hide an attribute of the class."""
        state = state[0] if isinstance(state, tuple) and len(state) == 2 else state
        for name, value in (state or {}).items():
            plain = (str, int, float, bool, type(None), *_VALUES)
            if not isinstance(name, str) or hasattr(tensor, name) or not isinstance(value, plain):
                raise Refused('a tensor has attributes that are no plain data')
            setattr(tensor, name, value)
        return tensor

    def sparse(self, layout: Any, data: Any) -> Tensor:
        """Make a sparse tensor, after a check of its indices against its shape."""
        *parts, size = data[:3] if layout is torch.sparse_coo else data
        tensors = all(isinstance(part, Tensor) and part.layout is torch.strided for part in parts)
        if not tensors or len(parts) != (2 if layout is torch.sparse_coo else 3):
            raise Refused('a sparse tensor has no tensors')
        if layout is torch.sparse_coo:
            indices, values = parts
            coalesced = data[3] if len(data) > 3 and type(data[3]) is bool else None
            return torch.sparse_coo_tensor(
                indices, values, self.size(size), check_invariants=True, is_coalesced=coalesced
            )
        compressed, plain, values = parts
        return torch.sparse_compressed_tensor(
            compressed, plain, values, self.size(size), layout=layout, check_invariants=True
        )

    def quantized(
        self, storage: Any, offset: Any, size: Any, stride: Any, quantizer: Any,
        requires_grad: Any = False, hooks: Any = None,
    ) -> Tensor:  # fmt: skip
        self._check(storage, offset, size, stride, getattr(storage, 'dtype', None))
        scheme, *parts = quantizer if isinstance(quantizer, tuple) else [None]
        names: tuple[str, ...]
        make: Callable[..., Tensor]
        if scheme is torch.per_tensor_affine and len(parts) == 2:
            names, make = ('scale', 'zero_point'), torch._empty_affine_quantized
            right = type(parts[0]) is float and type(parts[1]) is int
        else:
            names = ('scales', 'zero_points', 'axis')
            make = torch._empty_per_channel_affine_quantized
            right = len(parts) == 3 and all(isinstance(part, Tensor) for part in parts[:2])
            right = right and type(parts[2]) is int
        if not right:
            raise Refused('a quantized tensor has no numbers')
        options = dict(zip(names, parts, strict=True))
        tensor = make(size, dtype=storage.dtype, **options)
        return tensor.set_(storage._untyped_storage, offset, size, stride)

    def meta(self, dtype: Any, size: Any, stride: Any, requires_grad: Any) -> Tensor:
        if not _whole(*size, *stride):
            raise Refused('a tensor has an invalid shape')
        tensor = torch.empty_strided(tuple(size), tuple(stride), dtype=dtype, device='meta')
        return tensor.requires_grad_(requires_grad is True)

    def wrapper(self, kind: Any, *args: Any) -> Tensor:
        """Make a tensor of a class that wraps other tensors, if the user trusts the class."""
        if not (isinstance(kind, type) and issubclass(kind, Tensor)):
            raise Refused(f'it names {kind.name if isinstance(kind, Name) else "a class"}')
        return torch._utils._rebuild_wrapper_subclass(kind, *args)

    def size(self, sizes: Any) -> torch.Size:
        if not isinstance(sizes, (tuple, list)) or not _whole(*sizes):
            raise Refused('a shape is invalid')
        return torch.Size(sizes)

    def device(self, kind: Any, index: Any = None) -> torch.device:
        if type(kind) is not str or type(index) not in (int, type(None)):
            raise Refused('a device is invalid')
        return torch.device(kind) if index is None else torch.device(kind, index)

    def layout(self, name: Any) -> torch.layout:
        value = vars(torch).get(name.removeprefix('torch.')) if type(name) is str else None
        if not isinstance(value, torch.layout):
            raise Refused('a layout is invalid')
        return value


def read_torch(
    file: io.BufferedReader, map_location: Any = 'cpu', registered: Mapping[str, Any] | None = None
) -> Any:
    """Read a file of ``torch.save``.

    Args:
        file: The file.
        map_location: As in :func:`torch.load`.
        registered: ``module.name`` -> an object that the user trusts. It is called as it is.

    Returns:
        The content. Harmless objects that are no tensors become stand-ins (see :mod:`.inert`).

    Raises:
        Refused: It asks for something that weights do not need.
        Exception: It is damaged. The class of the exception depends on the damage.
    """
    size = os.fstat(file.fileno()).st_size
    tensors, limits = _Tensors(size, map_location), Limits(size)
    functions = {**FUNCTIONS, **tensors.functions}
    load = partial(SafeUnpickler, limits=limits, registered=registered, constants=_constant)
    if is_archive(file):
        return _read_archive(file, tensors, partial(load, functions=functions))
    return _read_legacy(file, tensors, load, functions)


def _described(reference: Any, fields: int) -> tuple:
    """Return the description of a storage in a pickle: type, key, device and size in bytes."""
    right = isinstance(reference, tuple) and len(reference) >= 5
    right = right and reference[0] == 'storage' and isinstance(reference[1], _Stored)
    if not right or len(reference) > fields or not _whole(reference[4]):
        raise Refused('it refers to something else than storages')
    if not isinstance(reference[2], str):
        raise Refused('a storage has no name')
    _, kind, key, location, count, *view = reference
    return kind.dtype, key, location, count * kind.dtype.itemsize, *view


def _typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.storage.TypedStorage:
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _memory(storage: torch.UntypedStorage) -> memoryview:
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data


def _read_archive(
    file: io.BufferedReader, tensors: _Tensors, load: Callable[..., SafeUnpickler]
) -> Any:
    with open_archive(file, compressed=False) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        folder = next(iter(entries), '').partition('/')[0] + '/'
        inside = all(name.startswith(folder) for name in entries)
        if not inside or folder + 'data.pkl' not in entries:
            raise zipfile.BadZipFile('it is no archive of PyTorch')
        if folder + 'constants.pkl' in entries:
            raise Refused('it is a program (TorchScript)')
        order: bytes | bytearray = sys.byteorder.encode()
        if folder + 'byteorder' in entries:
            order = entry_bytes(archive, entries[folder + 'byteorder'])
        if order not in (b'little', b'big'):
            raise zipfile.BadZipFile('its byte order is unknown')
        storages: dict[str, torch.UntypedStorage] = {}

        def storage_of(reference: Any) -> torch.storage.TypedStorage:
            dtype, key, location, size = _described(reference, 5)
            if key not in storages:
                entry = entries.get(f'{folder}data/{key}')
                if entry is None or entry.file_size != size:
                    raise zipfile.BadZipFile('a storage is missing, or has another size')
                storage = torch.UntypedStorage(size)
                read_entry(archive, entry, _memory(storage))
                if order != sys.byteorder.encode():
                    storage.byteswap(dtype)
                storages[key] = tensors.move(storage, location)
            return _typed(storages[key], dtype)

        pickled = io.BytesIO(entry_bytes(archive, entries[folder + 'data.pkl']))
        result = load(pickled, persistent=storage_of).load()
        for name, entry in entries.items():  # a damaged part is a damaged file
            if name.removeprefix(f'{folder}data/') not in storages:
                entry_bytes(archive, entry)
        return result


def _read_legacy(
    file: io.BufferedReader, tensors: _Tensors, load: Callable[..., SafeUnpickler], functions: dict
) -> Any:
    """Read a file from PyTorch before 1.6: pickles, then the bytes of the storages."""
    if MAGIC_NUMBER.to_bytes(10, 'little') not in file.read(32):
        raise ValueError('it does not begin as a file of PyTorch')
    file.seek(0)
    plain = dict(functions={**functions, **dict.fromkeys(tensors.functions, _nothing)})
    magic, protocol, _ = (load(file, **plain).load() for _ in range(3))
    if (magic, protocol) != (MAGIC_NUMBER, 1001):
        raise ValueError('it is of an unknown version')
    described: dict[str, tuple] = {}

    def remember(reference: Any) -> None:
        dtype, key, location, size, *_ = _described(reference, 6)
        if described.setdefault(key, (dtype, location, size))[2] != size:
            raise Refused('a storage has two sizes')

    start = file.tell()
    load(file, persistent=remember, **plain).load()  # only to find the sizes of the storages
    storages: dict[str, torch.UntypedStorage] = {}
    for key in load(file, **plain).load():
        dtype, _, size = described[key]
        count = int.from_bytes(file.read(8), 'little')
        if key in storages or count * dtype.itemsize != size or size > tensors.left:
            raise ValueError('a storage has another size')
        _fill(file, storages, key, size)
    if storages.keys() != described.keys() or file.read(1):
        raise ValueError('it ends too late')
    storages = {key: tensors.move(value, described[key][1]) for key, value in storages.items()}

    def storage_of(reference: Any) -> torch.storage.TypedStorage:
        dtype, key, _, _, *view = _described(reference, 6)
        storage = storages[key]
        if view and view[0] is not None:
            _, offset, count = view[0]
            if not _whole(offset, count):
                raise Refused('a storage is no part of another')
            first, last = offset * dtype.itemsize, (offset + count) * dtype.itemsize
            if last > storage.nbytes():
                raise Refused('a storage reaches beyond another')
            storage = storage[first:last]
        return _typed(storage, dtype)

    file.seek(start)
    return load(file, functions=functions, persistent=storage_of).load()


def _nothing(*args: Any) -> None:
    """Replace the functions of tensors while only the storages are searched."""


def _fill(file: io.BufferedReader, storages: dict, key: str, size: int) -> None:
    if size > os.fstat(file.fileno()).st_size - file.tell():
        raise EOFError('the file ends too early')
    storages[key] = torch.UntypedStorage(size)
    if file.readinto(_memory(storages[key])) != size:
        raise EOFError('the file ends too early')
