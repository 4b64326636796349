"""The films and records under the name of version 0.1.0: see :mod:`nf_plugins.spp.report`."""

from .report.film import FORMATS, Painter, missing_packages, render
from .report.records import (
    Record,
    check_comparable,
    find_records,
    merge_records,
    newest_training,
    parse_record,
    read_record,
)

__all__ = [
    'FORMATS',
    'Painter',
    'Record',
    'check_comparable',
    'find_records',
    'merge_records',
    'missing_packages',
    'newest_training',
    'parse_record',
    'read_record',
    'render',
]
