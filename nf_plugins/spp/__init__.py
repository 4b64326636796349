"""Signal propagation plots: what a network does to its signal, and what is wrong."""

from .analyze import analyze
from .execution import unwrap, zero_gains
from .graph import Residual, find_residuals
from .profile import BlockSignal, SignalProfile
from .report import plot_html, plot_metric, plot_profiles, profiles_to_csv
from .rules import RULES, Finding, diagnose, headline, says

__all__ = [
    'RULES',
    'BlockSignal',
    'Finding',
    'Residual',
    'SignalProfile',
    'analyze',
    'diagnose',
    'find_residuals',
    'headline',
    'plot_html',
    'plot_metric',
    'plot_profiles',
    'profiles_to_csv',
    'says',
    'unwrap',
    'zero_gains',
]
