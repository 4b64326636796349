"""Reading of safetensors into new memory.

The library's reader maps the file into memory. If another process shortens the file later, the
reading process is killed.
"""

from __future__ import annotations

import io
import json
import math
from typing import Any

import torch
from torch import Tensor

HEADER = 8 << 20
"""Largest size of a header in bytes."""

TENSORS = 20_000
"""Largest number of tensors in a file."""

DTYPES = {
    'BOOL': torch.bool,
    'U8': torch.uint8,
    'I8': torch.int8,
    'F8_E4M3': torch.float8_e4m3fn,
    'F8_E5M2': torch.float8_e5m2,
    'I16': torch.int16,
    'U16': torch.uint16,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I32': torch.int32,
    'U32': torch.uint32,
    'F32': torch.float32,
    'I64': torch.int64,
    'U64': torch.uint64,
    'F64': torch.float64,
    'C64': torch.complex64,
}
"""Name of a type in a header -> the type."""


def read_safetensors(file: io.BufferedReader, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a file of safetensors.

    Args:
        file: The file.
        map_location: As in :func:`torch.load`.

    Returns:
        The tensors as ``state_dict``, and the texts of the header as ``meta``.

    Raises:
        ValueError: It is damaged, or is no file of safetensors.
    """
    length = int.from_bytes(file.read(8), 'little')
    size = file.seek(0, io.SEEK_END) - 8 - length
    if not 0 < length <= HEADER or size < 0:
        raise ValueError(f'its header takes {length} bytes')
    file.seek(8)
    pairs = json.loads(file.read(length).decode(), object_pairs_hook=list)
    meta, tensors = {}, []
    for name, entry in pairs:
        if name == '__metadata__':
            meta = dict(entry)
        else:
            tensors.append((name, *_described(dict(entry))))
    if len({name for name, _ in pairs}) < len(pairs) or len(tensors) > TENSORS:
        raise ValueError('two of its tensors have the same name, or it has too many tensors')
    if not all(type(text) is str for text in meta.values()):
        raise ValueError('its metadata are no texts')
    device = 'cpu' if map_location is None or callable(map_location) else map_location
    state, place = {}, 0
    for name, dtype, shape, start, end in sorted(tensors, key=lambda tensor: tensor[3:]):
        if start != place or end > size:
            raise ValueError(f'its tensor {name!r:.100} is not where it says')
        state[name], place = _read(file, dtype, shape).to(device), end
    if place != size:
        raise ValueError('there is data after its tensors')
    return dict(state_dict={name: state[name] for name in sorted(state)}, meta=meta)


def _described(entry: dict[str, Any]) -> tuple[torch.dtype, list[int], int, int]:
    """Return the description of a tensor in the header: type, shape, first byte and end."""
    dtype, shape, (start, end) = DTYPES[entry['dtype']], entry['shape'], entry['data_offsets']
    whole = all(type(number) is int and 0 <= number < 2**63 for number in (*shape, start, end))
    if not whole or len(shape) > 64 or math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError('a tensor has another size than its header says')
    return dtype, shape, start, end


def _read(file: io.BufferedReader, dtype: torch.dtype, shape: list[int]) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.numel():
        memory = tensor.flatten().view(torch.uint8).numpy().data
        if file.readinto(memory) != len(memory):
            raise EOFError('the file ends too early')
    return tensor
