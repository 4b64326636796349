"""What docs/scale.md says: the tables, and the bytes on which they rest."""

import json

import pytest
import torch
from mmengine.registry import MODELS

from benchmarks.cost.benchmark import kept_bytes
from benchmarks.scale import memory
from benchmarks.scale.report import tables

from ..conftest import ROOT

ARCH = dict(base='f0', width_mult=1 / 16, group_width=4)


@pytest.mark.slow
def test_the_parts_keep_what_the_network_keeps():
    found = memory.measure(ARCH, 64)
    net = MODELS.build(dict(type='nf_plugins.NFNet', arch=ARCH)).train()
    assert found['parameters'] == sum(p.numel() for p in net.parameters())
    whole = kept_bytes(net, torch.randn(1, 3, 64, 64))
    assert sum(part['kept'] for part in found['parts']) == whole


@pytest.mark.parametrize('devices', [1, 4])
def test_memory_of_a_device(devices):
    """Two parts that keep 10 and 30 bytes of an image, read 1 and 2, and have 5 parameters."""
    parts = [dict(kept=10, input=1), dict(kept=30, input=2)]
    found = dict(parameters=5, largest_part=3, parts=parts)

    def gib(**options):
        row = memory.per_device(found, batch=8, sharded=devices, **options)
        return [row[name] * 2**30 for name in ('states', 'activations')]

    states = 5 * 16 + 5 * 4 if devices == 1 else 5 * 16 / 4 + 2 * 2 * 4 * 3
    assert gib(bytes_per_number=4, with_cp=False) == pytest.approx([states, 8 * 40])
    assert gib(bytes_per_number=4, with_cp=True) == pytest.approx([states, 8 * (3 + 30)])
    assert gib(bytes_per_number=2, with_cp=False)[1] == pytest.approx(4 * 40)


def test_the_page_has_the_numbers_of_the_results():
    found = json.loads((ROOT / 'benchmarks/results/scale.json').read_text())
    page = (ROOT / 'docs/scale.md').read_text()
    for line in tables(found):
        assert line in page
    kept = sum(part['kept'] for part in found['paper']['parts']) / 2**20
    assert f'{kept:,.0f} MiB' in page
