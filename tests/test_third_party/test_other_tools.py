"""What other people's tools do with a standardized convolution: right, or an error that says so.

The few wrong results are listed, with their errors, here and in docs/other_tools.md.
"""

import pytest

from . import page
from .case import LAYERS
from .table import FORMS, RIGHT, TOOLS, case_of, outcome_of


def cells():
    for row in TOOLS:
        for form in FORMS:
            # Folded ones are the same plain layers, so one layer is enough for a slow tool.
            for layer in LAYERS if form == 'unfolded' or not row.slow else ('ScaledWS',):
                name = f'{row.apply.__name__}-{form}-{layer}'
                marks = [pytest.mark.slow] if row.slow else []
                if row.apply.__name__ == 'inductor':  # it starts a compiler for C++
                    marks.append(pytest.mark.exhaustive)
                yield pytest.param(row, form, layer, id=name, marks=marks)


@pytest.mark.parametrize(('row', 'form', 'layer'), list(cells()))
def test_right_or_an_error_that_says_so(row, form, layer):
    said = row.outcomes[form]
    found = outcome_of(row, case_of(row, layer, form), said)
    if isinstance(said, str):
        assert found in (said, RIGHT)  # another version of a tool may do better
    else:
        least, most = said
        assert 0.98 * least < found < 1.02 * most


def test_the_page_has_the_table():
    text = page.PAGE.read_text('utf-8')
    assert f'{page.START}\n\n{page.table()}\n\n{page.END}' in text


def test_few_results_are_wrong():
    """Before the fold and with SAME padding of strided convolutions; after the fold none else."""
    wrong = {form: [r for r in TOOLS if not isinstance(r.outcomes[form], str)] for form in FORMS}
    assert len(wrong['unfolded']) == 7
    assert not wrong['folded']
    assert {row.group for row in wrong['folded, SAME']} == {'Counters of multiply-adds'}
