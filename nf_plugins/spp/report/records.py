"""Records of a training: profiles with the moment at which they were measured, and their files."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..profile import SignalProfile
from .axes import drawable, drawable_text

MAX_BYTES = 16 * 2**20
"""The largest file that is read; a record has some kilobytes."""


@dataclass(frozen=True)
class Record:
    """A signal propagation profile at one moment of a training.

    Args:
        profile: The profile.
        epoch: Completed epochs, None where they are not known.
        iter: Completed iterations, None where they are not known.
        source: The file that it comes from.
        training: Name of the training; a resumed one keeps it.
    """

    profile: SignalProfile
    epoch: int | None
    iter: int | None
    source: str
    training: str | None = None

    @property
    def label(self) -> str:
        """Say the moment, such as 'epoch 3, iteration 120', and where the signal is not finite."""
        text = f'epoch {self.epoch}, iteration {self.iter}'
        if self.epoch is None or self.iter is None:
            text = drawable_text(Path(self.source).name)
        for block in self.profile.blocks:
            if math.isnan(drawable(block.avg_var)):
                return f'{text}: not finite from block {block.index} on'
        return text


def parse_record(data: Any, source: str) -> Record:
    """Make a :class:`Record` of the content of a record file.

    Args:
        data: ``spp.json`` as a dict, with an integer ``epoch`` and ``iter``.
        source: The file, for messages.

    Raises:
        ValueError: It is not a record.

    Example:
        >>> from nf_plugins.spp import BlockSignal
        >>> block = BlockSignal(0, 'stem', 'stem', (2, 8, 4, 4), avg_sq_mean=0.5, avg_var=1.0)
        >>> data = {**SignalProfile([block], mode='eval').to_dict(), 'epoch': 1, 'iter': 9}
        >>> parse_record(data, 'a.json').label
        'epoch 1, iteration 9'
    """
    try:
        profile = SignalProfile.from_dict(data)
        profile.verdicts()  # the rules cannot compute with all numbers that JSON can hold
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f'{source} is no record: {error}') from None
    if not all(type(data.get(key)) is int for key in ('epoch', 'iter')):
        raise ValueError(f'{source} has no integer epoch and iter, as records of a training have')
    if not all(0 <= data[key] < 2**63 for key in ('epoch', 'iter')):
        raise ValueError(f'{source} has an epoch or iter that no training reaches')
    training = data.get('training')
    training = training if isinstance(training, str) else None
    return Record(profile, data['epoch'], data['iter'], source, training)


def read_record(path: str | Path) -> Record:
    """Read a record file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not valid JSON, or no record.
    """
    return parse_record(read_json(path), str(path))


def read_json(path: str | Path) -> Any:
    """Read a JSON file that anybody may have put there.

    Raises:
        OSError: It cannot be read, or is no regular file.
        ValueError: It is not valid JSON, or far too large for a record.
    """
    # Without O_NONBLOCK, opening a pipe waits until another process writes into it.
    with open(path, 'rb', opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f'{path} is no regular file')
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f'{path} is no record: it has more than {MAX_BYTES >> 20} MiB')
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not valid JSON: {error}') from None


def find_records(folder: str | Path) -> list[Path]:
    """Find the record files of a work dir, of one of its timestamp folders or of an spp folder.

    Args:
        folder: The folder.

    Returns:
        The files, those of the newest timestamp last.

    Raises:
        ValueError: There are none.
    """

    def age(path: Path) -> tuple:
        timestamp = path.parent.parent.name
        return re.fullmatch(r'\d{8}_\d{6}', timestamp) is not None, timestamp, path.name

    for pattern in ('*/spp/*.json', 'spp/*.json', '*.json'):
        found = [p for p in Path(folder).glob(pattern) if not p.name.startswith('.')]
        if found:
            return sorted(found, key=age)
    raise ValueError(f'{folder} holds no records: they are WORK_DIR/TIMESTAMP/spp/*.json')


def newest_training(records: Iterable[Record]) -> list[Record]:
    """Keep the records of the training that the last record belongs to."""
    records = list(records)
    return [record for record in records if record.training == records[-1].training]


def merge_records(records: Iterable[Record]) -> list[Record]:
    """Sort records by iteration; of several records of one moment, the last one is kept.

    Args:
        records: Records of one training, in the order in which they were made.

    Raises:
        ValueError: They do not belong together, or there are none.
    """
    records = list(records)
    check_comparable(records)
    latest = {(record.epoch, record.iter): record for record in records}
    return sorted(latest.values(), key=lambda record: (record.iter, record.epoch))


def check_comparable(records: Sequence[Record]) -> None:
    """Raise a ValueError unless all records are of one network, mode and kind of input."""
    if not records:
        raise ValueError('there are no records')
    first = records[0]

    def network(record: Record) -> list[tuple[int, str]]:
        return [(block.index, block.name) for block in record.profile.blocks]

    for other in records[1:]:
        pair = f'{first.source} and {other.source}'
        modes = first.profile.mode, other.profile.mode
        kinds = first.profile.input.get('kind'), other.profile.input.get('kind')
        if modes[0] != modes[1]:
            raise ValueError(f'{pair} are of different modes, {modes[0]} and {modes[1]}')
        if network(first) != network(other):
            raise ValueError(f'{pair} are of different networks: their blocks differ')
        if kinds[0] != kinds[1]:
            raise ValueError(f'{pair} are of different inputs, {kinds[0]} and {kinds[1]}')
