"""Put related verdicts together: one cause, one verdict, the rest as its symptoms."""

from __future__ import annotations

from .base import SEVERITIES

_VARIANCE = ('explosion', 'attenuation', 'mean_shift', 'not_reset', 'low_precision')
_GRADIENTS = ('gradient_explosion', 'gradient_attenuation', 'gradient_mean_shift')
_COLLAPSE = ('collapsed_images', 'collapsed_tokens')
_DEAD = ('dead_units', 'dead_branch', 'constant_channels')

SYMPTOMS: dict[str, tuple[str, ...]] = {
    'bad_input': (
        *_VARIANCE,
        *_COLLAPSE,
        *_DEAD,
        'branch_jump',
        'stem_scale',
        'pooled_shortcut',
        'saturated_units',
        'attention_saturated',
        'norm_statistics',
    ),
    'norm_statistics': (*_VARIANCE, *_COLLAPSE, *_DEAD, *_GRADIENTS, 'branch_jump'),
    'pooled_shortcut': ('attenuation',),
    'zero_branch': ('attenuation',),
    'off_theory': (
        *_VARIANCE,
        'stem_scale',
        'pooled_shortcut',
        'branch_jump',
        *_GRADIENTS,
        *_COLLAPSE,
    ),
    'zero_weights': (*_DEAD, 'attenuation', 'duplicate_channels', *_COLLAPSE, 'no_gradient'),
    'duplicate_channels': ('constant_channels',),
    'norm_missing': ('branch_jump', *_VARIANCE, *_GRADIENTS),
    'branch_jump': (
        'stem_scale',
        *_VARIANCE,
        *_GRADIENTS,
        *_COLLAPSE,
        'attention_saturated',
        'saturated_units',
        'dead_units',
    ),
    'dead_units': ('constant_channels', 'dead_branch', 'attenuation', *_COLLAPSE, 'no_gradient'),
    'saturated_units': ('attenuation', 'gradient_attenuation', *_COLLAPSE),
    'high_dropout': (*_VARIANCE, *_COLLAPSE, *_DEAD, 'branch_jump'),
    'explosion': ('low_precision', 'gradient_explosion', 'not_reset', 'mean_shift', *_COLLAPSE),
    'mean_shift': (*_COLLAPSE, 'gradient_mean_shift', 'not_reset', 'dead_units'),
    'collapsed_images': ('collapsed_tokens', 'dead_units'),
    'collapsed_tokens': ('dead_units',),
    'attenuation': ('gradient_attenuation', 'mean_shift', *_COLLAPSE, 'constant_channels'),
    'low_precision': ('mean_shift', *_COLLAPSE),
    'non_finite': ('no_gradient',),
}
"""Rule of a cause -> the rules whose verdicts may follow from it."""
_PLACED = ('branch_jump', 'norm_missing', 'zero_weights', 'duplicate_channels', 'saturated_units')
"""Causes that are in one block: what is before it does not follow from them."""
_BACKWARD = (*_GRADIENTS, 'no_gradient')
ABSORBING = ('zero_branch', 'pooled_shortcut')
"""Causes that are by design: what follows from them is no worse."""


def names_of(verdict: dict) -> set[str]:
    """The rules that a verdict speaks for: its own, and those of its symptoms."""
    return {verdict['rule'], *verdict.get('symptoms', ())}


def merge(verdicts: list[dict]) -> list[dict]:
    """Merge verdicts that have one cause.

    A symptom is in ``symptoms`` of its cause, and the cause is as severe as the worst of them.

    Args:
        verdicts: The verdicts of all rules.

    Returns:
        The causes, the most severe first.
    """
    cause_of: dict[int, dict] = {}
    for verdict in verdicts:
        causes = [
            other
            for rule in SYMPTOMS
            if verdict['rule'] in SYMPTOMS[rule]
            for other in verdicts
            if other['rule'] == rule and _explains(other, verdict)
        ]
        # Two rules may each explain the other: a chain of causes must not lead back.
        first = next((c for c in causes if _root(c, cause_of) is not verdict), None)
        if first is not None:
            cause_of[id(verdict)] = first
    merged = {id(v): dict(v) for v in verdicts if id(v) not in cause_of}
    for verdict in verdicts:
        if id(verdict) in cause_of:
            _add_symptom(merged[id(_root(verdict, cause_of))], verdict)
    return sorted(merged.values(), key=lambda v: SEVERITIES.index(v['severity']))


def _root(verdict: dict, cause_of: dict[int, dict]) -> dict:
    """The last cause of a chain of causes."""
    while id(verdict) in cause_of:
        verdict = cause_of[id(verdict)]
    return verdict


def _explains(cause: dict, verdict: dict) -> bool:
    """An info explains no error, but where it is by design; a gate's verdict explains nothing."""
    if cause['severity'] == 'info' and verdict['severity'] != 'info':
        return cause['rule'] in ABSORBING and verdict['severity'] != 'error'
    if verdict['rule'] == 'no_gradient' and 'exactly 0' not in verdict['cause']:
        return cause['rule'] == 'non_finite'  # the graph is cut, whatever the values are
    placed = cause['rule'] in _PLACED or verdict['rule'] == 'low_precision'
    if placed and verdict['rule'] not in _BACKWARD:
        if cause['block'] > verdict['block']:
            return False
    # Units die of features that are alike, or make them so: what comes first is the cause.
    if verdict['rule'] in _COLLAPSE and cause['rule'] == 'dead_units':
        return cause['block'] <= verdict['block']
    if cause['rule'] in _COLLAPSE and verdict['rule'] == 'dead_units':
        return cause['block'] < verdict['block']
    return True


def _add_symptom(cause: dict, verdict: dict) -> None:
    cause.setdefault('symptoms', []).append(verdict['rule'])
    if cause['rule'] not in ABSORBING:
        cause['severity'] = min(cause['severity'], verdict['severity'], key=SEVERITIES.index)
    text = verdict['cause'].partition(';')[0]
    cause['message'] = f'{cause["message"]} It shows as {verdict["rule"]}: {text}.'
