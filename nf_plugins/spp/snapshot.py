"""Note what a network holds, and put it back to the bit."""

from __future__ import annotations

import functools
import logging
import operator
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import _GeneratorContextManager, contextmanager, suppress
from traceback import walk_tb
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .parts import parts_of

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
        self._small: dict[tuple, list[tuple[str, Tensor]]] = {}
        self._seen: dict[int, Any] = {}  # keeps them alive, so that no id is used twice
        self._empty: list[dict | list] = []  # most containers of a module are its hooks: none
        self._slots: dict[type, list[MemberDescriptorType]] = {}
        self._restored = False
        # Parameters first: other tensors may be views of them. What is held is left to do, each
        # with its path and the objects to go through.
        parts = parts_of(model)
        known = [*parts.parameters(), *parts.modules, *parts.buffers()]
        self._todo: deque[tuple[str, Any, int]] = deque((name, value, 1) for name, value in known)
        while self._todo:
            self._note(*self._todo.popleft())
        # The values of all small tensors of one type and device are noted by one operation.
        self._values = {key: _flat(tensors) for key, tensors in self._small.items()}
        self._seen.clear()

    def _note(self, path: str, value: Any, hops: int) -> None:
        """Note one value."""
        kind = type(value)
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if kind in _PLAIN:
            self._note_content(path, kind, value, hops)
        elif issubclass(kind, Tensor):
            self._note_tensor(path, value)
        elif issubclass(kind, nn.Module):
            self._note_object(path, value, hops)
        else:
            container = next((c for c in _CONTAINERS if issubclass(kind, c)), None)
            if container is not None:
                self._note_content(path, container, value, hops)
            elif issubclass(kind, tuple):
                self._go_on(path, list(tuple.__iter__(value)), hops)
            if hops and not _is_shared(kind):
                self._note_object(path, value, hops - 1)

    def _note_content(self, path: str, container: type, value: Any, hops: int) -> None:
        content = _copy(container, value)
        self._things.append((path, _refill, (container, value, content)))
        self._go_on(path, content, hops)

    def _go_on(self, path: str, content: dict | list, hops: int) -> None:
        """Go on with what is in a container."""
        items: Iterable = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            kind = type(value)
            if kind in _PLAIN and not value:
                self._empty.append(value)
            elif kind not in _ATOMS and id(value) not in self._seen:
                self._todo.append((f'{path}.{key}', value, hops))

    def _note_object(self, path: str, owner: Any, hops: int) -> None:
        """Note the attributes of a module or another object."""
        kind = type(owner)
        if issubclass(kind, torch.jit.ScriptModule):
            if hasattr(owner, 'training'):
                self._things.append((path, setattr, (owner, 'training', owner.training)))
            return
        if kind not in self._slots:
            self._slots[kind] = _slots_of(kind)
        for slot in self._slots[kind]:
            value = _read(slot, owner)
            self._things.append((f'{path}.{slot.__name__}', _refill_slot, (slot, owner, value)))
            self._go_on(path, {slot.__name__: value}, hops)
        try:
            attributes = object.__getattribute__(owner, '__dict__')
        except AttributeError:
            return
        if type(attributes) is dict and id(attributes) not in self._seen:
            self._seen[id(attributes)] = attributes
            self._note_content(path, dict, attributes, hops)

    def _note_tensor(self, path: str, tensor: Tensor) -> None:
        if tensor.grad_fn is not None:  # of a graph that is not the network's
            return
        parameter = isinstance(tensor, nn.Parameter)
        if parameter:
            flag, gradient = tensor.requires_grad, tensor.grad
            self._things.append((path, _refill_parameter, (tensor, flag, gradient)))
        data, values = _alias(tensor)
        if data is None:
            return
        self._things.append((path, _refill_data, (tensor, data)))
        if values is None:
            return
        memory = values.untyped_storage().data_ptr()
        large = parameter and tensor.numel() != max(tensor.shape, default=1)
        if large or (not parameter and memory in self._unwritten):
            self._unwritten.setdefault(memory, []).append((path, values))
        else:
            self._small.setdefault((values.dtype, values.device), []).append((path, values))

    def note_write(self, tensor: Tensor) -> None:
        """Note a parameter's values before ``tensor``, which is one or a view of one, changes."""
        try:
            memory = tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):  # it has none
            return
        for path, values in self._unwritten.pop(memory, ()):
            self._things.append((path, _refill_values, (values, values.clone())))

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
        things = [*self._things, *self._changed()]
        failed = [(thing, error) for thing in things if (error := _attempt(thing))]
        # An exception that a signal raised meanwhile does not come twice.
        again = [(path, error) for (path, *_), _, error in _retry(failed)]
        if again:
            text = ', '.join(f'{path or "the network"} ({error})' for path, error in again[:3])
            raise RuntimeError(f'after the analysis could not be put back: {text}') from again[0][1]
        self._restored = True
        if failed:
            raise failed[0][1]

    def _changed(self) -> Iterator[tuple[str, Callable[..., None], tuple]]:
        """Yield how to put back the small tensors, of those groups in which a value changed."""
        for key, tensors in self._small.items():
            before = self._values[key]
            there = not any(_is_gone(values) for _, values in tensors)
            if there and _equal(_flat(tensors), before):
                continue
            own = before.split([values.numel() for _, values in tensors])
            for (path, values), part in zip(tensors, own):
                yield path, _refill_values, (values, part.view(values.shape))


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


