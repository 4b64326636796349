"""The names of blocks in a profile: none is empty, and none is another's where that is possible."""

from __future__ import annotations

from collections import Counter

from .nodes import Node, path_nodes
from .ops import HEAVY
from .residuals import Residual


def block_names(residuals: list[Residual]) -> list[str]:
    """Return a name for each residual block.

    It is the path of the module that holds the block. Where several blocks are in one module (the
    attention and the MLP of a transformer layer), or the block is in the forward method of the
    network itself, the name is that of the part of the module that ends the branch.

    Args:
        residuals: The blocks, in order of execution.
    """
    times = Counter(r.name for r in residuals)
    names = []
    for number, residual in enumerate(residuals, 1):
        name = residual.name
        if not name or times[name] > 1:
            name = _last_part(residual) or name
        names.append(name or f'block{number}')
    return names


def _last_part(residual: Residual) -> str:
    """Return the child of a block's module in which the branch's last matrix product runs."""
    path = [n for n in path_nodes(residual.end, residual.source) if _multiplies(n)]
    inside = f'{residual.name}.' if residual.name else ''
    for node in sorted(path, key=lambda n: -n.index):
        if node.module.startswith(inside) and node.module:
            return inside + node.module.removeprefix(inside).partition('.')[0]
    return ''


def _multiplies(node: Node) -> bool:
    return node.op in HEAVY or 'attention' in node.op
