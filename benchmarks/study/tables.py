"""Tables of the study, in Markdown."""

from __future__ import annotations

from typing import Any

from .results import Grid
from .runs import NETWORKS, Setting


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def table(grid: Grid, setting: Setting) -> str:
    """Make the tables of table.md."""

    def accuracy(network: str, batch_size: int, lr: float, name_lr: bool) -> str:
        mean, spread = (f(network, batch_size, lr) for f in (grid.mean, grid.spread))
        return f'{mean:.1f} ± {spread:.1f}' + (f' ({lr:g})' if name_lr else '')

    def failed(**where: Any) -> str:
        runs, non_finite, chance = grid.failures(**where)
        return f'{non_finite + chance} of {runs} ({non_finite})'

    def working(network: str, batch_size: int) -> str:
        return ', '.join(f'{lr:g}' for lr in grid.working_lrs(network, batch_size)) or 'none'

    labels = {network: NETWORKS[network].label for network in grid.networks}
    by_batch = ['network', *(f'batch {b}' for b in grid.batch_sizes)]
    common = grid.common_lr()
    best = [
        [label, *(accuracy(n, b, grid.best_lr(n, b), True) for b in grid.batch_sizes)]
        for n, label in labels.items()
    ]
    at_common = [
        [label, *(accuracy(n, b, common, False) for b in grid.batch_sizes)]
        for n, label in labels.items()
    ]
    lrs = [[label, *(working(n, b) for b in grid.batch_sizes)] for n, label in labels.items()]
    diverged = [
        [label, *(failed(network=n, batch_size=b) for b in grid.batch_sizes), failed(network=n)]
        for n, label in labels.items()
    ]
    by_lr = [
        [label, *(failed(network=n, lr=lr) for lr in grid.lrs), failed(network=n)]
        for n, label in labels.items()
    ]
    seeds = f'{len(grid.seeds)} seeds' if len(grid.seeds) > 1 else 'one seed'
    return f"""\
## Test accuracy in percent at the best learning rate (in brackets)

Mean ± standard deviation over {seeds}. The best learning rate is that of the highest mean.

{markdown(by_batch, best)}

## Test accuracy in percent at one learning rate, {common:g}

It is the one of the highest mean over all networks and batch sizes.

{markdown(by_batch, at_common)}

## Learning rates with a mean test accuracy of at least 90 %

{markdown(by_batch, lrs)}

## Diverged runs

At most {setting.chance:g} % of the test images right at the end, or a loss or an output that is
not finite (these in brackets). Over all learning rates:

{markdown([*by_batch, 'all'], diverged)}

Over all batch sizes:

{markdown(['network', *(f'lr {lr:g}' for lr in grid.lrs), 'all'], by_lr)}
"""
