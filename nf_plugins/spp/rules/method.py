"""Where a normalizer-free network leaves what its method expects."""

from __future__ import annotations

import math

from nf_plugins.functional import GAMMA
from nf_plugins.registry import RULES

from ..evidence import MethodFact
from ..profile import BlockSignal, SignalProfile
from ..theory import ALPHA, is_usual
from .base import (
    Finding,
    Findings,
    block_at,
    called,
    evidence_of,
    is_normalized,
    is_trained,
    option,
    says,
    some,
)

OFF_THEORY = 2.0
"""Factor between ``avg_var`` and ``expected_var`` after a transition."""


@RULES.register_module()
@says('warning')
def not_reset(
    profile: SignalProfile, blocks: list[BlockSignal], *, growth: float = 2.0
) -> Findings:
    """A transition does not bring the variance back."""
    if is_trained(profile) or is_normalized(profile, blocks):
        return
    start = None
    for before, block in zip([None, *blocks], blocks):
        if block.kind != 'transition' or before is None or block.activated:
            start = block if start is None or block.kind == 'transition' else start
            continue
        theory = block.expected_var
        if theory and before.expected_var:
            # A factor that the blocks before have, too, is the stem's (stem_scale).
            fails = block.avg_var > OFF_THEORY * theory
            fails &= before.avg_var < OFF_THEORY * before.expected_var
        else:
            grown = start is not None and before.avg_var > growth * start.avg_var
            fails = grown and block.avg_var >= before.avg_var
        if fails:
            expected = f', {theory:.3g} expected' if theory else ''
            yield Finding(
                'warning',
                block.index,
                f'the variance is not reset at the transition in {called(block)}: '
                f'{before.avg_var:.3g} before, {block.avg_var:.3g} after it{expected}',
                'The shortcut has to read the activation divided by beta, or a normalized one, '
                'and not the raw signal, or the growth of all stages multiplies',
            )
            return
        start = block


@RULES.register_module()
@says('info')
def pooled_shortcut(profile: SignalProfile, blocks: list[BlockSignal]) -> Findings:
    """Average pooling on the shortcut takes variance that beta assumes is there."""
    if is_trained(profile):
        return
    low = [
        (b, b.avg_var / b.expected_var)
        for b in blocks
        if b.pooled and b.expected_var and b.avg_var < b.expected_var / OFF_THEORY
    ]
    if low:
        first = low[0][0]
        ratios = ', '.join(f'{ratio:.2g}' for _, ratio in low)
        remedy = 'Images are smoother and lose less: measure with --input FOLDER_OF_IMAGES'
        if option(profile, 'downsample'):
            remedy += "; downsample='conv' keeps it"
        yield Finding(
            'info',
            first.index,
            f'{len(low)} transitions average-pool their shortcut, which shrinks what varies from '
            f'pixel to pixel, white noise most of all: avg_var is {ratios} times what the betas '
            f'assume, first in {called(first)}',
            remedy,
        )


@RULES.register_module()
@says('info')
def stem_scale(profile: SignalProfile, blocks: list[BlockSignal]) -> Findings:
    """The first stage starts at another variance than the method assumes."""
    first = blocks[0]
    expected = first.expected_var
    if is_trained(profile) or not expected or first.avg_var <= OFF_THEORY * expected:
        return
    factor = first.avg_var / expected
    cause = f'the signal starts at {factor:.3g} times what the method expects, at {called(first)}'
    stem = [layer for layer in evidence_of(profile).layers if layer.block == 0]
    inputs = evidence_of(profile).inputs
    if stem and 2 < stem[0].energy < 4:
        cause += (
            f'; the stem convolution multiplies the variance by {stem[0].energy:.3g}, as gamma is '
            'folded into it without an activation before it (ReLU: gamma^2 = 2.94)'
        )
        remedy = 'As the betas are constants, all stages carry the factor on: it is harmless'
    elif inputs and inputs[0].std > 1.5:
        cause += f'; the input has a standard deviation of {inputs[0].std:.3g}'
        remedy = 'Normalize the input to unit variance, which the first beta assumes'
    else:
        cause += '; the stem gives more than the unit variance that the first beta assumes'
        remedy = 'As the betas are constants, all stages carry the factor on'
    yield Finding('info', first.index, cause, remedy)


