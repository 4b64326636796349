"""Weights that are zero, and weights that are copies."""

from __future__ import annotations

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile
from .base import Finding, Findings, also, evidence_of, is_trained, says


@RULES.register_module()
@says('warning', 'info')
def zero_weights(
    profile: SignalProfile, blocks: list[BlockSignal], *, share: float = 0.1
) -> Findings:
    """Filters that are zero, where that is not how a branch or a head starts."""
    layers = evidence_of(profile).layers
    partly = [layer for layer in layers if share < layer.zero_rows < 1]
    wholly = [layer for layer in layers if layer.zero_rows == 1 and layer.inner and layer.rows > 1]
    facts = sorted([*partly, *wholly], key=lambda layer: layer.block)
    if not facts:
        return
    worst = max(facts, key=lambda layer: layer.zero_rows)
    zero = round(worst.zero_rows * worst.rows)
    cause = f'{zero} of the {worst.rows} filters of {worst.module} are zero'
    cause += also(layer.module for layer in facts)
    severity, remedy = 'warning', 'Initialise them, or remove the channels'
    if is_trained(profile):
        remedy = 'They have been pruned or have decayed: remove the channels, or use less decay'
        if not any(layer.inner for layer in facts):  # some of what starts at zero gets no gradient
            severity, remedy = 'info', 'They are ends of branches: they may have started at zero'
    yield Finding(severity, facts[0].block, cause, remedy)


@RULES.register_module()
@says('warning')
def duplicate_channels(
    profile: SignalProfile, blocks: list[BlockSignal], *, share: float = 0.05
) -> Findings:
    """Filters that are copies of other filters."""
    copies = [layer for layer in evidence_of(profile).layers if layer.copies > share]
    if not copies:
        return
    worst = max(copies, key=lambda layer: layer.copies)
    cause = (
        f'{round(worst.copies * worst.rows)} of the {worst.rows} filters of {worst.module} are '
        'copies of another one, or multiples'
    )
    cause += also(layer.module for layer in copies)
    remedy = 'Copies get the same gradient and stay copies: initialise each filter at random'
    yield Finding('warning', min(layer.block for layer in copies), cause, remedy)
