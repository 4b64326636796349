"""Figure, page and film have the same scales, names and colours."""

import json
import re

import pytest

from nf_plugins.spp import BlockSignal, SignalProfile, plot_html, plot_profiles
from nf_plugins.spp.report.axes import EXPECTED_LABEL, METRICS, Scale
from nf_plugins.spp.report.film import Painter, render
from nf_plugins.spp.report.records import Record

VALUES = {
    'linear': [1.0, 2.0, 1.5, 3.0],
    'log': [1e-3, 1.0, 5.0, 900.0],
    'many decades': [1e-30, 1.0, 1e20, 1e40],
    'symlog': [0.0, 1e-4, 1.0, 7.0],
    'zeros': [0.0, 0.0, 0.0, 0.0],
}


def profile_of(values, label=''):
    blocks = [
        BlockSignal(i, f'block{i}', 'stem' if i == 0 else 'residual', (2, 4, 8, 8), v, v)
        for i, v in enumerate(values)
    ]
    for block in blocks[1:]:
        block.res_avg_var = block.avg_var
        block.expected_var = 1.0
    return SignalProfile(blocks, 'train', label=label)


def figure_of(page):
    """What is drawn in a page."""
    return json.loads(re.search(r'const figure = (.*);', page)[1])


def exponent(text):
    """The number that a mark of plotly stands for."""
    if text == '0':
        return 0.0
    sign, power = re.fullmatch(r'(-?)10<sup>(-?\d+)</sup>', text).groups()
    return float(f'{sign}1e{power}')


@pytest.mark.slow
@pytest.mark.parametrize('kind', VALUES)
def test_scales_and_marks_are_the_same(kind):
    profile = profile_of(VALUES[kind])
    page = figure_of(plot_html([profile]))['layout']
    film = figure_of(render([Record(profile, 1, 1, 'a')], 'html').decode())['layout']
    png, gif = plot_profiles([profile]), Painter([Record(profile, 1, 1, 'a')]).figure
    for number, name in enumerate(('yaxis', 'yaxis2', 'yaxis3')):
        assert page[name] == film[name]
        first, second = png.axes[number], gif.axes[number]
        assert first.get_yscale() == second.get_yscale()
        assert first.get_ylim() == second.get_ylim()
        if first.get_yscale() != 'linear':
            low, high = first.get_ylim()
            marks = [tick for tick in first.get_yticks() if low <= tick <= high]
            assert marks == pytest.approx([exponent(t) for t in page[name]['ticktext']])
            assert 1 <= len(marks) <= 9
            assert len(first.get_yticks(minor=True)) == 0
        assert page[name]['title']['text'] == first.get_ylabel() == list(METRICS.values())[number]


def test_zeros_alone_have_an_axis_from_zero_to_one():
    low, high = Scale.of([0.0, 0.0]).limits
    assert low == pytest.approx(-0.05)
    assert high == pytest.approx(1.05)


@pytest.mark.slow
def test_one_name_for_the_expected_line_and_an_entry_for_each_network():
    profiles = [profile_of(VALUES['log'], label) for label in ('one', 'two', 'three')]
    (legend,) = plot_profiles(profiles).legends
    assert [t.get_text() for t in legend.get_texts()] == ['one', 'two', 'three', EXPECTED_LABEL]
    shown = [t for t in figure_of(plot_html(profiles))['data'] if t.get('showlegend', True)]
    assert [trace['name'] for trace in shown] == ['one', 'two', 'three', EXPECTED_LABEL]
    record = Record(profiles[0], 1, 1, 'a')
    (legend,) = Painter([record]).figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ['the network', EXPECTED_LABEL]
    data = figure_of(render([record], 'html').decode())['data']
    shown = [trace['name'] for trace in data if trace.get('showlegend', True)]
    assert shown == ['the network', EXPECTED_LABEL]


@pytest.mark.parametrize('label', ['<b>bold</b>', '</script><script>alert(1)</script>', 'a & b'])
def test_labels_are_no_markup(label):
    profile = profile_of(VALUES['linear'], label)
    profile.blocks[1].name = label
    page = plot_html([profile], title=label)
    assert page.count('<script>') == 2
    trace = figure_of(page)['data'][0]
    for text in (trace['name'], trace['text'][1], figure_of(page)['layout']['title']['text']):
        assert '<' not in text
        assert text.count('&') == text.count('&lt;') + text.count('&gt;') + text.count('&amp;')


@pytest.mark.slow
def test_gradients_leave_no_empty_panel_in_a_film():
    profile = profile_of(VALUES['linear'])
    for block in profile.blocks:
        block.grad_avg_var = 1.0
    assert 'yaxis6' in figure_of(plot_html([profile]))['layout']
    assert (
        'yaxis4' not in figure_of(render([Record(profile, 1, 1, 'a')], 'html').decode())['layout']
    )


def test_names_of_blocks_follow_the_records():
    """Shapes that differ in one record are not left in the next."""
    first, second = profile_of(VALUES['linear']), profile_of(VALUES['linear'])
    for block in second.blocks:
        block.shape = (9, 9)
    records = [Record(p, 1, i, 'a') for i, p in enumerate((first, second, first))]
    frames = figure_of(render(records, 'html').decode())['frames']
    texts = [frame['data'][0]['text'][0] for frame in frames]
    assert ['9x9' in text for text in texts] == [False, True, False]


def test_pages_are_small():
    records = [Record(profile_of(VALUES['log']), 1, i, 'a') for i in range(21)]
    assert len(render(records, 'html')) < 2_100_000
    assert len(plot_html([records[0].profile])) < 2_000_000
