import math

import numpy as np
import pytest
from mmengine.logging import MMLogger

from nf_plugins.errors import UsageError
from nf_plugins.spp import BlockSignal, SignalProfile
from nf_plugins.spp.from_config import Options
from nf_plugins.spp.report.sweep_figure import plot_sweep
from nf_plugins.spp.sweep import Sweep, Trend, measure_sweep, parse_sweep

NF = 'nf-resnet_digits'


@pytest.fixture(autouse=True)
def _quiet():
    MMLogger.get_instance('mmengine').setLevel('ERROR')  # no line per initialised parameter


@pytest.mark.parametrize(
    ('text', 'option', 'values'),
    [
        (
            'model.backbone.base_channels=8,16,32,64',
            'model.backbone.base_channels',
            [8, 16, 32, 64],
        ),
        ('model.backbone.alpha=0.1,0.2', 'model.backbone.alpha', [0.1, 0.2]),
        ('model.backbone.depth=[26,50]', 'model.backbone.depth', [26, 50]),
        ('model.backbone.depth=[1,1,1,1],[2,2,2,2]', 'model.backbone.depth', [[1] * 4, [2] * 4]),
        ('model.backbone.act_cfg.type=ReLU,SiLU', 'model.backbone.act_cfg.type', ['ReLU', 'SiLU']),
        ('batch-size=2,8', 'batch_size', [2, 8]),
        ('input_size=32,(32,48)', 'input_size', [32, (32, 48)]),
        ('model.backbone.with_cp=True,False', 'model.backbone.with_cp', [True, False]),
    ],
)
def test_options_and_values(text, option, values):
    assert parse_sweep(text) == (option, values)


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('model.backbone.depth', 'takes OPTION=VALUE,VALUE'),
        ('=1,2', 'takes OPTION=VALUE,VALUE'),
        ('', 'takes OPTION=VALUE,VALUE'),
        ('a=', 'two or more values'),
        ('a=8', 'two or more values'),
        ('a=[8]', 'two or more values'),
        ('a=8,8', 'the value 8 twice'),
        ('a=8,8.0', 'the value 8.0 twice'),
        ('a=8,,16', "'' is not a value"),
        ('a=1,nan', 'nan is not a value'),
        ('a=1,1e999', 'inf is not a value'),
        ('a=(1,2', 'cannot read the values'),
    ],
)
def test_bad_options_and_values(text, says):
    with pytest.raises(ValueError, match='--sweep') as error:
        parse_sweep(text)
    assert says in str(error.value)


@pytest.mark.parametrize('power', [-2.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0])
def test_a_power_is_found(power):
    """The slope is the exponent, also with noise; numpy's own fit is the independent source."""
    at = np.array([8, 16, 32, 64])
    noise = np.exp(np.random.default_rng(0).normal(0, 0.02, 4))
    trend = Trend.of('a', at.tolist(), (3 * at**power * noise).tolist())
    reference = np.polynomial.Polynomial.fit(np.log(at), np.log(3 * at**power * noise), 1)
    assert trend.slope == pytest.approx(reference.convert().coef[1], abs=1e-9)
    assert trend.slope == pytest.approx(power, abs=0.05)
    assert trend.kind == ('flat' if abs(power) <= 0.1 else 'grows' if power > 0 else 'falls')


@pytest.mark.parametrize(
    ('at', 'values', 'kind'),
    [
        ([1, 2, 4], [1.0, 1.0, 1.0], 'flat'),
        ([1, 2, 4], [0.0, 0.0, 0.0], 'flat'),
        ([1, 2, 4], [1.0, 9.0, 1.0], 'uneven'),  # the slope is 0, and it is not flat
        ([1, 2, 4], [1.0, 10.0, 1e6], 'grows'),  # faster than any power
        ([1, 2, 4], [1e6, 10.0, 9.0], 'falls'),
        ([1, 2, 4], [1.0, math.inf, 1.0], 'not finite'),
        ([1, 2, 4], [1.0, math.nan, 1.0], 'not finite'),
        ([1, 2, 4], [1.0, 0.0, 1.0], 'differs'),
        (None, [1.0, 1.2, 1.0], 'flat'),
        (None, [1.0, 1.2, 2.0], 'differs'),
    ],
)
def test_kinds_of_trends(at, values, kind):
    assert Trend.of('a', at, values).kind == kind


def sweep_of(at, curves, option='model.backbone.width', sq_mean=None):
    """A sweep with blocks of given variances: name -> the variance at each value."""
    profiles = [
        SignalProfile(
            [
                BlockSignal(i, name, 'plain', (1, 2), (sq_mean or {}).get(name, curve)[n], curve[n])
                for i, (name, curve) in enumerate(curves.items())
            ],
            'train',
        )
        for n in range(len(at))
    ]
    return Sweep(option, list(at), profiles)


def test_words_name_the_place_that_is_worst():
    curves = {'a': [1.0, 1.0, 1.0], 'b': [1.0, 2.0, 4.0], 'c': [1.0, 4.0, 16.0]}
    words = sweep_of([8, 16, 32], curves).words()
    assert words['avg_var'] == (
        'avg_var against model.backbone.width: not flat: grows in 2, most in c (slope +2.00, from '
        '1 to 16); flat in 1 of 3 places, slope +0.00'
    )
    assert words['res_avg_var'].endswith('nothing to compare')
    assert 'same' not in words


