import copy
import dataclasses
import io
import json
import math
import re
import time

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from matplotlib.scale import SymmetricalLogTransform
from PIL import Image

from nf_plugins.models import NFResNet
from nf_plugins.spp import analyze
from nf_plugins.spp.animate import (
    Painter,
    Record,
    find_records,
    fixed_axes,
    fixed_axis,
    merge_records,
    missing_packages,
    newest_training,
    parse_record,
    read_record,
    render,
)
from nf_plugins.spp.plot import METRICS


@pytest.fixture(scope='module')
def dicts():
    """The records of a network whose signal grows from epoch to epoch, as in the files."""
    torch.manual_seed(0)
    net, x = NFResNet(26, base_channels=4, skipinit=0.5), torch.randn(2, 3, 32, 32)
    found = []
    for epoch in range(1, 5):
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.endswith('gain'):
                    parameter.mul_(1 + torch.rand_like(parameter))
        record = dict(analyze(net, x).to_dict(), epoch=epoch, iter=10 * epoch)
        found.append(json.loads(json.dumps(record)))
    return found


@pytest.fixture
def records(dicts):
    return [parse_record(d, f'epoch_{d["epoch"]}.json') for d in dicts]


def changed(record, metric='avg_var', block=3, **fields):
    """A copy of a record file's content with other fields; ``value`` is for one block."""
    record = copy.deepcopy(record)
    if 'value' in fields:
        record['blocks'][block][metric] = fields.pop('value')
    return {**record, **fields}


def count_frames(content, form):
    frames = iio.imread(content, extension=f'.{form}', index=...)
    return len(frames), frames.shape[1:]


def test_a_record_keeps_what_the_file_says(dicts):
    data = changed(dicts[0], value=None)
    data['blocks'][3]['another_key'] = 'is ignored'
    record = parse_record(data, 'a.json')
    assert (record.epoch, record.iter, record.profile.mode) == (1, 10, 'train')
    for metric in METRICS:
        for block, value in zip(data['blocks'], record.values(metric)):
            expected = block[metric]
            assert math.isnan(value) if expected is None else value == expected
    assert math.isnan(record.values('expected_var')[0])  # not of the stem
    assert record.label == 'epoch 1, iteration 10: not finite from block 3 on'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d: [d], 'schema is None'),
        (lambda d: {**d, 'schema': 'nf_plugins.spp/2'}, "schema is 'nf_plugins.spp/2', not"),
        (lambda d: {**d, 'epoch': None}, 'no integer epoch and iter'),
        (lambda d: {**d, 'iter': 1.5}, 'no integer epoch and iter'),
        (lambda d: {**d, 'iter': True}, 'no integer epoch and iter'),
        (lambda d: {**d, 'mode': 'test'}, "needs a mode, 'train' or 'eval'"),
        (lambda d: {**d, 'blocks': []}, 'and blocks'),
        (lambda d: {**d, 'blocks': {}}, 'and blocks'),
        (lambda d: {**d, 'blocks': [1]}, 'block 0 of a.json has no index of type int'),
        (lambda d: changed(d, 'shape', value='2x3'), 'block 3 of a.json has no shape'),
        (lambda d: changed(d, value='1'), 'block 3 of a.json: avg_var must be a number or null'),
        (lambda d: changed(d, value=True), 'avg_var must be a number or null'),
        (lambda d: changed(d, 'expected_var', value=[]), 'expected_var must be a number or null'),
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
    assert math.isnan(read_record(tmp_path / 'a.json').values('avg_var')[3])


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


@pytest.mark.parametrize(
    ('values', 'scale'),
    [
        ([], 'linear'),
        ([math.nan], 'linear'),
        ([0.0, 0.0], 'linear'),
        ([5.0], 'linear'),
        ([1.0, 29.0, math.nan], 'linear'),
        ([-1.0, 2.0], 'linear'),
        ([1.0, 31.0], 'log'),
        ([1e-149, 1e149], 'log'),
        ([0.0, 1.0, 31.0], 'symlog'),
        ([-3.0, 1.0, 31.0], 'symlog'),
        ([0.0, 1e-149, 1e149], 'symlog'),
    ],
)
def test_an_axis_shows_every_value(values, scale):
    axis = fixed_axis(values)
    assert axis.scale == scale
    low, high = axis.limits
    assert low < high
    finite = [v for v in values if math.isfinite(v)]
    assert all(low < v < high for v in finite)
    settings = axis.plotly()
    placed = [math.log10(v) for v in finite] if scale == 'log' else axis.place(finite)
    assert all(settings['range'][0] < v < settings['range'][1] for v in placed)
    if scale == 'symlog':
        transform = SymmetricalLogTransform(10, axis.threshold, 1)
        assert placed == pytest.approx(transform.transform(np.array(finite)).tolist())
        assert '0' in settings['ticktext']


