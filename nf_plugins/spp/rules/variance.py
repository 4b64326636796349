"""How the variance and the mean of the signal change with depth."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable

from nf_plugins.registry import RULES

from ..evidence import LayerFact
from ..profile import BlockSignal, SignalProfile
from .base import (
    Finding,
    Findings,
    beyond_siblings,
    block_at,
    called,
    evidence_of,
    is_normalized,
    is_normalizer_free,
    is_scale_free,
    is_silenced,
    is_silent,
    is_trained,
    kind_of,
    option,
    place_in_block,
    rectifier,
    says,
    some,
)

SURE = 5
"""Times the threshold of an explosion, from where on a network will hardly train."""
DYING = 0.1
"""Variance below which a signal that grows only recovers."""
DEAD = 1e-3
"""Share of the input's variance below which nothing of it is left."""
NORM_EPS = 1e-5
"""Variance that norms add before they divide; below it they do not normalize."""


def start_of(profile: SignalProfile, blocks: list[BlockSignal]) -> float:
    """The variance that the blocks start from: the larger one of stem and first block.

    Where both are dead, the signal has died before them: then it is the input's.
    """
    start = max([blocks[0].avg_var, *(b.avg_var for b in profile.blocks if b.kind == 'stem')])
    entry = power_of_input(profile)
    return entry if entry and start < DEAD * entry else start


def power_of_input(profile: SignalProfile) -> float | None:
    """Mean square of the input, None where a norm takes its scale away or it has none."""
    first, evidence = profile.blocks[0], evidence_of(profile)
    normed = first.norms or any(norm.block <= first.index for norm in evidence.norms)
    if normed or not evidence.inputs or evidence.inputs[0].tokens:
        return None
    return evidence.inputs[0].std ** 2 + evidence.inputs[0].mean ** 2


@RULES.register_module()
@says('error', 'warning', 'info')
def explosion(
    profile: SignalProfile, blocks: list[BlockSignal], *, growth: float = 200.0
) -> Findings:
    """The variance grows exponentially with depth."""
    start, high = start_of(profile, blocks), max(blocks, key=lambda b: b.avg_var)
    if not 0 < start < math.inf or high.avg_var <= growth * start:
        return
    beyond = next(b for b in blocks if b.avg_var > growth * start)
    rate = (high.avg_var / start) ** (1 / max(1, high.index - profile.blocks[0].index))
    cause = (
        f'the variance explodes: from {start:.3g} at the start to {high.avg_var:.3g} at '
        f'{called(high)}, {rate:.3g} times per block'
    )
    if is_normalized(profile, blocks):
        yield Finding(
            'info',
            beyond.index,
            f'the variance grows from {start:.3g} to {high.avg_var:.3g} at {called(high)}; each '
            'block normalizes what it reads, so the scale between the blocks does no harm',
        )
        return
    if is_trained(profile):
        remedy = 'The weights have grown while training: lower the learning rate or clip gradients'
    elif high.kind == 'plain':
        cause += '; each layer multiplies the variance, as its weights are too large'
        remedy = _keep_variance(profile)
    else:
        ratios = [
            b.branch_gain**2 * b.res_avg_var / a.avg_var
            for a, b in itertools.pairwise(blocks)
            if b.res_avg_var is not None and b.branch_gain is not None and a.avg_var > 0
        ]
        if ratios:
            cause += f'; a branch adds {statistics.median(ratios):.3g} times its input'
        remedy = _tame_branches(profile)
    severity = 'error' if high.avg_var > SURE * growth * start else 'warning'
    yield Finding(severity, beyond.index, cause, remedy)


def _tame_branches(profile: SignalProfile) -> str:
    if is_normalizer_free(profile):
        return 'Use alpha = 0.2, beta and SkipInit as the method has them'
    if any(n.running for n in evidence_of(profile).norms):
        return 'Norms with running statistics do not fit this signal: measure in train mode'
    name = option(profile, 'norm_cfg', 'norm_layer')
    norm = f'normalize the branches ({name})' if name else 'put a norm into each branch'
    return f'Divide the input of each branch by its deviation: {norm}, or start branches at zero'


def _keep_variance(profile: SignalProfile) -> str:
    if rectifier(profile) in ('ReLU', 'ReLU6'):
        return "Use an initialisation that keeps the variance: He's, 2 / fan_in, for ReLU"
    return 'Use an initialisation that keeps the variance, or put norms between the layers'


