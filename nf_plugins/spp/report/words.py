"""Verdicts as text and as HTML, and a profile as a table of a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ..profile import SignalProfile
from ..rules import headline
from .axes import drawable_text
from .table import to_rows

COLOURS = dict(error='#b00020', warning='#b26a00', info='#33691e')
"""Severity -> its colour on a page."""


def verdicts_html(profile: SignalProfile) -> str:
    """Return the first line of the report and the verdicts of a profile as HTML."""
    verdicts = profile.verdicts()
    name = f'{_escaped(profile.label)}: ' if profile.label else ''
    lines = [f'<p><b>{name}{_escaped(headline(verdicts), 500)}</b></p>']
    if verdicts:
        items = [
            f'<li><b style="color:{COLOURS[v["severity"]]}">{v["severity"]}: {_escaped(v["rule"])}'
            f'</b> {_escaped(v["message"], 2000)}</li>'
            for v in verdicts
        ]
        lines.append(f'<ul>{"".join(items)}</ul>')
    return '\n'.join(lines)


def to_html(profile: SignalProfile) -> str:
    """Return verdicts and blocks of a profile as HTML, for a notebook."""
    head, *rows = to_rows(profile)
    table = [_row(head, 'th'), *(_row(row, 'td') for row in rows)]
    return f'{verdicts_html(profile)}\n<table>{"".join(table)}</table>'


def page_of(profiles: Sequence[SignalProfile]) -> str:
    """Return the verdicts of some profiles as the part of a page that follows the plot."""
    return '\n'.join(verdicts_html(profile) for profile in profiles)


def _row(cells: Sequence[str], tag: str) -> str:
    return f'<tr>{"".join(f"<{tag}>{_escaped(cell)}</{tag}>" for cell in cells)}</tr>'


def _escaped(text: str, longest: int = 100) -> str:
    return html.escape(drawable_text(text, longest))
