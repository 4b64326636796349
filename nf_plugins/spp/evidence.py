"""Evidence beside the curves: what rules need to know about a network, as plain data."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar('T')


@dataclass
class InputFact:
    """A tensor that the network was called with.

    Args:
        shape: Its shape.
        mean: Mean of all values.
        std: Standard deviation of all values.
        equal_images: Whether all samples are the same (False for a single one).
        constant_channels: Share of the channels that do not vary.
        tokens: Whether it is of integers, which have no scale.
    """

    shape: tuple[int, ...]
    mean: float
    std: float
    equal_images: bool = False
    constant_channels: float = 0.0
    tokens: bool = False


@dataclass
class ActivationFact:
    """What the units of one activation do.

    Args:
        module: Path of the module that ran it.
        block: Index of the block that it belongs to.
        op: Name of the operation.
        units: Number of units (channels).
        count: Values per unit.
        dead: Share of the units that never fire, None for functions that have no such state.
        saturated: Share of the values at the flat ends, None for functions without flat ends.
        gate: Whether its output only multiplies another signal.
        positions: Values per unit and sample.
    """

    module: str
    block: int
    op: str
    units: int
    count: int
    dead: float | None = None
    saturated: float | None = None
    gate: bool = False
    positions: int = 1


@dataclass
class AttentionFact:
    """How concentrated one attention is.

    Args:
        module: Path of the module that ran it.
        block: Index of the block that it belongs to.
        keys: Tokens that are attended to.
        entropy: Mean entropy of the weights, divided by the logarithm of ``keys``.
    """

    module: str
    block: int
    keys: int
    entropy: float


@dataclass
class NormFact:
    """What one norm did.

    Args:
        module: Path of the module that ran it.
        block: Index of the block that it belongs to.
        op: Name of the operation.
        scale: Root mean square of its weight, None without one.
        count: Values per channel that a batch norm averaged over, 0 where it used others.
        running: Whether it used running statistics.
        log_ratio: Median over the channels of ``|log10(running / batch variance)|``.
        batches: Batches that the running statistics have seen, None where it is not known.
        untouched: Whether the running statistics are those of a new layer.
    """

    module: str
    block: int
    op: str
    scale: float | None = None
    count: int = 0
    running: bool = False
    log_ratio: float | None = None
    batches: int | None = None
    untouched: bool = False


@dataclass
class LayerFact:
    """The weight of one convolution or matrix product, as it was applied.

    Args:
        module: Path of the module that ran it.
        block: Index of the block that it belongs to.
        op: Name of the operation.
        rows: Number of filters.
        fan_in: Inputs of a filter.
        energy: Mean over the filters of the sum of squares.
        zero_rows: Share of the filters that are zero.
        copies: Share of the filters that are a multiple of another one.
        inner: Whether all that reads its output are other layers of the same branch.
        last: Whether no other layer reads its output.
        normed: Whether all that reads its output is a norm.
    """

    module: str
    block: int
    op: str
    rows: int
    fan_in: int
    energy: float
    zero_rows: float = 0.0
    copies: float = 0.0
    inner: bool = False
    last: bool = False
    normed: bool = False


@dataclass
class DropFact:
    """A dropout or a stochastic depth.

    Args:
        module: Path of the module.
        rate: Share that is dropped.
    """

    module: str
    rate: float


@dataclass
class MethodFact:
    """How one normalizer-free block scales its signal.

    Args:
        block: Index of the block.
        alpha: Scale of its branch.
        place: Its place in the stage, 0 for the first block.
        factor: What the input of the branch is multiplied with, gamma / beta.
        gammas: The gains of the other activations of the branch.
        activation: Name of the activation.
        plain: Paths of convolutions whose weights are not standardized.
        raw_shortcut: Whether the projection of a transition reads the raw signal.
    """

    block: int
    alpha: float
    place: int
    factor: float | None = None
    gammas: tuple[float, ...] = ()
    activation: str = ''
    plain: tuple[str, ...] = ()
    raw_shortcut: bool = False


@dataclass
class ParameterFact:
    """Parameters that have something in common.

    Args:
        kind: 'frozen', 'no_gradient', 'zero_gradient', 'shared' or 'non_finite'.
        names: Their names, the first :data:`MOST_NAMES`; of shared ones 'first = second'.
        count: How many there are.
        total: Of how many.
        blocks: Indices of the blocks that they are in.
        reason: Why, where it is known: 'detached' or 'unused'; of shared ones 'part', where a part
            of blocks is the same in several.
    """

    kind: str
    names: tuple[str, ...]
    count: int
    total: int
    blocks: tuple[int, ...] = ()
    reason: str = ''


MOST_NAMES = 20


@dataclass
class Evidence:
    """All evidence of an analysis.

    Args:
        model: Name of the network's class.
        options: Names of the arguments that its constructor takes.
        inputs: The tensors that it was called with.
        activations: Its activations in order of execution, and so on.
    """

    model: str = ''
    options: tuple[str, ...] = ()
    inputs: list[InputFact] = field(default_factory=list)
    activations: list[ActivationFact] = field(default_factory=list)
    attentions: list[AttentionFact] = field(default_factory=list)
    norms: list[NormFact] = field(default_factory=list)
    layers: list[LayerFact] = field(default_factory=list)
    drops: list[DropFact] = field(default_factory=list)
    method: list[MethodFact] = field(default_factory=list)
    parameters: list[ParameterFact] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence for JSON: fields that have their default value are left out."""
        data: dict[str, Any] = dict(model=self.model, options=list(self.options))
        for spec in fields(self)[2:]:
            data[spec.name] = [_short(fact) for fact in getattr(self, spec.name)]
        return data

    @classmethod
    def from_dict(cls, data: Any) -> Evidence:
        """Read what :meth:`to_dict` wrote; other keys are ignored.

        Raises:
            ValueError: A value is missing, or has the wrong type.

        Example:
            >>> evidence = Evidence('Net', drops=[DropFact('drop', 0.9)])
            >>> Evidence.from_dict(evidence.to_dict()) == evidence
            True
            >>> Evidence.from_dict({'drops': [{'module': 3}]})
            Traceback (most recent call last):
            ...
            ValueError: evidence: drops 0: module has a wrong value, 3
        """
        return _parse(cls, data, 'evidence')


