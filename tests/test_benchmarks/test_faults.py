"""A part of benchmarks.faults: faults are named, healthy networks get no warning."""

import json

import pytest

from benchmarks.faults.faults import FAULTS
from benchmarks.faults.held_out import HELD_OUT_FAULTS
from benchmarks.faults.networks import (
    CLASSICS,
    HEALTHY,
    HELD_OUT,
    HELD_OUT_HEALTHY,
    SUBJECTS,
)
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


HELD_OUT_QUICK = [
    ('GPT', 'strong_end'),
    ('GPT', 'forgotten_norm'),
    ('plain network', 'strong_layer'),
    ('plain network', 'broken_parameter'),
    ('NFNet with GELU', 'other_gamma'),
    ('torchvision densenet', 'forgotten_norm'),
    ('torchvision densenet', 'strong_layer'),
    ('timm xcit', 'forgotten_norm'),
    ('ResNet with group norm', 'strong_head'),
]


@pytest.mark.parametrize(('network', 'kind'), HELD_OUT_QUICK)
def test_a_fault_of_the_held_out_split_is_named_where_it_is(network, kind):
    found = seeded(network, kind)
    assert found['named'], found['verdicts']
    assert found['localised'] is not False, found['verdicts']


@pytest.mark.parametrize('network', ['GPT', 'Llama', 'timm xcit', 'U-Net', 'plain network'])
def test_a_network_of_the_held_out_split_gets_no_warning(network):
    assert healthy(network, 'noise')['loud'] == []


def rows_of(data, split):
    parts = data['measured'][split].items()
    return {part: [r for r in found.values() if r] for part, found in parts}


def test_the_committed_table():
    """It is whole, its summary is that of its rows, and it reaches what is promised."""
    data = json.loads(RESULTS.read_text('utf-8'))
    rows = rows_of(data, 'developed')
    assert data['summary']['developed'] == summary(rows)
    assert {r['network'] for r in rows['faults']} == set(SUBJECTS)
    assert {r['network'] for r in rows['healthy']} >= set(HEALTHY)
    assert set(CLASSICS) < {
        name.rpartition(' ')[2] for name in [*HEALTHY, *HELD_OUT, *HELD_OUT_HEALTHY]
    }
    found = data['summary']['developed']
    assert found['kinds'] >= 18 and found['networks'] >= 12 and found['healthy_networks'] >= 60
    assert found['named'] >= 0.85 and found['localised'] >= 0.85
    assert found['without_classics'] <= 0.03
    assert found['good_with_a_warning'] == 0


def test_the_committed_table_of_the_held_out_split():
    data = json.loads(RESULTS.read_text('utf-8'))
    rows = rows_of(data, 'held_out')
    found = data['summary']['held_out']
    assert found == summary(rows)
    assert {r['network'] for r in rows['faults']} == set(HELD_OUT)
    assert not set(HELD_OUT) & set(SUBJECTS) and not set(HELD_OUT_FAULTS) & set(FAULTS)
    assert {r['network'] for r in rows['healthy']} >= set(HELD_OUT_HEALTHY)
    assert found['kinds'] >= 18 and found['networks'] >= 12
    assert found['named'] >= 0.85 and found['localised'] >= 0.85
    assert found['without_classics'] <= 0.03
    assert found['good_with_a_warning'] == 0
    assert 0 < data['first_try']['named'] <= found['named']
