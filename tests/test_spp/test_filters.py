"""The look at the filters of many layers, beside one that compares each pair of filters."""

import pytest
import torch

from nf_plugins.spp.evidence import LayerFact
from nf_plugins.spp.filters import measure_filters
from nf_plugins.spp.observer import Numbers


def weights(kind, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    if kind == 'copies':
        weight[rows // 2 :] = 3 * weight[: rows - rows // 2]
    elif kind == 'zeros':
        weight[::3] = 0
    elif kind == 'late zeros':  # only the first inputs are zero
        weight[::2, :40] = 0
    elif kind == 'same start':
        weight[1:, :40] = weight[:1, :40]
    elif kind == 'half':
        weight = weight.half()
    return weight


KINDS = ('random', 'copies', 'zeros', 'late zeros', 'same start', 'half')


def expected(weight):
    w = weight.double()
    zero = (w == 0).all(1).double().mean()
    unit = w / w.norm(dim=1, keepdim=True).clamp(min=1e-30)
    alike = (unit @ unit.T).fill_diagonal_(-1) > 0.9999
    return zero.item(), alike.any(1).double().mean().item()


@pytest.mark.parametrize('rows, columns', [(6, 64), (8, 9), (5, 3), (1, 100), (40, 32)])
def test_many_layers_at_once(rows, columns):
    layers = [weights(kind, rows, columns, seed) for seed, kind in enumerate(KINDS)]
    facts = [LayerFact('m', 0, 'mm', rows, columns, 0.0) for _ in layers]
    numbers = Numbers()
    measure_filters(list(zip(facts, layers)), numbers)
    numbers.deliver()
    for fact, weight in zip(facts, layers):
        zero, copies = expected(weight)
        assert fact.zero_rows == pytest.approx(zero)
        assert fact.copies == pytest.approx(copies if columns >= 8 and rows > 1 else 0)
        energy = weight[:, :32].double().square().sum(1).mean() * max(1, columns / 32)
        assert fact.energy == pytest.approx(energy.item(), rel=1e-5)


def test_no_layers():
    measure_filters([], Numbers())
