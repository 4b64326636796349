"""Rules that read a profile and say what is wrong, why, and what to do: a file per subject.

A rule is a function of a profile and its blocks, without the stem, in the registry
:data:`~nf_plugins.registry.RULES`. It yields :class:`Finding` objects, or tuples ``(severity,
block index, message)``. Its keyword-only arguments are its thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nf_plugins.registry import RULES

from ..profile import SignalProfile
from .base import SEVERITIES, Finding, block_at, resolve_thresholds, says, thresholds_of
from .merging import merge, names_of

# isort: off
# Importing a file registers its rules, in the order of the report.
from . import non_finite, inputs, norms, method, weights, variance  # noqa: F401
from . import branches, units, features, training, gradients  # noqa: F401
# isort: on

__all__ = [
    'RULES',
    'SEVERITIES',
    'Finding',
    'diagnose',
    'headline',
    'list_rules',
    'names_of',
    'says',
    'thresholds_of',
]


def diagnose(profile: SignalProfile, thresholds: Mapping[str, float] | None = None) -> list[dict]:
    """Apply all rules to a profile.

    Args:
        profile: A profile.
        thresholds: Other thresholds than the rules declare: 'rule' (its first one) or
            'rule.threshold' -> value.

    Returns:
        Verdicts as dicts of ``rule``, ``severity`` ('error', 'warning' or 'info'),
        ``block`` (index of the first block concerned) and its ``name``, ``cause`` (what the
        evidence shows), ``remedy``, ``message`` (both, with what follows from the cause) and
        ``symptoms`` (the rules whose verdicts follow from it, where there are some); the most
        severe first.

    Raises:
        ValueError: Unknown threshold.

    Example:
        >>> import torch
        >>> from nf_plugins.models import NFResNet
        >>> from nf_plugins.spp import analyze
        >>> profile = analyze(NFResNet(26, base_channels=8), torch.randn(2, 3, 64, 64))
        >>> [verdict['rule'] for verdict in diagnose(profile)]
        ['zero_branch']
    """
    given = resolve_thresholds(dict(thresholds or {}))
    blocks = [b for b in profile.blocks if b.kind != 'stem']
    # Of one position per image (a class token alone) the variance is over images only.
    blocks = [b for b in blocks if b.positions != 1] or blocks
    if not blocks:
        return []
    # Comparisons with values that are not finite say nothing: only what comes before is compared.
    finite = [b for b in blocks if non_finite.is_signal_finite(b)]
    broken = len(finite) < len(blocks)
    verdicts = []
    for name in RULES:
        if broken and name not in ('non_finite', 'explosion', 'bad_input'):
            continue
        shown = blocks if name == 'non_finite' or not broken else finite
        if shown:
            for found in RULES[name](profile, shown, **given.get(name, {})):
                verdicts.append(_verdict(profile, name, found))
    return merge(verdicts)


def _verdict(profile: SignalProfile, rule: str, found: Finding | tuple) -> dict:
    finding = found if isinstance(found, Finding) else Finding(*found)
    message = '. '.join(text for text in (finding.cause, finding.remedy) if text)
    return dict(
        rule=rule,
        severity=finding.severity,
        block=finding.block,
        name=block_at(profile, finding.block).name,
        message=message if message.endswith(('.', '?')) else f'{message}.',
        cause=finding.cause,
        remedy=finding.remedy,
    )


def headline(verdicts: list[dict]) -> str:
    """Say in one line what some verdicts come to.

    Example:
        >>> headline([])
        'healthy: no rule has anything to say'
    """
    counts = {s: sum(v['severity'] == s for v in verdicts) for s in SEVERITIES}
    if not verdicts:
        return 'healthy: no rule has anything to say'
    worst = verdicts[0]
    text = f'{worst["severity"]}: {worst["rule"]}: {worst["cause"]}'
    if worst['severity'] == 'info':
        text = f'healthy, with {counts["info"]} remark{"s" * (counts["info"] > 1)}'
        return f'{text}: {", ".join(dict.fromkeys(v["rule"] for v in verdicts))}'
    others = len(verdicts) - 1
    return f'{text} ({others} more below)' if others else text


def list_rules() -> str:
    """Describe all rules, one a line: name, severities, thresholds, what it says."""
    rows = []
    for name, rule in RULES.items():
        severities = '/'.join(getattr(rule, 'severities', SEVERITIES))
        declared = ' '.join(f'{key}={value:g}' for key, value in thresholds_of(rule).items())
        rows.append((name, severities, declared, _first_line(rule)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return '\n'.join(
        '  '.join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[3]]) for row in rows
    )


def _first_line(rule: Callable) -> str:
    return (rule.__doc__ or '').strip().partition('\n')[0]
