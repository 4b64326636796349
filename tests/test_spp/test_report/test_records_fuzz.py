"""Records that were changed by chance: a right load, or an error of one line.

``NF_PLUGINS_FUZZ=20000`` sets how many.
"""

import copy
import json
import os
import random
import time

import pytest
import torch

from nf_plugins.models import NFResNet
from nf_plugins.spp import analyze
from nf_plugins.spp.report.axes import curve
from nf_plugins.spp.report.film import render
from nf_plugins.spp.report.records import check_comparable, merge_records, read_record

COUNT = int(os.environ.get('NF_PLUGINS_FUZZ', 1000))
VALUES = [
    *(None, True, -1, 0, 2**63, 10**400, 1e308, -1e308, 1e-320, float('nan'), float('inf')),
    *('', '9', 'a\x1b[2Jb', 'x' * 10**5, '<script>', '\ud800', [], [[]], {}, {'a': {'b': []}}),
    *(['a', None], [1.5, 2], [-1], 'nf_plugins.spp/3', 'train'),
]


def places(value, path=()):
    """All paths in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, item in items:
        yield from places(item, (*path, key))


def change_values(data, rng):
    """Another value, or none, at some places."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice([p for p in places(data) if p] or [()])
        if not path:
            return copy.deepcopy(rng.choice(VALUES))
        owner = data
        for key in path[:-1]:
            owner = owner[key]
        old, chance = owner[path[-1]], rng.random()
        if chance < 0.2:
            del owner[path[-1]]
        elif chance < 0.5 and type(old) in (int, float):
            owner[path[-1]] = old * rng.choice([2, 10])
        elif chance < 0.5 and isinstance(old, str):
            owner[path[-1]] = old + rng.choice(['', 'x', '<b>'])
        else:
            owner[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    return data


def mutate(data, rng):
    if rng.random() < 0.8:
        return json.dumps(change_values(data, rng)).encode()
    text = bytearray(json.dumps(data).encode())
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(text[: rng.randrange(len(text))])
    if kind == 1:
        for _ in range(rng.randint(1, 8)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        return bytes(text)
    if kind == 2:
        at = rng.randrange(len(text))
        return bytes(text[:at]) + rng.choice([b'[', b'{"a":']) * 10**5 + bytes(text[at:])
    if kind == 3:
        return json.dumps(data).encode(rng.choice(['utf-16', 'utf-32', 'utf-8-sig']))
    a, b = sorted(rng.randrange(len(text)) for _ in range(2))
    return bytes(text[:a] + text[b:])


@pytest.mark.slow
@pytest.mark.parametrize('backward', [False, True])
def test_mutations_of_records(backward, tmp_path):
    torch.manual_seed(0)
    profile = analyze(NFResNet(26, base_channels=4), torch.randn(2, 3, 32, 32), backward=backward)
    whole = dict(profile.to_dict(), config='a.py', epoch=1, iter=7, training='T')
    good, path = tmp_path / 'good.json', tmp_path / 'record.json'
    good.write_text(json.dumps(whole))
    rng, loaded, refused = random.Random(int(backward)), [], 0
    for _ in range(COUNT // 2):
        path.write_bytes(mutate(whole, rng))
        start = time.perf_counter()
        try:
            record = read_record(path)
            for order in ([record], [read_record(good), record]):
                check_comparable(merge_records(order))
        except (ValueError, OSError) as error:
            assert str(error)
            refused += 1
        else:
            assert record.label
            assert len(curve(record.profile, 'avg_var')[0]) == len(record.profile.blocks)
            loaded.append(record)
        assert time.perf_counter() - start < 10
    assert refused > COUNT / 10
    assert len(loaded) > COUNT / 10
    for record in rng.sample(loaded, 5 + COUNT // 500):  # what was loaded can be drawn
        assert render([record], rng.choice(['gif', 'html']), 4.0, 'title', lambda: None)
