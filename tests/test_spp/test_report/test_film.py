import copy
import dataclasses
import io
import re
import time

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from nf_plugins.spp.report.axes import curve, scale_of
from nf_plugins.spp.report.film import Painter, missing_packages, render
from nf_plugins.spp.report.records import Record, parse_record

from .changes import changed


def count_frames(content, form):
    frames = iio.imread(content, extension=f'.{form}', index=...)
    return len(frames), frames.shape[1:]


@pytest.mark.slow
def test_the_axes_fit_all_records_and_never_move(records):
    painter = Painter(records, 'a $title')
    scales = {m: scale_of([r.profile for r in records], m) for m in painter.panels}
    labels = []
    for number, record in enumerate(records):
        image = painter.frame(number)
        assert image.dtype == np.uint8
        assert image.shape == (480, 1200, 3)
        for metric, ax in painter.panels.items():
            assert ax.get_ylim() == pytest.approx(scales[metric].limits)
            assert ax.get_yscale() == scales[metric].kind
            assert ax.get_xlim() == (-0.5, len(record.profile.blocks) - 0.5)
            index, values = map(np.array, curve(record.profile, metric))
            np.testing.assert_array_equal(painter.lines[metric].get_xdata(), index)
            np.testing.assert_array_equal(painter.lines[metric].get_ydata(), values)
            assert painter.lines[metric].axes is ax
            low, high = scales[metric].limits
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize('form', ['gif', 'mp4'])
def test_equal_records_are_not_merged(form, records):
    same = [Record(records[0].profile, None, None, 'weights.pth')] * 5
    assert same[0].label == 'weights.pth'
    assert count_frames(render(same, form), form)[0] == 5


@pytest.mark.slow
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
