"""Stand-ins for the objects that a pickle names: plain data with a name and its arguments.

While a file is read, nothing that it names is called, imported or looked up. A stand-in is
pickled under the original name. So if a checkpoint is read and saved, the new file contains the
original objects.
"""

from __future__ import annotations

import argparse
import copy
import copyreg
import enum
import fnmatch
import importlib
import inspect
import re
import reprlib
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex

import numpy as np


class Name:
    """Stand-in for a function or a class; a pickle only contains its name.

    Args:
        module: Its module.
        qualname: Its name in the module.
    """

    __slots__ = ('module', 'qualname')

    def __init__(self, module: str, qualname: str) -> None:
        self.module, self.qualname = module, qualname

    @property
    def name(self) -> str:
        """The module and the name in it."""
        return f'{self.module}.{self.qualname}'

    def __repr__(self) -> str:
        return f'Name({self.name!r})'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Name) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __copy__(self) -> Name:
        return self

    def __deepcopy__(self, memo: dict) -> Name:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        found = find(self)
        # A pickle can only contain a name as part of a call. copy.copy is a function that
        # returns a function or a class unchanged.
        return _plain(name=self.name) if found is None else (copy.copy, (found,))


_RECONSTRUCTOR = copyreg._reconstructor  # type: ignore[attr-defined]  # a name used in pickles


class Inert:
    """Stand-in for the object that a call would have returned.

    Args:
        of: The function or class.
        args: Arguments of the call.
        kwargs: Keyword arguments of the call.
        new: Whether the pickle makes the object without ``__init__``, as pickles usually do.
    """

    __slots__ = ('args', 'items', 'kwargs', 'new', 'of', 'pairs', 'state')

    def __init__(self, of: Name, args: tuple = (), kwargs: dict | None = None, new: bool = False):
        self.of, self.args, self.kwargs, self.new = of, args, kwargs or {}, new
        self.state: Any = None
        self.items: list = []
        self.pairs: list[tuple] = []

    @property
    def name(self) -> str:
        """The module and the name in it."""
        return self.of.name

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        parts = [repr(self.name), *map(repr, self.args)]
        parts += [f'{key}={value!r}' for key, value in self.kwargs.items()]
        parts += [f'state={self.state!r}'] if self.state is not None else []
        return f'Inert({", ".join(parts)})'

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __copy__(self) -> Inert:
        return self.__deepcopy__({}, copier=lambda value, memo: value)

    def __deepcopy__(self, memo: dict, copier: Any = copy.deepcopy) -> Inert:
        # Without this method, copy would call the function or class that the file names.
        twin = Inert(self.of, copier(self.args, memo), copier(self.kwargs, memo), self.new)
        memo[id(self)] = twin  # the state may refer to the object, as in omegaconf's nodes
        twin.state = copier(self.state, memo)
        twin.items = list(copier(self.items, memo))
        twin.pairs = list(copier(self.pairs, memo))
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        target = find(self.of)
        if target is None or self.kwargs:
            parts = dict(args=self.args, kwargs=self.kwargs, state=self.state, items=self.items)
            return _plain(name=self.name, **{k: v for k, v in parts.items() if v})
        items, pairs = (iter(part) if part else None for part in (self.items, self.pairs))
        more = (self.state, items, pairs)
        if self.new and not self.args:
            return _RECONSTRUCTOR, (target, object, None), *more
        return target, self.args, *more


FACTORIES = {
    Name(kind.__module__, kind.__name__): kind
    for kind in (bool, int, float, str, list, tuple, dict, set, deque, OrderedDict, Counter)
}
"""Name of a factory in a file -> the factory that a stand-in of a ``defaultdict`` uses."""


class InertDict(dict):
    """Stand-in for a subclass of dict, such as mmengine's ``ConfigDict``; it is a dict itself."""

    __slots__ = ('args', 'of', 'state')

    def __init__(self, of: Name, args: tuple = ()) -> None:
        super().__init__()
        if args and isinstance(args[-1], Mapping):
            self.update(args[-1])
            args = args[:-1]
        self.of, self.args = of, args
        self.state: Any = None

    @property
    def name(self) -> str:
        """The module and the name in it."""
        return self.of.name

    @property
    def factory(self) -> type | None:
        """The factory for missing keys; None if it is no ``defaultdict`` of plain data."""
        named = self.name == 'collections.defaultdict' and [*map(type, self.args)] == [Name]
        return FACTORIES.get(self.args[0]) if named else None

    def __missing__(self, key: Any) -> Any:
        if self.factory is None:
            raise KeyError(key)
        return self.setdefault(key, self.factory())

    def __setstate__(self, state: Any) -> None:
        if state is not self:  # the state of addict's dicts is the dict itself
            self.state = state

    def __copy__(self) -> InertDict:
        return self.__deepcopy__({}, copier=lambda value, memo: value)

    def __deepcopy__(self, memo: dict, copier: Any = copy.deepcopy) -> InertDict:
        twin = InertDict(self.of, (*copier(self.args, memo), {}))
        memo[id(self)] = twin
        twin.update({key: copier(value, memo) for key, value in self.items()})
        twin.state = copier(self.state, memo)
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        target = find(self.of)
        if target is None:
            return OrderedDict, (), None, None, iter(self.items())
        if target is defaultdict:  # args contain the factory, if there is one
            return target, self.args, None, None, iter(self.items())
        return target, (*self.args, dict(self)), self.state or None


def _plain(**content: Any) -> tuple:
    """Return how a stand-in is pickled if this process does not know its name: as a dict."""
    return OrderedDict, (), None, None, iter(content.items())