@RULES.register_module()
@says('warning', 'info')
def attenuation(
    profile: SignalProfile, blocks: list[BlockSignal], *, share: float = 0.05
) -> Findings:
    """The variance dies away."""
    start, low = start_of(profile, blocks), min(blocks, key=lambda b: b.avg_var)
    if not low.avg_var < share * start:
        return
    first = next(b for b in blocks if b.avg_var < share * start)
    cause = f'the variance dies away: from {start:.3g} to {low.avg_var:.3g} at {called(low)}'
    severity = 'warning'
    silenced = any(is_silent(b) and is_silenced(b) for b in blocks)
    if silenced or any(b.pooled for b in blocks):
        severity = 'info'
        cause += '; only the shortcuts and what is between the stages carry it'
        remedy = 'Training opens the branches: measure with the gains at one (unit_gain)'
        if not silenced:
            remedy = 'Measure with images, of which average pooling takes less'
    elif is_normalized(profile, blocks) and low.avg_var > NORM_EPS / 10:
        yield Finding(
            'info',
            first.index,
            f'{cause}; each block normalizes what it reads, so this does no harm',
        )
        return
    elif is_trained(profile):
        severity = 'info' if low.avg_var > 1e-6 * start else 'warning'
        remedy = 'If the accuracy is low, look for too much weight decay'
    else:
        cause += '; the weights are too small for the activation'
        remedy = _keep_variance(profile)
        if low.avg_var <= NORM_EPS / 10 and any(b.norms for b in blocks):
            cause = f'{cause}, and below the eps of norms, which cannot bring it back'
    yield Finding(severity, first.index, cause, remedy)


@RULES.register_module()
@says('warning', 'info')
def mean_shift(
    profile: SignalProfile, blocks: list[BlockSignal], *, ratio: float = 1.0
) -> Findings:
    """Channels have means larger than their deviations."""
    # Up to the first transition a large mean may be the stem's (its pooling, its ReLU).
    start = max([b.avg_sq_mean for b in profile.blocks if b.kind == 'stem'], default=0.0)
    activated = sum(b.activated for b in blocks) > len(blocks) / 2  # an odd one out inherits
    inherited, shifted = True, []
    for b in blocks:
        if b.max_pooled:
            inherited, start = True, max(start, b.avg_sq_mean)
        inherited &= b.avg_sq_mean <= 1.1 * start and (b.kind != 'transition' or b.max_pooled)
        followed = b.kind == 'plain' and b.normalized  # a norm takes the mean away
        if not (activated or b.activated or inherited or followed):
            if b.avg_sq_mean > ratio * b.avg_var > 0:
                shifted.append(b)
    if not shifted:
        return
    worst = max(shifted, key=lambda b: b.avg_sq_mean / b.avg_var)
    cause = (
        f'the channel means shift: at {called(worst)} the squared mean is '
        f'{worst.avg_sq_mean / worst.avg_var:.3g} times the variance ({len(shifted)} of '
        f'{len(blocks)} blocks are beyond {ratio:g})'
    )
    if is_normalized(profile, blocks):
        cause += '; each block normalizes what it reads'
        yield Finding('info', shifted[0].index, cause)
        return
    severity = 'info' if is_trained(profile) else 'warning'
    if len(shifted) <= len(blocks) / 4:
        cause += '; the others have none, so that it is a bias there and not the weights'
        remedy = f'Look at the biases of {some(b.name for b in shifted)}'
        yield Finding(severity, shifted[0].index, cause, remedy)
        return
    convolutional = any(layer.op == 'convolution' for layer in evidence_of(profile).layers)
    name = rectifier(profile)
    if name is not None or profile.evidence is None:
        cause += f'. The outputs of {name or "ReLU"} have a positive mean, which weights pass on'
    remedy = 'Normalize what the branches read'
    if profile.evidence is None or (convolutional and option(profile, 'conv_cfg')):
        remedy = "Standardize the weights (conv_cfg=dict(type='ScaledWS') or 'PWS')"
    elif convolutional:
        remedy = 'Standardize the weights of the convolutions, or normalize what they read'
    yield Finding(severity, shifted[0].index, cause, remedy)


