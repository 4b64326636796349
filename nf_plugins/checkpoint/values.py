"""Functions that make the values in pickles of Python and mmengine, after checks.

:data:`FUNCTIONS` maps each name in a pickle to a function that checks its arguments and makes the
value itself. The object with this name in Python is never called with data from a file.
"""

from __future__ import annotations

import argparse
import codecs
import datetime
import pathlib
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer

from nf_plugins.errors import Refused, short

from .inert import Inert, InertDict, Name, stand_in
from .numpy_pickle import GLOBALS, PickledArray, PickledDtype, PickledNumberDtype

HistoryBuffer()  # the first one sets the statistics of the class


def _need(right: bool, what: str) -> None:
    if not right:
        raise Refused(f'it makes a {what} from invalid data')


def _bytes(data: Any = b'') -> bytes:
    _need(type(data) is bytes, 'bytes')
    return data


def _bytearray(data: Any = b'', encoding: str = 'latin-1') -> bytearray:
    _need(isinstance(data, (bytes, bytearray, str)), 'bytearray')
    return bytearray(codecs.encode(data, 'latin-1') if isinstance(data, str) else data)


def _complex(real: Any = 0.0, imag: Any = 0.0) -> complex:
    _need(type(real) in (int, float) and type(imag) in (int, float), 'complex')
    return complex(real, imag)


def _deque(values: Any = (), maxlen: Any = None) -> deque:
    _need(isinstance(values, (list, tuple)) and type(maxlen) in (int, type(None)), 'deque')
    return deque(values, maxlen)


def _integers(kind: type) -> Callable[..., Any]:
    """Make a function for a slice or range of small integers; comparing these calls nothing."""

    def make(*args: Any) -> Any:
        whole = all(type(arg) in (int, type(None)) for arg in args)
        _need(whole and (kind is slice or None not in args), kind.__name__)
        return kind(*args)

    return make


def _date(data: Any) -> datetime.date:
    _need(type(data) is bytes and len(data) == 4, 'date')
    return datetime.date(int.from_bytes(data[:2], 'big'), data[2], data[3])


def _clock(data: bytes, zone: datetime.timezone | None, high: int) -> dict[str, Any]:
    """Decode the arguments of a time from its last bytes; the high bit is the ``fold``."""
    micro = int.from_bytes(data[3:6], 'big')
    return dict(minute=data[1], second=data[2], microsecond=micro, tzinfo=zone, fold=high >> 7)


def _time(data: Any, zone: Any = None) -> datetime.time | Inert:
    _need(type(data) is bytes and len(data) == 6, 'time')
    if not isinstance(zone, (datetime.timezone, type(None))):
        return Inert(Name('datetime', 'time'), (data, zone))
    return datetime.time(hour=data[0] & 127, **_clock(data, zone, data[0]))


def _datetime(data: Any, zone: Any = None) -> datetime.datetime | Inert:
    _need(type(data) is bytes and len(data) == 10, 'datetime')
    if not isinstance(zone, (datetime.timezone, type(None))):
        return Inert(Name('datetime', 'datetime'), (data, zone))
    year, month, day = int.from_bytes(data[:2], 'big'), data[2] & 127, data[3]
    return datetime.datetime(year, month, day, hour=data[4], **_clock(data[4:], zone, data[2]))


def _timedelta(*args: Any) -> datetime.timedelta:
    _need(len(args) == 3 and all(type(arg) is int for arg in args), 'timedelta')
    return datetime.timedelta(*args)


def _timezone(offset: Any, *name: Any) -> datetime.timezone:
    _need(isinstance(offset, datetime.timedelta), 'timezone')
    _need(len(name) < 2 and all(isinstance(part, str) for part in name), 'timezone')
    return datetime.timezone(offset, *name)


def _zone(key: Any, cached: Any = None) -> Inert:
    _need(isinstance(key, str), 'zone')
    return Inert(Name('zoneinfo', 'ZoneInfo'), (key,))


def _path(kind: type) -> Callable[..., pathlib.PurePath]:
    def make(*parts: Any) -> pathlib.PurePath:
        _need(all(isinstance(part, str) for part in parts), 'path')
        return kind(*parts)

    return make


def _getattr(owner: Any, name: Any) -> Any:
    """Make the name of a member of a class, such as ``OneCycleParamScheduler._annealing_cos``."""
    plain = isinstance(name, str) and name.isidentifier() and not name.startswith('__')
    plain = plain and len(name) <= 200 and not (isinstance(owner, Name) and len(owner.name) > 1000)
    if not plain or not isinstance(owner, (Name, Inert)):
        who = owner.name if isinstance(owner, Name) else type(owner).__name__
        raise Refused(f'it names getattr({who}, {short(name)})')
    if isinstance(owner, Name):
        return Name(owner.module, f'{owner.qualname}.{name}')
    return Inert(Name('builtins', 'getattr'), (owner, name))


def _copy(value: Any) -> Name:
    """Read a :class:`Name` back, which is pickled as a call of ``copy.copy``."""
    _need(isinstance(value, Name), 'copy')
    return value


def _reconstructor(of: Any, base: Any, state: Any) -> Any:
    """Make an object without its ``__init__``, as in old protocols and in pickled stand-ins."""
    _need(isinstance(of, Name) and base == Name('builtins', 'object') and state is None, 'object')
    made = FUNCTIONS[of.name]() if of.name in _EMPTY else stand_in(of, (), new=True)
    if made is None:
        raise Refused(f'it names {of.name}, which weights do not need')
    return made


