"""Features that no longer tell images or tokens apart, and attention that has collapsed."""

from __future__ import annotations

from nf_plugins.registry import RULES

from ..profile import BlockSignal, SignalProfile
from .base import Finding, Findings, also, called, evidence_of, is_trained, says


@RULES.register_module()
@says('warning')
def collapsed_images(
    profile: SignalProfile, blocks: list[BlockSignal], *, cosine: float = 0.995
) -> Findings:
    """All images have the same features."""
    alike = [b for b in blocks if (b.image_cosine or 0) > cosine]
    if alike and alike[-1] is [b for b in blocks if b.image_cosine is not None][-1]:
        yield Finding(
            'warning',
            alike[0].index,
            f'all images have nearly the same features in {len(alike)} of {len(blocks)} blocks, '
            f'from {called(alike[0])} on: their mean cosine is {alike[-1].image_cosine:.4f} at '
            f'{called(alike[-1])}',
            _remedy(profile),
        )


@RULES.register_module()
@says('warning')
def collapsed_tokens(
    profile: SignalProfile, blocks: list[BlockSignal], *, cosine: float = 0.95
) -> Findings:
    """All tokens of an image have the same features."""
    tokens = [b for b in blocks if b.token_cosine is not None and b.positions > 1]
    if not evidence_of(profile).attentions:
        tokens = [b for b in tokens if len(b.shape) == 3]
    alike = [b for b in tokens if (b.token_cosine or 0) > cosine]
    if alike and alike[-1] is tokens[-1]:
        yield Finding(
            'warning',
            alike[0].index,
            f'all tokens of an image have nearly the same features in {len(alike)} of '
            f'{len(blocks)} blocks, from {called(alike[0])} on: their mean cosine is '
            f'{alike[-1].token_cosine:.3f} at {called(alike[-1])}',
            _remedy(profile),
        )


def _remedy(profile: SignalProfile) -> str:
    if is_trained(profile):
        return 'The representation has collapsed while training: lower the learning rate'
    return (
        'A part that all have in common outweighs the rest: look at the biases, the position '
        'embedding and the shortcuts from there on'
    )


@RULES.register_module()
@says('warning')
def attention_saturated(
    profile: SignalProfile, blocks: list[BlockSignal], *, entropy: float = 0.4
) -> Findings:
    """Attention that has become one-hot."""
    found = [a for a in evidence_of(profile).attentions if a.keys >= 4]
    sharp = [a for a in found if a.entropy < entropy]
    if not sharp:
        return
    worst = min(sharp, key=lambda a: a.entropy)
    cause = (
        f'the attention of {worst.module} is nearly one-hot: its entropy is {worst.entropy:.2f} '
        f'of that of equal weights over {worst.keys} tokens'
    )
    cause += also(a.module for a in sharp)
    remedy = (
        'Its logits are too large: look at the scale (1 / sqrt(width of a head)) and at the '
        'weights of queries and keys'
    )
    if is_trained(profile):
        remedy = 'Its logits have grown while training: lower learning rate, or normalized queries'
    yield Finding('warning', min(a.block for a in sharp), cause, remedy)
