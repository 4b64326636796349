"""What the pages say can be run, is there, and is complete."""

import json
import os
import re
import runpy
import shlex
import sys

import pytest

from benchmarks.cost.report import table as cost_table
from nf_plugins.config import find_config
from nf_plugins.spp import RULES
from nf_plugins.spp.rules import thresholds_of

from .conftest import ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
READING = ROOT / 'docs/reading_spps.md'
FIGURES = runpy.run_path(str(ROOT / 'docs/spp_figures.py'))


def commands(page):
    """The commands of a page that run `tools/spp_analysis.py`, as arguments."""
    for block in re.findall(r'^```bash\n(.*?)^```', page.read_text('utf-8'), re.DOTALL | re.M):
        for command in FIGURES['commands_of'](block):
            if command[:2] == ['python', 'tools/spp_analysis.py']:
                yield command[2:]


@pytest.fixture
def variables(monkeypatch, tmp_path):
    import mmpretrain

    monkeypatch.setenv('MM', os.path.join(mmpretrain.__path__[0], '.mim', 'configs'))
    monkeypatch.setenv('IMAGES', str(tmp_path))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_have_valid_options_and_configs_that_exist(page, variables, monkeypatch):
    tool = runpy.run_path(str(ROOT / 'tools/spp_analysis.py'))
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('DATA', os.environ['IMAGES'])
    written = re.findall(r'from_published\.py \S+ (\S+)', page.read_text('utf-8'))
    for arguments in commands(page):
        args = tool['parse_args'](arguments)  # raises where an option or a rule is unknown
        assert args.config in written or find_config(args.config)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r'\]\(([^)#]+)\)', page.read_text('utf-8')):
        if '://' not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page):
    text = page.read_text('utf-8')
    for path in re.findall(r'\btests/[\w/]+\.py', text):
        assert (ROOT / path).exists(), path
    sources = [path.read_text('utf-8') for path in (ROOT / 'tests').rglob('test_*.py')]
    defined = {name for source in sources for name in re.findall(r'\bdef (test_\w+)\(', source)}
    named = set(re.findall(r'`(test_\w+)`', text))
    assert named <= defined, named - defined


def test_every_promise_names_its_test():
    """Each bold promise of the page on trust, and each of its other parts, names a test."""
    text = (ROOT / 'docs/trust.md').read_text('utf-8')
    parts = re.split(
        r'^## (?=How a|What is taken|Downloads|Files that|Records|The kernel|Threads)',
        text,
        flags=re.MULTILINE,
    )[1:]
    assert len(parts) == 7
    for part in parts:
        promises = re.split(r'\n\n(?=\*\*)', part)
        for promise in promises[1:] or promises:
            assert 'test_' in promise, promise


def test_the_pictures_are_those_of_the_commands(variables):
    figures = FIGURES['figures_of'](READING.read_text('utf-8'))
    pictures = re.findall(r'!\[[^]]*\]\(([^)]+)\)', READING.read_text('utf-8'))
    assert list(figures) == [p for p in pictures if 'fault_' not in p]
    own = runpy.run_path(str(ROOT / 'docs/fault_figures.py'))['PICTURES']
    faults = [p for p in pictures if 'fault_' in p]
    assert faults == [f'images/fault_{name}.png' for name in own]
    assert all(len(runs) > 1 for runs in figures.values())
    for picture in pictures:
        assert (READING.parent / picture).stat().st_size < 300_000


def test_every_rule_and_its_threshold_is_on_the_page():
    text = READING.read_text('utf-8')
    row = r'^\| `(\w+)` \| ((?:error|warning|info)[^|]*) \|([^|]*)\|'
    rows = {name: rest for name, *rest in re.findall(row, text, re.MULTILINE)}
    assert list(rows) == list(RULES)
    for name, (severities, thresholds) in rows.items():
        declared = {key: f'{value:g}' for key, value in thresholds_of(RULES[name]).items()}
        assert dict(re.findall(r'`(\w+)=([\d.]+)`', thresholds)) == declared
        assert set(re.findall(r'error|warning|info', severities)) == set(RULES[name].severities)


