"""Mutate files of weights, and check that each is either read correctly or refused.

    python benchmarks/fuzz_checkpoints.py --count 20000

Each file is read in this process under two limits: 1 GB of additional memory and 10 s of processor
time. If a read hangs in C code, the process is ended with a traceback. The name of the file is
printed first, and the file is kept after a crash.

The parts of an archive have checksums. So a mutated archive must be refused, or have the same
content as before. The other kinds of files have no checksums, and some archives get their checksums
after the mutation. For these, any numbers are right.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import pickle
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from mmengine.logging import HistoryBuffer

from nf_plugins.checkpoint import safe_load
from nf_plugins.checkpoint.haiku import read_haiku
from nf_plugins.checkpoint.tensors import read_weights
from nf_plugins.errors import CheckpointError

SECONDS, MEMORY = 10, 1 << 30
READERS: dict[str, Callable] = dict(pth=safe_load, haiku=read_haiku, npz=read_weights)


def checkpoint() -> dict[str, Any]:
    """Make a small checkpoint like those of mmengine."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return dict(
        meta=dict(epoch=1, iter=2, seed=np.int64(3), names=['a', 'b'], time='2020'),
        state_dict=layer.state_dict(),
        optimizer=optimizer.state_dict(),
        message_hub=dict(
            log_scalars=OrderedDict(loss=HistoryBuffer([1.0, 2.0], [1, 1])),
            runtime_info=OrderedDict(epoch=1, queue=deque([1, 2]), names={'a', 'b'}),
        ),
        arrays=[np.arange(3), np.array(['a', 'bc']), np.array([1, None], dtype=object)],
        sparse=torch.eye(2).to_sparse(),
        namespace=argparse.Namespace(lr=0.1, dtype=torch.float16, device=torch.device('cpu')),
    )


def rezip(content: bytes, change: Callable[[bytes], bytes], part: str) -> bytes:
    """Change a part of an archive, and write the archive with the right checksum."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, 'w') as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith(part) else data)
    return file.getvalue()


def corpus() -> dict[str, tuple[str, str, bytes, str]]:
    """Make kind -> reader, suffix, content, and the part to mutate (the whole file if empty)."""
    state = {'a.weight': torch.arange(6.0).reshape(2, 3), 'a.bias': torch.ones(2)}
    arrays = {name: value.numpy() for name, value in state.items()}
    new, old, plain, packed = (io.BytesIO() for _ in range(4))
    torch.save(checkpoint(), new)
    torch.save(checkpoint(), old, _use_new_zipfile_serialization=False)
    np.savez(plain, **arrays)
    np.savez_compressed(packed, **arrays)
    layer = {'w': arrays['a.weight'], 'b': arrays['a.bias']}
    tree = {'net/a': layer, 'net/c': {'w': np.float32(1)}}
    return {
        'pth': ('pth', '.pth', new.getvalue(), ''),
        'pth, its pickle': ('pth', '.pth', new.getvalue(), 'data.pkl'),
        'pth before 1.6': ('pth', '.pth', old.getvalue(), ''),
        'npz': ('npz', '.npz', plain.getvalue(), ''),
        'npz, compressed': ('npz', '.npz', packed.getvalue(), ''),
        'npz, its header': ('npz', '.npz', plain.getvalue(), 'a.weight.npy'),
        'haiku': ('haiku', '.npz', pickle.dumps(tree, 4), ''),
        'haiku, protocol 2': ('haiku', '.npz', pickle.dumps(tree, 2), ''),
        'safetensors': ('pth', '.safetensors', safetensors.torch.save(state), ''),
    }


PIECES = [
    *(bytes([code]) for code in b'(.0125KNQRX]abehjqrstu}'),
    *(bytes([code]) for code in b'\x81\x85\x86\x87\x88\x8e\x8f\x90\x91\x92\x93\x94'),
    b'cposix\nmkdir\n', b'cbuiltins\ngetattr\n', b'ccollections\nOrderedDict\n', b')R', b'}b',
    b')\x81', b'r\xff\xff\xff\x7f', b'\x85' * 5000, b'\x8e' + b'\xff' * 8, b'X\xff\xff\xff\xff',
    b']' * 1000 + b'a' * 999, struct.pack('<q', -1), struct.pack('<q', 2**62),
    struct.pack('<i', 2**31 - 1), b'9' * 20, b'PK\x05\x06',
]  # fmt: skip


def mutate(data: bytes, rng: np.random.RandomState) -> bytes:
    """Make one to three changes: flip bits, change bytes, insert, remove or repeat a piece, cut."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, kind = rng.randint(len(result) + 1), rng.randint(7)
        length = rng.randint(1, 17)
        if kind == 0:
            for index in range(place, min(place + 1, len(result))):
                result[index] ^= 1 << rng.randint(8)
        elif kind == 1:
            result[place : place + length] = rng.bytes(length)
        elif kind == 2:
            result[place:place] = PIECES[rng.randint(len(PIECES))]
        elif kind == 3:
            piece = PIECES[rng.randint(len(PIECES))]
            result[place : place + len(piece)] = piece
        elif kind == 4:
            del result[place : place + length]
        elif kind == 5:
            source = rng.randint(len(result) + 1)
            result[place:place] = result[source : source + 4 * length]
        elif rng.rand() < 0.2:
            del result[place:]
    return bytes(result)


