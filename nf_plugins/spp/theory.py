"""What the signal should look like, where a theory says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from nf_plugins.functional import GAMMA

from .adapters import Expectation, adapters, first
from .graph import Node, Residual, Tracer, Unit
from .graph.nodes import skip_moves
from .graph.ops import BATCH_NORMS, CONVOLUTIONS

if TYPE_CHECKING:
    from .profile import BlockSignal


ALPHA = 0.2
"""alpha of all published normalizer-free networks."""


def is_usual(alpha: float, most: float = 0.5) -> bool:
    """Whether an alpha is one that the method means.

    Example:
        >>> [is_usual(alpha) for alpha in (0.01, 0.2, 1.0)]
        [False, True, False]
    """
    return ALPHA / 5 <= alpha <= most


def branch_variance(node: Node, modules: dict[str, nn.Module]) -> float | None:
    r"""Variance at the end of a path that starts at a batch norm, at initialisation.

    After a batch norm the channels have variance :math:`w^2`. A convolution of
    :math:`f(z)` with :math:`z` standard normal and independent weights has

    .. math:: \mathrm{Var} = \sum_i w_i^2 \, \mathrm{Var}[f(z)]

    which for ReLU is :math:`(1 - 1/\pi)/2` times :math:`\sum w^2`: with He's
    initialisation, where the sum is 2, :math:`1 - 1/\pi = 0.682`. Without an
    activation in between and with weights of variance 1/fan_in it is 1.

    Args:
        node: End of the path.
        modules: Module path -> module.

    Returns:
        The variance, None where the path is another, or the norm is trained.

    Source: Brock et al. 2021a, section 3.1.
    """
    node = skip_moves(node)
    if node.op in BATCH_NORMS:
        norm = modules.get(node.module)
        weight = getattr(norm, 'weight', None)
        return 1.0 if weight is None else weight.detach().double().square().mean().item()
    if node.op not in CONVOLUTIONS or node.weight is None:
        return None
    energy = node.weight.detach().double().flatten(1).square().sum(1).mean().item()
    before = skip_moves(node.parents[0])
    act_var = 1.0
    if before.op.rstrip('_') in GAMMA and before.op not in BATCH_NORMS:
        act_var = 1 / GAMMA[before.op.rstrip('_')] ** 2
        before = skip_moves(before.parents[0])
    if before.op not in BATCH_NORMS or not _untrained(modules.get(before.module)):
        return None
    return energy * act_var


def _untrained(norm: nn.Module | None) -> bool:
    weight, bias = getattr(norm, 'weight', None), getattr(norm, 'bias', None)
    return (weight is None or bool((weight == 1).all())) and (bias is None or not bool(bias.any()))


def add_theory(
    blocks: list[tuple[BlockSignal, Residual | Unit | None]], tracer: Tracer, mode: str
) -> None:
    r"""Fill in ``expected_var`` and ``expected_res_var``.

    - Normalizer-free blocks, which know their :math:`\alpha`: the stem has variance 1,
      each block adds :math:`\alpha^2`, a transition starts again at
      :math:`1 + \alpha^2` (Brock et al. 2021a, section 4). Branches have variance 1.
    - Batch norm before the convolutions (ResNet-V2) in train mode at initialisation:
      each block adds its branch's variance (:func:`branch_variance`), a transition
      starts again at the sum of the two paths'.

    Blocks that end in an activation have none.
    """
    modules = tracer.modules
    expected: float | None = None
    made_for = {b.index: expectation(modules.get(x.name)) if x else None for b, x in blocks}
    normalizer_free = any(made_for.values())
    for block, residual in blocks:
        if block.kind == 'stem':
            expected = 1.0 if normalizer_free else block.avg_var
            block.expected_var = 1.0 if normalizer_free else None
            continue
        if not isinstance(residual, Residual) or block.activated:
            expected = None
            continue
        if normalizer_free:
            made = made_for[block.index]
            expected = made.output_var(expected, residual.identity) if made else None
            block.expected_var = expected
            block.expected_res_var = None if expected is None else 1.0
            continue
        if mode != 'train':
            continue
        block.expected_res_var = branch_variance(residual.bare, modules)
        if block.expected_res_var is None or block.branch_gain is None:
            expected = None
            continue
        added = block.branch_gain**2 * block.expected_res_var
        if not residual.identity:
            expected = None if block.pooled else branch_variance(residual.shortcut, modules)
        expected = None if expected is None else expected + added
        block.expected_var = expected


def expectation(block: nn.Module | None) -> Expectation | None:
    """Return what a normalizer-free block is made for, as its library says.

    Where its alpha is none that the method means, this is what the published alpha gives.
    """
    if block is None:
        return None
    made = first(adapter.expectation(block) for adapter in adapters())
    return Expectation(ALPHA) if made and not is_usual(made.alpha) else made
