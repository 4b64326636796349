"""How many residual blocks are found in the networks of other libraries.

    python -m benchmarks.spp.census timm torchvision --out benchmarks/results/spp_census.json

counts the residual blocks of each network twice in one forward pass: by
``nf_plugins.spp.graph``, which follows the tensors, and by the tables of ``tests/oracles``,
which were read from the sources of the blocks and know nothing of tensors. A library that is
not installed is left out. Networks run on the meta device, where nothing is computed, or on
the CPU if they need values.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import quiet, write_rows
from nf_plugins.cli.arguments import ArgumentParser
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import as_usage_error
from nf_plugins.spp import analyze
from nf_plugins.spp.execution import grad_mode, plain_execution
from nf_plugins.spp.graph import tracing
from nf_plugins.utils.checks import check_choice
from tests.oracles.executed import counting

from .census_cases import Case

LIBRARIES = {name: name for name in ('timm', 'torchvision', 'transformers', 'monai', 'diffusers')}
LIBRARIES['smp'] = 'segmentation_models_pytorch'  # as it is imported
DEVICES = ('meta', 'cpu')


def compare(case: Case, device: str) -> dict:
    """Run one network once, and count its blocks in both ways."""
    with torch.device(device):
        model = case.build()
        inputs = case.inputs(model)
    model.eval()
    oracle = import_module(f'tests.oracles.{case.package}_counts')
    first = next(iter(_tensors(inputs)))
    with (
        grad_mode(False),
        plain_execution(model, len(first), first.device),
        tracing(model, inputs) as tracer,
        counting(model, oracle.BLOCKS) as counted,
    ):
        output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
        tracer.finish(output)
    found = tracer.residuals()
    names = [r.name for r in found]
    row = dict(counted=sum(counted.values()), found=len(found), names=names, blocks=dict(counted))
    return row


def _tensors(inputs: object) -> Iterable[torch.Tensor]:
    return (x for x in torch.utils._pytree.tree_iter(inputs) if isinstance(x, torch.Tensor))


def unharmed(case: Case) -> bool:
    """Whether an analysis in train mode leaves a network as it was, to the bit."""
    model = case.build()
    inputs, before = case.inputs(model), _held(model)
    analyze(model, inputs, backward=True)
    after = _held(model)
    return before.keys() == after.keys() and all(_same(before[k], after[k]) for k in before)


def _held(model: nn.Module) -> dict[str, object]:
    """What a network holds: its tensors, the modes of its modules, and its config."""
    tensors = {name: x.detach().clone() for name, x in model.state_dict().items()}
    modes = {f'{name}.training': m.training for name, m in model.named_modules()}
    return {**tensors, **modes, 'config': repr(getattr(model, 'config', None))}


def _same(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def check(case: Case, with_analysis: bool = False) -> dict:
    """Compare on the first device that a network runs on."""
    row = dict(library=case.package, module=case.module, name=case.name)
    start = time.time()
    for device in DEVICES:
        try:
            row.update(compare(case, device), device=device)
            row.pop('error', None)
            break
        except Exception as error:
            row['error'] = f'{type(error).__name__}: {str(error)[:200]}'
    if with_analysis and 'error' not in row:
        try:
            row['unharmed'] = unharmed(case)
        except Exception as error:
            row['error'] = f'analyze: {type(error).__name__}: {str(error)[:200]}'
    row['seconds'] = round(time.time() - start, 1)
    return row


def differing(row: dict) -> str:
    """Where the counts differ, by the names of modules."""
    names = row['names']
    lines = []
    for path, number in row['blocks'].items():
        here = sum(n == path or n.startswith(f'{path}.') for n in names)
        if here != number:
            lines.append(f'{path} {here}/{number}')
    others = [n for n in names if not any(n == p or n.startswith(f'{p}.') for p in row['blocks'])]
    return f'found/counted: {", ".join(lines[:6])}; elsewhere: {", ".join(others[:6])}'


def summary(rows: list[dict]) -> dict[str, dict[str, int]]:
    """Networks, those that ran, and those with equal counts, of each library."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        line = found.setdefault(row['library'], dict(networks=0, ran=0, exact=0))
        line['networks'] += 1
        line['ran'] += 'found' in row
        line['exact'] += 'found' in row and row['found'] == row['counted']
    return found


def run_all(
    cases: list[Case], report: Callable[[str], None], with_analysis: bool = False
) -> Iterator[dict]:
    """Check the cases one by one; tell of each that differs or does not run."""
    for case in cases:
        row = check(case, with_analysis)
        if 'error' in row:
            report(f'{row["library"]} {row["name"]}: {row["error"]}')
        elif not row.get('unharmed', True):
            report(f'{row["library"]} {row["name"]}: the analysis has changed it')
        elif row['found'] != row['counted']:
            report(
                f'{row["library"]} {row["name"]}: found {row["found"]}, counted {row["counted"]}; '
                + differing(row)
            )
        yield row


def write(path: Path, rows: list[dict]) -> None:
    """Write the rows, without the names of the blocks."""
    short = [{k: v for k, v in row.items() if k not in ('names', 'blocks')} for row in rows]
    write_rows(path, 'benchmarks.spp.census', short, summary=summary(short))


def read(path: Path | None) -> list[dict]:
    """Read the rows that an earlier run has written; none without a file."""
    if path is None or not path.exists():
        return []
    return json.loads(path.read_text())['rows']


@command_line
@quiet()
def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('libraries', nargs='*', help=f'of {", ".join(LIBRARIES)}; default: all')
    parser.add_argument('--names', help='only networks whose names match this expression')
    parser.add_argument(
        '--one-each', action='store_true', help='only the first network of each module'
    )
    parser.add_argument(
        '--analyze', action='store_true', help='analyze each network, and see that it is unharmed'
    )
    parser.add_argument('--out', type=Path, help='JSON file with a row per network')
    parser.add_argument(
        '--resume', action='store_true', help='keep the rows of --out, and run the other networks'
    )
    with as_usage_error('bad arguments'):
        args: argparse.Namespace = parser.parse_args()
        for library in args.libraries:
            check_choice('the library', library, LIBRARIES)
    from . import census_cases, census_configs

    cases_of = {**census_cases.CASES, **census_configs.CASES}
    rows = read(args.out) if args.resume else []
    known = {(row['library'], row['name']) for row in rows}
    for library in args.libraries or LIBRARIES:
        if find_spec(LIBRARIES[library]) is None:
            print(f'{library} is not installed')
            continue
        cases = [c for c in cases_of[library]() if not args.names or re.search(args.names, c.name)]
        if args.one_each:
            cases = list({c.module: c for c in reversed(cases)}.values())[::-1]
        cases = [c for c in cases if (c.package, c.name) not in known]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            report = functools.partial(print, flush=True)
            for row in run_all(cases, report, args.analyze):
                rows.append(row)
                if args.out:
                    write(args.out, rows)
    if args.out:
        write(args.out, rows)
    for library, line in summary(rows).items():
        print(f'{library}: {line["exact"]} exact of {line["ran"]} that ran, of {line["networks"]}')
    return 0


if __name__ == '__main__':
    main()
