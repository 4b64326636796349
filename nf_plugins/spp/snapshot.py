"""Note what a network holds, and put it back to the bit."""

from __future__ import annotations

import logging
import operator
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# Containers that change; of a subclass, the methods of these are used: its own may refuse.
_CONTAINERS = (OrderedDict, dict, list, set, deque)
_PLAIN = frozenset(_CONTAINERS)
# What holds nothing, or something that is not the network's.
_ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None), type, torch.Size})
_ATOMS |= {FunctionType, MethodType, BuiltinFunctionType, ModuleType, torch.dtype, torch.device}
_SHARED = (type, logging.Logger, logging.Handler, queue.Queue, threading.Thread)
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NOTHING = object()


class Snapshot:
    """What a network holds at one moment.

    That is: the attributes of its modules, those in ``__slots__`` too; what is in their
    lists, dicts, sets and deques, at any depth; the attributes of objects that a module
    holds; buffers and other tensors. Of a large parameter the values are noted when
    :meth:`note_write` says that they are about to change.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        # What is held, how to put it back and with what.
        self._things: list[tuple[str, Callable[..., None], tuple]] = []
        self._unwritten: dict[int, list[tuple[str, Tensor]]] = {}
        self._seen: dict[int, Any] = {}  # keeps them alive, so that no id is used twice
        self._empty: list[dict | list] = []  # most containers of a module are its hooks: none
        self._restored = False
        # Parameters first: other tensors may be views of them.
        known = [*model.named_parameters(), *model.named_modules(), *model.named_buffers()]
        todo = deque((name, value, 1) for name, value in known)
        while todo:
            todo.extend(self._note(*todo.popleft()))
        self._seen.clear()

    def _note(self, path: str, value: Any, hops: int) -> Iterator[tuple[str, Any, int]]:
        """Note one value; what it holds, which is left to do, with the objects to go through."""
        kind = type(value)
        if kind in _ATOMS or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if kind in _PLAIN:
            if value:
                yield from self._note_content(path, kind, value, hops)
            else:
                self._empty.append(value)
        elif issubclass(kind, Tensor):
            self._note_tensor(path, value)
        elif issubclass(kind, nn.Module):
            yield from self._note_object(path, value, hops)
        else:
            container = next((c for c in _CONTAINERS if issubclass(kind, c)), None)
            if container is not None:
                yield from self._note_content(path, container, value, hops)
            elif issubclass(kind, tuple):
                yield from _children(path, list(tuple.__iter__(value)), hops)
            if hops and not _is_shared(kind):
                yield from self._note_object(path, value, hops - 1)

    def _note_content(
        self, path: str, container: type, value: Any, hops: int
    ) -> list[tuple[str, Any, int]]:
        content = _copy(container, value)
        self._things.append((path, _refill, (container, value, content)))
        return _children(path, content, hops)

    def _note_object(self, path: str, owner: Any, hops: int) -> Iterator[tuple[str, Any, int]]:
        """Note the attributes of a module or another object; what they hold is left to do."""
        if isinstance(owner, torch.jit.ScriptModule):
            if hasattr(owner, 'training'):
                self._things.append((path, setattr, (owner, 'training', owner.training)))
            return
        for cls in type(owner).__mro__:
            if '__slots__' in vars(cls):
                for name, slot in vars(cls).items():
                    if type(slot) is MemberDescriptorType:
                        value = _read(slot, owner)
                        self._things.append((f'{path}.{name}', _refill_slot, (slot, owner, value)))
                        yield f'{path}.{name}', value, hops
        try:
            attributes = object.__getattribute__(owner, '__dict__')
        except AttributeError:
            return
        if type(attributes) is dict:
            yield path, attributes, hops

    def _note_tensor(self, path: str, tensor: Tensor) -> None:
        if tensor.grad_fn is not None:  # of a graph that is not the network's
            return
        if isinstance(tensor, nn.Parameter):
            flag, gradient = tensor.requires_grad, tensor.grad
            self._things.append((path, _refill_parameter, (tensor, flag, gradient)))
        data, bits = _alias(tensor)
        if data is None:
            return
        self._things.append((path, _refill_data, (tensor, data)))
        if bits is None:
            return
        memory = bits.untyped_storage().data_ptr()
        large = isinstance(tensor, nn.Parameter) and tensor.numel() != max(tensor.shape, default=1)
        if large or (memory in self._unwritten and not isinstance(tensor, nn.Parameter)):
            self._unwritten.setdefault(memory, []).append((path, bits))
        else:
            self._things.append((path, _refill_values, (bits, bits.clone())))

    def note_write(self, tensor: Tensor) -> None:
        """Note a parameter's values before ``tensor``, which is one or a view of one, changes."""
        try:
            memory = tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):  # it has none
            return
        for path, bits in self._unwritten.pop(memory, ()):
            self._things.append((path, _refill_values, (bits, bits.clone())))

    def restore(self) -> None:
        """Put back what has changed, each thing on its own; what has not is not touched.

        Raises:
            RuntimeError: Something could not be put back; everything else was.
        """
        if self._restored:
            return
        for value in self._empty:
            if value:
                value.clear()
        failed = [(thing, error) for thing in self._things if (error := _attempt(thing))]
        # An exception that a signal raised meanwhile does not come twice.
        again = [(path, error) for (path, *_), _, error in _retry(failed)]
        if again:
            text = ', '.join(f'{path or "the network"} ({error})' for path, error in again[:3])
            raise RuntimeError(f'after the analysis could not be put back: {text}') from again[0][1]
        self._restored = True
        if failed:
            raise failed[0][1]


