"""Verdicts have a cause and a remedy, are merged, and are shown everywhere."""

import pytest

from nf_plugins.registry import RULES
from nf_plugins.spp import BlockSignal, Finding, SignalProfile, diagnose, headline, plot_html, says
from nf_plugins.spp.rules import list_rules
from nf_plugins.spp.rules.base import resolve_thresholds, thresholds_of
from nf_plugins.spp.rules.merging import merge


def profile(*variances, **fields):
    blocks = [
        BlockSignal(i, f'b{i}', 'residual', (1, 4, 2, 2), 0.0, value)
        for i, value in enumerate(variances, 1)
    ]
    return SignalProfile(blocks, 'train', **fields)


@pytest.fixture
def own_rule():
    before = dict(RULES._module_dict)

    @RULES.register_module()
    @says('warning')
    def too_green(profile, blocks, *, most: float = 3.0):
        """Green is beyond what is good."""
        for block in blocks:
            if block.avg_var > most:
                yield Finding('warning', block.index, 'green', 'paint it')

    yield too_green
    RULES._module_dict.clear()
    RULES._module_dict.update(before)


def test_a_rule_of_ones_own_takes_part(own_rule):
    (verdict,) = profile(1.0, 4.0).verdicts()
    assert verdict == dict(
        rule='too_green', severity='warning', block=2, name='b2', cause='green',
        remedy='paint it', message='green. paint it.',
    )  # fmt: skip
    assert profile(1.0, 4.0).verdicts({'too_green': 5}) == []
    assert 'too_green' in list_rules()


def test_a_rule_may_yield_tuples(own_rule):
    @RULES.register_module()
    def old(profile, blocks):
        yield 'info', 1, 'as in 0.1.0'

    (verdict,) = profile(1.0).verdicts()
    assert (verdict['rule'], verdict['cause'], verdict['remedy']) == ('old', 'as in 0.1.0', '')


def test_thresholds_are_declared_listed_and_changed():
    grown = profile(1.0, 5.0, 25.0, 60.0)
    assert grown.verdicts() == []
    assert [v['rule'] for v in diagnose(grown, {'explosion': 50})] == ['explosion']
    assert [v['rule'] for v in diagnose(grown, {'explosion.growth': 50})] == ['explosion']
    lines = dict(zip(RULES, list_rules().splitlines()))
    for name, rule in RULES.items():
        assert lines[name].startswith(name)
        for key, value in thresholds_of(rule).items():
            assert f'{key}={value:g}' in lines[name]
        assert set(rule.severities) <= {'error', 'warning', 'info'}


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'explode': 3}, "no threshold 'explode'; there are .*explosion.growth"),
        ({'explosion.mean': 3}, "no threshold 'explosion.mean'"),
        ({'non_finite': 3}, "no threshold 'non_finite'"),
        ({'explosion': -1}, 'must be a positive number, got -1'),
        ({'explosion': float('nan')}, 'must be a positive number'),
        ({'explosion': '3'}, 'must be a positive number'),
    ],
)
def test_wrong_thresholds(given, words):
    with pytest.raises(ValueError, match=words):
        resolve_thresholds(given)


def test_one_cause_one_verdict():
    grown = profile(*(8.0**i for i in range(6)))
    for block in grown.blocks:
        block.largest = 4 * block.avg_var
    (verdict,) = grown.verdicts()
    assert (verdict['rule'], verdict['symptoms']) == ('explosion', ['low_precision'])
    assert 'It shows as low_precision' in verdict['message']


def test_rules_that_explain_one_another_in_a_circle():
    """Units that never fire, a signal that dies and images that are alike: each may be first."""
    found = [
        dict(rule=rule, severity='warning', block=block, cause=rule, message=f'{rule}.')
        for rule, block in (('dead_units', 5), ('attenuation', 3), ('collapsed_images', 4))
    ]
    (merged,) = merge(found)
    assert {merged['rule'], *merged['symptoms']} == {v['rule'] for v in found}


def test_what_comes_before_a_cause_is_no_symptom():
    found = [
        dict(rule=rule, severity='warning', block=block, cause=rule, message=f'{rule}.')
        for rule, block in (('branch_jump', 4), ('low_precision', 2))
    ]
    assert [v['rule'] for v in merge(found)] == ['branch_jump', 'low_precision']
    found[1]['block'] = 4
    assert [v['rule'] for v in merge(found)] == ['branch_jump']


def test_an_overflow_after_an_explosion_names_both():
    broken = profile(*(1e3**i for i in range(12)), float('inf'))
    assert {v['rule'] for v in broken.verdicts()} == {'non_finite', 'explosion'}


def test_a_gradient_that_is_not_finite_hides_nothing():
    broken = profile(*(8.0**i for i in range(6)))
    broken.blocks[0].grad_avg_var = broken.blocks[2].grad_avg_var = float('nan')
    found = {v['rule']: v for v in broken.verdicts()}
    assert found['non_finite']['name'] == 'b3'  # nearest to the loss
    assert 'explosion' in found


def test_trained_networks_are_not_measured_by_theory():
    blocks = [
        BlockSignal(1, 'a', 'transition', (1, 4, 2, 2), 0.0, 9.0, 1.0, 1.04, 1.0),
        BlockSignal(2, 'b', 'transition', (1, 4, 2, 2), 0.0, 9.5, 1.0, 1.04, 1.0),
    ]
    assert SignalProfile(blocks, 'train', state='trained').verdicts() == []
    assert [v['rule'] for v in SignalProfile(blocks, 'train', state='init').verdicts()]


def test_the_first_line():
    assert headline([]).startswith('healthy')
    assert profile(*(8.0**i for i in range(6))).summary().startswith('error: explosion: ')


def test_notebooks_and_pages_show_verdicts():
    grown = profile(*(8.0**i for i in range(6)), label='<b>net</b>')
    html = grown._repr_html_()
    assert 'explosion' in html and '<table>' in html and '<b>net' not in html
    page = plot_html([grown])
    assert 'each layer' in page or 'explosion' in page
    assert len(repr(grown)) < 100
    frame = grown.to_dataframe()
    assert list(frame['avg_var']) == [8.0**i for i in range(6)]


def test_the_dashed_line_of_a_trained_network():
    from nf_plugins.spp.report.axes import expected_label

    block = BlockSignal(1, 'a', 'residual', (1, 4), 0.0, 1.0, expected_var=1.04)
    assert expected_label([SignalProfile([block], 'train')]) == 'expected by theory'
    trained = SignalProfile([block], 'train', state='trained')
    assert expected_label([trained]) == 'expected at initialisation'
    assert 'at init' in trained.table()
