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
    arguments = ['--networks', *names, '--images', 1, '--rounds', 2, '--out', out]
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
