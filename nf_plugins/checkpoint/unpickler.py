"""Unpickler that makes data, and calls nothing that a file names.

It is the unpickler of Python's standard library with these restrictions:

- A name in the file becomes a :class:`~.inert.Name`. If the file calls the name, a table of our
  functions is searched; they make checked values. If the name is not there, the call becomes a
  stand-in, or the file is refused.
- Attributes are only set on stand-ins and on a few kinds of values, by our own functions.
- Opcodes of old protocols, and opcodes that refer to things outside of the file, are refused.
- There are limits for the number of steps, the memory of copies, the nesting, and the size when
  all references are followed. So a small file cannot use up the resources of the process.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickle
import pickletools
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from nf_plugins.errors import Refused

from .inert import Inert, InertDict, Name, contents, stand_in
from .values import STATES

STEPS = 400_000
"""Largest number of steps for a small file. A large file may take one more step for each 256
bytes, up to three times this number."""
VALUES = 1_000_000
"""Largest number of values when references are followed."""
DEPTH = 100
"""Deepest nesting of containers."""
COPIES = 256 << 20
"""Largest number of bytes of copies, in addition to the size of the file."""
TEXT = 64 << 20
"""Largest number of letters and digits when references are followed, in addition to the size of
the file."""


class Limits:
    """Limits for one file.

    Args:
        size: Its size in bytes.
    """

    def __init__(self, size: int) -> None:
        self.steps = min(STEPS + size // 256, 3 * STEPS)
        self.copies = size + COPIES
        self.odd_keys = 10_000

    def copy(self, size: int) -> None:
        self.copies -= size
        if self.copies < 0:
            raise Refused('its values take far more memory than the file')


class _Dispatch(dict):
    def __missing__(self, code: int) -> Any:
        names = {known.code: known.name for known in pickletools.opcodes}
        raise Refused(f'it uses the pickle opcode {names.get(chr(code), code)}')


_OPCODES = """PROTO STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1
BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
SHORT_BINSTRING EMPTY_LIST EMPTY_TUPLE EMPTY_DICT EMPTY_SET TUPLE TUPLE1 TUPLE2 TUPLE3 BINGET
LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL BINPERSID""".split()


class SafeUnpickler(pickle._Unpickler):
    """Unpickler of one pickle.

    Args:
        file: The file; it is read to the end of the pickle.
        functions: ``module.name`` -> our function that makes the result of a call of this name.
        limits: The remaining limits for the file.
        registered: ``module.name`` -> an object that the user trusts. It is called as it is.
        constants: Function from a module and a name to a value, or to None.
        persistent: Function that makes the objects outside of the pickle to which it refers.
        inert: Whether other names may become stand-ins. Otherwise they are refused.
    """

    # Attributes of Python's unpickler, which has no published types.
    stack: list[Any]
    metastack: list[list[Any]]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        file: BinaryIO,
        functions: Mapping[str, Callable[..., Any]],
        limits: Limits,
        registered: Mapping[str, Any] | None = None,
        constants: Callable[[str, str], Any] = lambda module, name: None,
        persistent: Callable[[Any], Any] | None = None,
        inert: bool = True,
    ) -> None:
        super().__init__(file, encoding='utf-8')
        self.file = file
        place = file.tell()
        self.end = file.seek(0, io.SEEK_END)
        file.seek(place)
        self.limits, self.inert = limits, inert
        self.functions: dict[str, Callable[..., Any]] = {
            'builtins.dict': partial(self.make_dict, dict),
            'collections.OrderedDict': partial(self.make_dict, OrderedDict),
            'collections.Counter': partial(self.make_dict, Counter),
            'builtins.set': partial(self.make_set, set),
            'builtins.frozenset': partial(self.make_set, frozenset),
            **functions,
        }
        self.registered = {k: v for k, v in (registered or {}).items() if k not in self.functions}
        self.trusted = {id(value) for value in self.registered.values()}
        self.constants = constants
        self.persistent = persistent

    def persistent_load(self, pid: Any) -> Any:
        return super().persistent_load(pid) if self.persistent is None else self.persistent(pid)

    def load(self) -> Any:
        self.metastack, self.stack = [], []
        self.append, self.proto = self.stack.append, 0
        read, dispatch = self.file.read, self.dispatch
        try:
            for _ in range(self.limits.steps):
                self.limits.steps -= 1
                code = read(1)
                if not code:
                    raise EOFError('the file ends too early')
                dispatch[code[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]  # the end of a pickle
            if self.inert:  # otherwise the reader visits each leaf once and checks this itself
                check_size(stop.value, self.end)
            return stop.value
        finally:  # an error may refer to `self`; it must not keep the content in memory
            self.memo, self.stack, self.metastack, self.functions = {}, [], [], {}
            self.persistent = None
            del self.append
        raise Refused('it takes too many steps to read')

    def read(self, size: int) -> bytes:
        if size > 64 and size > self.end - self.file.tell():
            raise EOFError('the file ends too early')
        data = self.file.read(size)
        if len(data) != size:
            raise EOFError('the file ends too early')
        return data

    def readline(self) -> bytes:
        line = self.file.readline(500)
        if not line.endswith(b'\n'):
            raise EOFError('a name has no end')
        return line

    # Names.

    def find_class(self, module: str, name: str) -> Any:
        if self.proto < 3:  # it contains names of Python 2, even if Python 3 wrote it
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[module, name]
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if not all(part.isidentifier() for part in f'{module}.{name}'.split('.')):
            raise Refused(f'it names {module}.{name}')
        constant = self.constants(module, name)
        if constant is not None:
            return constant
        full = f'{module}.{name}'
        if full in self.registered:
            return self.registered[full]
        if not self.inert and full not in self.functions:
            _refuse_name(full)
        return Name(module, name)

    def call(self, function: Any, args: Any, kwargs: dict | None = None, new: bool = False) -> Any:
        if not isinstance(args, tuple):
            raise Refused('it calls a name without a tuple of arguments')
        self.charge(args)
        if isinstance(function, Name):
            make = self.functions.get(function.name)
            if make is not None:
                return make(*args, **(kwargs or {}))
            made = stand_in(function, args, kwargs, new) if self.inert else None
            return _refuse_name(function.name) if made is None else made
        if id(function) not in self.trusted:
            raise Refused(f'it calls a {type(function).__name__}')
        if new:
            return function.__new__(function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def charge(self, args: Any, inner: bool = True) -> None:
        """Count the memory that a function may need to copy its arguments."""
        for arg in args:
            if isinstance(arg, (str, bytes, bytearray)):
                self.limits.copy(len(arg))
            elif isinstance(arg, (list, tuple, dict, set, frozenset, deque)):
                self.limits.copy(200 * len(arg))
                if inner and isinstance(arg, (list, tuple)):
                    self.charge(arg, inner=False)
            elif isinstance(arg, np.ndarray):
                self.limits.copy(arg.nbytes)

    def check_key(self, key: Any, depth: int = 3) -> None:
        """Refuse keys (and members of sets) that take too long to hash or to compare."""
        if isinstance(key, (str, bytes, type(None))):
            return
        if isinstance(key, int) and -(2**31) <= key < 2**31:
            return
        self.limits.odd_keys -= 1  # other keys can be chosen so that all their hashes collide
        if self.limits.odd_keys < 0:
            raise Refused('it has too many keys that are not text or small integers')
        if isinstance(key, (tuple, frozenset)):
            if depth == 0 or len(key) > 100:
                raise Refused('it has a large tuple as a key')
            for part in key:
                self.check_key(part, depth - 1)
        elif isinstance(key, np.ndarray) or (isinstance(key, int) and abs(key) >= 2**63):
            raise Refused(f'it has a huge {type(key).__name__} as a key')

    def make_dict(self, kind: type, *args: Any) -> dict:
        """Make a dict of this kind from nothing, a dict, or a list of pairs."""
        if len(args) > 1 or (args and not isinstance(args[0], (dict, list))):
            raise Refused(f'it makes a {kind.__name__} from something else than pairs')
        pairs = args[0] if args else ()
        pairs = list(pairs.items() if isinstance(pairs, dict) else pairs)
        made = kind()
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise Refused(f'it makes a {kind.__name__} from something else than pairs')
            self.check_key(pair[0])
            made[pair[0]] = pair[1]
        return made

    def make_set(self, kind: type, *args: Any) -> set | frozenset:
        if len(args) > 1 or (args and not isinstance(args[0], (list, tuple))):
            raise Refused(f'it makes a {kind.__name__} from something else than a list')
        return kind(self.checked_keys(args[0] if args else ()))

    # Opcodes. These replace methods of Python's library; the other methods are used as they are.

    dispatch = _Dispatch(
        {
            getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
            for name in _OPCODES
        }
    )

    def load_frame(self) -> None:
        self.read(8)  # a hint for readers of streams

    dispatch[pickle.FRAME[0]] = load_frame

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), 'little'))))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args, new=True)

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self) -> None:
        kwargs, args = self.stack.pop(), self.stack.pop()
        if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
            raise Refused('it calls a name without a dict of arguments')
        self.stack[-1] = self.call(self.stack[-1], args, kwargs, new=True)

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if id(type(target)) in self.trusted:
            self.append(state)
            return super().load_build()  # type: ignore[misc]  # as above
        self.charge((state,))
        build = STATES.get(type(target))
        if build is None:
            what = target.name if isinstance(target, Name) else f'a {type(target).__name__}'
            raise Refused(f'it sets attributes of {what}')
        built = build(target, state)
        if built is None:
            return None
        self.stack[-1] = built
        for key in list(self.memo)[-20:]:  # `target` entered the memo just before its state
            if self.memo[key] is target:
                self.memo[key] = built
        return None

    dispatch[pickle.BUILD[0]] = load_build

    def extend(self, values: list) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target = target.items
        if type(target) not in (list, deque):
            raise Refused(f'it appends to a {type(target).__name__}')
        target.extend(values)

    def load_append(self) -> None:
        value = self.stack.pop()
        self.extend([value])

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        self.extend(self.pop_mark())

    dispatch[pickle.APPENDS[0]] = load_appends

    def set_items(self, values: list) -> None:
        target, keys = self.stack[-1], values[::2]
        if len(values) % 2:
            raise Refused('it has a key without a value')
        if isinstance(target, Inert):
            return target.pairs.extend(zip(keys, values[1::2], strict=True))
        if type(target) not in (dict, OrderedDict, Counter, InertDict):
            raise Refused(f'it sets items of a {type(target).__name__}')
        new = iter(values[1::2])
        for key in keys:
            self.check_key(key)
            target[key] = next(new)
        return None

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_additems(self) -> None:
        values = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise Refused(f'it adds items to a {type(self.stack[-1]).__name__}')
        self.stack[-1].update(self.checked_keys(values))

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self) -> None:
        values = self.pop_mark()
        self.append(frozenset(self.checked_keys(values)))

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def checked_keys(self, values: Any) -> Any:
        """Return the values after a check that each may be in a set."""
        for value in values:
            self.check_key(value)
        return values


def _refuse_name(name: str) -> None:
    raise Refused(f'it names {name}, which weights do not need')


def check_size(root: Any, size: int) -> None:
    """Refuse content that is nested too deep, contains itself, or is too large when written out.

    A value counts once for each reference to it, because a copy or a printout needs that memory.

    Args:
        root: The content of a file.
        size: Size of the file in bytes.
    """
    sizes: dict[int, tuple[int, int, int]] = {}  # of finished containers: values, nesting, text
    inside: dict[int, tuple[list, int, int]] = {}  # of others: containers in it, leaves, text
    stack = [root]
    while stack:
        value = stack[-1]
        if id(value) in sizes:
            stack.pop()
        elif id(value) not in inside:
            parts = list(contents(value))
            containers = [p for p in parts if not isinstance(p, _LEAVES) and not _is_empty(p)]
            # Parts of a config refer to the whole config, which is a stand-in.
            containers = [p for p in containers if not (isinstance(p, Inert) and id(p) in inside)]
            leaves = [part for part in parts if isinstance(part, _LEAVES)]
            inside[id(value)] = containers, len(parts) - len(containers), sum(map(_length, leaves))
            if any(id(part) in inside for part in containers):
                raise Refused('it holds a container that contains itself')
            stack += containers
        else:
            stack.pop()
            containers, others, text = inside.pop(id(value))
            count = 1 + others + sum(sizes[id(part)][0] for part in containers)
            depth = 1 + max((sizes[id(part)][1] for part in containers), default=0)
            text += _length(value) + sum(sizes[id(part)][2] for part in containers)
            if depth > DEPTH:
                raise Refused(f'it nests containers more than {DEPTH} deep')
            if count > VALUES:
                raise Refused(f'it holds more than {VALUES} values when references are followed')
            if text > size + TEXT:
                raise Refused('its texts are far larger than the file when references are followed')
            sizes[id(value)] = count, depth, text


def _is_empty(value: Any) -> bool:
    return type(value) in (dict, list, tuple, set) and not value


def _length(value: Any) -> int:
    """Estimate the length of a leaf when it is written out."""
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    if isinstance(value, np.ndarray):
        return value.nbytes if value.dtype.kind in 'SUV' else 0
    return value.bit_length() // 3 if isinstance(value, int) else 0


_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), Name)
