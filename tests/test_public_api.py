"""The public names: one page of the docs has them all, and nothing else is taught."""

import importlib
import inspect
import re

import pytest

import nf_plugins
from nf_plugins import registry

from .conftest import ROOT

REFERENCE = (ROOT / 'docs/reference.md').read_text('utf-8')
MODULES = re.findall(r'automodule:: (\S+)', REFERENCE)
FUNCTIONS = re.findall(r'auto(?:function|exception):: (\S+)', REFERENCE)
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
TYPES = {
    name for value in vars(registry).values() if isinstance(value, registry.Registry)
    for name in value.module_dict
}  # fmt: skip


def find(name):
    """The object of a dotted name, imported as far as that is necessary."""
    parts, found = name.split('.'), nf_plugins
    for number, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module('.'.join(parts[:number]))
        found = getattr(found, part)
    return found


def public():
    """Name -> object of everything on the page of the reference."""
    names = [f'{module}.{name}' for module in MODULES for name in find(module).__all__]
    return {name: find(name) for name in [*FUNCTIONS, *names]}


PUBLIC = public()
IDS = {id(value) for value in PUBLIC.values()}


def is_public(name):
    """Whether a dotted name is on the page, or is a module or a member of something there."""
    try:
        found = find(name)
    except (AttributeError, ImportError):
        return name.rpartition('.')[2] in TYPES
    owner = name.rpartition('.')[0]
    return id(found) in IDS or inspect.ismodule(found) or (owner in PUBLIC)


def taught(text):
    """The names of this package that a page mentions or imports."""
    found = set(re.findall(r'\bnf_plugins(?:\.[A-Za-z]\w*)+', text))
    for module, names in re.findall(r'from (nf_plugins[\w.]*) import ([\w, ]+)', text):
        found |= {f'{module}.{name.strip()}' for name in names.split(',') if name.strip()}
    return {name for name in found if not name.startswith('nf_plugins.configs')}


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.stem)
def test_what_a_page_teaches_is_public(page):
    assert not {name for name in taught(page.read_text('utf-8')) if not is_public(name)}


def test_what_is_not_public_is_seen():
    text = 'nf_plugins.errors.nothing and\nfrom nf_plugins.spp.execution import seed_all, run'
    names = taught(text) - {'nf_plugins.spp.execution'}
    assert len(names) == 3
    assert not any(map(is_public, names))


def documented(value):
    """A public object and what its class has, with their docstrings."""
    yield value.__doc__ or ''
    if inspect.isclass(value):
        for name, member in vars(value).items():
            if not name.startswith('_') and (inspect.isfunction(member) or hasattr(member, 'fget')):
                yield member.__doc__ or ''


def linked(text):
    return re.findall(r':(?:func|class|meth|attr|data|exc|mod):`~?([^`<]+)`', text)


EXTERNAL = ('torch', 'mmengine', 'mmcv', 'mmpretrain', 'numpy')


@pytest.mark.parametrize('name', sorted(PUBLIC))
def test_what_a_docstring_links_is_public(name):
    value = PUBLIC[name]
    members = set(dir(value)) | {other.rpartition('.')[2] for other in PUBLIC}
    for text in documented(value) if callable(value) else ():
        for link in linked(text):
            last = link.rpartition('.')[2]
            assert link.startswith(EXTERNAL) or last in members or is_public(link), link


@pytest.mark.parametrize('name', sorted(PUBLIC))
def test_each_has_a_docstring(name):
    value = PUBLIC[name]
    if inspect.isclass(value) or inspect.isfunction(value):
        assert len((value.__doc__ or '').splitlines()[0]) > 10


@pytest.mark.parametrize('module', MODULES)
def test_all_is_sorted_and_whole(module):
    """Names are in order, none twice; what is imported for the user is listed."""
    names = find(module).__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(find(module), name) for name in names)
