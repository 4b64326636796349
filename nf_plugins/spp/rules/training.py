"""What keeps parameters from being trained as they should be."""

from __future__ import annotations

from nf_plugins.registry import RULES

from ..evidence import ParameterFact
from ..profile import BlockSignal, SignalProfile
from .base import Finding, Findings, also, called, evidence_of, says, some


@RULES.register_module()
@says('warning')
def high_dropout(
    profile: SignalProfile, blocks: list[BlockSignal], *, rate: float = 0.75
) -> Findings:
    """A dropout or stochastic depth that leaves almost nothing."""
    high = [d for d in evidence_of(profile).drops if d.rate > rate]
    if not high:
        return
    worst = max(high, key=lambda d: d.rate)
    cause = f'{worst.module or "the network"} drops {worst.rate:.3g} of what it gets'
    cause += also(d.module for d in high)
    index = next((b.index for b in blocks if _inside(high[0].module, b)), blocks[-1].index)
    yield Finding('warning', index, cause, 'Usual rates are at most 0.5: is it the rate to keep?')


def _inside(name: str, block: BlockSignal) -> bool:
    return bool(block.module) and f'{name}.'.startswith(f'{block.module}.')


def _facts(profile: SignalProfile, kind: str) -> list[ParameterFact]:
    return [fact for fact in evidence_of(profile).parameters if fact.kind == kind]


def _first(fact: ParameterFact, blocks: list[BlockSignal]) -> int:
    return fact.blocks[0] if fact.blocks else blocks[0].index


@RULES.register_module()
@says('error', 'warning', 'info')
def no_gradient(profile: SignalProfile, blocks: list[BlockSignal]) -> Findings:
    """Trainable parameters that get no gradient."""
    for fact in _facts(profile, 'no_gradient'):
        share = f'{fact.count} of {fact.total} trainable parameters'
        if fact.reason == 'detached':
            cause = f'{share} get no gradient although they are used: {some(fact.names)}'
            last = [b for b in blocks if fact.blocks and b.index == fact.blocks[-1]]
            where = 'after them'
            if last and len(fact.blocks) > 1:
                cause += f'; the last of them are in {called(last[0])}'
                where = f'in or after {last[0].name or "that block"}'
            yield Finding(
                'error' if fact.blocks or fact.count > 1 else 'warning',
                last[0].index if last else blocks[0].index,
                cause,
                f'Something cuts the graph {where}: look for detach(), .data and no_grad()',
            )
        else:
            yield Finding(
                'warning' if fact.blocks else 'info',
                _first(fact, blocks),
                f'{share} are not used: {some(fact.names)}',
                'They stay as they are: use them, remove them, or expect DDP to complain',
            )
    zero = [b for b in blocks if b.grad_avg_var == 0 and b.grad_avg_sq_mean == 0]
    if zero:
        heads = [x for x in evidence_of(profile).layers if x.last and x.zero_rows == 1]
        where = f'the gradient is exactly 0 in {len(zero)} of {len(blocks)} blocks'
        if heads:
            yield Finding(
                'info',
                zero[0].index,
                f'{where}, as the weight of the last layer ({heads[-1].module}) is zero',
                'This is meant: the first step moves the last layer, then the others get one',
            )
        else:
            yield Finding(
                'error',
                zero[0].index,
                f'{where}, the last of them {called(zero[-1])}',
                'Look at the layer after that block: weights that are zero, or dead units',
            )


@RULES.register_module()
@says('warning', 'info')
def frozen_weights(profile: SignalProfile, blocks: list[BlockSignal]) -> Findings:
    """Parameters that are not trained."""
    for fact in _facts(profile, 'frozen'):
        names = [n for n in fact.names if 'pos_embed' not in n and 'position' not in n]
        if not names:
            continue
        known = [b.index for b in blocks if b.module]
        start = [i for i, index in zip(known, fact.blocks) if i == index]
        prefix = len(start) == len(fact.blocks) and fact.count < fact.total
        cause = f'{fact.count} of {fact.total} parameters are frozen: {some(names)}'
        if fact.count == fact.total:
            cause = f'all {fact.total} parameters are frozen (requires_grad is False)'
        elif fact.blocks and not prefix:
            first = next(b for b in blocks if b.index == fact.blocks[0])
            cause += f'; they begin at {called(first)}, after blocks that are trained'
        remedy = 'Set requires_grad, unless it is meant to stay as it is'
        severity = 'info' if prefix else 'warning'
        yield Finding(severity, _first(fact, blocks), cause, remedy)


@RULES.register_module()
@says('warning', 'info')
def shared_weights(profile: SignalProfile, blocks: list[BlockSignal]) -> Findings:
    """One parameter in two places."""
    for fact in _facts(profile, 'shared'):
        yield Finding(
            'warning' if fact.blocks and fact.reason != 'part' else 'info',
            _first(fact, blocks),
            f'{"1 parameter is" if fact.count == 1 else f"{fact.count} parameters are"} in two '
            f'places: {some(fact.names)}',
            'If it is not meant, build each module on its own: a list [block] * n holds one module',
        )
