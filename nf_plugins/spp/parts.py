"""The modules of a network, listed once for a whole analysis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn


class Parts:
    """The modules of a network by their paths, and what they hold at the moment.

    Args:
        model: The network.

    Attributes:
        modules: The pairs of ``model.named_modules()``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules: list[tuple[str, nn.Module]] = list(model.named_modules())

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the pairs of ``model.named_parameters()``."""
        return list(self._held('_parameters'))

    def buffers(self) -> list[tuple[str, Tensor]]:
        """Return the pairs of ``model.named_buffers()``."""
        return list(self._held('_buffers'))

    def shares(self) -> bool:
        """Tell whether a module or a parameter is in two places."""
        children = [x for _, m in self.modules for x in m._modules.values() if x is not None]
        held = [x for _, m in self.modules for x in m._parameters.values() if x is not None]
        return len(children) >= len(self.modules) or len(held) > len(set(map(id, held)))

    def _held(self, kind: str) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, module in self.modules:
            for name, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f'{path}.{name}' if path else name, tensor


_listed: ContextVar[Parts | None] = ContextVar('listed', default=None)


def parts_of(model: nn.Module) -> Parts:
    """Return the parts of a network: those of :func:`listed`, if it is the same one."""
    known = _listed.get()
    return known if known is not None and known.model is model else Parts(model)


@contextmanager
def listed(model: nn.Module) -> Iterator[None]:
    """List the modules of a network once for all functions that are called in the block."""
    before = _listed.set(Parts(model))
    try:
        yield
    finally:
        _listed.reset(before)
