"""Profiles for people: figures, pages, tables, and films of the records of a training."""

from .figure import plot_metric, plot_profiles
from .html import plot_html
from .table import profiles_to_csv, to_table

__all__ = ['plot_html', 'plot_metric', 'plot_profiles', 'profiles_to_csv', 'to_table']
