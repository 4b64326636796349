"""The names of blocks in a profile: none is empty, and none is another's where that is possible."""

from __future__ import annotations

from collections import Counter

from .nodes import Node, path_nodes
from .ops import HEAVY
from .residuals import Residual


def block_names(residuals: list[Residual]) -> list[str]:
    """Return a name for each residual block.

    It is the path of the module that holds the block. Where other blocks are in this module, too
    (the attention and the MLP of a transformer layer), or the block is in the forward method of
    the network itself, the name is that of the part of the module that ends the branch.

    Args:
        residuals: The blocks, in order of execution.
    """
    # The blocks in each module and below it.
    times = Counter(path for r in residuals for path in _paths(r.name))
    names = []
    for number, residual in enumerate(residuals, 1):
        name = residual.name
        if not name or times[name] > 1:
            name = _last_part(residual) or name
        names.append(name or f'block{number}')
    return _told_apart(names, residuals)


def _paths(name: str) -> list[str]:
    """Return the paths of a module and of all modules around it."""
    parts = name.split('.')
    return ['.'.join(parts[:length]) for length in range(1, len(parts) + 1)]


def _told_apart(names: list[str], residuals: list[Residual]) -> list[str]:
    """Return longer names for blocks of one name, where these differ: parts kept in lists."""
    longer: dict[str, list[str]] = {}
    for name, residual in zip(names, residuals):
        longer.setdefault(name, []).append(_last_part(residual, 2) or name)
    differ = {name: len(set(found)) > 1 for name, found in longer.items()}
    return [longer[name].pop(0) if differ[name] else name for name in names]


def _last_part(residual: Residual, depth: int = 1) -> str:
    """Return the part of a block's module in which the branch's last matrix product runs."""
    path = [n for n in path_nodes(residual.end, residual.source) if _multiplies(n)]
    inside = f'{residual.name}.' if residual.name else ''
    for node in sorted(path, key=lambda n: -n.index):
        if node.module.startswith(inside) and node.module:
            return inside + '.'.join(node.module.removeprefix(inside).split('.')[:depth])
    return ''


def _multiplies(node: Node) -> bool:
    return node.op in HEAVY or 'attention' in node.op
