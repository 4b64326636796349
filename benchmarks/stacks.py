"""Run the quick tests on several sets of libraries.

A stack is a file in ``requirements/stacks``. Each stack has a virtual environment in ``.compat``,
which is kept for the next run. The versions and the outcome are written to
``benchmarks/results/stacks.json`` and into the table of ``docs/stacks.md``. The row "not supported"
lists the tests that were skipped with the reason ``not supported: ...``.

python benchmarks/stacks.py [STACK ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENVS = ROOT / '.compat'
RESULTS = ROOT / 'benchmarks/results/stacks.json'
PAGE = ROOT / 'docs/stacks.md'
STACKS = ('default', 'original', 'newest', 'oldest')
LIBRARIES = {  # distributions of one import name
    'torch': ('torch',),
    'torchvision': ('torchvision',),
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
    'numpy': ('numpy',),
}
EXTRAS = 'digits,report,export,video,tests'
UNSUPPORTED = 'not supported: '
START, END = '<!-- made by make compat -->\n', '<!-- end -->\n'


def install(stack: str) -> Path:
    """Create or update the virtual environment of a stack, and return its Python."""
    folder = VENVS / stack
    python = folder / 'bin/python'
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [python, '-m', 'pip', 'install', '-q', '--upgrade']
    requirements = ROOT / f'requirements/stacks/{stack}.txt'
    subprocess.run([*pip, '-r', requirements, f'.[{EXTRAS}]'], cwd=ROOT, check=True)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return the versions of Python and of each library, with the name of its distribution."""
    command = [python, '-m', 'pip', 'list', '--format', 'json', '--disable-pip-version-check']
    listed = json.loads(subprocess.check_output(command))
    there = {entry['name'].lower(): entry['version'] for entry in listed}
    command = [python, '-c', 'import platform; print(platform.python_version())']
    found = {'Python': subprocess.check_output(command, text=True).strip()}
    for library, names in LIBRARIES.items():
        (name,) = (name for name in names if name in there)  # two would overwrite each other
        found[library] = there[name] if name == library else f'{name} {there[name]}'
    return found


def outcome(report: Path) -> dict:
    """Read counts, seconds and unsupported features from a JUnit report of pytest."""
    suite = ET.parse(report).getroot().find('testsuite')
    failed = int(suite.get('failures')) + int(suite.get('errors'))
    skipped = int(suite.get('skipped'))
    reasons = {node.get('message') for node in suite.iter('skipped')}
    return dict(
        passed=int(suite.get('tests')) - failed - skipped,
        failed=failed,
        skipped=skipped,
        seconds=round(float(suite.get('time'))),
        unsupported=sorted(r.removeprefix(UNSUPPORTED) for r in reasons if UNSUPPORTED in r),
    )


def run(stack: str) -> dict:
    """Install a stack and run the quick tests there."""
    python = install(stack)
    report = VENVS / f'{stack}.xml'
    report.unlink(missing_ok=True)
    path = os.pathsep.join([str(python.parent), os.environ['PATH']])
    options = ['-m', 'not slow', '-n', '2', '--dist', 'loadfile']
    result = subprocess.run(
        [python, '-m', 'pytest', *options, '-p', 'no:cacheprovider', f'--junitxml={report}'],
        cwd=ROOT,
        env={**os.environ, 'PATH': path, 'OMP_WAIT_POLICY': 'PASSIVE'},
        check=False,
    )
    if result.returncode not in (0, 1):  # not only failed tests
        result.check_returncode()
    return dict(versions=versions(python), **outcome(report))


def table(results: dict[str, dict]) -> str:
    """Make a table in Markdown with a column for each stack."""
    columns = {
        stack: {
            **found['versions'],
            **{f'tests {name}': found[name] for name in ('passed', 'failed', 'skipped')},
            'seconds': found['seconds'],
            'not supported': '; '.join(found['unsupported']) or 'nothing',
        }
        for stack, found in results.items()
    }
    rows = [
        ['', *columns],
        ['---'] * (len(columns) + 1),
        *([name, *(c[name] for c in columns.values())] for name in next(iter(columns.values()))),
    ]
    return ''.join(f'| {" | ".join(map(str, row))} |\n' for row in rows)


def record(stack: str, found: dict) -> None:
    """Write the outcome of one stack into the results and into the page."""
    results = json.loads(RESULTS.read_text('utf-8')) if RESULTS.exists() else {}
    results[stack] = found
    results = {name: results[name] for name in STACKS if name in results}
    RESULTS.write_text(json.dumps(results, indent=1) + '\n', 'utf-8')
    page = PAGE.read_text('utf-8')
    before, after = page[: page.index(START) + len(START)], page[page.index(END) :]
    PAGE.write_text(f'{before}\n{table(results)}\n{after}', 'utf-8')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'stacks', nargs='*', default=STACKS, metavar='STACK', help=', '.join(STACKS)
    )
    stacks = parser.parse_args().stacks
    for stack in stacks:
        if stack not in STACKS:
            parser.error(f'no stack {stack!r}: choose from {", ".join(STACKS)}')
    failed = []
    for stack in stacks:
        print(f'--- {stack}', flush=True)
        try:
            found = run(stack)
        except subprocess.CalledProcessError as error:
            print(f'error: {stack}: {error}', file=sys.stderr)
            failed.append(stack)
            continue
        if found['failed']:
            failed.append(stack)
        record(stack, found)
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
