"""The table of tools: what each does with a network, and what is right.

A tool is a function of a :class:`~.case.Case` that gives pairs of what the tool makes and what
it should make, from the formulas, from a network of PyTorch's own layers, or counted by hand.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..conftest import relative_error
from .case import Case, make_case

RIGHT = 'right'
REFUSED = 'refused'
"""An error that names :func:`nf_plugins.fold`."""

FORMS = ('unfolded', 'folded', 'folded, SAME')
"""The columns. In the last one a convolution of stride 2 has ``padding='same'``."""

Pairs = list[tuple[Tensor | float, Tensor | float]]
Outcome = str | tuple[float, float]


@dataclass(frozen=True)
class Tool:
    """A row of the table.

    Attributes:
        group: What kind of tool.
        name: The tool, as the page shows it.
        apply: Gives pairs of a result and what is right.
        outcomes: For each of :data:`FORMS`: RIGHT, REFUSED, a part of the message of the tool's
            own error, or the least and the largest relative error of a wrong result.
        tolerance: Largest relative error of a right result.
        slow: Whether the test is one of the slow ones.
        dtype: Of the network. In float64 where a tool divides by numbers near zero.
    """

    group: str
    name: str
    apply: Callable[[Case], Pairs]
    outcomes: dict[str, Outcome]
    tolerance: float
    slow: bool
    dtype: torch.dtype


TOOLS: list[Tool] = []


def tool(
    group: str,
    name: str,
    unfolded: Outcome = RIGHT,
    folded: Outcome = RIGHT,
    same: Outcome | None = None,
    tolerance: float = 1e-5,
    slow: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Callable:
    """Add a function to the table. Outcomes are right unless it is said otherwise."""

    def add(apply: Callable[[Case], Pairs]) -> Callable:
        outcomes = dict(zip(FORMS, (unfolded, folded, folded if same is None else same)))
        TOOLS.append(Tool(group, name, apply, outcomes, tolerance, slow, dtype))
        return apply

    return add


def case_of(row: Tool, layer: str, form: str) -> Case:
    """The network of a cell."""
    return make_case(layer, form != 'unfolded', 'same' if 'SAME' in form else 1, row.dtype)


def error_of(found: Tensor | float, expected: Tensor | float) -> float:
    """The relative error: of a tensor in the 2-norm."""
    if isinstance(expected, Tensor):
        assert found.shape == expected.shape
        return relative_error(found.double(), expected.double())
    return abs(found - expected) / abs(expected)


def outcome_of(row: Tool, case: Case, said: Outcome) -> str | float:
    """What a tool does: RIGHT, REFUSED, its own error if that is said, or the error of a result."""
    try:
        with quiet():
            pairs = row.apply(case)
    except Exception as error:
        if 'nf_plugins.fold(model)' in str(error):
            return REFUSED
        if isinstance(said, str) and said not in (RIGHT, REFUSED) and said in str(error):
            return said
        raise
    assert pairs
    error = max(error_of(*pair) for pair in pairs)
    return RIGHT if error <= row.tolerance else error


@contextmanager
def quiet() -> Iterator[None]:
    """Other people's tools warn and print."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        yield


@torch.no_grad()
def outputs(case: Case, *nets: nn.Module | Callable) -> Pairs:
    """Pairs of what a network gives, and what it should give."""
    return [(net(case.x), case.expected) for net in nets]
