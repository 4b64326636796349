"""The benchmark of cost against accuracy."""

import json
from pathlib import Path

import mmpretrain
import pytest
import yaml
from mmengine.registry import MODELS

from benchmarks.cost import accuracy

from ..conftest import DATA, ROOT
from ..tools import run_tool


def results_of(*metafiles):
    """Name -> training resolution and top-1 accuracy."""
    found = {}
    for metafile in metafiles:
        for model in yaml.safe_load(Path(metafile).read_text())['Models']:
            (result, *_) = model.get('Results') or [{}]
            metrics = result.get('Metrics') or {}
            resolution = model['Metadata'].get('Training Resolution')
            found[model['Name']] = (resolution, metrics.get('Top 1 Accuracy'))
    return found


def test_sizes_and_accuracies_are_published_ones():
    packed = Path(mmpretrain.__file__).parent / '.mim/configs'
    theirs = results_of(*(packed / f'{name}/metafile.yml' for name in ('efficientnet', 'resnet')))
    ours = results_of(*(ROOT / f'configs/{n}/metafile.yml' for n in ('nf_regnet', 'nfnet')))
    sizes = {name.partition('_')[0]: size for name, (size, _) in ours.items()}
    for name, network in accuracy.NETWORKS.items():
        if network.family in ('NF-RegNet', 'NFNet'):
            assert network.size == sizes[name.lower()]
        elif network.family == 'EfficientNet':
            assert network.top1 == theirs[f'{name.lower()}_3rdparty_8xb32-aa_in1k'][1]
    assert accuracy.NETWORKS[accuracy.BASE].top1 == theirs['resnet50_8xb32_in1k'][1]


@pytest.mark.slow
def test_counts_are_the_official_ones():
    table = json.loads((DATA / 'params_flops.json').read_text())['NF_RegNet-B0']
    net = MODELS.build(accuracy.NETWORKS['NF-RegNet-B0'].config)
    found = accuracy.counts(net, 224)
    classifier = net.feat_dim * 1000
    assert found['parameters'] == table['params'] - classifier - 1000
    assert found['multiply_adds'] == (
        table['true_macs_conv_224'] + table['true_macs_linear_224'] - classifier
    )


@pytest.mark.slow
def test_the_tool(tmp_path, capsys):
    out = tmp_path / 'found.json'
    names = ['ResNet-50', 'NF-RegNet-B0']
    page = tmp_path / 'docs/page.md'
    page.parent.mkdir()
    page.write_text(f'before\n{accuracy.START}\nold\n{accuracy.END}\nafter\n')
    arguments = ['--networks', *names, '--images', 1, '--rounds', 2, '--out', out, '--docs', page]
    assert run_tool('benchmarks.cost.accuracy', *arguments) == 0
    results = json.loads(out.read_text())['results']
    assert list(results) == names
    for found in results.values():
        low, high = found['ms_quartiles']
        assert 0 < low <= found['ms'] <= high
    ratio = results['NF-RegNet-B0']['ms'] / results['ResNet-50']['ms']
    table = out.with_suffix('.md').read_text()
    assert f'| {ratio:.2f} |' in table and table in capsys.readouterr().out
    assert out.with_suffix('.png').stat().st_size > 1000
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith('\nafter\n') and 'old' not in text
    assert table in text and '](../found.png)' in text


def published(name, ms):
    return {**accuracy.asdict(accuracy.NETWORKS[name]), 'ms': ms, 'ms_quartiles': [ms, ms],
            'parameters': 10**7, 'multiply_adds': 10**9}  # fmt: skip


def test_the_times_of_the_paper():
    """1397.0 : 158.5 and 1753.3 : 133.9 ms, table 3 of 2102.06171."""
    results = {n: published(n, ms) for n, ms in {'EfficientNet-B7': 10.0, 'NFNet-F1': 4.0}.items()}
    text = accuracy.faster(results)
    assert '2.5 times' in text and '8.8 times' in text and '13.1 times' in text
    assert accuracy.faster({'NFNet-F1': results['NFNet-F1']}) == ''


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--docs', 'page.md'], '--docs needs --out'),
        (['--out', 'x.json', '--docs', 'page.md'], 'no place for the section'),
        (['--out', 'x.json', '--docs', 'missing.md'], 'cannot write the section of missing.md'),
    ],
)
def test_a_page_without_a_place(arguments, message, tmp_path, monkeypatch, capsys):
    """Said before the measurement, which takes minutes."""
    monkeypatch.setattr(accuracy, 'measure', lambda *_: pytest.fail('it measures'))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'page.md').write_text('nothing')
    assert run_tool('benchmarks.cost.accuracy', *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_section_of_the_page_is_the_measured_one():
    """docs/cost.md has what benchmarks/results has, or says that there is nothing."""
    path = ROOT / 'benchmarks/results/cost_accuracy.json'
    text = 'It has not been run at its full size yet.\n'
    if path.exists():
        text = accuracy.section(
            json.loads(path.read_text()), '../benchmarks/results/cost_accuracy.png'
        )
    page = (ROOT / 'docs/cost.md').read_text('utf-8')
    assert accuracy.with_section(page, text) == page