def _annotation(of: Name) -> Callable[..., Inert]:
    """Make a function for parts of type annotations: ``typing.Dict[str, Any]``, ``int | None``."""

    def make(first: Any, second: Any) -> Inert:
        types_ = second if isinstance(second, (list, tuple)) else [second]
        known = [first, *types_]
        right = all(isinstance(part, (Name, type, Inert, list, tuple)) for part in known)
        module = first.module if isinstance(first, Name) else ''
        _need(right and (module == 'typing' or first == Name('_operator', 'or_')), 'type')
        return Inert(of, (first, second))

    return make


def _type(value: Any) -> type:
    _need(value is None or value is ... or value is NotImplemented, 'type')
    return type(value)


def _namespace(kind: type) -> Callable[..., Any]:
    def make(**attributes: Any) -> Any:
        made = kind()
        _set_attributes(made, attributes)
        return made

    return make


def _version(text: Any) -> str:
    """Make a string of ``torch.__version__``, which has a class of its own."""
    _need(type(text) is str, 'version')
    return text


def _history() -> HistoryBuffer:
    history = HistoryBuffer.__new__(HistoryBuffer)
    _set_history(history, {})
    return history


# Functions that set the state of a value.


def _set_history(history: HistoryBuffer, state: Any) -> None:
    """Set two rows of numbers of mmengine's log history; its statistics are this process's."""
    _need(isinstance(state, dict), 'HistoryBuffer')
    values, counts = (state.get(key, np.array([])) for key in ('_log_history', '_count_history'))
    longest = state.get('max_length', 1_000_000)
    _need(type(longest) is int and 0 < longest, 'HistoryBuffer')
    for row in (values, counts):
        _need(isinstance(row, np.ndarray) and row.ndim == 1, 'HistoryBuffer')
        _need(row.dtype.kind in 'biuf' and len(row) == len(values) <= longest, 'HistoryBuffer')
    rows = dict(_log_history=values.view(np.ndarray), _count_history=counts.view(np.ndarray))
    vars(history).update(max_length=longest, **rows)


def _set_attributes(target: Any, state: Any) -> None:
    _need(isinstance(state, dict), 'namespace')
    # With special names among its attributes, an object would not behave as its class does.
    _need(all(isinstance(key, str) and not key.startswith('__') for key in state), 'namespace')
    vars(target).update(state)


def _set_metadata(target: OrderedDict, state: Any) -> None:
    """Set ``_metadata`` of a state dict: the version of each module."""
    modules: Any = state.get('_metadata') if isinstance(state, dict) else None
    _need(isinstance(modules, dict) and len(state) == 1, 'state dict')
    for metadata in modules.values():
        version = metadata.get('version') if isinstance(metadata, dict) else ''
        _need(isinstance(version, (int, type(None))), 'state dict')
    vars(target).update(_metadata=modules)


STATES: dict[type, Callable[[Any, Any], Any]] = {
    Inert: Inert.__setstate__,
    InertDict: InertDict.__setstate__,
    PickledArray: PickledArray.__setstate__,
    PickledDtype: PickledDtype.__setstate__,
    PickledNumberDtype: PickledDtype.__setstate__,
    HistoryBuffer: _set_history,
    OrderedDict: _set_metadata,
    argparse.Namespace: _set_attributes,
    types.SimpleNamespace: _set_attributes,
}
"""Class of a value -> function that sets its state. If it returns a value, that replaces it."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{'.'.join(name): function for name, function in GLOBALS.items()},
    '_functools.reduce': _annotation(Name('_functools', 'reduce')),
    '_operator.getitem': _annotation(Name('_operator', 'getitem')),
    'argparse.Namespace': _namespace(argparse.Namespace),
    'builtins.bytearray': _bytearray,
    'builtins.bytes': _bytes,
    'builtins.complex': _complex,
    'builtins.getattr': _getattr,
    'builtins.range': _integers(range),
    'builtins.slice': _integers(slice),
    'builtins.type': _type,
    'collections.deque': _deque,
    'copy.copy': _copy,
    'copyreg._reconstructor': _reconstructor,
    'datetime.date': _date,
    'datetime.datetime': _datetime,
    'datetime.time': _time,
    'datetime.timedelta': _timedelta,
    'datetime.timezone': _timezone,
    'functools.reduce': _annotation(Name('_functools', 'reduce')),
    'mmengine.logging.history_buffer.HistoryBuffer': _history,
    'torch.torch_version.TorchVersion': _version,
    'zoneinfo.ZoneInfo._unpickle': _zone,
    'types.SimpleNamespace': _namespace(types.SimpleNamespace),
}
"""``module.name`` -> function that makes the result of its call."""

for _module in ('pathlib', 'pathlib._local'):
    for _kind in (pathlib.PurePosixPath, pathlib.PureWindowsPath):
        FUNCTIONS[f'{_module}.{_kind.__name__}'] = _path(_kind)
    FUNCTIONS[f'{_module}.PosixPath'] = _path(pathlib.Path)
    FUNCTIONS[f'{_module}.WindowsPath'] = _path(pathlib.PureWindowsPath)

_EMPTY = (
    'argparse.Namespace',
    'types.SimpleNamespace',
    'mmengine.logging.history_buffer.HistoryBuffer',
)

CONSTANTS: dict[tuple[str, str], Any] = {
    ('builtins', 'Ellipsis'): Ellipsis,
    ('builtins', 'NotImplemented'): NotImplemented,
    **{('numpy', kind.__name__): kind for kind in np.sctypeDict.values()},
}
"""Names that are values, not calls."""
