import json
import math

import pytest

from nf_plugins.spp.report.axes import METRICS, curve
from nf_plugins.spp.report.records import (
    find_records,
    merge_records,
    newest_training,
    parse_record,
    read_record,
)

from .changes import changed


def test_a_record_keeps_what_the_file_says(dicts):
    data = changed(dicts[0], value=None)
    data['blocks'][3]['another_key'] = 'is ignored'
    record = parse_record(data, 'a.json')
    assert (record.epoch, record.iter, record.profile.mode) == (1, 10, 'train')
    for metric in METRICS:
        index, values = curve(record.profile, metric)
        for block in data['blocks']:
            expected = block[metric]
            if expected is None and metric == 'res_avg_var':  # the stem has no branch
                assert block['index'] not in index
            else:
                value = values[index.index(block['index'])]
                assert math.isnan(value) if expected is None else value == expected
    assert curve(record.profile, 'expected_var')[0][0] == 1  # not of the stem
    assert record.label == 'epoch 1, iteration 10: not finite from block 3 on'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d: [d], 'a.json is no record: its schema is None'),
        (lambda d: {**d, 'schema': 'nf_plugins.spp/3'}, "schema is 'nf_plugins.spp/3', not"),
        (lambda d: {**d, 'epoch': None}, 'no integer epoch and iter'),
        (lambda d: {**d, 'iter': 1.5}, 'no integer epoch and iter'),
        (lambda d: {**d, 'iter': True}, 'no integer epoch and iter'),
        (lambda d: {**d, 'mode': 'test'}, "mode must be one of train, eval, asis, got 'test'"),
        (lambda d: {**d, 'blocks': []}, 'no list of blocks'),
        (lambda d: {**d, 'blocks': {}}, 'no list of blocks'),
        (lambda d: {**d, 'blocks': [1]}, 'a.json is no record: block 0: it must be a dict'),
        (lambda d: changed(d, 'shape', value='2x3'), "block 3: shape has a wrong value, '2x3'"),
        (lambda d: changed(d, 'index', value=-1), 'index has a wrong value'),
        (lambda d: changed(d, 'index', value=True), 'index has a wrong value'),
        (lambda d: changed(d, 'index', value=10**400), 'index has a wrong value'),
        (lambda d: {**d, 'blocks': [{'index': 0}]}, 'block 0: name is missing'),
        (lambda d: changed(d, value='1'), "block 3: avg_var has a wrong value, '1'"),
        (lambda d: changed(d, value=True), 'avg_var has a wrong value, True'),
        (lambda d: changed(d, 'expected_var', value=[]), 'expected_var has a wrong value'),
    ],
)
def test_what_is_no_record(change, message, dicts):
    with pytest.raises(ValueError, match=message):
        parse_record(change(dicts[0]), 'a.json')


@pytest.mark.parametrize(
    'content', [b'', b'{"schema": ', b'\xff\xfe', b'[' * 100_000, b'1' * 10_000]
)
def test_a_damaged_file(content, tmp_path):
    (tmp_path / 'a.json').write_bytes(content)
    with pytest.raises(ValueError, match=r'a.json is (not valid JSON|no record)'):
        read_record(tmp_path / 'a.json')


@pytest.mark.parametrize('number', ['NaN', 'Infinity', '1e400', '1' + '0' * 400])
def test_numbers_that_no_axis_can_show_are_not_finite(number, dicts, tmp_path):
    text = json.dumps(changed(dicts[0], value='NUMBER')).replace('"NUMBER"', number)
    (tmp_path / 'a.json').write_text(text)
    record = read_record(tmp_path / 'a.json')
    assert math.isnan(curve(record.profile, 'avg_var')[1][3])
    assert not record.profile.is_finite()


def test_the_newest_run_comes_last(tmp_path):
    for run in ('20250101_000000', '20241231_235959', 'old_copy'):
        (tmp_path / run / 'spp').mkdir(parents=True)
        (tmp_path / run / 'spp' / 'b.json').touch()
        (tmp_path / run / 'spp' / 'a.json').touch()
        (tmp_path / run / 'spp' / '.a.json').touch()
        (tmp_path / run / 'vis_data.json').touch()
    runs = [p.relative_to(tmp_path).as_posix() for p in find_records(tmp_path)]
    assert runs == [
        f'{run}/spp/{name}.json'
        for run in ('old_copy', '20241231_235959', '20250101_000000')
        for name in 'ab'
    ]
    one = find_records(tmp_path / '20250101_000000')
    assert one == find_records(tmp_path / '20250101_000000' / 'spp')
    assert [p.name for p in one] == ['a.json', 'b.json']
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='empty holds no records'):
        find_records(tmp_path / 'empty')


def test_every_moment_once_and_in_order(dicts):
    first = [parse_record(d, 'first run') for d in dicts[:3]]
    resumed = [parse_record(d, 'second run') for d in dicts[2:]]
    merged = merge_records([*first, *resumed[::-1]])
    assert [(r.epoch, r.iter) for r in merged] == [(1, 10), (2, 20), (3, 30), (4, 40)]
    assert [r.source for r in merged] == ['first run'] * 2 + ['second run'] * 2


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(mode='eval'), 'a.json and b.json are of different modes, train and eval'),
        (dict(metric='name', value='layer9'), 'a.json and b.json are of different networks'),
        (dict(input=dict(kind='batch')), 'a.json and b.json are of different inputs, None and b'),
    ],
)
def test_what_does_not_belong_together(change, message, dicts):
    with pytest.raises(ValueError, match=message):
        merge_records(
            [parse_record(dicts[0], 'a.json'), parse_record(changed(dicts[1], **change), 'b.json')]
        )
    with pytest.raises(ValueError, match='no records'):
        merge_records([])


def test_of_two_trainings_the_newest_is_shown(tmp_path, dicts):
    """One of them was resumed, and so has two folders."""
    for stamp, training, parts in (
        ('20240101_000000', 'old', dicts),
        ('20240102_000000', 'new', dicts[:2]),
        ('20240103_000000', 'new', dicts[2:3]),
    ):
        folder = tmp_path / stamp / 'spp'
        folder.mkdir(parents=True)
        for d in parts:
            text = json.dumps({**d, 'training': training})
            (folder / f'iter_{d["iter"]:08d}.json').write_text(text)
    records = newest_training(map(read_record, find_records(tmp_path)))
    assert [r.iter for r in merge_records(records)] == [10, 20, 30]
    assert {r.training for r in records} == {'new'}


@pytest.mark.parametrize('index', [-1, 10**6, 2**63, 10**400])
def test_an_index_of_a_block_that_no_network_has(index, dicts):
    data = changed(dicts[0])
    data['blocks'][-1]['index'] = index
    with pytest.raises(ValueError, match='index has a wrong value'):
        parse_record(data, 'a.json')


def test_more_blocks_than_any_network_has(dicts):
    data = changed(dicts[0])
    data['blocks'] *= 10_000
    with pytest.raises(ValueError, match='more than 10000 blocks'):
        parse_record(data, 'a.json')