def test_the_axes_fit_all_records_and_never_move(records):
    painter = Painter(records, 'a $title')
    axes = fixed_axes(records)
    labels = []
    for number, record in enumerate(records):
        image = painter.frame(number)
        assert image.dtype == np.uint8
        assert image.shape == (480, 1200, 3)
        for metric, ax in painter.panels.items():
            assert ax.get_ylim() == pytest.approx(axes[metric].limits)
            assert ax.get_yscale() == axes[metric].scale
            assert ax.get_xlim() == (-0.5, len(record.profile.blocks) - 0.5)
            np.testing.assert_array_equal(painter.lines[metric].get_ydata(), record.values(metric))
            assert painter.lines[metric].axes is ax
            low, high = axes[metric].limits
            values = np.array(record.values(metric))
            assert np.all((values > low) & (values < high) | np.isnan(values))
        expected = painter.lines['expected_var']
        assert expected.get_linestyle() == '--'
        assert expected.axes is painter.panels['avg_var']
        assert np.nanmin(expected.get_ydata()) >= 1
        assert f'epoch {record.epoch}, iteration {record.iter} (train mode)' in (
            painter.heading.get_text()
        )
        # Everything but the curves and the texts on top is the same to the pixel.
        left = round(painter.panels['avg_sq_mean'].get_position().x0 * image.shape[1])
        labels.append(image[60:, : left - 2])
    assert all(np.array_equal(labels[0], other) for other in labels)
    assert (labels[0] < 128).any()


@pytest.mark.parametrize('form', ['gif', 'mp4'])
@pytest.mark.parametrize('count', [1, 4])
def test_as_many_frames_as_records(form, count, records):
    seen = []
    content = render(records[:count], form, fps=5, title='t', advance=lambda: seen.append(1))
    assert count_frames(content, form) == (count, (480, 1200, 3))
    assert len(seen) == count
    if form == 'gif' and count > 1:
        with Image.open(io.BytesIO(content)) as image:
            assert image.info['duration'] == 200
            assert image.info['loop'] == 0
    elif form == 'mp4':
        assert iio.immeta(content, extension='.mp4')['fps'] == 5
        assert 'yuv420p' in iio.immeta(content, extension='.mp4')['pix_fmt']


@pytest.mark.parametrize('form', ['gif', 'mp4'])
def test_equal_records_are_not_merged(form, records):
    same = [Record(records[0].profile, None, None, 'weights.pth')] * 5
    assert same[0].label == 'weights.pth'
    assert count_frames(render(same, form), form)[0] == 5


@pytest.mark.parametrize('smallest', [1e-140, 1e-320, 0])
def test_very_large_and_very_small_values(smallest, dicts):
    large = parse_record(changed(dicts[0], value=1e140), 'a.json')
    small = parse_record(changed(dicts[1], value=smallest), 'b.json')
    painter = Painter([large, small])
    assert painter.panels['avg_var'].get_yscale() == ('log' if smallest == 1e-140 else 'symlog')
    assert painter.frame(1).shape == (480, 1200, 3)
    assert render([large, small], 'html')


@pytest.mark.parametrize('form', ['gif', 'html'])
def test_without_any_value(form, dicts):
    empty = copy.deepcopy(dicts[0])
    for block in empty['blocks']:
        block.update(avg_sq_mean=None, avg_var=None, res_avg_var=None, expected_var=None)
    record = parse_record(empty, 'a.json')
    assert 'not finite from block 0 on' in record.label
    assert render([record, record], form)


def test_the_page_has_everything_in_it(records, dicts):
    odd = changed(dicts[0], 'name', value='</script><a href="x">')
    page = render([parse_record(odd, 'a.json')], 'html', title='<b>&').decode()
    assert '<title>&lt;b&gt;&amp; (train mode)</title>' in page
    assert not re.search(r'<(script|link|img)[^>]*(src|href)=', page)
    assert '<a href="x">' not in page
    assert len(page) > 1_000_000  # plotly.js


def test_bad_formats_and_missing_packages(records, monkeypatch):
    with pytest.raises(ValueError, match="must be one of gif, mp4, html, got 'avi'"):
        render(records, 'avi')
    assert missing_packages('gif') == missing_packages('mp4') == missing_packages('html') == []
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert missing_packages('mp4') == ['imageio', 'imageio-ffmpeg']


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


TEXTS = {
    'control characters': 'a\x1b]0;b\x07',
    'half a character': 'a\ud800',
    'many letters': 'x' * 10**5,
    'many lines': 'a\n' * 1000,
    'markup': '</script><script>alert(1)</script>',
    'a formula': '$\\frac$',
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', TEXTS)
@pytest.mark.parametrize('form', ['gif', 'html'])
def test_any_text_of_a_record_is_drawn_or_cut(form, kind, dicts):
    """A title of 100,000 letters took four minutes; half a character ended in a TypeError."""
    data = copy.deepcopy(dicts[0])
    for block in data['blocks']:
        block.update(name=TEXTS[kind], kind=TEXTS[kind])
    record = parse_record(data, f'{TEXTS[kind]}.json')
    record = dataclasses.replace(record, epoch=None)
    start = time.process_time()
    content = render([record], form, title=TEXTS[kind])
    assert time.process_time() - start < 10
    assert b'<script>alert' not in content


@pytest.mark.parametrize('index', [-1, 10**6, 2**63, 10**400])
def test_an_index_of_a_block_that_no_network_has(index, dicts):
    data = copy.deepcopy(dicts[0])
    data['blocks'][-1]['index'] = index
    with pytest.raises(ValueError, match='has an index'):
        parse_record(data, 'a.json')


def test_more_blocks_than_any_network_has(dicts):
    data = copy.deepcopy(dicts[0])
    data['blocks'] *= 10_000
    with pytest.raises(ValueError, match='more than 10000 blocks'):
        parse_record(data, 'a.json')
