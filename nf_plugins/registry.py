"""Registries of scope ``nf_plugins``, children of mmengine's root registries.

Every OpenMMLab library finds a module that is registered here under two names:

- ``type='nf_plugins.NFResNet'`` needs no import in the config: mmengine imports this file
  by its name, and then the modules in :attr:`locations`.
- ``type='NFResNet'`` works after ``nf_plugins`` is imported (``custom_imports``). The module
  is also in the root registry, which every library's registry searches last. If another
  package has taken the bare name, a warning says so, and the name stays with that package.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine import registry as root


class Registry(root.Registry):
    """A registry that also registers its modules in its parent."""

    def _register_module(self, module: type, module_name: Any = None, force: bool = False) -> None:
        names = module.__name__ if module_name is None else module_name
        for name in [names] if isinstance(names, str) else names:
            before = self._module_dict.get(name)
            # A reloaded module defines the same class once more.
            super()._register_module(module, name, force or _same_source(before, module))
            taken = self.parent._module_dict.get(name)
            if taken is None or taken is before or force:
                self.parent._register_module(module, name, force=True)
            elif taken is not module:
                warnings.warn(
                    f"type='{name}' belongs to another package ({taken.__module__}); "
                    f"for the one of {self.scope} write type='{self.scope}.{name}'",
                    stacklevel=2,
                )


@contextmanager
def first_come() -> Iterator[None]:
    """Allow the import of a library when another package has already registered its names.

    Without this the import of mmcv would fail, and then the import of this package. The other
    package keeps the names, and a warning lists them.
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
                    f"type='{name}' belongs to another package ({taken.__module__}), not to "
                    f'{module.__module__}',
                    stacklevel=2,
                )

    root.Registry._register_module = register_free
    try:
        yield
    finally:
        root.Registry._register_module = register


def _same_source(first: Any, second: Any) -> bool:
    """Return whether two objects have the same module and name: the module was reloaded."""
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
    """Find the class that the ``type`` of a config means.

    Args:
        kind: A class, as in lazy configs, or a name. The name is bare (``'ReLU'``), has a
            scope (``'nf_plugins.ScaledWS'``, ``'mmcv.Swish'``), or is an import path
            (``'torch.nn.ReLU'``), which mmengine writes when it dumps a lazy config.
        registry: One of mmengine's root registries, where names are looked up.

    Returns:
        The class, or None if there is none.

    Example:
        >>> class_of('torch.nn.ReLU') is class_of('ReLU')
        True
    """
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(None) as scoped:
            kind = scoped.get(kind) or scoped.get(kind.removeprefix('mmcv.'))
    return kind if inspect.isclass(kind) else None


def type_name(kind: Any) -> str:
    """Return the ``type`` of a config as a string; for a class, its name.

    Example:
        >>> type_name(Registry), type_name('mmseg.LoadAnnotations')
        ('Registry', 'mmseg.LoadAnnotations')
    """
    return getattr(kind, '__name__', str(kind))


class OrderedRegistry(root.Registry, Mapping):
    """A mapping from name to function or class, in the order in which they were registered."""

    def _register_module(self, module: Any, module_name: Any = None, force: bool = False) -> None:
        before = self._module_dict.get(module_name or module.__name__)
        super()._register_module(module, module_name, force or _same_source(before, module))

    def __getitem__(self, name: str) -> Callable:
        self.import_from_location()
        return self.module_dict[name]

    def __iter__(self) -> Iterator[str]:
        self.import_from_location()
        return iter(self.module_dict)


RULES = OrderedRegistry('SPP rule', scope='nf_plugins', locations=['nf_plugins.spp.rules'])
ADAPTERS = OrderedRegistry('SPP adapter', scope='nf_plugins', locations=['nf_plugins.spp.adapters'])
