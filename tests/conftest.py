from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.utils import ManagerMeta, ManagerMixin
from yapf.yapflib import yapf_api

DATA = Path(__file__).parent / 'data'
ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that two processes end at the same time."""
    items.sort(key=lambda item: 'test_tools/' not in item.nodeid)  # the rest stays in order
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker('cuda'):
                item.add_marker(pytest.mark.skip(reason='needs CUDA'))


def pytest_collection_finish() -> None:
    """Keep what is imported out of each garbage collection: mmengine starts one per data set."""
    gc.collect()
    gc.freeze()


def _once(format_code):
    """A training formats its config five times, which takes as long as ten of its iterations."""
    known = {}

    def format_once(text, **style):
        key = text, str(style)
        if key not in known:
            known[key] = format_code(text, **style)
        return known[key]

    return format_once


yapf_api.FormatCode = _once(yapf_api.FormatCode)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor | np.ndarray) -> float:
    """Relative error in the 2-norm."""
    theirs = torch.as_tensor(theirs).detach()
    return ((ours.detach() - theirs).norm() / theirs.norm()).item()


def sample(cases: Iterable[Any], kept: Callable[[Any], bool]) -> list[Any]:
    """The cases of a long table: ``make test`` runs those that are kept, ``make test-all`` each.

    Args:
        cases: Values for ``pytest.mark.parametrize``; tuples where there are several arguments.
        kept: Whether a case is kept.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if kept(case) else pytest.mark.exhaustive,
        )
        for case in cases
    ]


def undrawn() -> Any:
    """Leave weights as they are where they would be drawn: half of the time of a build."""
    keep = dict.fromkeys(('normal_', 'uniform_'), lambda tensor, *args, **kwargs: tensor)
    return mock.patch.multiple(torch.Tensor, **keep)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build networks for their shapes alone: on the meta device, and no weight is drawn.

    ``linspace`` stays on the CPU, as mmpretrain's networks read their rates of stochastic depth
    from it.
    """
    with (
        torch.device('meta'),
        undrawn(),
        mock.patch.object(torch, 'linspace', partial(torch.linspace, device='cpu')),
    ):
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _global_instances() -> dict[ManagerMeta, dict[str, Any]]:
    """What mmengine keeps for the whole process: scopes, loggers, message hubs, visualizers."""
    kinds = [ManagerMixin]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind: dict(kind._instance_dict) for kind in kinds}


@contextmanager
def same_instances_afterwards() -> Iterator[None]:
    """Forget the global instances of a Runner.

    Its default scope would decide what the names of the next test mean. Its experiment name ends
    with the second of its start: the next Runner of the same config could have the same.
    """
    before = _global_instances()
    try:
        yield
    finally:
        for kind, instances in _global_instances().items():
            for name in instances.keys() - before.get(kind, {}).keys():
                for handler in getattr(instances[name], 'handlers', ()):  # of a logger
                    handler.close()
            kind._instance_dict.clear()
            kind._instance_dict.update(before.get(kind, {}))


@pytest.fixture(autouse=True)
def _instances():
    with same_instances_afterwards():
        yield


@pytest.fixture(autouse=True, scope='module')
def _instances_of_the_file():
    """Its fixtures may set a scope for its tests, but not for those of another file."""
    with same_instances_afterwards():
        yield


@pytest.fixture(autouse=True)
def _log_levels():
    """Restore mmengine's logger after a test of a tool that has made it quiet."""
    before = {name: logger.level for name, logger in MMLogger._instance_dict.items()}
    yield
    for name, logger in MMLogger._instance_dict.items():
        logger.setLevel(before.get(name, logging.NOTSET))


@pytest.fixture(scope='session')
def tool_env() -> dict[str, str]:
    """Environment of a tool that runs from the checkout, in another process."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path}
