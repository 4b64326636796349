"""What is wrong with a signal, why, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .profile import BlockSignal, SignalProfile

EXPLOSION = 1e3
"""``avg_var`` beyond this times that of the first block, or gradients towards the input."""
ATTENUATION = 1 / 20
"""``avg_var`` below this times the larger one of stem and first block."""
GRADIENT_ATTENUATION = 1e-3
"""``grad_avg_var`` at the first block below this times that at the last one."""
MEAN_SHIFT = 1.0
"""``avg_sq_mean`` beyond this times ``avg_var``; batch norm and ReLU have 0.47."""
SILENT = 1e-6
"""Share of the variance below which a gain silences a branch."""
OFF_THEORY = 2.0
"""Factor between ``avg_var`` and ``expected_var`` behind a transition."""
GROWTH = 2.0
"""Growth within a stage that a transition is expected to undo."""
CONSTANT_CHANNELS = 0.1
"""Share of channels that do not vary."""

Verdict = dict
Rule = Callable[['SignalProfile', list['BlockSignal']], Iterator[Verdict]]

RULES: dict[str, Rule] = {}
"""Name of a rule -> its function, in the order of the report."""


def _rule(function: Rule) -> Rule:
    RULES[function.__name__.removeprefix('_')] = function
    return function


def diagnose(profile: SignalProfile) -> list[Verdict]:
    """Apply all rules to a profile.

    Args:
        profile: A profile.

    Returns:
        Verdicts as dicts of ``rule``, ``severity`` ('error', 'warning' or 'info'),
        ``block`` (index of the first block concerned) and ``message``.

    Example:
        >>> import torch
        >>> from nf_plugins.models import NFResNet
        >>> from nf_plugins.spp import analyze
        >>> profile = analyze(NFResNet(26, base_channels=8), torch.randn(2, 3, 64, 64))
        >>> [verdict['rule'] for verdict in diagnose(profile)]
        ['zero_branch']
    """
    blocks = [b for b in profile.blocks if b.kind != 'stem']
    # Of one position per image (a class token alone) the variance is over images only.
    blocks = [b for b in blocks if b.positions != 1] or blocks
    found = []
    if not blocks:
        return found
    for name, rule in RULES.items():
        if name != 'non_finite' and not profile.is_finite():
            break  # comparisons with non-finite values say nothing
        for severity, block, message in rule(profile, blocks):
            found.append(dict(rule=name, severity=severity, block=block, message=message))
    return found


@_rule
def non_finite(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """A value is not finite: which module made it first."""
    for block in profile.blocks:
        values = (
            block.avg_sq_mean,
            block.avg_var,
            block.res_avg_var or 0.0,
            block.grad_avg_var or 0.0,
        )
        if not all(map(math.isfinite, values)):
            signal = 'signal' if all(map(math.isfinite, values[:3])) is False else 'gradient'
            text = f'the {signal} is not finite at block {block.index} ({block.name})'
            if profile.non_finite_module:
                text += f'; the first to make such a value is {profile.non_finite_module}'
            yield (
                'error',
                block.index,
                f'{text}. Look for a division by zero, an overflow in half precision, or '
                'weights that are not finite; a smaller initial scale or learning rate, or '
                'float32, keeps values in range',
            )
            return


@_rule
def explosion(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """The variance grows exponentially with depth."""
    first = blocks[0].avg_var
    last = max(blocks, key=lambda b: b.avg_var)
    if first > 0 and last.avg_var > EXPLOSION * first:
        depth = max(1, last.index - blocks[0].index)
        rate = (last.avg_var / first) ** (1 / depth)
        beyond = next(b for b in blocks if b.avg_var > EXPLOSION * first)
        yield (
            'error',
            beyond.index,
            f'the variance explodes: {first:.3g} at block {blocks[0].index}, '
            f'{last.avg_var:.3g} at block {last.index} ({last.name}), {rate:.3g} times per block. '
            'Every block adds a branch as large as its input; divide the input of the branch by '
            'its expected standard deviation and scale the branch (NFResNet: alpha, beta), '
            'normalize it, or start the branch at zero (SkipInit)',
        )


@_rule
def attenuation(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """The variance dies away."""
    stem = [b.avg_var for b in profile.blocks if b.kind == 'stem']
    start = max([blocks[0].avg_var, *stem])
    low = min(blocks, key=lambda b: b.avg_var)
    if low.avg_var < ATTENUATION * start:
        pooled = [b for b in blocks if b.pooled]
        text = (
            f'the variance dies away: from {start:.3g} to {low.avg_var:.3g} at block '
            f'{low.index} ({low.name}). '
        )
        silent = any(_silent(b) for b in blocks)
        if pooled and silent:
            text += (
                'With silent branches only the shortcuts are left, and their average pooling '
                'shrinks it (pooled_shortcut): training opens the branches, --unit-gain shows '
                'the plot with them'
            )
        elif pooled:
            text += (
                'The average pooling of the shortcuts shrinks it (pooled_shortcut); '
                'branches can make up for it only in part'
            )
        elif silent:
            text += (
                'With silent branches (zero_branch) only the shortcuts and the layers between the '
                'stages are left: training opens the branches'
            )
        else:
            text += (
                'The weights are too small for the activation: use an initialisation that keeps '
                "the variance (He's for ReLU), ScaledWS with the activation's gamma, or a norm"
            )
        yield ('warning', low.index, text)


@_rule
def mean_shift(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Channels have means larger than their deviations."""
    # Up to the first transition a large mean may be the stem's (its pooling, its ReLU).
    start = max([b.avg_sq_mean for b in profile.blocks if b.kind == 'stem'], default=0.0)
    inherited, shifted = True, []
    for b in blocks:
        inherited &= b.kind != 'transition' and b.avg_sq_mean <= 1.1 * start
        followed = b.kind == 'plain' and b.normalized  # a norm takes the mean away
        if (
            not (b.activated or inherited or followed)
            and b.avg_sq_mean > MEAN_SHIFT * b.avg_var > 0
        ):
            shifted.append(b)
    if shifted:
        worst = max(shifted, key=lambda b: b.avg_sq_mean / b.avg_var)
        yield (
            'warning',
            shifted[0].index,
            f'the channel means shift: at block {worst.index} ({worst.name}) the squared mean is '
            f'{worst.avg_sq_mean / worst.avg_var:.3g} times the variance ({len(shifted)} of '
            f'{len(blocks)} blocks are beyond {MEAN_SHIFT:g}). Activations such as ReLU have a '
            'positive mean, which weights of non-zero mean pass on; standardize the weights '
            "(conv_cfg=dict(type='ScaledWS') or 'PWS'), or normalize the activations",
        )