# ------------------------------------------------------------------ one block or layer
@RULES.register_module()
@says('warning', 'info')
def branch_jump(
    profile: SignalProfile,
    blocks: list[BlockSignal],
    *,
    ratio: float = 10.0,
    weights: float = 8.0,
) -> Findings:
    """One block, or one layer, multiplies the signal far beyond its siblings."""
    jumps = _record_jumps(profile, blocks, ratio)
    trained = is_trained(profile)
    if not trained:
        free = [b for b in blocks if is_scale_free(profile, b)]  # others grow with their input
        jumps.update(_branches_beyond(free, ratio, jumps))
        jumps.update(_gains_beyond(blocks, weights))
    layers = [] if trained else _layers_beyond(profile, weights)
    if jumps and len(jumps) > max(1, len(blocks) // 4):  # all blocks grow: an explosion
        jumps = {}
    if not jumps and not layers:
        return
    index = min([*jumps, *(layer[1] for layer in layers)])
    parts = [
        f'the weights of {name} are {times:.3g} times those of {others}'
        for name, _, times, others in layers[:3]
    ]
    if len(layers) > 3:
        parts[-1] += f' ({len(layers)} layers are beyond {weights:g} times)'
    parts += [text for _, text in sorted(jumps.items())][: 1 if layers else 3]
    remedy = 'Initialise it as its siblings are: look for a missing or a different factor'
    severity = 'warning'
    if trained:
        remedy = 'A block that outgrew the others: look at its weights and at its learning rate'
        severity = 'info' if all(b.pre_norm for b in blocks) else 'warning'
    elif layers and all(others != SIBLINGS for *_, others in layers):
        remedy = 'Initialise it so that it keeps the variance: look for a factor that is missing'
    elif not layers:
        names = [block_at(profile, i).name or f'block {i}' for i in sorted(jumps)]
        remedy = f'Look at the scales and biases in {some(names)}, and compare with a sibling'
    yield Finding(severity, index, '; '.join(parts), remedy)


def _record_jumps(
    profile: SignalProfile, blocks: list[BlockSignal], ratio: float
) -> dict[int, str]:
    """Blocks whose variance is far beyond that of all blocks before."""
    found = {}
    first, entry = profile.blocks[0], power_of_input(profile)
    if entry and first.avg_var > ratio * entry:
        found[first.index] = (
            f'the signal has {first.avg_var / entry:.3g} times the variance of the input after '
            f'{called(first)}'
        )
    highest = max(
        (b.avg_var for b in profile.blocks if b.kind == 'stem'), default=blocks[0].avg_var
    )
    for b in blocks:
        large = b.avg_var > ratio * highest > 0 and b.avg_var > DYING
        if large and not is_scale_free(profile, b):
            found[b.index] = (
                f'{called(b)} multiplies the variance by {b.avg_var / highest:.3g}, from '
                f'{highest:.3g} to {b.avg_var:.3g}'
            )
        highest = max(highest, b.avg_var)
    return found


def _branches_beyond(
    blocks: list[BlockSignal], ratio: float, known: dict[int, str]
) -> dict[int, str]:
    """Blocks whose branch is far larger than those of the blocks like it in the same stage."""
    groups = defaultdict(list)
    for b in blocks:
        if b.res_avg_var and b.kind == 'residual':
            groups[kind_of(b), b.shape, b.activation].append((b, b.res_avg_var))
    found = {}
    for group in groups.values():
        for b, value, middle in beyond_siblings(group, ratio):
            if b.index not in known:
                found[b.index] = (
                    f'the branch of {called(b)} has a variance of {value:.3g}, '
                    f'{value / middle:.3g} times that of its siblings'
                )
    return found


def _gains_beyond(blocks: list[BlockSignal], weights: float) -> dict[int, str]:
    """Branches that are multiplied with far more than those of their siblings."""
    groups = defaultdict(list)
    for b in blocks:
        if b.branch_gain:
            groups[kind_of(b)].append((b, b.branch_gain))
    return {
        b.index: f'the branch of {called(b)} is multiplied by {gain:.3g}, those of its siblings '
        f'by {usual:.3g}'
        for group in groups.values()
        for b, gain, usual in beyond_siblings(group, weights)
    }


Beyond = tuple[str, int, float, str]
"""A layer, its block, how many times its weights are larger, and than those of what."""
SIBLINGS = 'its siblings'


def _layers_beyond(profile: SignalProfile, weights: float) -> list[Beyond]:
    """Layers and norms whose weights are far larger than those of their siblings."""
    groups = defaultdict(list)
    for layer in evidence_of(profile).layers:
        place = place_in_block(profile, layer.module, layer.block)
        groups[place, layer.op, _form(layer)].append((layer, layer.energy))
    found: list[Beyond] = []
    for group in groups.values():
        spread = {id(layer): value / layer.fan_in for layer, value in group}
        middle = statistics.median(spread.values())
        for layer, value, usual in beyond_siblings(group, weights**2):
            if spread[id(layer)] > weights**2 * middle:  # by either convention of the fan-in
                found.append((layer.module, layer.block, math.sqrt(value / usual), SIBLINGS))
    known = {name for name, *_ in found}
    single = _single_layers_beyond(groups.values(), weights)
    single += [
        (layer.module, layer.block, math.sqrt(layer.energy), 'a layer that keeps the variance')
        for layer in evidence_of(profile).layers
        if layer.last and layer.energy > weights**2  # a head has no siblings
    ]
    found += {item[0]: item for item in reversed(single) if item[0] not in known}.values()
    found += _norms_beyond(profile, weights)
    return sorted(found, key=lambda item: item[1])


def _norms_beyond(profile: SignalProfile, weights: float) -> list[Beyond]:
    """Norms whose scale is far larger than that of their siblings, of all norms without any."""
    groups = defaultdict(list)
    norms = [norm for norm in evidence_of(profile).norms if norm.scale]
    for norm in norms:
        place = place_in_block(profile, norm.module, norm.block)
        groups[place, norm.op].append((norm, norm.scale or 0.0))
    found = []
    for group in groups.values():
        alone = len(group) < 3
        pairs = [(norm, norm.scale or 0.0) for norm in norms] if alone else group
        own = {id(norm) for norm, _ in group}
        for norm, value, usual in beyond_siblings(pairs, weights):
            if id(norm) in own:
                others = 'the other norms' if alone else SIBLINGS
                found.append((norm.module, norm.block, value / usual, others))
    return found


def _single_layers_beyond(
    groups: Iterable[list[tuple[LayerFact, float]]], weights: float
) -> list[Beyond]:
    """Layers without siblings whose weights are far larger than all others of the network."""
    layers = [layer for group in groups for layer, _ in group]
    single = [group[0][0] for group in groups if len(group) < 3]
    found = []
    for layer in single:
        others = [o for o in layers if o is not layer and o.energy > 0]
        standardized = layer.normed and abs(layer.energy / layer.fan_in - 1) < 0.05
        if len(others) < 3 or _form(layer) == 'depthwise' or standardized:
            continue
        # Libraries scale weights by the inputs of a filter, by its outputs, or not at all.
        times = min(
            layer.energy * size(layer) / max(o.energy * size(o) for o in others)
            for size in (_per_filter, _per_weight, _per_output)
        )
        if times > weights**2:
            found.append((layer.module, layer.block, math.sqrt(times), 'any other layer'))
    return found


def _per_filter(layer: LayerFact) -> float:
    return 1.0


def _per_weight(layer: LayerFact) -> float:
    return 1 / layer.fan_in


def _per_output(layer: LayerFact) -> float:
    return layer.rows / layer.fan_in


def _form(layer: LayerFact) -> str:
    """Tell depthwise layers from those that widen and those that narrow."""
    if layer.fan_in in (9, 25, 49):
        return 'depthwise'
    return 'wider' if layer.rows > layer.fan_in else 'narrower'


@RULES.register_module()
@says('error', 'warning')
def low_precision(
    profile: SignalProfile, blocks: list[BlockSignal], *, bits: float = 3.0
) -> Findings:
    """The largest value is within a few bits of the end of float16 or bfloat16."""
    known = [b for b in profile.blocks if b.largest is not None and math.isfinite(b.largest)]
    for name, end, severity in (('bfloat16', 3.39e38, 'error'), ('float16', 65504.0, 'warning')):
        beyond = [b for b in known if (b.largest or 0) > end / 2**bits]
        if beyond:
            worst = max(beyond, key=lambda b: b.largest or 0)
            left = math.log2(end / (worst.largest or 1))
            where = f'{left:.1f} bits below' if left > 0 else f'{-left:.1f} bits beyond'
            yield Finding(
                severity,
                beyond[0].index,
                f'the largest absolute value is {worst.largest:.3g} at {called(worst)}, {where} '
                f'the end of {name} ({end:.3g})',
                'In mixed precision it overflows: keep these blocks in float32, or scale the '
                'signal down' + (', or use bfloat16' if name == 'float16' else ''),
            )
            return
