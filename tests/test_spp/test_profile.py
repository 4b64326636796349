"""A profile is written and read back whole."""

import json
import math

import pytest
import torch

from nf_plugins.models import NFResNet
from nf_plugins.spp import BlockSignal, SignalProfile, analyze


def block(index=1, **fields):
    start = dict(name=f'block{index}', kind='residual', shape=(2, 3, 4, 4), avg_sq_mean=0.1)
    return BlockSignal(index, **{**start, 'avg_var': 1.0, 'res_avg_var': 1.0, **fields})


STEM = BlockSignal(0, 'stem', 'stem', (2, 3, 4, 4), 0.0, 1.0)
PROFILES = {
    'healthy': [STEM, *(block(i, branch_gain=0.2) for i in range(1, 4))],
    'explosion': [STEM, *(block(i, avg_var=10.0 ** (2 * i)) for i in range(1, 4))],
    'attenuation': [STEM, *(block(i, avg_var=10.0**-i) for i in range(1, 4))],
    'mean_shift': [STEM, block(1), block(2, kind='transition', avg_sq_mean=9.0)],
    'zero_branch': [STEM, block(1, branch_gain=0.0, zero_parameter='block1.gain')],
    'constant_channels': [STEM, block(1, constant_channels=0.5)],
    'infinite': [STEM, block(1, avg_var=math.inf)],
    'not a number': [STEM, block(1), block(2, res_avg_var=math.nan)],
    'gradient': [STEM, block(1, grad_avg_sq_mean=0.0, grad_avg_var=-math.inf)],
}


@pytest.mark.parametrize('name', PROFILES)
def test_the_same_verdicts_after_reading(name):
    profile = SignalProfile(PROFILES[name], 'train', dict(kind='gaussian', shape=[2, 3]), 5)
    profile.config, profile.checkpoint, profile.unit_gain = 'net.py', 'a.pth', True
    if not profile.is_finite():
        profile.non_finite_module = 'block1.conv (convolution)'
    text = json.dumps(profile.to_dict(), allow_nan=False)
    found = SignalProfile.from_dict(json.loads(text))
    assert found.verdicts() == profile.verdicts()
    assert [v['rule'] for v in found.verdicts()] or name == 'healthy'
    assert json.dumps(found.to_dict()) == text  # NaN is not equal to itself


def test_a_measured_profile_is_read_back_whole():
    torch.manual_seed(0)
    net = NFResNet(26, base_channels=4, skipinit=0.5)
    profile = analyze(net, torch.randn(2, 3, 32, 32), backward=True, seed=3)
    assert SignalProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_a_file_of_version_0_1_0_is_read():
    """Without the fields that came later, and without the names of what was not finite."""
    old = dict(index=1, name='a', kind='residual', shape=[2, 3], avg_sq_mean=0.0, avg_var=None)
    data = dict(schema='nf_plugins.spp/1', mode='eval', blocks=[{**old, 'res_avg_var': None}])
    (found,) = SignalProfile.from_dict(data).blocks
    assert math.isnan(found.avg_var)
    assert found.res_avg_var is None


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('index', 1.0),
        ('index', -1),
        ('index', None),
        ('name', 3),
        ('kind', None),
        ('shape', 'ab'),
        ('shape', [1, 2.5]),
        ('avg_var', '1'),
        ('avg_var', True),
        ('branch_gain', [1]),
        ('activated', 1),
        ('zero_parameter', 0),
        ('positions', '4'),
    ],
)
def test_wrong_values_are_refused(field, value):
    data = SignalProfile([STEM, block()], 'train').to_dict()
    data['blocks'][1][field] = value
    with pytest.raises(ValueError, match=f'block 1: {field} has a wrong value'):
        SignalProfile.from_dict(data)


@pytest.mark.parametrize(('sign', 'expected'), [(1, math.inf), (-1, -math.inf)])
def test_an_integer_beyond_floats_is_infinite(sign, expected):
    data = SignalProfile([STEM, block()], 'train').to_dict()
    data['blocks'][1]['avg_var'] = sign * 10**400
    assert SignalProfile.from_dict(data).blocks[1].avg_var == expected