DICTS = {
    'collections:defaultdict',
    'addict.addict:Dict',
    'mmengine.config.config:ConfigDict',
    'mmcv.utils.config:ConfigDict',
    'yacs.config:CfgNode',
    'fvcore.common.config:CfgNode',
    'detectron2.config.config:CfgNode',
    'easydict:EasyDict',
    'easydict.easydict:EasyDict',
    'munch:*Munch',
    'munch.munch:*Munch',
    'box.box:Box',
    'pytorch_lightning.*:AttributeDict',
    'lightning.*:AttributeDict',
    'lightning_fabric.*:AttributeDict',
}
"""Names that are read as :class:`InertDict`: ``module:name``; ``*`` matches any text."""

INERT_NAMES = {
    'array:_array_reconstructor',
    'array:array',
    'collections:ChainMap',
    'collections:User*',
    'decimal:Decimal',
    'fractions:Fraction',
    'functools:partial',
    'ipaddress:IPv[46]*',
    'packaging.*:[A-Z]*',
    'random:Random',
    're:_compile',
    'types:GenericAlias',
    'typing:[A-Z]*',
    'uuid:UUID',
    'numpy.polynomial.*:[A-Z]*',
    'zoneinfo:ZoneInfo',
    'pytz:_[Up]*',
    'dateutil.tz.tz:tz*',
    'pandas._libs.tslibs.timestamps:_unpickle_timestamp',
    'numpy.ma.*:_mareconstruct',
    'numpy.ma:_mareconstruct',
    'numpy.ma.core:MaskedConstant',
    'numpy:poly1d',
    'numpy.random._pickle:__*_ctor',
    'numpy.random.*:__pyx_unpickle_*',
    'numpy.random.*:[A-Z]*',
    'torchvision.transforms.*:InterpolationMode',
    'omegaconf.*:[A-Z]*',
    'mmengine.config.*:[A-Z]*',
    'mmcv.utils.config:Config',
    'ml_collections.*:[A-Z]*',
    'box.*:[A-Z]*',
    'torch._C:Generator',
}
"""Names that are read as :class:`Inert`: ``module:name``; ``*`` matches any text. A stand-in is
pickled under its name, so each name must also be harmless when it is called. More names can be
added: ``INERT_NAMES.add('mypackage.options:Options')``."""


def _listed(of: Name, names: set[str]) -> bool:
    text = f'{of.module}:{of.qualname}'
    return '.' not in of.qualname and any(fnmatch.fnmatchcase(text, entry) for entry in names)


def stand_in(of: Name, args: tuple, kwargs: dict | None = None, new: bool = False) -> Any:
    """Make the stand-in for a call of ``of``; None if the call is not known to be harmless.

    If ``of`` is an enumeration that this process has, the result is its member with this value.
    """
    if _listed(of, DICTS) and not kwargs:
        return InertDict(of, args)
    if _listed(of, INERT_NAMES):
        return Inert(of, args, kwargs, new)
    if not kwargs and len(args) == 1 and isinstance(args[0], (str, int, float, bytes, type(None))):
        known = _loaded(of)
        if isinstance(known, enum.EnumMeta):
            return known._value2member_map_.get(args[0], Inert(of, args))
        # It looks like an enumeration of a missing package: a class name and one plain value.
        foreign = of.module.partition('.')[0] not in sys.stdlib_module_names
        if known is None and (foreign or of.module == '__main__') and _is_class_name(of.qualname):
            return Inert(of, args)
    return None


def _is_class_name(text: str) -> bool:
    return re.fullmatch(r'[A-Z]\w*', text) is not None


def _loaded(of: Name) -> Any:
    """Look up a name in the modules that are already loaded; None if it is not there."""
    found: Any = sys.modules.get(of.module)
    for part in of.qualname.split('.'):
        found = inspect.getattr_static(found, part, None)
    return found.__func__ if isinstance(found, staticmethod) else found


def find(of: Name) -> Any:
    """Find the class or function as which a stand-in is pickled, or None.

    Only modules that are already loaded, and those of the listed names, are searched.
    """
    listed = _listed(of, INERT_NAMES) or _listed(of, DICTS)
    if listed and of.module not in sys.modules:
        try:
            importlib.import_module(of.module)
        except Exception:  # it is not installed, or broken
            return None
    found = _loaded(of)
    if of.module in ('typing', 'builtins') and found is not None:
        return found
    same = getattr(found, '__qualname__', None) == of.qualname
    known = listed or isinstance(found, (type, types.FunctionType, types.BuiltinFunctionType))
    return found if known and same and found.__module__ == of.module else None


def contents(value: Any) -> Iterator[Any]:
    """Yield the content of a container or a stand-in; other values have no content."""
    if isinstance(value, dict):
        yield from value
        yield from value.values()
        if isinstance(value, InertDict):
            yield from (value.args, value.state)
        elif isinstance(value, OrderedDict):
            yield from vars(value).values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from value
    elif isinstance(value, Inert):
        yield from (value.args, value.kwargs, value.state, value.items, value.pairs)
    elif isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        yield from vars(value).values()
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    elif isinstance(value, np.ndarray) and value.dtype.kind == 'O':
        yield from value.ravel().tolist()


def holds_stand_in(value: Any) -> bool:
    """Return whether a value contains a stand-in that cannot be used as the original object."""
    if isinstance(value, (Name, Inert)):
        return True
    return any(holds_stand_in(part) for part in contents(value))


def without_stand_ins(state: dict) -> dict:
    """Remove functions and classes from the state of a parameter scheduler.

    A scheduler of mmengine sets all entries of its state as attributes
    (``self.__dict__.update(state)``). A function that it has from its config, such as the
    ``anneal_func`` of OneCycleLR, must not be replaced by a stand-in.
    """
    return {key: value for key, value in state.items() if not holds_stand_in(value)}
