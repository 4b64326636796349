"""What a network is called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses, in their order.

    Example:
        >>> import torch
        >>> [x.numel() for x in tensors_in({'a': [torch.zeros(1), 2], 'b': (torch.zeros(3),)})]
        [1, 3]
    """
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        value = [value[key] for key in value]
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, spec.name, None) for spec in fields(value)]
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


@dataclass(frozen=True)
class Arguments:
    """What a network is called with.

    Args:
        args: The positional arguments.
        kwargs: The named arguments.
    """

    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any) -> Arguments:
        """Return a tuple as positional arguments, a mapping as named ones, all else as the one."""
        if isinstance(inputs, Mapping):
            return cls((), {**inputs})
        return cls(inputs if type(inputs) is tuple else (inputs,))

    def tensors(self) -> list[Tensor]:
        """Return the tensors among the arguments."""
        return list(tensors_in((self.args, self.kwargs)))

    @property
    def batch(self) -> tuple[int, torch.device]:
        """Samples in the batch, and their device."""
        tensors = self.tensors()
        first = next((x for x in tensors if x.dim()), tensors[0])
        return len(first) if first.dim() else 1, first.device

    def map(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """Return the arguments with other tensors in place of theirs."""
        args, kwargs = tree_map_only(Tensor, change, (self.args, self.kwargs))
        return Arguments(args, kwargs)

    def pass_to(self, model: nn.Module) -> Any:
        """Call a network with them."""
        return model(*self.args, **self.kwargs)

    def __str__(self) -> str:
        named = [f'{name}={describe(value)}' for name, value in self.kwargs.items()]
        return f'({", ".join([*map(describe, self.args), *named])})'


def describe(value: Any) -> str:
    """Say what a value is, in a few words.

    Example:
        >>> import torch
        >>> describe([torch.zeros(2, 3), 7, {'a': None}])
        '[float32 2x3, 7, {a: None}]'
    """
    if isinstance(value, Tensor):
        shape = 'x'.join(map(str, value.shape)) or 'number'
        return f'{str(value.dtype).removeprefix("torch.")} {shape}'
    if isinstance(value, Mapping):
        pairs = [f'{key}: {describe(item)}' for key, item in [*value.items()][:8]]
        return f'{{{", ".join(pairs)}{", ..." * (len(value) > 8)}}}'
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(map(describe, value[:4]))}{", ..." * (len(value) > 4)}]'
    if isinstance(value, (bool, int, float, type(None))):
        return repr(value)
    return type(value).__name__


def parameters_of(model: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of a network's forward method; none where it does not say them."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # a traced model
        return []