def _slots_of(cls: type) -> list[MemberDescriptorType]:
    owners = [base for base in cls.__mro__ if '__slots__' in vars(base)]
    found = [slot for base in owners for slot in vars(base).values()]
    return [slot for slot in found if type(slot) is MemberDescriptorType]


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


def without_copies(x: Tensor) -> Tensor:
    """Return one value of each along expanded axes, along which all values are one."""
    for dim, stride in enumerate(x.stride()):
        if stride == 0:
            x = x.narrow(dim, 0, min(1, x.shape[dim]))
    return x


def _alias(tensor: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """A tensor of its own in the same memory, and its values; None where there are none."""
    try:
        # Writes to `data`, other than to `detach()`, are no writes to the tensor for autograd.
        data = tensor.data
        if data.is_meta or data.layout != torch.strided or data.is_quantized:
            return data, None
        values = torch.view_as_real(data.resolve_conj()) if data.is_complex() else data
        values = without_copies(values)
        values.untyped_storage().data_ptr()
        return data, values
    except (RuntimeError, NotImplementedError, ValueError, TypeError):  # fake, lazy, wrapped
        return None, None


def _refill_data(tensor: Tensor, data: Tensor) -> None:
    if tensor.is_meta or tensor.layout != torch.strided:
        return
    if tensor.dtype != data.dtype or not tensor.is_set_to(data):
        tensor.data = data


def _is_gone(values: Tensor) -> bool:
    """Whether the memory of a tensor was given back; to read it would be fatal."""
    return values.numel() > 0 and values.data_ptr() == 0


def _refill_values(values: Tensor, before: Tensor) -> None:
    if _is_gone(values):
        raise RuntimeError('its memory was given back')
    if not _equal(values, before):
        values.copy_(before)


def _flat(tensors: list[tuple[str, Tensor]]) -> Tensor:
    return torch.cat([values.reshape(-1) for _, values in tensors])


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bits: nan equals nan, and 0 differs from -0."""
    if a.dtype == torch.bool:
        return torch.equal(a, b)
    bits = _BITS[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))


class WriteWatch(TorchDispatchMode):
    """Tells of each tensor that an operation is about to write into."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in written_tensors(func, args, kwargs):
            self.note(tensor)
        return func(*args, **kwargs)


def written_tensors(func: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the arguments that an operation writes into."""
    for place, name in _written_arguments(func):
        value = args[place] if place < len(args) else kwargs.get(name)
        for x in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(x, Tensor):
                yield x


@functools.cache
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


_CONTEXTS = {
    _GeneratorContextManager.__enter__.__code__,
    _GeneratorContextManager.__exit__.__code__,
}


def _end_contexts(error: BaseException) -> None:
    """End the contexts whose start or end a signal has cut short.

    Nobody else does. They would end when they are collected, after everything is restored, and
    could put back what was there in the block: torch's put back modes.
    """
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code in _CONTEXTS:
            with suppress(Exception):  # of a context that is not ours
                frame.f_locals['self'].gen.close()


@contextmanager
def restoring(restore: Callable[[], Any]) -> Iterator[None]:
    """Call ``restore`` after the block, whatever happens: twice, as a signal can cut one short.

    Args:
        restore: Puts something back; a second call changes nothing.
    """
    try:
        try:
            yield
        except BaseException as error:
            _end_contexts(error)
            raise
        finally:
            restore()
    finally:
        restore()
