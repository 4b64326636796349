"""How well the residual blocks of mmpretrain's backbones are found.

    python -m benchmarks.spp.spp_coverage --out coverage.json

analyzes every distinct backbone of mmpretrain's own configs and compares the number of
residual additions with the number counted from the classes of its blocks
(``tests/oracles/residual_counts.py``, which was written from their source). Prints a line per type.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import track_iter_progress

from benchmarks.common import quiet, write_rows
from nf_plugins.cli.arguments import ArgumentParser
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.spp import analyze
from nf_plugins.spp.graph import find_residuals
from tests.oracles.residual_counts import Case, build, count_residuals, distinct_backbones


def check(case: Case, max_params: float, count_alone: bool = False) -> dict:
    """Analyze one backbone on one image, and compare."""
    row = dict(type=case.cfg['type'], config=case.config, size=list(case.size))
    start = time.time()
    try:
        init_default_scope('mmpretrain')
        backbone = build(case.cfg)  # on the meta device
        params = sum(p.numel() for p in backbone.parameters())
        row.update(params=params, counted=sum(count_residuals(backbone).values()))
        if params > max_params:
            return {**row, 'skipped': f'more than {max_params:g} parameters'}
        if count_alone:
            return {**row, 'found': count(case), 'seconds': round(time.time() - start, 1)}
        backbone = MODELS.build(case.cfg)
        batch = torch.randn(1, case.channels, *case.size)
        profile = analyze(backbone, batch, mode='eval')
        found = [b for b in profile.blocks if b.kind in ('residual', 'transition')]
        row.update(
            found=len(found),
            plain=sum(b.kind == 'plain' for b in profile.blocks),
            finite=profile.is_finite(),
        )
    except Exception as error:
        row['error'] = f'{type(error).__name__}: {error}'
    row['seconds'] = round(time.time() - start, 1)
    return row


def count(case: Case) -> int:
    """Count the blocks that are found, on the meta device if the network runs there."""
    for device in ('meta', 'cpu'):
        try:
            with torch.device(device):
                backbone = MODELS.build(case.cfg)
                batch = torch.randn(1, case.channels, *case.size)
            backbone.eval()
            return len(find_residuals(backbone, batch))
        except Exception:
            if device == 'cpu':
                raise
    raise AssertionError('unreachable')


@command_line
@quiet()
def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--types', nargs='+', help='only these backbone types')
    parser.add_argument('--max-params', type=float, default=2e9, help='skip larger ones')
    parser.add_argument(
        '--count', action='store_true', help='count the blocks alone, and measure nothing'
    )
    parser.add_argument('--out', type=Path, help='JSON file with a row per backbone')
    with as_usage_error('bad arguments'):
        args: argparse.Namespace = parser.parse_args()
    cases = [c for c in distinct_backbones() if not args.types or c.cfg['type'] in args.types]
    if not cases:
        raise UsageError(f'no config of mmpretrain has a backbone of {", ".join(args.types)}')
    rows = [check(case, args.max_params, args.count) for case in track_iter_progress(cases)]

    print('\n')
    by_type = defaultdict(list)
    for row in rows:
        by_type[row['type']].append(row)
    print(f'{"type":32} backbones  exact  found/counted')
    for kind, members in sorted(by_type.items()):
        exact = sum(row.get('found') == row['counted'] for row in members if 'counted' in row)
        numbers = ' '.join(f'{r.get("found", "-")}/{r.get("counted", "-")}' for r in members)
        print(f'{kind:32} {len(members):9}  {exact:5}  {numbers}')
    for row in rows:
        if 'error' in row or 'skipped' in row:
            print(f'{row["config"]}: {row.get("error") or row["skipped"]}')
    ran = [row for row in rows if 'found' in row]
    exact = [row for row in ran if row['found'] == row['counted']]
    print(
        f'{len(rows)} backbones, {len(ran)} analyzed, {len(exact)} exact; '
        f'{sum(r["counted"] for r in ran)} residual additions counted, '
        f'{sum(r["found"] for r in ran)} found'
    )
    if args.out:
        write_rows(args.out, 'benchmarks.spp.spp_coverage', rows)
    return 0


if __name__ == '__main__':
    main()
