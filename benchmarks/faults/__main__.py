"""Seed faults into networks and score the verdicts, also those on healthy ones.

    python -m benchmarks.faults --out benchmarks/results/faults.json --split developed held_out

It takes about an hour on a free core; parts that are in the file already are kept.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import command, machine, quiet
from nf_plugins.cli.arguments import ArgumentParser
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import as_usage_error
from nf_plugins.utils.files import atomic_write

from .faults import FAULTS
from .held_out import HELD_OUT_FAULTS
from .networks import HEALTHY, HELD_OUT, HELD_OUT_HEALTHY, SUBJECTS
from .run import healthy, seeded, summary
from .trainings import HELD_OUT_NETWORKS, HELD_OUT_RECIPES, NETWORKS, RECIPES, trained

SPLITS: dict[str, dict[str, Any]] = dict(
    developed=dict(
        subjects=SUBJECTS, faults=FAULTS, healthy=HEALTHY, nets=NETWORKS, recipes=RECIPES
    ),
    held_out=dict(
        subjects=HELD_OUT,
        faults=HELD_OUT_FAULTS,
        healthy=HELD_OUT_HEALTHY,
        nets=HELD_OUT_NETWORKS,
        recipes=HELD_OUT_RECIPES,
    ),
)
"""Split -> its networks and faults. The rules were developed on the first."""
PARTS = ('faults', 'healthy', 'trainings')
INPUTS = ('noise', 'images', 'unit gain')


def is_drawn(split: str, network: str, kind: str) -> bool:
    """Whether a network gets a kind of fault: of the held-out split a quarter of the pairs do."""
    return split == 'developed' or zlib.crc32(f'{network} {kind}'.encode()) % 4 == 0


def jobs(split: str, part: str) -> list[tuple[str, Callable[[], Any]]]:
    """The measurements of a part of a split: name, and what makes it."""
    of = SPLITS[split]
    if part == 'faults':
        pairs = [(n, k) for n in of['subjects'] for k in of['faults'] if is_drawn(split, n, k)]
        return [(f'{n}: {k}', lambda n=n, k=k: seeded(n, k)) for n, k in pairs]
    if part == 'healthy':
        pairs = [(n, i) for n in (*of['subjects'], *of['healthy']) for i in INPUTS]
        return [(f'{n}: {i}', lambda n=n, i=i: healthy(n, i)) for n, i in pairs]
    pairs = [(n, r) for r in of['recipes'] for n in of['nets']]
    return [(f'{n}: {r}', lambda n=n, r=r: trained(n, r)) for n, r in pairs]


@command_line
@quiet()
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, help='JSON file')
    parser.add_argument('--parts', nargs='+', default=list(PARTS), choices=PARTS)
    parser.add_argument('--split', nargs='+', default=list(SPLITS), choices=SPLITS)
    with as_usage_error('bad arguments'):
        args = parser.parse_args()
    known: Measured = {split: {part: {} for part in PARTS} for split in SPLITS}
    if args.out and args.out.exists():
        with as_usage_error(f'cannot read {args.out}'):
            for split, parts in json.loads(args.out.read_text('utf-8'))['measured'].items():
                known[split] |= parts
    for split in args.split:
        for part in args.parts:
            for name, job in jobs(split, part):
                if name not in known[split][part]:
                    known[split][part][name] = job()
                    write(args.out, known)
    print(json.dumps(write(args.out, known), indent=1))


Measured = dict[str, dict[str, dict[str, Any]]]


def write(out: Path | None, measured: Measured) -> dict[str, Any]:
    """Write what is measured so far, with its summary, which is returned."""
    found = {}
    for split, parts in measured.items():
        found[split] = summary({part: [r for r in parts[part].values() if r] for part in PARTS})
    if out:
        known = json.loads(out.read_text('utf-8')) if out.exists() else {}
        data = dict(machine=machine(), command=command('benchmarks.faults'), summary=found)
        text = json.dumps({**known, **data, 'measured': measured}, indent=1) + '\n'
        with as_usage_error(f'cannot write {out}'):
            atomic_write(out, text)
    return found


if __name__ == '__main__':
    main()