def _short(fact: Any) -> dict[str, Any]:
    defaults = {spec.name: spec.default for spec in fields(fact)}
    return {
        name: _plain(value)
        for name, value in asdict(fact).items()
        if type(value) is not type(defaults[name]) or value != defaults[name]
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    return value


MOST_FACTS = 100_000
"""The most facts of a kind that are read."""


def _parse(cls: type[T], data: Any, where: str) -> T:
    """Make a dataclass of plain data that anybody may have written."""
    if not isinstance(data, Mapping):
        raise ValueError(f'{where} must be a dict, got {type(data).__name__}')
    hints = get_type_hints(cls)
    given = {}
    for spec in fields(cls):  # type: ignore[arg-type]
        if spec.name in data:
            given[spec.name] = _value(hints[spec.name], data[spec.name], where, spec.name)
    try:
        return cls(**given)
    except TypeError as error:
        raise ValueError(f'{where}: {str(error).partition("()")[2].strip()}') from None


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return None if value is None else _value(inner[0], value, where, name)
    if kind in (tuple, list) and isinstance(value, list | tuple) and len(value) <= MOST_FACTS:
        if kind is list:
            return [_parse(inner[0], v, f'{where}: {name} {i}') for i, v in enumerate(value)]
        return tuple(_value(inner[0], item, where, name) for item in value)
    if hint is float and value in ('nan', 'inf', '-inf'):
        return float(value)
    if hint is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if type(value) is hint and (hint is not int or 0 <= value < 2**63):
        return value
    raise ValueError(f'{where}: {name} has a wrong value, {repr(value)[:40]}')