def _is_shared(kind: type) -> bool:
    """Return whether an object's attributes are not the network's own.

    FSDP2 prepares itself at the first pass, deeper than is noted: half of it must not go back.
    """
    return issubclass(kind, _SHARED) or kind.__module__.startswith('torch.distributed.')


def _attempt(thing: tuple[str, Callable[..., None], tuple]) -> Exception | None:
    _, refill, args = thing
    try:
        refill(*args)
    except Exception as error:
        return error
    return None


def _retry(failed: list[tuple]) -> Iterator[tuple]:
    for thing, first in failed:
        error = _attempt(thing)
        if error is not None:
            yield thing, first, error


def _children(path: str, content: Any, hops: int) -> list[tuple[str, Any, int]]:
    items: Iterable = content.items() if isinstance(content, dict) else enumerate(content)
    return [(f'{path}.{k}', v, hops) for k, v in items if type(v) not in _ATOMS]


def _copy(container: Any, value: Any) -> dict | list:
    """What is in a container, read by a method of ``container``, one of ``_CONTAINERS``."""
    if issubclass(container, dict):
        return value.copy() if type(value) is dict else dict(container.items(value))
    return list(container.__iter__(value))


def _same(before: dict | list, now: dict | list, ordered: bool) -> bool:
    if len(before) != len(now):
        return False
    if not ordered:
        return set(map(id, before)) == set(map(id, now))
    if isinstance(before, dict) and isinstance(now, dict):
        if not all(map(operator.is_, before.values(), now.values())):
            return False
    return all(map(operator.is_, before, now))


def _refill(container: Any, value: Any, content: dict | list) -> None:
    now = value if type(value) is container else _copy(container, value)
    if _same(content, now, container is not set):
        return
    if container is list:
        list.__setitem__(value, slice(None), content)
        return
    container.clear(value)
    if isinstance(content, dict):
        for key, item in content.items():
            container.__setitem__(value, key, item)
    elif container is set:
        set.update(value, content)
    else:
        deque.extend(value, content)


def _read(slot: MemberDescriptorType, owner: Any) -> Any:
    try:
        return slot.__get__(owner)
    except AttributeError:
        return _NOTHING


def _refill_slot(slot: MemberDescriptorType, owner: Any, value: Any) -> None:
    if _read(slot, owner) is not value:
        if value is _NOTHING:
            slot.__delete__(owner)
        else:
            slot.__set__(owner, value)


def _refill_parameter(parameter: Tensor, flag: bool, gradient: Tensor | None) -> None:
    if parameter.requires_grad != flag:
        parameter.requires_grad_(flag)
    if parameter.grad is not gradient:
        parameter.grad = gradient


def _alias(tensor: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The same memory as a tensor of its own, and as integers; None where there is none."""
    try:
        # Writes to `data`, other than to `detach()`, are no writes to the tensor for autograd.
        data = tensor.data
        if data.is_meta or data.layout != torch.strided or data.is_quantized:
            return data, None
        bits = torch.view_as_real(data.resolve_conj()) if data.is_complex() else data
        for dim, stride in enumerate(bits.stride()):
            if stride == 0:  # of an expanded axis all values are one
                bits = bits.narrow(dim, 0, min(1, bits.shape[dim]))
        bits.untyped_storage().data_ptr()
        return data, bits if bits.dtype == torch.bool else bits.view(_BITS[bits.element_size()])
    except (RuntimeError, NotImplementedError, ValueError, TypeError):  # fake, lazy, wrapped
        return None, None


def _refill_data(tensor: Tensor, data: Tensor) -> None:
    if tensor.is_meta or tensor.layout != torch.strided:
        return
    now = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
    if now != (data.data_ptr(), data.shape, data.stride(), data.dtype):
        tensor.data = data


def _refill_values(bits: Tensor, before: Tensor) -> None:
    if not torch.equal(bits, before):
        bits.copy_(before)


@contextmanager
def restoring(restore: Callable[[], Any]) -> Iterator[None]:
    """Call ``restore`` after the block, whatever happens: twice, as a signal can cut one short.

    Args:
        restore: Puts something back; a second call changes nothing.
    """
    try:
        try:
            yield
        finally:
            restore()
    finally:
        restore()
