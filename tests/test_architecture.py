"""What may import what: the floors of the package, and parts that import no mm library."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGE = ROOT / 'nf_plugins'
FLOORS = [
    'errors version',
    'utils',
    'registry',
    'config_names',
    'config',
    'checkpoint',
    'functional',
    'layers',
    'models',
    'datasets',
    'spp',
    'engine',
    'cli',
]
"""From the bottom to the top; a part imports itself and what is below it."""
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts.split()}
MM = {'mmengine', 'mmcv', 'mmpretrain', 'mmseg', 'mmdet', 'mim'}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports(source: str, package: str) -> set[str]:
    """The modules that a file imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split('.')[: len(package.split('.')) - node.level + 1]
            outer = '.'.join([*(base if node.level else []), *filter(None, [node.module])])
            found.update(f'{outer}.{alias.name}' for alias in node.names)
    return found


def part_of(module: str) -> str | None:
    """The part of the package that an imported name belongs to."""
    parts = module.split('.')
    return parts[1] if parts[0] == 'nf_plugins' and len(parts) > 1 else None


SOURCES = [path for path in sorted(PACKAGE.rglob('*.py')) if path != PACKAGE / '__init__.py']


def upward(path: Path, source: str) -> list[str]:
    """The imports of a file of the package that are of a higher floor."""
    name = module_name(path)
    package = name if path.name == '__init__.py' else name.rpartition('.')[0]
    wrong = []
    for module in imports(source, package):
        part = part_of(module)
        if module.partition('.')[0] == 'nf_plugins' and FLOOR.get(part, 99) > FLOOR[part_of(name)]:
            wrong.append(module)
    return wrong


@pytest.mark.parametrize('path', SOURCES, ids=module_name)
def test_nothing_imports_upwards(path):
    assert not upward(path, path.read_text('utf-8'))


def test_an_upward_import_is_seen():
    for line in (
        'from nf_plugins.cli import arguments',
        'from ..engine import SPPHook',
        'def f():\n    import nf_plugins.spp',
        'from nf_plugins import fold',
    ):
        assert upward(PACKAGE / 'layers/eca.py', line), line


def imported_by(parts: str) -> set[str]:
    """The libraries that come along with some modules, without those of the package's start."""
    code = f"""
import importlib, sys, types
package = types.ModuleType('nf_plugins')
package.__path__ = [{str(PACKAGE)!r}]
sys.modules['nf_plugins'] = package
for name in {parts.split()!r}:
    importlib.import_module('nf_plugins.' + name)
print(*sorted({{name.partition('.')[0] for name in sys.modules}}))
print(*sorted(name for name in sys.modules if name.startswith('nf_plugins.')))
"""
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=os.environ, check=True
    )
    libraries, own = result.stdout.splitlines()
    assert {f'nf_plugins.{part}' for part in parts.split()} <= set(own.split())
    return set(libraries.split())


@pytest.mark.parametrize(
    ('parts', 'foreign'),
    [('functional', MM), ('errors utils utils.checks utils.files', MM | {'torch', 'numpy'})],
)
def test_the_bottom_is_pure(parts, foreign):
    assert not imported_by(parts) & foreign


def test_what_is_not_pure_is_seen():
    assert 'mmengine' in imported_by('registry')


def test_a_profile_is_data():
    """It imports neither the rules nor what draws it."""
    tree = ast.parse((PACKAGE / 'spp/profile.py').read_text('utf-8'))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = imports(ast.unparse(ast.Module(top, [])), 'nf_plugins.spp')
    assert not {name for name in names if 'rules' in name or 'report' in name or 'plot' in name}
