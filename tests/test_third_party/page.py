"""The table of docs/other_tools.md: ``python -m tests.test_third_party.page`` writes it."""

from __future__ import annotations

from itertools import groupby

from ..conftest import ROOT
from . import inference_tools, looking_tools, training_tools  # noqa: F401 (fill the table)
from .table import FORMS, REFUSED, RIGHT, TOOLS, Outcome

PAGE = ROOT / 'docs/other_tools.md'
START, END = '<!-- table: start -->', '<!-- table: end -->'
TITLES = ('before the fold', 'folded', 'folded, stride 2 and SAME')


def cell(outcome: Outcome) -> str:
    """What the page says of an outcome."""
    if outcome == RIGHT:
        return 'right'
    if outcome == REFUSED:
        return 'refused: fold first'
    if isinstance(outcome, str):
        return f'refused: "{outcome}"'
    form, unit = ('.0%', '') if max(outcome) < 2 else ('.0f', ' times')
    errors = dict.fromkeys(f'{error:{form}}'.replace('%', ' %') for error in outcome)
    return f'**wrong** by {" to ".join(errors)}{unit}'


def table() -> str:
    """A table in Markdown for each group of tools."""
    lines = []
    for group, rows in groupby(TOOLS, lambda row: row.group):
        lines += ['', f'### {group}', '', f'| tool | {" | ".join(TITLES)} |', '| --- ' * 4 + '|']
        for row in rows:
            lines.append(f'| {row.name} | {" | ".join(cell(row.outcomes[f]) for f in FORMS)} |')
    return '\n'.join(lines[1:])


def main() -> None:
    before, _, rest = PAGE.read_text('utf-8').partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(f'{before}{START}\n\n{table()}\n\n{END}{after}', 'utf-8')


if __name__ == '__main__':
    main()
