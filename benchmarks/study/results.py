"""Results of the study: the file of all runs."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, command, machine
from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.utils.files import atomic_write

from .runs import NETWORKS, PARTS, Run

SCHEMA = 'nf_plugins.study/1'
OUT = ROOT / 'benchmarks/results/study'
FIELDS = [field.name for field in fields(Run)]


def short(value: float) -> float | None:
    """Round for the file of the results; None if it is not finite."""
    return float(f'{value:.4g}') if math.isfinite(value) else None


class Results:
    """File results.json with one row per run; it is written atomically after each run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = dict(schema=SCHEMA, wall_seconds=0.0, runs=[])
        if path.exists():
            with as_usage_error(f'cannot read {path}'):
                found = json.loads(path.read_text())
                if not isinstance(found, dict) or found.get('schema') != SCHEMA:
                    raise ValueError(f'it is no file of schema {SCHEMA}')
                self.content.update(found)
                self.rows()

    def rows(self) -> dict[Run, dict]:
        """Return the rows by their runs."""
        for row in self.content['runs']:  # older rows do not have this field
            row.setdefault('multiplicity', Run.multiplicity)
        rows = {Run(**{key: row[key] for key in FIELDS}): row for row in self.content['runs']}
        if unknown := {run.network for run in rows} - set(NETWORKS):
            raise ValueError(f'it has an unknown network, {min(unknown)}')
        return rows

    def save(self) -> None:
        """Write the file, with the machine of the last run."""
        self.content.update(command=command('benchmarks.study'), machine=machine())
        parts, networks = list(PARTS), list(NETWORKS)
        self.content['runs'].sort(
            key=lambda r: (
                parts.index(r['part']),
                networks.index(r['network']),
                *(r[key] or 0 for key in FIELDS[2:]),
            )
        )
        text = json.dumps(self.content, indent=1)
        text = re.sub(r'\n {3,}', ' ', text)  # one row per line
        text = re.sub(r'\n  ([]}])', r' \1', text)
        with as_usage_error(f'cannot write {self.path}'):
            atomic_write(self.path, text + '\n')


class Rows:
    """Rows that are selected by the values of their keys."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    def where(self, **values: Any) -> Rows:
        """Return the rows that have these values."""
        return Rows([r for r in self.rows if all(r[k] == v for k, v in values.items())])

    def values(self, key: str) -> list[Any]:
        """Return the different values of a key, in their order in the file."""
        return list(dict.fromkeys(row[key] for row in self.rows))

    def mean(self, key: str = 'accuracy') -> float:
        """Return the mean over the rows."""
        return statistics.fmean(row[key] for row in self.rows)

    def spread(self, key: str = 'accuracy') -> float:
        """Return the standard deviation over the rows."""
        return statistics.stdev([r[key] for r in self.rows]) if len(self.rows) > 1 else 0.0

    def failed(self) -> int:
        """Count the runs that have learnt nothing."""
        return sum(row['failed'] is not None for row in self.rows)

    def best_lr(self) -> float:
        """Return the learning rate of the highest mean accuracy on the validation images."""
        lrs = sorted(self.values('lr'))
        return max(lrs, key=lambda lr: self.where(lr=lr).mean('val_accuracy'))


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
