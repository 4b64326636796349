"""Run the command line tools in this process."""

from __future__ import annotations

import importlib
import runpy
import sys
from unittest import mock

import pytest

from .conftest import ROOT


def run_tool(tool: str, *args: object) -> int:
    """Run a tool in this process.

    Args:
        tool: Name of a script in the folder ``tools``, without suffix, or a module of the
            benchmarks with a ``main``.
        args: The arguments of the command line.

    Returns:
        The exit status.
    """
    with (
        mock.patch.object(sys, 'argv', [f'{tool}.py', *map(str, args)]),
        mock.patch.object(sys, 'path', [*sys.path]),
        pytest.raises(SystemExit) as stop,
    ):
        if tool.startswith('benchmarks.'):
            importlib.import_module(tool).main()
        else:
            runpy.run_path(str(ROOT / f'tools/{tool}.py'), run_name='__main__')
    return stop.value.code or 0
