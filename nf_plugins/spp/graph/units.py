"""Modules to measure where a network has no residual addition."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from .nodes import Node
from .residuals import Residual


@dataclass(eq=False)
class Unit:
    """A module without a residual addition that ran: one of several alike, or a stage."""

    name: str
    kind: type
    repeated: bool
    shape: tuple[int, ...]
    node: Node
    measured_output: Any = None


def repeated_modules(names: dict[nn.Module, str]) -> set[nn.Module]:
    """Modules like others: beside one of their class in a container, or several weights large."""
    found: set[nn.Module] = set()
    kinds = Counter(type(module) for module in names)
    for module in names:
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            beside = Counter(type(child) for child in module)
            found.update(child for child in module if beside[type(child)] > 1)
        elif kinds[type(module)] > 1 and next(module.children(), None) is not None:
            weights = (p for p in module.parameters() if p.dim() > 1)
            if len(list(itertools.islice(weights, 2))) > 1:
                found.add(module)
    return found


def has_weights(module: nn.Module) -> bool:
    """Whether a module has a parameter of at least two dimensions."""
    return any(p.dim() > 1 for p in module.parameters())


def plain_units(
    units: list[Unit], residuals: list[Residual], modules: dict[str, nn.Module]
) -> list[Unit]:
    """Modules to measure that have no residual addition.

    Beside residual blocks these are the modules of the same classes (an inverted
    residual that changes the shape). Without any residual block they are the outermost
    repeated modules that are more than a sequence of others, else the stages.
    """
    if residuals:
        classes = {type(modules[r.name]) for r in residuals if r.name in modules}
        names = {r.name for r in residuals}  # of a block in the network's own forward method
        return [unit for unit in units if unit.kind in classes and unit.name not in names]
    chosen = [u for u in units if u.repeated and not _is_sequence(modules[u.name])]
    if len(chosen) < 2:
        chosen = [u for u in units if '.' not in u.name] or units
    names = {u.name for u in chosen}

    def nested(name: str) -> bool:
        return any(name.startswith(f'{outer}.') for outer in names)

    return [u for u in chosen if not nested(u.name)]


def _is_sequence(module: nn.Module) -> bool:
    children = list(module.children())
    if isinstance(module, nn.Sequential):
        return True
    return len(children) == 1 and isinstance(children[0], (nn.Sequential, nn.ModuleList))
