"""Branches that add nothing."""

from __future__ import annotations

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile
from .base import (
    Finding,
    Findings,
    called,
    evidence_of,
    is_silenced,
    is_silent,
    is_trained,
    layers_of,
    option,
    role,
    says,
    some,
)

GAINS = {
    'skip_gain': 'the SkipInit gain',
    'skipinit_gain': 'the SkipInit gain',
    'gain': "the gain of the branch's last convolution",
    'weight': "the weight of the branch's last layer (zero_init_residual)",
}
"""Last part of a parameter's name -> what it is."""
SCALE_OPTIONS = ('layer_scale_init_value', 'init_values', 'ls_init_value', 'layer_scale')


@RULES.register_module()
@says('info', 'warning')
def zero_branch(
    profile: SignalProfile, blocks: list[BlockSignal], *, gain: float = 1e-2
) -> Findings:
    """Branches that a parameter at zero, or nearly zero, silences by design."""
    silent = [b for b in blocks if is_silent(b) and is_silenced(b, gain)]
    if is_trained(profile):  # a small gain is what training made of it: dead_branch
        silent = [b for b in silent if b.zero_parameter]
    if not silent:
        return
    first = silent[0]
    what = f'{len(silent)} of {len(blocks)} branches add nothing, so the plot is flat between the '
    what += f'transitions: in {called(first)} '
    if is_trained(profile):
        yield Finding(
            'info' if len(silent) == len(blocks) else 'warning',
            first.index,
            f'{what}{first.zero_parameter} is zero, as at initialisation',
            'It gets no gradient, or weight decay holds it there: look whether it is trained',
        )
        return
    if first.zero_parameter:
        kind = GAINS.get(first.zero_parameter.rpartition('.')[2], 'a gain')
        cause = f'{what}{kind} is initialised at zero ({first.zero_parameter})'
        remedy = 'This is meant: the network starts as the identity'
        if not profile.unit_gain:  # else not a gain, but the weights themselves (Fixup)
            remedy += (
                '. To see what the branches do, measure with these gains at one: --unit-gain, '
                'analyze(unit_gain=True)'
            )
    else:
        name = option(profile, *SCALE_OPTIONS)
        cause = f'{what}the branch is scaled by {first.branch_gain:.3g} (LayerScale or the like)'
        remedy = 'Such small scales grow while training: look at a checkpoint, too'
        remedy += f', or set them to 1 ({name})' if name else ''
    yield Finding('info', first.index, cause, remedy)


@RULES.register_module()
@says('warning')
def dead_branch(
    profile: SignalProfile, blocks: list[BlockSignal], *, constant: float = 0.9
) -> Findings:
    """Branches that give nothing although nothing is zero by design."""
    dead = [b for b in blocks if is_silent(b) and _is_dead(profile, b, constant)]
    if not dead:
        return
    first = dead[0]
    share = (first.branch_gain or 0) ** 2 * (first.res_avg_var or 0)
    cause = (
        f'{len(dead)} of {len(blocks)} branches are dead, the first in {called(first)}: it adds '
        f'a variance of {share:.3g} to {first.avg_var:.3g} in all'
    )
    units = [
        a
        for a in evidence_of(profile).activations
        if a.block == first.index and (a.dead or 0) > 0.9 and not a.gate
    ]
    small = _small_layers(profile, first)
    if units:
        cause += f'; {units[0].dead:.0%} of the units of {units[0].module} never fire'
        remedy = 'Look at the biases and norms before that activation'
    elif small:
        cause += f'; the weights of {some(small)} are nearly zero'
        remedy = 'Initialise them as those of the siblings are'
        if is_trained(profile):
            remedy = (
                'Either weight decay has shrunk them: use less, and none for gains and norms. Or '
                'they started at zero and have hardly moved: train for longer, or with a larger '
                'learning rate'
            )
    elif is_trained(profile):
        cause += f'; its gain is {first.branch_gain:.3g} after training'
        remedy = 'The gain has decayed, or has not left its start: use no weight decay for gains'
    else:
        remedy = 'Look for units that never fire, or weights that are nearly zero'
    yield Finding('warning', first.index, cause, remedy)


def _is_dead(profile: SignalProfile, block: BlockSignal, constant: float) -> bool:
    if block.zero_parameter:
        return False
    if is_trained(profile) and (block.branch_gain or 0) < 1e-2:
        return True
    if (block.branch_gain or 0.0) < 1e-2:
        return False
    return block.constant_branch > constant or bool(_small_layers(profile, block))


def _small_layers(profile: SignalProfile, block: BlockSignal) -> list[str]:
    """Layers of a block whose weights are nearly zero, absolutely or beside their siblings."""
    found = []
    for layer in layers_of(profile, block.index):
        others = [
            other.energy
            for other in evidence_of(profile).layers
            if role(other.module) == role(layer.module) and other is not layer
        ]
        usual = max(others, default=1.0)
        if layer.energy < 1e-6 or layer.energy < 1e-5 * usual:
            found.append(layer.module)
    for norm in evidence_of(profile).norms:
        if norm.block == block.index and norm.scale is not None and norm.scale < 1e-3:
            found.append(norm.module)
    return found
