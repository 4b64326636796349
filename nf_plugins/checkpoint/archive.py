"""Reading of zip archives, after a check that all readers see the same content."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np

MAGIC = b'PK\x03\x04'
"""First bytes of an archive that is not empty."""

DIRECTORY = 8 << 20
"""Largest size of an archive's directory in bytes."""

UNPACKED = 512 << 20
"""Largest number of bytes by which unpacking may enlarge a compressed archive."""

ARRAYS = 20_000
"""Largest number of arrays in an ``.npz``."""


def is_archive(file: BinaryIO) -> bool:
    """Return whether a file begins as an archive; PyTorch and numpy do the same check."""
    file.seek(0)
    magic = file.read(len(MAGIC))
    file.seek(0)
    return magic == MAGIC


@contextmanager
def open_archive(file: BinaryIO, compressed: bool) -> Iterator[zipfile.ZipFile]:
    """Open an archive after a check that all readers see the same entries.

    Args:
        file: The file.
        compressed: Whether its entries may be compressed.

    Raises:
        zipfile.BadZipFile: There is data before or after the archive, two entries have the same
            name, or the archive is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    count = _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if len(entries) != count or any(entry.comment for entry in entries):
            raise zipfile.BadZipFile('its directory has another length than it says')
        if len(names) < len(entries):
            raise zipfile.BadZipFile('two of its entries have one name')
        if any(entry.filename != entry.orig_filename for entry in entries):
            raise zipfile.BadZipFile('the name of an entry holds a zero')
        if entries and min(entry.header_offset for entry in entries) != 0:
            raise zipfile.BadZipFile('there is data before the archive')
        methods = {zipfile.ZIP_STORED, *([zipfile.ZIP_DEFLATED] if compressed else [])}
        if any(entry.compress_type not in methods for entry in entries):
            raise zipfile.BadZipFile('an entry is compressed in an unusual way')
        if sum(entry.file_size for entry in entries) > size + UNPACKED * compressed:
            raise zipfile.BadZipFile('its entries are far larger than the file')
        yield archive


def _check_end(file: BinaryIO, size: int) -> int:
    """Refuse an archive that does not end where the file ends, or has a huge directory.

    Returns:
        The number of entries that the archive claims to have.
    """
    file.seek(max(0, size - 22 - 20 - 56))
    tail = file.read()
    end = tail[-22:]
    if not end.startswith(b'PK\x05\x06') or end[20:] != b'\x00\x00':
        raise zipfile.BadZipFile('it is cut short, or there is data after the archive')
    count, length, start = struct.unpack('<HII', end[10:20])
    if tail[-42:].startswith(b'PK\x06\x07'):  # there is a record with 64-bit sizes before it
        if len(tail) < 98 or not tail.startswith(b'PK\x06\x06'):
            raise zipfile.BadZipFile('the sizes of its directory are missing')
        count, length, start = struct.unpack('<QQQ', tail[32:56])
        size -= 76
    if length > DIRECTORY or start + length + 22 != size:
        raise zipfile.BadZipFile('its directory is not where it says')
    return count


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: memoryview) -> None:
    """Read an entry into ``target``, and compare its size and its checksum.

    Raises:
        zipfile.BadZipFile: It is damaged.
    """
    place = 0
    with cast(zipfile.ZipExtFile, archive.open(entry)) as part:  # the type for reading
        while place < len(target):
            count = part.readinto(target[place : place + (1 << 20)])
            if not count:
                break
            place += count
        if place != len(target) or part.read(1):
            raise zipfile.BadZipFile(f'its part {entry.filename} has another size')


def entry_bytes(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytearray:
    """Return the content of an entry."""
    data = bytearray(entry.file_size)
    read_entry(archive, entry, memoryview(data))
    return data


def read_npz(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz``, without pickles.

    Raises:
        ValueError: It is no archive of arrays of numbers.
        zipfile.BadZipFile: It is damaged.
    """
    with open_archive(file, compressed=True) as archive:
        if len(archive.infolist()) > ARRAYS:
            raise ValueError(f'it holds more than {ARRAYS} arrays')
        for entry in archive.infolist():
            if not entry.filename.endswith('.npy'):  # a checkpoint of PyTorch is also a zip file
                raise ValueError(f'it is no archive of arrays, as {entry.filename} is in it')
        return {
            entry.filename.removesuffix('.npy'): _read_npy(entry_bytes(archive, entry))
            for entry in archive.infolist()
        }


def _read_npy(data: bytearray) -> np.ndarray:
    """Read an array after a check that its header fits its data.

    Without the check numpy may reserve as much memory as the header claims.
    """
    file = io.BytesIO(data[:20_000])
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    shape, fortran, dtype = read_header(file, max_header_size=2000)  # a header is parsed as Python
    if dtype.hasobject or dtype.subdtype or not all(0 <= length < 2**63 for length in shape):
        raise ValueError('an array holds objects, or has an invalid shape')
    count = 1
    for length in shape:
        count *= length
    if count * dtype.itemsize != len(data) - file.tell() or not dtype.itemsize:
        raise ValueError('an array has another size than its header says')
    array = np.frombuffer(data, dtype, count, offset=file.tell())
    return array.reshape(shape, order='F' if fortran else 'C')
