"""Seed faults into networks and score the verdicts, also those on healthy ones.

    python -m benchmarks.faults --out benchmarks/results/faults.json

It takes about half an hour on two free cores; parts that are in the file already are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import command, machine, quiet
from nf_plugins.cli.arguments import ArgumentParser
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import as_usage_error
from nf_plugins.utils.files import atomic_write

from .faults import FAULTS
from .networks import HEALTHY, SUBJECTS
from .run import healthy, seeded, summary
from .trainings import NETWORKS, RECIPES, trained

PARTS = ('faults', 'healthy', 'trainings')
INPUTS = ('noise', 'images', 'unit gain')


def jobs(part: str) -> list[tuple[str, Callable[[], Any]]]:
    """The measurements of a part: name, and what makes it."""
    if part == 'faults':
        pairs = [(n, k) for n in SUBJECTS for k in FAULTS]
        return [(f'{n}: {k}', lambda n=n, k=k: seeded(n, k)) for n, k in pairs]
    if part == 'healthy':
        pairs = [(n, i) for i in INPUTS for n in (*SUBJECTS, *HEALTHY)]
        return [(f'{n}: {i}', lambda n=n, i=i: healthy(n, i)) for n, i in pairs]
    pairs = [(n, r) for r in RECIPES for n in NETWORKS]
    return [(f'{n}: {r}', lambda n=n, r=r: trained(n, r)) for n, r in pairs]


@command_line
@quiet()
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, help='JSON file')
    parser.add_argument('--parts', nargs='+', default=list(PARTS), choices=PARTS)
    with as_usage_error('bad arguments'):
        args = parser.parse_args()
    known: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    if args.out and args.out.exists():
        with as_usage_error(f'cannot read {args.out}'):
            known |= json.loads(args.out.read_text('utf-8')).get('measured', {})
    for part in args.parts:
        for name, job in jobs(part):
            if name not in known[part]:
                known[part][name] = job()
                write(args.out, known)
    print(json.dumps(write(args.out, known), indent=1))


def write(out: Path | None, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Write what is measured so far, with its summary, which is returned."""
    results = {part: [r for r in measured[part].values() if r] for part in PARTS}
    found = summary(results)
    if out:
        data = dict(machine=machine(), command=command('benchmarks.faults'), summary=found)
        text = json.dumps({**data, 'measured': measured}, indent=1) + '\n'
        with as_usage_error(f'cannot write {out}'):
            atomic_write(out, text)
    return found


if __name__ == '__main__':
    main()
