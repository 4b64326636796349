"""How a tool ends."""

import pytest

from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import UsageError


def swallowed(kind):
    """As a bare ``except`` in a library makes another exception of Ctrl-C."""
    try:
        raise KeyboardInterrupt
    except:  # noqa: E722
        raise kind('Failed to format')  # noqa: B904


@pytest.mark.parametrize('kind', [SyntaxError, RuntimeError, UsageError, OSError])
def test_ctrl_c_that_became_another_exception(kind, capsys):
    @command_line
    def main():
        swallowed(kind)

    with pytest.raises(SystemExit) as status:
        main()
    assert status.value.code == 130
    assert capsys.readouterr().err == 'interrupted\n'


def test_other_exceptions_are_bugs():
    @command_line
    def main():
        raise RuntimeError('a bug')

    with pytest.raises(RuntimeError, match='a bug'):
        main()