@RULES.register_module()
@says('warning')
def off_theory(
    profile: SignalProfile,
    blocks: list[BlockSignal],
    *,
    alpha: float = 0.5,
    tolerance: float = 0.01,
) -> Findings:
    """A normalizer-free network does not follow its method: alpha, beta, gamma, plain layers."""
    facts = evidence_of(profile).method
    texts = _alphas(profile, facts, alpha) + _plain_layers(profile, facts)
    texts += _gammas(profile, facts, tolerance)
    if all(is_usual(f.alpha, alpha) for f in facts):
        texts += _betas(profile, facts, tolerance)
    raw = [f for f in facts if f.raw_shortcut]
    if raw:
        cause = f'the shortcut of {_blocks(profile, raw)} reads the raw signal'
        remedy = 'let it read the activation divided by beta, as the branch does'
        texts.append((raw[0], cause, remedy))
    if texts:
        yield Finding(
            'warning',
            min(fact.block for fact, _, _ in texts),
            'the network does not follow the normalizer-free method: '
            + '; '.join(text for _, text, _ in texts),
            'Follow the method: ' + '; '.join(dict.fromkeys(remedy for *_, remedy in texts)),
        )


Texts = list[tuple[MethodFact, str, str]]
"""The first block, cause and remedy of each deviation from the method."""


def _alphas(profile: SignalProfile, facts: list[MethodFact], alpha: float) -> Texts:
    unusual = [f for f in facts if not is_usual(f.alpha, alpha)]
    if not unusual:
        return []
    a = unusual[0].alpha
    cause = (
        f'alpha is {a:g} in {_blocks(profile, unusual)}, so that each block adds {a * a:.3g} '
        f'to the variance instead of {ALPHA**2:.3g}'
    )
    return [(unusual[0], cause, f'alpha = {ALPHA}')]


def _plain_layers(profile: SignalProfile, facts: list[MethodFact]) -> Texts:
    plain = [f for f in facts if f.plain]
    if not plain:
        return []
    names = [name for f in plain for name in f.plain]
    is_plain = 'is a plain convolution' if len(names) == 1 else 'are plain convolutions'
    remedy = 'make it a standardized one' if len(names) == 1 else 'make them standardized ones'
    if option(profile, 'conv_cfg'):
        remedy += " (conv_cfg=dict(type='ScaledWS'))"
    return [(plain[0], f'{some(names)} {is_plain} among standardized ones', remedy)]


def _blocks(profile: SignalProfile, facts: list[MethodFact]) -> str:
    return some(block_at(profile, fact.block).name for fact in facts)


def _gamma_of(fact: MethodFact) -> float | None:
    names = [name for name in fact.activation.split() if name in GAMMA]
    gates = [name for name in names if name != 'sigmoid']  # of squeeze-excite
    return GAMMA[gates[0]] if len(set(gates)) == 1 else None


def _gammas(profile: SignalProfile, facts: list[MethodFact], tolerance: float) -> Texts:
    wrong = [
        (f, g, gamma)
        for f in facts
        if (gamma := _gamma_of(f))
        for g in f.gammas[:1]
        if abs(g / gamma - 1) > max(tolerance, 0.02)
    ]
    if not wrong:
        return []
    fact, found, right = wrong[0]
    known = [name for name, value in GAMMA.items() if abs(value - found) < 0.01]
    of = f' (that of {known[0]})' if known else ''
    name = next(n for n in fact.activation.split() if n in GAMMA and n != 'sigmoid')
    cause = (
        f'gamma is {found:.4g}{of} in {_blocks(profile, [f for f, *_ in wrong])}, where {name} '
        f'needs {right:.4g}'
    )
    return [(fact, cause, f'gamma = {right:.4g}')]


def _betas(profile: SignalProfile, facts: list[MethodFact], tolerance: float) -> Texts:
    """Compare gamma / beta of each block with the expected variance of its input."""
    variance, wrong = 1.0, []
    for fact in facts:
        gamma = fact.gammas[0] if fact.gammas else None
        if gamma and fact.factor:
            beta = math.sqrt(variance)
            if abs(fact.factor / gamma * beta - 1) > tolerance:
                wrong.append((fact, gamma / fact.factor, beta))
        variance = (1.0 if fact.place == 0 else variance) + fact.alpha**2
    if not wrong:
        return []
    fact, found, right = max(wrong, key=lambda item: abs(math.log(item[2] / item[1])))
    where = _blocks(profile, [fact for fact, *_ in wrong])
    without = all(abs(found - 1) < 1e-3 for _, found, _ in wrong)
    what = 'the input is not divided by beta' if without else f'beta is {found:.3g}'
    return [
        (
            wrong[0][0],
            f'{what} in {where}, whose deviation is expected to be up to {right:.3g}',
            'divide the input of each block by beta'
            + (' (rescale_input=True)' if option(profile, 'rescale_input') else ''),
        )
    ]