def same(first: Any, second: Any) -> bool:
    """Return whether two loaded values are equal: whether they are saved as equal parts."""
    saved = []
    for value in (first, second):
        file = io.BytesIO()
        torch.save(value, file)
        with zipfile.ZipFile(file) as archive:
            parts = [entry for entry in archive.namelist() if 'serialization_id' not in entry]
            saved.append([archive.read(entry) for entry in parts])
    return saved[0] == saved[1]


class TooLong(BaseException):
    """Reading a file took too long."""


def _stop(*args: Any) -> None:
    raise TooLong


def limit_memory(more: int) -> None:
    """Limit the additional memory of this process."""
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    size = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def load(reader: str, path: str) -> tuple[str, Any]:
    """Read a file; return ``loaded``, ``refused`` or how it failed, and the content."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return 'loaded', READERS[reader](path)
    except CheckpointError as error:
        text = str(error)
        if "can't allocate memory" in text or text.endswith(('MemoryError', 'std::bad_alloc')):
            return f'FAILED: {text}', None
        return ('refused' if text.isprintable() else f'FAILED: {text!r}'), None
    except BaseException as error:  # any other exception is a failure
        return f'FAILED: {error!r}', None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> int:
    """Fuzz, or read the given files; the exit status is the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--count', type=int, default=1000, help='mutated files')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--files', nargs='*', help='read these instead, READER:PATH')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    signal.signal(signal.SIGPROF, _stop)
    faulthandler.enable()
    kinds, rng = corpus(), np.random.RandomState(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = {}
        for index, (kind, (reader, suffix, content, _)) in enumerate(kinds.items()):
            path = Path(folder, f'{index}{suffix}')
            path.write_bytes(content)
            outcome, whole[kind] = load(reader, str(path))
            assert outcome == 'loaded', (kind, outcome)
        limit_memory(MEMORY)
        if args.files is not None:
            return _read_files(args.files)
        counts: Counter = Counter()
        start = time.process_time()
        for index in range(args.count):
            kind = list(kinds)[index % len(kinds)]
            reader, suffix, content, part = kinds[kind]
            change = lambda data: mutate(data, rng)  # noqa: E731
            path = Path(folder, 'mutated' + suffix)
            changed = rezip(content, change, part) if part else change(content)
            path.write_bytes(changed)
            outcome, found = load(reader, str(path))
            checked = content[:2] == b'PK' and not part
            if outcome == 'loaded' and checked and not same(found, whole[kind]):
                outcome = 'FAILED: other numbers than before'
            counts[kind, outcome] += 1
            if outcome.startswith('FAILED'):
                kept = Path(tempfile.gettempdir(), f'fuzz-{args.seed}-{index}{suffix}')
                kept.write_bytes(changed)
                print(f'{kept}: {kind}: {outcome}', file=sys.stderr)
    for kind in kinds:
        found = {outcome: count for (name, outcome), count in counts.items() if name == kind}
        print(f'{kind:20s}', ', '.join(f'{n} {outcome}' for outcome, n in sorted(found.items())))
    failures = sum(n for (_, outcome), n in counts.items() if outcome.startswith('FAILED'))
    print(f'{args.count} files, {failures} failures, {time.process_time() - start:.0f} s')
    return min(failures, 100)


def _read_files(files: list[str]) -> int:
    """Print the outcome of each file as a line of JSON. After a crash, it is the last line."""
    failures = 0
    for file in files:
        reader, _, path = file.partition(':')
        print(json.dumps(dict(file=path)), flush=True)
        start = time.process_time()
        outcome, _ = load(reader, path)
        seconds = time.process_time() - start
        print(json.dumps(dict(file=path, outcome=outcome, seconds=seconds)), flush=True)
        failures += outcome.startswith('FAILED')
    return min(failures, 100)


if __name__ == '__main__':
    sys.exit(main())
