"""What the analysis must be told about a library, as it cannot be seen in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from .arguments import Arguments


@dataclass(frozen=True)
class Expectation:
    """What a normalizer-free block is made for.

    Args:
        alpha: What the end of the branch is multiplied with.
        var: Variance at the output; None where the block does not say it.
    """

    alpha: float
    var: float | None = None

    def output_var(self, before: float | None, identity: bool) -> float | None:
        """Return the variance at the output.

        Args:
            before: The variance that the block reads, None if unknown.
            identity: Whether the shortcut is the identity; a projection starts again at 1.
        """
        if self.var is not None or before is None:
            return self.var
        return (before if identity else 1.0) + self.alpha**2


class Adapter:
    """What is known of one library; a class without any attribute of its own knows nothing.

    All adapters are asked about every network, since networks have parts of several libraries.
    An adapter recognises what is its library's by attributes and names of classes, and imports
    the library only in a method that has seen that it is there.
    """

    random_depth: ClassVar[tuple[str, ...]] = ()
    """Names of classes that drop whole branches, in lower case and without underscores.

    A class with a longer name that ends so is one, too, if it has no submodules and no parameters.
    """

    switched_off: ClassVar[tuple[str, ...]] = ()
    """Attributes of modules that are set from True to False while one measures."""

    not_gains: ClassVar[tuple[str, ...]] = ()
    """Patterns of the names of vectors that scale nothing: they are added, or are tokens."""

    image_sizes: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Transform -> the argument that says how large its images are, and its order, hw or wh."""

    def unwrap(self, model: Any) -> nn.Module | None:
        """Return the network inside a wrapper (compiled, parallel, averaged), None without one."""
        return None

    def fed(self, model: nn.Module) -> nn.Module | None:
        """Return the part of a whole model that images are fed to, None where it is the model."""
        return None

    def prepare(
        self, model: nn.Module, batch: int, device: torch.device
    ) -> list[tuple[Any, str, Any]]:
        """Return what else is set while one measures: objects, their attributes, the values.

        Args:
            model: The network.
            batch: Images of the batch.
            device: Where they are.
        """
        return []

    def call(self, model: nn.Module, inputs: Any) -> Arguments | None:
        """Return the arguments of a call, None for ``model(inputs)`` or ``model(**inputs)``.

        Args:
            model: The network, in the mode in which it is measured.
            inputs: What the user has given: a tensor, a tuple, a dict, a batch of the library.
        """
        return None

    def expectation(self, block: nn.Module) -> Expectation | None:
        """Return what a normalizer-free block is made for, None for any other module."""
        return None
