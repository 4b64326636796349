"""Advice about a refused file, from the names in it. Nothing in the file is executed."""

from __future__ import annotations

import io
import os
import pickletools
import zipfile
from typing import Any

from .state_dict import WEIGHTS_KEYS

_LARGEST = 1 << 20  # bytes of a pickle that are read; tensors are not in the pickle


def how_to_save(path: str | os.PathLike) -> str:
    """Return a line of Python that saves only the weights of a checkpoint.

    Args:
        path: A file of ``torch.save``. The operations of its pickle are listed to find the key of
            the weights; none of them is executed.
    """
    try:
        keys = _keys(os.fspath(path))
    except Exception:  # a damaged file can raise almost anything
        keys = []
    key = next((key for key in WEIGHTS_KEYS if key in keys), None)
    if key is not None:
        return f'torch.save(checkpoint[{key!r}], path)'
    return 'torch.save({k: v for k, v in checkpoint.items() if torch.is_tensor(v)}, path)'


def _keys(path: str) -> list[str]:
    """Return the keys of the outermost dict in a file of ``torch.save``, in either format."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith('data.pkl'))
            with archive.open(name) as file:
                return _dict_keys(io.BytesIO(file.read(_LARGEST)))
    with open(path, 'rb') as file:
        content = io.BytesIO(file.read(_LARGEST))
    for _ in range(4):  # the old format: a number, a version, sizes, and then the checkpoint
        keys = _dict_keys(content)
        if set(keys) & set(WEIGHTS_KEYS):
            return keys
    return []


def _dict_keys(file: io.BytesIO) -> list[str]:
    """Return the string keys of the dict in a pickle, by following its operations."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for operation, argument, _ in pickletools.genops(file):
            _step(operation, argument, stack, memo)
    except Exception:  # cut off, or no pickle: use the keys found so far
        pass
    dicts = [item for item in stack if isinstance(item, dict)]
    return [key for key in dicts[0] if isinstance(key, str)] if dicts else []


def _step(operation: Any, argument: Any, stack: list, memo: dict) -> None:
    """Simulate one operation of a pickle."""
    name = operation.name
    if name in ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
        memo[len(memo) if argument is None else int(argument)] = stack[-1]
    elif name in ('GET', 'BINGET', 'LONG_BINGET'):
        stack.append(memo.get(int(argument)))
    elif operation.stack_before and pickletools.markobject in operation.stack_before:
        mark = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is pickletools.markobject)
        items = stack[mark + 1 :]
        del stack[mark:]
        _take_items(name, items, stack)
    elif name == 'SETITEM':
        key, _ = stack[-2:]
        del stack[-2:]
        if isinstance(stack[-1], dict) and isinstance(key, str):
            stack[-1][key] = None
    elif name == 'MARK':
        stack.append(pickletools.markobject)
    elif name not in ('STOP', 'PROTO', 'FRAME'):
        _push_result(operation, argument, stack)


def _take_items(name: str, items: list, stack: list) -> None:
    """Simulate an operation on all items after the last mark."""
    keys = {key: None for key in items[::2] if isinstance(key, str)}
    if name == 'SETITEMS' and isinstance(stack[-1], dict):
        stack[-1].update(keys)
    elif name in ('DICT', 'LIST', 'TUPLE', 'FROZENSET', 'INST', 'OBJ'):
        stack.append(keys if name == 'DICT' else None)


def _push_result(operation: Any, argument: Any, stack: list) -> None:
    """Simulate an operation on a fixed number of items."""
    name = operation.name
    taken, left = len(operation.stack_before), len(operation.stack_after)
    first = stack[-taken] if taken else None
    del stack[len(stack) - taken :]
    if name == 'EMPTY_DICT':
        stack.append({})
    elif 'UNICODE' in name:
        stack.append(argument)
    elif name == 'BUILD':  # it sets the state of an object, which stays on the stack
        stack.append(first)
    elif name == 'REDUCE':  # it may be an OrderedDict, which gets its keys later
        stack.append({})
    else:
        stack.extend([None] * left)
