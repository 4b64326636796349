"""Channels and units that carry nothing, or are at their limits."""

from __future__ import annotations

from nf_plugins.registry import RULES

from ..evidence import ActivationFact
from ..profile import BlockSignal, SignalProfile
from .base import Finding, Findings, also, block_at, called, evidence_of, is_trained, says

FEW = 16
SOME = 64
"""With fewer values per unit, units that never fire may be so by chance or by the input."""


@RULES.register_module()
@says('warning')
def constant_channels(
    profile: SignalProfile, blocks: list[BlockSignal], *, share: float = 0.35
) -> Findings:
    """Channels that are the same for all images and positions."""
    stem = [b for b in profile.blocks if b.kind == 'stem']
    constant = [b for b in [*stem, *blocks] if b.constant_channels > share]
    if constant:
        worst = max(constant, key=lambda b: b.constant_channels)
        yield Finding(
            'warning',
            constant[0].index,
            f'{worst.constant_channels:.0%} of the channels of {called(worst)} do not vary, over '
            f'all images and positions; so it is in {len(constant)} of {len(blocks)} blocks '
            f'beyond {share:.0%}',
            'Look for filters or gains that are zero and for units that never fire; a larger '
            'batch tells whether they ever do',
        )


@RULES.register_module()
@says('warning', 'info')
def dead_units(
    profile: SignalProfile,
    blocks: list[BlockSignal],
    *,
    share: float = 0.3,
    some: float = 0.5,
    few: float = 0.9,
) -> Findings:
    """Units of a ReLU-like activation that never fire."""
    found = [a for a in evidence_of(profile).activations if a.dead is not None]

    def most(a: ActivationFact) -> float:
        if a.count < FEW or a.positions == 1:
            return few
        return some if a.count < SOME else share

    found = [a for a in found if not _is_meant(profile, a)]
    dead = [a for a in found if (a.dead or 0) > most(a) and not a.gate]
    gates = [a for a in found if a.gate and (a.dead or 0) > 0.99 and a.count >= FEW]
    for severity, facts in (('warning', dead), ('info', gates)):
        if not facts:
            continue
        worst = max(facts, key=lambda a: a.dead or 0)
        cause = (
            f'{worst.dead:.0%} of the {worst.units} units of {worst.module} ({worst.op}) never '
            f'fire on {worst.count} values each'
        )
        cause += also(a.module for a in facts)
        remedy = 'Look at the bias, or at the norm, before it: the units get only negative values'
        if is_trained(profile):
            remedy = (
                'They get no gradient any more: a lower learning rate or warmup keeps them alive'
            )
        yield Finding(severity, min(a.block for a in facts), cause, remedy)
        return


def _is_meant(profile: SignalProfile, activation: ActivationFact) -> bool:
    """Whether a norm whose weight starts at zero gives the activation its zeros: zero_branch."""
    zero = block_at(profile, activation.block).zero_parameter or ''
    norm = zero.rpartition('.')[0]
    if activation.dead != 1 or norm not in {n.module for n in evidence_of(profile).norms}:
        return False
    return activation.module.startswith(f'{norm}.') or activation.module == norm.rpartition('.')[0]


@RULES.register_module()
@says('warning', 'info')
def saturated_units(
    profile: SignalProfile,
    blocks: list[BlockSignal],
    *,
    share: float = 0.5,
    gates: float = 0.95,
) -> Findings:
    """Values at the flat ends of tanh, sigmoid, erf."""
    found = [a for a in evidence_of(profile).activations if a.saturated is not None]
    beyond = [a for a in found if (a.saturated or 0) > (gates if a.gate else share)]
    if not beyond:
        return
    worst = max(beyond, key=lambda a: (not a.gate, a.saturated or 0))
    cause = f'{worst.saturated:.0%} of the values of {worst.module} ({worst.op}) are at its ends'
    cause += also(a.module for a in beyond)
    remedy = 'Its gradient is nearly zero there: smaller weights or a norm before it'
    severity = 'info' if worst.gate else 'warning'
    yield Finding(severity, min(a.block for a in beyond), cause, remedy)
