import math

import numpy as np
import pytest
from matplotlib.scale import SymmetricalLogTransform

from nf_plugins.spp.report.axes import Scale


@pytest.mark.parametrize(
    ('values', 'kind'),
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
def test_an_axis_shows_every_value(values, kind):
    scale = Scale.of(values)
    assert scale.kind == kind
    low, high = scale.limits
    assert low < high
    finite = [v for v in values if math.isfinite(v)]
    assert all(low < v < high for v in finite)
    settings = scale.plotly()
    placed = [math.log10(v) for v in finite] if kind == 'log' else scale.place(finite)
    assert all(settings['range'][0] < v < settings['range'][1] for v in placed)
    if kind == 'symlog':
        transform = SymmetricalLogTransform(10, scale.threshold, 1)
        assert placed == pytest.approx(transform.transform(np.array(finite)).tolist())
        assert '0' in settings['ticktext']
