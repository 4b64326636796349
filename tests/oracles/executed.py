"""Count the residual sums of a forward pass from tables of classes.

A table has an entry per class whose ``forward`` ends a residual block: how many such sums
one call executes, as a number or as a function of the module's configuration. The numbers
were read from the sources of the libraries. How often each module is called is counted by
hooks while the network runs; what its tensors are, nobody looks at.

A residual sum is ``shortcut + branch``. The shortcut is the running stream, perhaps through
views, or a projection of it. The branch is computed from the stream by the block. Not
counted are added parameters, sums of parallel paths, gates, top-down paths of pyramids, and
sums inside the branch of another block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

Entry = int | Callable[[nn.Module], int]
Table = Mapping[str, Entry]


def flag(name: str) -> Callable[[nn.Module], int]:
    """One sum if an attribute is true."""
    return lambda module: int(bool(getattr(module, name)))


def has(name: str, others: int = 0) -> Callable[[nn.Module], int]:
    """One sum more than ``others`` if an attribute is not None."""
    return lambda module: others + int(getattr(module, name) is not None)


def qualified(cls: type) -> str:
    """The last part of the module's path, and the class: ``resnet.Bottleneck``."""
    return f'{cls.__module__.rpartition(".")[2]}.{cls.__name__}'


def sums_of(module: nn.Module, table: Table) -> int:
    """The residual sums of one call, without those of children that have an entry.

    Raises:
        ValueError: The class overrides the ``forward`` that its entry was read from.
    """
    for cls in type(module).__mro__:
        if qualified(cls) in table:
            if type(module).forward is not cls.forward:
                raise ValueError(f'{qualified(type(module))} has a forward of its own')
            entry = table[qualified(cls)]
            return entry(module) if callable(entry) else entry
    return 0


@contextmanager
def counting(model: nn.Module, table: Table) -> Iterator[Counter[str]]:
    """Count the residual sums that are executed in the block: module path -> number."""
    counts: Counter[str] = Counter()
    hooks = []

    def watch(name: str, module: nn.Module, number: int) -> None:
        def count(*_: object) -> None:
            counts[name] += number

        hooks.append(module.register_forward_hook(count))

    try:
        for name, module in model.named_modules():
            number = sums_of(module, table)
            if number:
                watch(name, module, number)
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
