"""Registries of scope ``nf_plugins``, children of mmengine's root registries.

A module registered here is found under two names in every OpenMMLab library:

- ``type='nf_plugins.NFResNet'`` works by itself: mmengine imports this file by
  its name, and :attr:`locations` makes it import the modules;
- ``type='NFResNet'`` works once ``nf_plugins`` is imported (``custom_imports``),
  because the module is entered into the root registry too, where every
  library's own registry looks last. Where another package has taken the bare
  name, a warning says so, and the bare name stays that package's.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine import registry as root


class Registry(root.Registry):
    """A registry that also enters its modules into its parent."""

    def _register_module(self, module: type, module_name: Any = None, force: bool = False) -> None:
        names = module.__name__ if module_name is None else module_name
        for name in [names] if isinstance(names, str) else names:
            before = self._module_dict.get(name)
            # A reloaded module defines the same thing again.
            super()._register_module(module, name, force or _same_source(before, module))
            taken = self.parent._module_dict.get(name)
            if taken is None or taken is before or force:
                self.parent._register_module(module, name, force=True)
            elif taken is not module:
                warnings.warn(
                    f"type='{name}' is of another package ({taken.__module__}); "
                    f"for that of {self.scope} write type='{self.scope}.{name}'",
                    stacklevel=2,
                )


@contextmanager
def first_come() -> Iterator[None]:
    """Let a library be imported some of whose bare names another package has taken.

    mmcv would fail to be imported, and with it everything here. The names stay the other
    package's, and a warning says which.
    """
    register = root.Registry._register_module

    def register_free(self: Any, module: Any, module_name: Any = None, force: bool = False) -> None:
        names = module.__name__ if module_name is None else module_name
        for name in [names] if isinstance(names, str) else names:
            taken = None if force else self._module_dict.get(name)
            if taken is None:
                register(self, module, name, force)
            else:
                warnings.warn(
                    f"type='{name}' is of another package ({taken.__module__}), and not that of "
                    f'{module.__module__}',
                    stacklevel=2,
                )

    root.Registry._register_module = register_free
    try:
        yield
    finally:
        root.Registry._register_module = register


def _same_source(first: Any, second: Any) -> bool:
    """Whether two objects were defined by the same line of a module that was reloaded."""
    return first is not None and (
        (first.__module__, first.__name__) == (second.__module__, second.__name__)
    )


def _child(name: str, location: str) -> Registry:
    parent = getattr(root, name)
    if 'nf_plugins' in parent.children:  # this file is reloaded
        return parent.children['nf_plugins']
    return Registry(
        parent.name, parent=parent, scope='nf_plugins', locations=[f'nf_plugins.{location}']
    )


MODELS = _child('MODELS', 'models')
DATASETS = _child('DATASETS', 'datasets')
DATA_SAMPLERS = _child('DATA_SAMPLERS', 'datasets')
HOOKS = _child('HOOKS', 'engine')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS', 'engine')


def class_of(kind: Any, registry: root.Registry = root.MODELS) -> type | None:
    """Find the class that the ``type`` of a config means, or None.

    Args:
        kind: A class, as in lazy configs; or a name: bare (``'ReLU'``), with a scope
            (``'nf_plugins.ScaledWS'``, ``'mmcv.Swish'``), or the whole import path
            (``'torch.nn.ReLU'``), which mmengine writes when it dumps a lazy config.
        registry: One of mmengine's root registries, to find names in.

    Example:
        >>> class_of('torch.nn.ReLU') is class_of('ReLU')
        True
    """
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(None) as scoped:
            kind = scoped.get(kind) or scoped.get(kind.removeprefix('mmcv.'))
    return kind if inspect.isclass(kind) else None


def type_name(kind: Any) -> str:
    """The ``type`` of a config as a name: a class's own, or the string as it stands.

    Example:
        >>> type_name(Registry), type_name('mmseg.LoadAnnotations')
        ('Registry', 'mmseg.LoadAnnotations')
    """
    return getattr(kind, '__name__', str(kind))


class RuleRegistry(root.Registry, Mapping):
    """The rules of the diagnosis: a mapping from name to function, in the order of the report."""

    def _register_module(self, module: Any, module_name: Any = None, force: bool = False) -> None:
        before = self._module_dict.get(module_name or module.__name__)
        super()._register_module(module, module_name, force or _same_source(before, module))

    def __getitem__(self, name: str) -> Callable:
        self.import_from_location()
        return self.module_dict[name]

    def __iter__(self) -> Iterator[str]:
        self.import_from_location()
        return iter(self.module_dict)


RULES = RuleRegistry('SPP rule', scope='nf_plugins', locations=['nf_plugins.spp.rules'])