def test_a_small_squared_mean_is_flat_whatever_it_does():
    curves = {'a': [1.0, 1.0], 'b': [1.0, 1.0]}
    small, large = [1e-12, 1e-3], [1e-3, 1.0]
    sweep = sweep_of([1, 2], curves, sq_mean={'a': small, 'b': large})
    assert [trend.kind for trend in sweep.trends('avg_sq_mean')] == ['flat', 'grows']


def test_equal_profiles_say_that_nothing_reads_the_option():
    words = sweep_of([1, 2], {'a': [1.0, 1.0]}).words()
    assert words['same'] == (
        'all values of model.backbone.width give the same profile: nothing reads it'
    )


def test_one_value_is_nothing_to_compare():
    sweep = sweep_of([8], {'a': [1.0]})
    assert all(text.endswith('nothing to compare') for text in sweep.words().values())
    plot_sweep(sweep)


def test_networks_of_other_depths_are_compared_at_the_ends_of_their_stages():
    def network(blocks):
        kinds = ['stem', *(['transition', *['residual'] * (blocks - 1)] * 2)]
        signals = [BlockSignal(i, f'b{i}', k, (1, 2), 0.0, i + 1.0) for i, k in enumerate(kinds)]
        return SignalProfile(signals, 'train')

    sweep = Sweep('depth', [2, 3], [network(2), network(3)])
    names = {place: [block.name for block in blocks] for place, blocks in sweep.places().items()}
    assert names == {
        'stem': ['b0', 'b0'],
        'end of stage 1': ['b2', 'b3'],
        'end of stage 2': ['b4', 'b6'],
    }


WIDTHS = [8, 16, 32]


@pytest.mark.slow
def test_width_of_a_network_with_and_without_scaling_of_its_weights():
    """Scaled WS keeps the variance at every width; weights of one size let it grow with it."""
    options = Options(unit_gain=True, batch_size=8, input_size=(32,))
    sweep = measure_sweep(NF, 'model.backbone.base_channels', WIDTHS, options=options)
    assert sweep.values == WIDTHS
    assert {trend.kind for trend in sweep.trends('avg_var')} == {'flat'}
    plain = {
        'model.backbone.conv_cfg.type': 'Conv2d',
        'model.backbone.init_cfg.type': 'Normal',
        'model.backbone.init_cfg.layer': 'Conv2d',
        'model.backbone.init_cfg.std': 0.1,
    }
    sweep = measure_sweep(
        NF, 'model.backbone.base_channels', WIDTHS, options=options, cfg_options=plain
    )
    trends = {trend.place: trend for trend in sweep.trends('res_avg_var')}
    assert {trend.kind for trend in trends.values()} == {'grows'}
    # The input of the last blocks has passed layers whose variance is proportional to the width.
    assert trends['layer4.0'].slope > 2
    figure = plot_sweep(sweep, title='of $1_ \x1b')
    assert [ax.get_xscale() for ax in figure.axes] == ['log'] * 3
    assert figure.axes[2].get_title().startswith('not flat in 8 of 8')
    assert [line.get_xdata().tolist() for line in figure.axes[1].lines] == [WIDTHS] * 9


@pytest.mark.slow
def test_depth_alpha_batch_size_and_input_size():
    """What the method says: a stage's end has variance 1 + blocks * alpha^2."""
    options = Options(unit_gain=True, batch_size=4, input_size=(32,))
    small = {'model.backbone.base_channels': 8}
    swept = dict(options=options, cfg_options=small)
    depth = measure_sweep(NF, 'model.backbone.depth', [[1] * 4, [2] * 4, [4] * 4], **swept)
    assert list(depth.places()) == ['stem', *(f'end of stage {i}' for i in range(1, 5))]
    expected = [block.expected_var for block in depth.places()['end of stage 1']]
    assert expected == pytest.approx([1 + n * 0.2**2 for n in (1, 2, 4)])

    alpha = measure_sweep(NF, 'model.backbone.alpha', [0.5, 0.1, 0.2], **swept)
    assert alpha.values == [0.1, 0.2, 0.5]
    trends = alpha.trends('avg_var')
    assert trends[2].kind == 'grows'
    assert trends[2].expected == pytest.approx([1 + 2 * a**2 for a in alpha.values])
    assert trends[2].as_expected()
    assert 'in theory' in alpha.words()['avg_var']

    batch = measure_sweep(NF, 'batch_size', [2, 8], **swept)
    assert [profile.input['shape'][0] for profile in batch.profiles] == [2, 8]
    size = measure_sweep(NF, 'input_size', [16, (32, 16)], **swept)
    assert [profile.input['shape'][2:] for profile in size.profiles] == [[16, 16], [32, 16]]
    assert size.at() is None
    assert 'slope' not in size.words()['avg_var']
    plot_sweep(size)


def test_a_value_that_fails_does_not_lose_the_others():
    options = Options(batch_size=2)
    swept = measure_sweep(NF, 'model.backbone.depth', [26, 7, [1] * 4], options=options)
    assert swept.values == [26, [1] * 4]
    assert list(swept.failed) == ['7']
    assert 'depth must be one of 26, 50' in swept.failed['7']
    with pytest.raises(UsageError, match='no value of model.backbone.depth can be measured: '):
        measure_sweep(NF, 'model.backbone.depth', [7, 8], options=options)


def test_the_size_of_images_cannot_be_swept():
    with pytest.raises(UsageError, match='input_size is the size of noise, and the input is val'):
        measure_sweep(NF, 'input_size', [16, 32], options=Options(input='val'))
