"""What all rules share: findings, severities, and questions about a profile."""

from __future__ import annotations

import inspect
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nf_plugins.registry import RULES

from ..evidence import Evidence, LayerFact
from ..profile import BlockSignal, SignalProfile

SEVERITIES = ('error', 'warning', 'info')
"""error: it will not train, or is broken; warning: an expert would look; info: worth knowing."""
NORMALIZED = 0.75
"""Share of blocks that normalize what they read, from which on a network is a normalized one."""
SILENT = 1e-6
"""Share of the variance below which a branch adds nothing."""

ACTIVATION_NAMES = dict(
    relu='ReLU', clamp_min='ReLU', hardtanh='ReLU6', gelu='GELU', silu='SiLU', hardswish='Hardswish'
)
"""Operation -> the name that people know."""

F = TypeVar('F', bound=Callable)


@dataclass
class Finding:
    """What a rule found.

    Args:
        severity: One of :data:`SEVERITIES`.
        block: Index of the first block concerned.
        cause: What the evidence shows, with the numbers.
        remedy: What to do, in terms of what the network has.
    """

    severity: str
    block: int
    cause: str
    remedy: str = ''


Findings = Iterator[Finding]


def says(*severities: str) -> Callable[[F], F]:
    """Declare the severities of a rule; its thresholds are its keyword-only arguments."""

    def declare(rule: F) -> F:
        rule.severities = severities  # type: ignore[attr-defined]
        return rule

    return declare


def thresholds_of(rule: Callable) -> dict[str, float]:
    """Return the thresholds of a rule with their values: its keyword-only arguments.

    Example:
        >>> thresholds_of(RULES['explosion'])
        {'growth': 200.0}
    """
    parameters = inspect.signature(rule).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def resolve_thresholds(given: dict[str, float]) -> dict[str, dict[str, float]]:
    """Sort thresholds by rule.

    Args:
        given: 'rule' (its first threshold) or 'rule.threshold' -> value.

    Returns:
        Rule -> its thresholds.

    Raises:
        ValueError: Unknown rule or threshold, or a value that is no positive number.

    Example:
        >>> resolve_thresholds({'explosion': 50})
        {'explosion': {'growth': 50.0}}
    """
    found: dict[str, dict[str, float]] = {}
    for key, value in given.items():
        name, _, threshold = key.partition('.')
        declared = thresholds_of(RULES[name]) if name in RULES else {}
        threshold = threshold or next(iter(declared), '')
        if threshold not in declared:
            known = [f'{n}.{t}' for n, rule in RULES.items() for t in thresholds_of(rule)]
            raise ValueError(f'no threshold {key!r}; there are {", ".join(known)}')
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise ValueError(f'threshold {key} must be a positive number, got {value!r}')
        found.setdefault(name, {})[threshold] = float(value)
    return found


# ------------------------------------------------------------------ questions about a profile
def evidence_of(profile: SignalProfile) -> Evidence:
    """The evidence, empty where none was collected."""
    return profile.evidence or Evidence()


def is_trained(profile: SignalProfile) -> bool:
    """Whether theory and advice about the initialisation do not apply."""
    return profile.state == 'trained'


def is_silent(block: BlockSignal) -> bool:
    """Whether the branch of a block adds next to nothing to the signal."""
    if block.res_avg_var is None or block.branch_gain is None:
        return False
    return block.branch_gain**2 * block.res_avg_var <= SILENT * block.avg_var


def is_silenced(block: BlockSignal, gain: float = 1e-2) -> bool:
    """Whether a parameter at zero, or nearly zero, scales the branch of a block."""
    return block.zero_parameter is not None or (block.branch_gain or 0.0) < gain


def uses_running_statistics(profile: SignalProfile) -> bool:
    """Whether a norm used running statistics, so that it does not normalize this signal."""
    norms = evidence_of(profile).norms
    return any(n.running for n in norms) or (profile.mode == 'eval' and not norms)


