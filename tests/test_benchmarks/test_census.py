"""The census of residual blocks: both counts of a network, and that an analysis leaves it alone."""

import pytest
import torch
import torchvision
from torch import nn

from benchmarks.spp.census import check, main, summary, unharmed
from benchmarks.spp.census_cases import Case


class Forgetful(nn.Module):
    """Counts its calls in a buffer that no snapshot puts back."""

    calls = torch.zeros(1)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def state_dict(self, *args, **kwargs):
        return {**super().state_dict(*args, **kwargs), 'calls': Forgetful.calls}

    def forward(self, x):
        Forgetful.calls += 1
        return x + self.layers(x)


def case(build, *shape):
    return Case('torchvision', 'any', 'any', build, lambda model: (torch.randn(2, *shape),))


def test_both_counts_of_a_network():
    row = check(case(torchvision.models.resnet18, 3, 64, 64))
    assert (row['found'], row['counted']) == (8, 8)
    assert row['blocks']['layer1.0'] == 1
    assert summary([row]) == {'torchvision': dict(networks=1, ran=1, exact=1)}


def test_what_an_analysis_changes_is_seen():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert unharmed(case(lambda: layer, 5, 8))
    assert not unharmed(case(Forgetful, 4))


def test_an_unknown_library_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['census', 'torchvison'])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count('\n') == 1 and "'torchvison'" in error and 'torchvision' in error
