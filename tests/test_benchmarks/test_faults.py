"""A part of benchmarks.faults: faults are named, healthy networks get no warning."""

import json

import pytest

from benchmarks.faults.faults import FAULTS
from benchmarks.faults.networks import CLASSICS, HEALTHY, SUBJECTS
from benchmarks.faults.run import healthy, seeded, summary

from ..conftest import ROOT

RESULTS = ROOT / 'benchmarks/results/faults.json'
FEW = ('torchvision resnet18', 'timm vit_tiny', 'NFResNet')
QUICK = [
    ('torchvision mobilenet_v3_small', 'zero_filters'),
    ('torchvision mobilenet_v3_small', 'missing_norm'),
    ('torchvision shufflenet_v2_x0_5', 'large_layer'),
    ('timm vit_tiny', 'sharp_attention'),
    ('timm vit_tiny', 'same_tokens'),
    ('timm vit_tiny', 'saturated_tanh'),
    ('NFRegNet', 'wrong_gamma'),
    ('NFResNet', 'no_beta'),
]


@pytest.mark.parametrize(('network', 'kind'), QUICK)
def test_a_fault_is_named_where_it_is(network, kind):
    found = seeded(network, kind)
    assert found['named'], found['verdicts']
    assert found['localised'] is not False, found['verdicts']


@pytest.mark.slow
@pytest.mark.parametrize('given', ['noise', 'images'])
@pytest.mark.parametrize('network', ['torchvision mobilenet_v2', 'timm levit_128s', 'NFNet'])
def test_a_healthy_network_gets_no_warning(network, given):
    assert healthy(network, given)['loud'] == []


@pytest.mark.slow
@pytest.mark.parametrize('network', FEW)
def test_most_faults_are_named(network):
    found = [r for kind in FAULTS if (r := seeded(network, kind)) is not None]
    placed = [r['localised'] for r in found if r['localised'] is not None]
    assert len(found) >= 18
    assert sum(r['named'] for r in found) >= 0.85 * len(found)
    assert sum(placed) >= 0.85 * len(placed)


def test_the_committed_table():
    """It is whole, its summary is that of its rows, and it reaches what is promised."""
    data = json.loads(RESULTS.read_text('utf-8'))
    rows = {part: [r for r in found.values() if r] for part, found in data['measured'].items()}
    assert data['summary'] == summary(rows)
    assert {r['network'] for r in rows['faults']} == set(SUBJECTS)
    assert {r['network'] for r in rows['healthy']} >= set(HEALTHY)
    assert set(CLASSICS) < {name.partition(' ')[2] for name in HEALTHY}
    found = data['summary']
    assert found['kinds'] >= 18 and found['networks'] >= 12 and found['healthy_networks'] >= 60
    assert found['named'] >= 0.85 and found['localised'] >= 0.85
    assert found['without_classics'] <= 0.03
    assert found['good_with_a_warning'] == 0
