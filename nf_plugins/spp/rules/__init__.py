"""Rules that read a profile and say what is wrong, why, and what to do: a file per subject.

A rule is a function of a profile and its blocks, without the stem, in the registry
:data:`~nf_plugins.registry.RULES`. It yields ``(severity, block index, message)``.
"""

from __future__ import annotations

from nf_plugins.registry import RULES

from ..profile import SignalProfile

# isort: off
# Importing a file registers its rules, in the order of the report.
from . import non_finite, variance, branches, method, channels, gradients  # noqa: F401
# isort: on

__all__ = ['RULES', 'diagnose']


def diagnose(profile: SignalProfile) -> list[dict]:
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
    # Comparisons with values that are not finite say nothing.
    rules = list(RULES) if profile.is_finite() else ['non_finite']
    return [
        dict(rule=name, severity=severity, block=block, message=message)
        for name in (rules if blocks else ())
        for severity, block, message in RULES[name](profile, blocks)
    ]
