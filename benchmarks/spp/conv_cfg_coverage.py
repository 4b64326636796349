"""How many convolutions of mmpretrain's backbones ``conv_cfg`` reaches, and ``convert``.

    python -m benchmarks.spp.conv_cfg_coverage --out benchmarks/results/conv_cfg.json \
        --docs docs/mm_backbones.md

builds every distinct backbone of mmpretrain's own configs (without memory for the weights)
with ``conv_cfg=dict(type='nf_plugins.ScaledWS')``, and again without it for
``nf_plugins.convert``, and counts the convolutions. Writes the table of the docs.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import mmpretrain
import torch
from mmengine.utils import track_iter_progress
from torch import nn
from torch.nn.modules.conv import _ConvNd

import nf_plugins
from benchmarks.common import quiet
from nf_plugins.cli.arguments import ArgumentParser
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.layers import StandardizedConv2d
from nf_plugins.utils.files import atomic_write
from tests.oracles.residual_counts import Case, build, distinct_backbones

CONV_CFG = dict(type='nf_plugins.ScaledWS')
START, END = '<!-- table: conv_cfg_coverage.py -->', '<!-- end of the table -->'


def count(backbone: nn.Module) -> tuple[int, int]:
    """Standardized convolutions, and all."""
    convs = [m for m in backbone.modules() if isinstance(m, _ConvNd)]
    return sum(isinstance(m, StandardizedConv2d) for m in convs), len(convs)


def check(case: Case) -> dict:
    """What ``conv_cfg`` and ``convert`` reach in one backbone."""
    row = dict(type=case.cfg['type'], config=case.config)
    backbone = build(case.cfg)
    row['convolutions'] = count(backbone)[1]
    try:
        row['conv_cfg'] = count(build({**case.cfg, 'conv_cfg': CONV_CFG}))[0]
    except Exception as error:
        row['refused'] = f'{type(error).__name__}: {error}'.splitlines()[0][:200]
    report = nf_plugins.convert(backbone, 'ScaledWS')
    row['convert'] = count(backbone)[0]
    row['left'] = dict(Counter(report.left.values()))
    return row


def outcome(row: dict) -> str:
    """In a word or two."""
    if 'refused' in row:
        return 'refused'
    if row['conv_cfg'] == row['convolutions']:
        return 'complete'
    return 'no effect' if not row['conv_cfg'] else 'partial'


def numbers(rows: list[dict], key: str) -> str:
    """``n of m`` of the largest backbone of some."""
    row = max(rows, key=lambda row: row['convolutions'])
    return f'{row[key]} of {row["convolutions"]}' if key in row else '-'


def table(rows: list[dict]) -> str:
    """A line for each type of backbone and outcome."""
    lines = [
        '| backbone | configs | `conv_cfg` | reaches | `nf_plugins.convert` | what it leaves |',
        '| --- | ---: | --- | ---: | ---: | --- |',
    ]
    kinds = Counter((row['type'], outcome(row)) for row in rows)
    for (kind, result), number in sorted(kinds.items()):
        members = [r for r in rows if (r['type'], outcome(r)) == (kind, result)]
        left = sorted({why for row in members for why in row['left']})
        cells = [kind, str(number), result, numbers(members, 'conv_cfg')]
        lines.append(f'| {" | ".join([*cells, numbers(members, "convert"), "; ".join(left)])} |')
    return '\n'.join(lines)


@command_line
@quiet()
def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, help='JSON file with a row per backbone')
    parser.add_argument('--docs', type=Path, help='page whose table is written anew')
    with as_usage_error('bad arguments'):
        args = parser.parse_args()
    if args.docs:
        with as_usage_error(f'cannot read {args.docs}'):
            page = args.docs.read_text('utf-8')
        if START not in page or END not in page:
            raise UsageError(f'{args.docs} has no place for the table: {START} ... {END}')
    rows = [check(case) for case in track_iter_progress(distinct_backbones())]
    totals = Counter(map(outcome, rows))
    text = table(rows)
    print(f'\n\n{text}\n\n{len(rows)} backbones: {dict(totals)}')
    if args.out:
        versions = dict(torch=torch.__version__, mmpretrain=mmpretrain.__version__)
        lines = ',\n'.join(f'  {json.dumps(row)}' for row in rows)
        head = json.dumps(dict(versions=versions, totals=totals))[1:-1]
        with as_usage_error(f'cannot write {args.out}'):
            atomic_write(args.out, f'{{{head}, "rows": [\n{lines}\n]}}\n')
    if args.docs:
        before, after = page.split(START)[0], page.split(END)[1]
        with as_usage_error(f'cannot write {args.docs}'):
            atomic_write(args.docs, f'{before}{START}\n\n{text}\n\n{END}{after}')
    return 0


if __name__ == '__main__':
    main()
