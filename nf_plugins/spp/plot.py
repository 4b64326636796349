"""The figures of profiles under the name of version 0.1.0: see :mod:`nf_plugins.spp.report`."""

from .report.axes import COLOURS, GRADIENT_METRICS, MARKERS, METRICS
from .report.figure import plot_metric, plot_profiles
from .report.html import plot_html

__all__ = [
    'COLOURS',
    'GRADIENT_METRICS',
    'MARKERS',
    'METRICS',
    'plot_html',
    'plot_metric',
    'plot_profiles',
]
