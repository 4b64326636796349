"""Results of the study: the file of all runs, and means over the seeds."""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import command, machine, quiet
from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.utils.files import atomic_write

from .runs import NETWORKS, Run, Setting, build

SCHEMA = 'nf_plugins.study_digits/1'


class Results:
    """File results.json with one row per run; it is written atomically after each run."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self.path = path
        self.content: dict[str, Any] = dict(
            schema=SCHEMA,
            setting=json.loads(json.dumps(asdict(setting))),
            wall_seconds=0.0,
            networks={},
            runs=[],
        )
        if path.exists():
            with as_usage_error(f'cannot read {path}'):
                found = json.loads(path.read_text())
                if not isinstance(found, dict) or found.get('schema') != SCHEMA:
                    raise ValueError(f'it is no file of schema {SCHEMA}')
                self._check(found['setting'])
                self.content.update(found)
                self.rows()
        self.content.update(
            command=command('benchmarks.study'),
            machine=machine(),
        )

    def _check(self, setting: dict) -> None:
        ours = self.content['setting']
        differ = [
            f'{key} {setting.get(key)} (now {ours.get(key)})'
            for key in {**ours, **setting}
            if ours.get(key) != setting.get(key)
        ]
        if differ:
            raise ValueError(f'it has another setting: {", ".join(differ)}; take another --out')

    def rows(self) -> dict[Run, dict]:
        rows = {Run(*(row[key] for key in Run._fields)): row for row in self.content['runs']}
        if unknown := {run.network for run in rows} - set(NETWORKS):
            raise ValueError(f'it has an unknown network, {min(unknown)}')
        return rows

    def save(self) -> None:
        order = list(NETWORKS)
        self.content['runs'].sort(
            key=lambda r: (order.index(r['network']), *map(r.get, Run._fields[1:]))
        )
        # One row per line.
        text = json.dumps(self.content, indent=1)
        text = re.sub(r'\n {3,}', ' ', text)
        text = re.sub(r'\n  ([]}])', r' \1', text)
        with as_usage_error(f'cannot write {self.path}'):
            atomic_write(self.path, text + '\n')


def describe(network: str) -> dict:
    with quiet():
        model, _ = build(network, 0.1, 0.01)
    parameters = sum(p.numel() for p in model.parameters())
    about = NETWORKS[network]
    return dict(label=about.label, config=f'configs/{about.config}', parameters=parameters)


class Grid:
    """Rows of a grid of runs, and their means over the seeds."""

    def __init__(self, rows: dict[Run, dict], args: Namespace) -> None:
        self.rows = rows
        self.networks, self.batch_sizes = args.networks, args.batch_sizes
        self.lrs, self.seeds = args.lrs, args.seeds

    def accuracies(self, network: str, batch_size: int, lr: float) -> list[float]:
        return [self.rows[Run(network, batch_size, lr, s)]['accuracy'] for s in self.seeds]

    def mean(self, network: str, batch_size: int, lr: float) -> float:
        return statistics.fmean(self.accuracies(network, batch_size, lr))

    def spread(self, network: str, batch_size: int, lr: float) -> float:
        values = self.accuracies(network, batch_size, lr)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def best_lr(self, network: str, batch_size: int) -> float:
        return max(self.lrs, key=lambda lr: self.mean(network, batch_size, lr))

    def working_lrs(self, network: str, batch_size: int) -> list[float]:
        """Return the learning rates with a mean accuracy of at least 90 %."""
        return [lr for lr in self.lrs if self.mean(network, batch_size, lr) >= 90]

    def common_lr(self) -> float:
        """Return the learning rate with the highest mean over all networks and batch sizes."""
        pairs = list(itertools.product(self.networks, self.batch_sizes))
        return max(self.lrs, key=lambda lr: sum(self.mean(n, b, lr) for n, b in pairs))

    def failures(self, **where: Any) -> tuple[int, int, int]:
        """Count all runs, runs that became non-finite, and runs that learnt nothing."""
        runs = [
            row
            for run, row in self.rows.items()
            if all(getattr(run, key) == value for key, value in where.items())
        ]
        kinds = [row['diverged'] for row in runs]
        return len(runs), kinds.count('non-finite'), kinds.count('chance')


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lock a folder, so that two studies do not write the same files."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    # Not the folder itself, because `atomic_write_all` locks it.
    lock = Path(folder) / '.study.lock'
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    except BlockingIOError:
        raise UsageError(f'another study is writing into {folder}') from None
    finally:
        os.close(handle)
