"""Profiles as text: a table for a terminal, and comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

from ..profile import BlockSignal, SignalProfile

COLUMNS = {
    'avg_sq_mean': 'avg_sq_mean',
    'avg_var': 'avg_var',
    'expected_var': 'theory',
    'res_avg_var': 'res_avg_var',
    'expected_res_var': 'theory',
    'grad_avg_sq_mean': 'grad_avg_sq_mean',
    'grad_avg_var': 'grad_avg_var',
    'grad_res_avg_var': 'grad_res_avg_var',
}
"""Field of a block -> head of its column."""


def to_rows(profile: SignalProfile) -> list[tuple[str, ...]]:
    """Return the heads and the blocks as cells; columns without a value are left out."""
    shown = [c for c in COLUMNS if any(getattr(b, c) is not None for b in profile.blocks)]
    heads = [COLUMNS[column] for column in shown]
    if profile.state == 'trained':
        heads = ['at init' if head == 'theory' else head for head in heads]
    return [
        ('block', 'name', 'kind', 'shape', *heads),
        *(
            (
                str(block.index),
                block.name,
                block.kind,
                'x'.join(map(str, block.shape)),
                *(_number(getattr(block, column)) for column in shown),
            )
            for block in profile.blocks
        ),
    ]


def to_table(profile: SignalProfile) -> str:
    """Return the blocks as a table for a terminal; columns without a value are left out."""
    rows = to_rows(profile)
    widths = [max(map(len, column)) for column in zip(*rows)]
    left = (False, True, True, True, *[False] * (len(widths) - 4))
    lines = [
        '  '.join(
            cell.ljust(width) if flush else cell.rjust(width)
            for cell, width, flush in zip(row, widths, left)
        ).rstrip()
        for row in rows
    ]
    return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.4g}'


def profiles_to_csv(profiles: Sequence[SignalProfile]) -> str:
    """Return the blocks of some profiles as comma-separated values, a line per block."""
    buffer = io.StringIO()
    names = ['label', *(f.name for f in fields(BlockSignal))]
    writer = csv.DictWriter(buffer, names, lineterminator='\n')
    writer.writeheader()
    for profile in profiles:
        for block in profile.blocks:
            shape = 'x'.join(map(str, block.shape))
            writer.writerow({**asdict(block), 'label': profile.label, 'shape': shape})
    return buffer.getvalue()