@pytest.mark.slow
def test_the_python_of_the_page(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r'^```python\n(.*?)^```', READING.read_text('utf-8'), re.DOTALL | re.M)
    exec(compile(code, str(READING), 'exec'), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ['both.png', 'spp.png']


def test_the_python_of_the_page_on_any_network():
    text = (ROOT / 'docs/any_network.md').read_text('utf-8')
    names: dict = {}
    for code in re.findall(r'```python\n(.*?)```', text, re.DOTALL):
        exec(code, names)
    found = [block.name for block in names['profile'].blocks]
    assert found == re.search(r'# (stem, .*)\n', text)[1].split(', ')


@pytest.mark.slow
def test_a_figure_is_made_of_the_commands_above_it(monkeypatch, tmp_path, capsys):
    config = ROOT / 'configs/nf_resnet/nf-resnet_digits.py'
    command = f'python tools/spp_analysis.py {shlex.quote(str(config))} --batch-size $SIZE'
    page = tmp_path / 'page.md'
    page.write_text(f'```bash\n{command} \\\n    --label one\n{command}\n```\n\n![x](a/b.png)\n')
    monkeypatch.setenv('SIZE', '2')
    monkeypatch.setattr(sys, 'argv', ['spp_figures.py', str(page)])
    with pytest.raises(SystemExit) as status:
        FIGURES['main']()
    assert status.value.code == 0
    assert 'b.png: 2 networks' in capsys.readouterr().out
    assert (tmp_path / 'a/b.png').stat().st_size > 10_000

    monkeypatch.delenv('SIZE')
    monkeypatch.setattr(sys, 'argv', ['spp_figures.py', str(page)])
    with pytest.raises(SystemExit) as status:
        FIGURES['main']()
    assert status.value.code == 2
    assert 'set the variable of $SIZE' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['cost_cpu_xeon', 'cost_cpu_epyc'])
def test_the_table_of_costs_is_the_measured_one(name):
    """docs/cost.md has what benchmarks/results has."""
    page = (ROOT / 'docs/cost.md').read_text('utf-8')
    results = ROOT / 'benchmarks/results'
    table = (results / f'{name}.md').read_text('utf-8').strip()
    assert table and table in page
    assert f'(../benchmarks/results/{name}.png)' in page
    measured = json.loads((results / f'{name}.json').read_text())
    assert cost_table(measured['results']).strip() == table
    assert measured['machine']['cpu'] in page


def test_the_table_of_backbones_is_the_measured_one():
    """docs/mm_backbones.md has what benchmarks/results has, and a count by hand agrees."""
    pytest.importorskip('mmpretrain')
    from benchmarks.spp import conv_cfg_coverage as tool

    rows = json.loads((ROOT / 'benchmarks/results/conv_cfg.json').read_text('utf-8'))['rows']
    page = (ROOT / 'docs/mm_backbones.md').read_text('utf-8')
    assert f'{tool.START}\n\n{tool.table(rows)}\n\n{tool.END}' in page
    (row,) = (
        r for r in rows if r['type'] == 'SEResNet' and r['config'].startswith('seresnet/seresnet50')
    )
    # 16 blocks of 3 convolutions, 4 projections, 1 in the stem; 2 in each squeeze-excite.
    assert row['conv_cfg'] == 16 * 3 + 4 + 1
    assert row['convolutions'] == row['convert'] == 16 * 3 + 4 + 1 + 16 * 2


def test_the_table_of_stacks_is_that_of_the_last_run():
    """docs/stacks.md has what benchmarks/results has, for each of requirements/stacks."""
    stacks = runpy.run_path(str(ROOT / 'benchmarks/stacks.py'))
    results = json.loads((ROOT / 'benchmarks/results/stacks.json').read_text('utf-8'))
    page = (ROOT / 'docs/stacks.md').read_text('utf-8')
    assert f'{stacks["START"]}\n{stacks["table"](results)}\n{stacks["END"]}' in page
    files = {path.stem for path in (ROOT / 'requirements/stacks').glob('*.txt')}
    assert files == set(stacks['STACKS']) == set(results)