def is_scale_free(profile: SignalProfile, block: BlockSignal) -> bool:
    """Whether the scale of a block's input has no effect on what its layers do."""
    if uses_running_statistics(profile):
        return False
    return block.pre_norm or (block.kind == 'plain' and (block.norms > 0 or block.normalized))


def is_normalized(profile: SignalProfile, blocks: Sequence[BlockSignal]) -> bool:
    """Whether most blocks normalize what they read, so that the scale between them is harmless."""
    free = sum(is_scale_free(profile, b) for b in blocks)
    return free >= NORMALIZED * len(blocks)


def option(profile: SignalProfile, *names: str) -> str | None:
    """The first of some options that the network's constructor takes."""
    return next((name for name in names if name in evidence_of(profile).options), None)


def is_normalizer_free(profile: SignalProfile) -> bool:
    """Whether the network follows the method of Brock et al."""
    return bool(evidence_of(profile).method) or any(b.expected_res_var == 1 for b in profile.blocks)


def rectifier(profile: SignalProfile) -> str | None:
    """The name of the network's ReLU-like activation, as torch's modules have it."""
    names = [a.op for a in evidence_of(profile).activations if a.dead is not None and not a.gate]
    usual = statistics.mode(names) if names else None
    return ACTIVATION_NAMES.get(usual, usual) if usual else None


def layers_of(profile: SignalProfile, block: int) -> list[LayerFact]:
    """The layers of a block."""
    return [layer for layer in evidence_of(profile).layers if layer.block == block]


def role(module: str) -> str:
    """The path of a module without the numbers that tell a block from its siblings.

    Example:
        >>> role('layer2.1.conv2'), role('stages.0.blocks.3.norm')
        ('layer#.#.conv2', 'stages.#.blocks.#.norm')
    """
    *parts, last = module.split('.')
    return '.'.join([*(re.sub(r'\d+$', '#', part) for part in parts), re.sub(r'^\d+$', '#', last)])


def kind_of(block: BlockSignal) -> tuple:
    """What a block shares with its siblings: the place of its name, its class and its layers."""
    return role(f'{block.name}.'), block.family, block.kind, block.layers, bool(block.activation)


def place_in_block(profile: SignalProfile, module: str, index: int) -> tuple:
    """What a module shares with those at the same place of sibling blocks."""
    block = block_at(profile, index)
    if block.name and f'{module}.'.startswith(f'{block.name}.'):
        return block.family, block.layers, module[len(block.name) :]
    return (role(module),)


def beyond_siblings(
    values: Sequence[tuple[Any, float]], factor: float, least: int = 3
) -> list[tuple[Any, float, float]]:
    """Return the items whose value is beyond ``factor`` times the median of all others."""
    found = []
    for i, (item, value) in enumerate(values):
        others = [v for j, (_, v) in enumerate(values) if j != i and v > 0]
        if len(others) >= least - 1:
            middle = statistics.median(others)
            if value > factor * middle:
                found.append((item, value, middle))
    return found


# ------------------------------------------------------------------ words
def some(names: Iterable[str], most: int = 3) -> str:
    """Name at most three things, then a count.

    Example:
        >>> some('abcde')
        'a, b, c and 2 more'
    """
    names = list(dict.fromkeys(names))
    rest = len(names) - most
    if rest > 0:
        return f'{", ".join(names[:most])} and {rest} more'
    return ' and '.join([', '.join(names[:-1]), names[-1]] if len(names) > 1 else names)


def also(names: Iterable[str]) -> str:
    """Say where else the same was found, nothing where it is one place.

    Example:
        >>> also('ab'), also('aa')
        ('; so it is in a and b', '')
    """
    names = list(dict.fromkeys(names))
    return f'; so it is in {some(names)}' if len(names) > 1 else ''


def called(block: BlockSignal) -> str:
    """Name a block by its index and path."""
    return f'block {block.index} ({block.name})' if block.name else f'block {block.index}'


def block_at(profile: SignalProfile, index: int) -> BlockSignal:
    """The block of an index."""
    return next((b for b in profile.blocks if b.index == index), profile.blocks[0])