@_rule
def zero_branch(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Branches that a parameter at zero, or nearly zero, silences."""
    silent = [b for b in blocks if _silent(b) and (b.zero_parameter or (b.branch_gain or 0) < 1e-2)]
    if not silent:
        return
    first = silent[0]
    if first.zero_parameter:
        leaf = first.zero_parameter.rpartition('.')[2]
        kind = {
            'skip_gain': 'the SkipInit gain',
            'skipinit_gain': 'the SkipInit gain',
            'gain': "the gain of the branch's last convolution",
            'weight': "the weight of the branch's last layer (zero_init_residual)",
        }.get(leaf, 'a gain')
        cause = f'{kind} is initialised at zero ({first.zero_parameter})'
        remedy = (
            'This is meant: the network starts as the identity. To see what the branches do, '
            'measure with these gains at one: --unit-gain, analyze(unit_gain=True)'
        )
        if profile.unit_gain:  # not a gain, but the weights themselves (Fixup)
            remedy = 'This is meant: the network starts as the identity'
    else:
        cause = f'it is scaled by {first.branch_gain:.3g} (LayerScale or the like)'
        remedy = (
            'Such small scales grow while training: look at a checkpoint, too, or set them to 1 '
            '(layer_scale_init_value)'
        )
    yield (
        'info',
        first.index,
        f'{len(silent)} of {len(blocks)} branches add nothing, so the plot is flat between the '
        f'transitions: in block {first.index} {cause}. {remedy}',
    )


@_rule
def dead_branch(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Branches that give nothing although nothing is zero by design."""
    dead = [
        b
        for b in blocks
        if _silent(b)
        and b.constant_branch > 1 - CONSTANT_CHANNELS
        and not b.zero_parameter
        and (b.branch_gain or 0.0) >= 1e-2
    ]
    if dead:
        first = dead[0]
        yield (
            'warning',
            first.index,
            f'{len(dead)} of {len(blocks)} branches are dead, the first in block {first.index} '
            f'({first.name}): variance {first.res_avg_var:.3g} at the end of the branch beside '
            f'{first.avg_var:.3g} in all. Look for units that never fire (biases that are too '
            'negative, too high a learning rate) or weights that have decayed to zero',
        )


@_rule
def not_reset(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """A transition does not bring the variance back."""
    start = None
    for before, block in zip([None, *blocks], blocks):
        if block.kind != 'transition':
            start = block if start is None else start
            continue
        if block.activated:
            start = block
            continue
        grown = before and start and before.avg_var > GROWTH * start.avg_var
        theory = block.expected_var
        # A factor that the blocks before have, too, is the stem's (stem_scale).
        beyond = theory and before and block.avg_var > OFF_THEORY * theory
        beyond = (
            beyond and before.expected_var and before.avg_var < OFF_THEORY * before.expected_var
        )
        if (grown and block.avg_var >= before.avg_var) or beyond:
            expected = f', {theory:.3g} expected' if theory else ''
            yield (
                'warning',
                block.index,
                f'the variance is not reset at the transition in block {block.index} '
                f'({block.name}): {before.avg_var:.3g} before, {block.avg_var:.3g} behind it'
                f'{expected}. The shortcut has to read the activation divided by beta, or a '
                'normalized one, and not the raw signal, or the growth of all stages multiplies',
            )
            return
        start = block


@_rule
def pooled_shortcut(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Average pooling on the shortcut takes variance that beta assumes is there."""
    low = [
        b for b in blocks if b.pooled and b.expected_var and b.avg_var < b.expected_var / OFF_THEORY
    ]
    if low:
        first = low[0]
        ratios = ', '.join(f'{b.avg_var / b.expected_var:.2g}' for b in low)
        yield (
            'info',
            first.index,
            f'{len(low)} transitions average-pool their shortcut, which shrinks what varies from '
            f'pixel to pixel, white noise most of all: avg_var is {ratios} times what the betas '
            f'assume, first in block {first.index} ({first.name}). Images are smoother and lose '
            'less (measure with --input FOLDER_OF_IMAGES); downsample without pooling keeps it',
        )


@_rule
def stem_scale(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """The first stage starts at another variance than the method assumes."""
    first = blocks[0]
    expected = first.expected_var
    if expected and first.avg_var > OFF_THEORY * expected:
        yield (
            'info',
            first.index,
            f'the signal starts at {first.avg_var / expected:.3g} times what the method expects '
            f'(block {first.index}, {first.name}): the stem gives a larger one than the unit '
            'variance that the first beta assumes. A gamma folded into the stem convolution, '
            'without an activation before it, does this (ReLU: gamma^2 = 2.94). As the betas are '
            'constants, all stages carry the factor on; it is harmless, but the plot is not the '
            "paper's",
        )


@_rule
def constant_channels(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Channels that are the same for all images and positions."""
    constant = [b for b in blocks if CONSTANT_CHANNELS < b.constant_channels]
    if constant:
        worst = max(constant, key=lambda b: b.constant_channels)
        yield (
            'warning',
            constant[0].index,
            f'{worst.constant_channels:.0%} of the channels of block {worst.index} '
            f'({worst.name}) do not vary, over all images and positions; the same is so in '
            f'{len(constant)} of {len(blocks)} blocks beyond {CONSTANT_CHANNELS:.0%}. They are '
            'dead (ReLU behind a negative mean) or cut off by a zero gain: a larger batch tells '
            'whether they ever fire; a lower learning rate or a leaky activation keeps them alive',
        )


@_rule
def gradient_explosion(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """The gradient grows exponentially towards the input."""
    known, ratio = _gradient_ratio(blocks)
    if ratio > EXPLOSION:
        text = f'the gradient grows towards the input, {_gradient_ends(known)}. '
        if any(b.normalized for b in blocks):
            severity = 'info'
            text += (
                'The branches have norms: behind one the scale of the weights has no effect, so '
                'that such gradients at initialisation do little harm; warm the learning rate up'
            )
        else:
            severity = 'error'
            text += (
                'The branches scale it as they scale the signal: see the verdicts on the '
                'variance first; clip gradients (AGC) while training'
            )
        yield (severity, known[0].index, text)


@_rule
def gradient_attenuation(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """The gradient dies away towards the input."""
    known, ratio = _gradient_ratio(blocks)
    if ratio < GRADIENT_ATTENUATION:
        yield (
            'warning',
            known[0].index,
            f'the gradient dies away towards the input, {_gradient_ends(known)}: the first blocks '
            'hardly train. Weights that are too small, or activations that saturate, take it; '
            'shortcuts without weights keep it',
        )


def _gradient_ratio(blocks: list[BlockSignal]) -> tuple[list[BlockSignal], float]:
    known = [b for b in blocks if b.grad_avg_var]
    if len(known) < 2:
        return known, 1.0
    # Of the totals: a stage with fewer positions has larger values for the same loss.
    first, last = (b.grad_avg_var * math.prod(b.shape) for b in (known[0], known[-1]))
    return known, first / last


def _gradient_ends(known: list[BlockSignal]) -> str:
    first, last = known[0], known[-1]
    return (
        f'from a variance of {last.grad_avg_var:.3g} at block {last.index} to '
        f'{first.grad_avg_var:.3g} at block {first.index} ({first.name})'
    )


@_rule
def gradient_mean_shift(profile: SignalProfile, blocks: list[BlockSignal]) -> Iterator[tuple]:
    """Channels whose gradient has a mean larger than its deviation."""
    shifted = [
        b for b in blocks if b.grad_avg_var and b.grad_avg_sq_mean > MEAN_SHIFT * b.grad_avg_var
    ]
    if shifted:
        first = shifted[-1]  # the one nearest to the loss
        yield (
            'warning',
            first.index,
            f'the mean of the gradient shifts: at block {first.index} ({first.name}) its square '
            f'is {first.grad_avg_sq_mean / first.grad_avg_var:.3g} times the variance. All '
            'positions then push a channel the same way, which the PWS paper (section 3) holds '
            "responsible for collapses; standardize the weights (conv_cfg=dict(type='PWS'))",
        )


def _silent(block: BlockSignal) -> bool:
    if block.res_avg_var is None or block.branch_gain is None:
        return False
    return block.branch_gain**2 * block.res_avg_var <= SILENT * block.avg_var
