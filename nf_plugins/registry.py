"""Registries of scope ``nf_plugins``, children of mmengine's root registries.

A module registered here is found under two names in every OpenMMLab library:

- ``type='nf_plugins.NFResNet'`` works by itself: mmengine imports this file by
  its name, and :attr:`locations` makes it import the modules;
- ``type='NFResNet'`` works once ``nf_plugins`` is imported (``custom_imports``),
  because the module is entered into the root registry too, where every
  library's own registry looks last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmengine import registry as root


class Registry(root.Registry):
    """A registry that also enters its modules into its parent."""

    def _register_module(self, module: type, module_name: Any = None, force: bool = False) -> None:
        super()._register_module(module, module_name, force)
        self.parent._register_module(module, module_name, force)


def _child(name: str, location: str) -> Registry:
    parent = getattr(root, name)
    return Registry(
        parent.name, parent=parent, scope='nf_plugins', locations=[f'nf_plugins.{location}']
    )


MODELS = _child('MODELS', 'models')
DATASETS = _child('DATASETS', 'datasets')
HOOKS = _child('HOOKS', 'engine')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'engine')


class RuleRegistry(root.Registry, Mapping):
    """The rules of the diagnosis: a mapping from name to function, in the order of the report."""

    def __getitem__(self, name: str) -> Callable:
        self.import_from_location()
        return self.module_dict[name]

    def __iter__(self) -> Iterator[str]:
        self.import_from_location()
        return iter(self.module_dict)


RULES = RuleRegistry('SPP rule', scope='nf_plugins', locations=['nf_plugins.spp.rules'])
