"""The content of an archive is what was checked, and no file uses up the process's resources."""

import io
import json
import pickle
import random
import struct
import threading
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load, save, save_file
from torch import nn

from nf_plugins.checkpoint import safe_load
from nf_plugins.checkpoint.haiku import read_haiku
from nf_plugins.checkpoint.safetensors_file import DTYPES
from nf_plugins.checkpoint.tensors import read_weights
from nf_plugins.errors import CheckpointError

from ..tools import run_apart
from .test_stand_ins import named, pickled, text


@pytest.fixture
def whole(tmp_path):
    """The bytes of a checkpoint."""
    torch.save(dict(state_dict={'w': torch.arange(64.0)}), tmp_path / 'whole.pth')
    return (tmp_path / 'whole.pth').read_bytes()


@pytest.fixture
def arrays():
    file = io.BytesIO()
    np.savez(file, w=np.arange(64, dtype='f4'))
    return file.getvalue()


def flip(content):
    """One weight changed."""
    place = content.index(np.arange(3, 9, dtype='f4').tobytes())
    return content[: place + 2] + b'\x41' + content[place + 3 :]


def again(content, compression=zipfile.ZIP_STORED, **changes):
    """The archive written anew, with more entries."""
    file, source = io.BytesIO(), io.BytesIO(content)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(file, 'w', compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        for name, data in changes.items():
            new.writestr(name, data)
    return file.getvalue()


def twice(content, other):
    """Each entry twice: first as in ``other``, then as in ``content``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as new, pytest.warns(UserWarning, match='Duplicate name'):
        for source in (other, content):
            with zipfile.ZipFile(io.BytesIO(source)) as old:
                for entry in old.infolist():
                    data = source[entry.header_offset :]
                    start = 30 + sum(struct.unpack('<HH', data[26:30]))
                    new.writestr(entry.filename, data[start : start + entry.file_size])
    return file.getvalue()


def local_name(content):
    """Another name in front of the last entry than in the directory."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = archive.infolist()[-1]
    place = entry.header_offset + 30
    return content[:place] + b'X' + content[place + 1 :]


def one_more(content):
    """A count of entries that is too large by one, in the record that counts."""
    large = content[-42:].startswith(b'PK\x06\x07')
    place = len(content) - (98 - 32 if large else 22 - 10)
    return content[:place] + bytes([content[place] + 1]) + content[place + 1 :]


REFUSED = {
    'one weight': flip,
    'one weight, and more than 64 KiB after the archive': lambda c: flip(c) + bytes(70_000),
    'one weight, and a comment': lambda c: flip(c)[:-2] + b'\x04\x00abcd',
    'more than 64 KiB after the archive': lambda c: c + bytes(70_000),
    'one byte after the archive': lambda c: c + b'x',
    'another archive after it': lambda c: c + flip(c),
    'an archive before it': lambda c: flip(c) + c,
    'a comment': lambda c: c[:-2] + b'\x04\x00abcd',
    'entries twice': lambda c: twice(c, flip(c)),
    'another name in front of an entry': local_name,
    'an entry of bzip2': lambda c: again(c, zipfile.ZIP_BZIP2),
    'an entry more than there is': one_more,
    'no directory': lambda c: c[:-22],
}


@pytest.mark.parametrize('kind', REFUSED)
@pytest.mark.parametrize('suffix', ['pth', 'npz'])
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_an_archive_that_two_readers_may_see_differently_is_refused(
    kind, suffix, whole, arrays, tmp_path
):
    path = tmp_path / f'a.{suffix}'
    content = whole if suffix == 'pth' else arrays
    path.write_bytes(content)
    read = safe_load if suffix == 'pth' else read_weights
    read(path)
    path.write_bytes(REFUSED[kind](content))
    with pytest.raises(CheckpointError, match='is not a readable'):
        read(path)
    if suffix == 'npz':
        with pytest.raises(CheckpointError, match='is not a readable|is refused'):
            read_haiku(path)


def test_a_compressed_checkpoint_is_refused_and_compressed_arrays_are_read(whole, arrays, tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(again(whole, zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match='compressed'):
        safe_load(path)
    path = tmp_path / 'a.npz'
    path.write_bytes(again(arrays, zipfile.ZIP_DEFLATED))
    np.testing.assert_array_equal(read_weights(path)['w'], np.arange(64))


def test_programs_are_refused(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(again(pickled(b'N'), **{'a/constants.pkl': b'\x80\x02).'}))
    with pytest.raises(CheckpointError, match='TorchScript'):
        safe_load(path)


LOCATIONS = ['cpu', 'meta', None, {'cpu': 'meta'}, lambda s, _: s, torch.device('meta')]


@pytest.mark.parametrize('new', [True, False])
@pytest.mark.parametrize('location', LOCATIONS)
# Of PyTorch's own reader, and since 2.15 of quantization.
@pytest.mark.filterwarnings(
    'ignore:Sparse',
    'ignore:TypedStorage is deprecated',
    'ignore:torch.quantize_per_tensor',
    'ignore:Validating sparse tensor',
)
def test_tensors_as_pytorch_reads_them(new, location, tmp_path):
    """Views, shared storages, parameters, bits of views, sparse, quantized and typed ones."""
    path, base = tmp_path / 'a.pth', torch.arange(24.0).reshape(4, 6)
    state = nn.BatchNorm2d(3).state_dict()
    tensors = dict(
        base=base, view=base.t()[1:, ::2], same=base[0], parameter=nn.Parameter(base[1]),
        half=base.half(), bfloat=base.bfloat16(), byte=torch.tensor([1], dtype=torch.uint8),
        bool=torch.tensor([True]), complex=torch.randn(3, dtype=torch.complex64).conj(),
        imaginary=torch.randn(3, dtype=torch.complex64).conj().imag, scalar=torch.tensor(3),
        empty=torch.zeros(0, 3), expanded=torch.ones(1).expand(5),
        graph=base.clone().requires_grad_(), **state,
    )  # fmt: skip
    if location in ('cpu', None):
        tensors.update(
            sparse=base.to_sparse(),
            rows=base.to_sparse_csr(),
            meta=torch.empty(2, 3, device='meta'),
            quantized=torch.quantize_per_tensor(base, 0.1, 0, torch.qint8),
            channels=torch.quantize_per_channel(base, base[:, 1], base[:, 0] * 0, 0, torch.qint8),
        )
        if new:  # the old format has no such storages
            more = dict(float8=torch.float8_e4m3fn, short=torch.uint16)
            tensors.update({name: torch.ones(3).to(dtype) for name, dtype in more.items()})
    tensors['own'] = torch.ones(2)
    tensors['own'].group = 'a'
    torch.save(tensors, path, _use_new_zipfile_serialization=new)
    found = safe_load(path, map_location=location)
    wanted = torch.load(path, map_location=location, weights_only=True)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        other = found[name]
        assert type(other) is type(value), name
        for attribute in ('dtype', 'shape', 'device', 'layout', 'requires_grad'):
            assert getattr(other, attribute) == getattr(value, attribute), (name, attribute)
        if not value.is_meta:
            dense = [tensor.detach().to_dense() if tensor.layout is not torch.strided else
                     tensor.dequantize() if tensor.is_quantized else tensor.detach()
                     for tensor in (other, value)]  # fmt: skip
            assert torch.equal(*(tensor.resolve_conj() for tensor in dense)), name
            if value.layout is torch.strided:
                assert other.stride() == value.stride(), name
    assert found['own'].group == 'a'
    if location == 'cpu':
        first, second = (found[name].untyped_storage() for name in ('base', 'same'))
        assert first.data_ptr() == second.data_ptr()


def test_the_versions_of_modules_are_kept(tmp_path):
    state = nn.BatchNorm2d(3).state_dict()
    torch.save(state, tmp_path / 'a.pth')
    assert safe_load(tmp_path / 'a.pth')._metadata == state._metadata


def tensor(size, stride, count=4, offset=0, key='0', kind='FloatStorage'):
    """A pickled tensor of these numbers, whatever they are."""

    def integer(value):
        if -(2**31) <= value < 2**31:
            return b'J' + struct.pack('<i', value)
        return b'\x8a\x09' + value.to_bytes(9, 'little', signed=True)

    numbers = [b'(' + b''.join(map(integer, values)) + b't' for values in (size, stride)]
    storage = text('storage'), named(f'torch.{kind}'), text(key), text('cpu'), integer(count)
    return b''.join((
        named('torch._utils._rebuild_tensor_v2'), b'((', *storage, b'tQ', integer(offset),
        *numbers, b'\x89NtR'))  # fmt: skip


BEYOND = {
    'one number': dict(size=(5,), stride=(1,)),
    'by its offset': dict(size=(4,), stride=(1,), offset=1),
    'by a huge offset': dict(size=(1,), stride=(1,), offset=2**62),
    'an empty one by its offset': dict(size=(0,), stride=(1,), offset=5),
    'by its stride': dict(size=(2,), stride=(4,)),
    'so far that it overflows': dict(size=(2**32, 2**32), stride=(2**32, 2**32)),
    'backwards': dict(size=(4,), stride=(-1,)),
    'by a negative size': dict(size=(-1,), stride=(1,)),
    'by a negative offset': dict(size=(1,), stride=(1,), offset=-1),
    'by the size of its storage': dict(size=(8,), stride=(1,), count=8),
    'by a huge storage': dict(size=(4,), stride=(1,), count=2**40),
    'by its type': dict(size=(4,), stride=(1,), kind='DoubleStorage'),
    'without a storage': dict(size=(4,), stride=(1,), key='7'),
    'with fewer strides': dict(size=(4, 1), stride=(1,)),
    'expanded without end': dict(size=(10**6, 10**6), stride=(0, 0)),
    'overlapping without end': dict(size=(2,) * 40, stride=(0,) * 39 + (1,)),
}


@pytest.mark.parametrize('kind', BEYOND)
@pytest.mark.parametrize('legacy', [False, True])
def test_no_tensor_beyond_its_storage(kind, legacy, tmp_path):
    path = tmp_path / 'a.pth'

    def write(part):
        path.write_bytes(again(pickled(part), **{'a/data/0': np.arange(4, dtype='f4').tobytes()}))
        if legacy:
            head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
            numbers = struct.pack('<q', 4) + np.arange(4, dtype='f4').tobytes()
            tail = pickle.dumps(['0'], 2) + numbers
            path.write_bytes(b''.join((*head, b'\x80\x02', part, b'.', tail)))

    write(tensor((2, 2), (2, 1)))
    assert torch.equal(safe_load(path), torch.arange(4.0).reshape(2, 2))
    write(tensor(**BEYOND[kind]))
    with pytest.raises(CheckpointError):
        safe_load(path)


def npy(shape, data=b'', kind='<f4'):
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + data


def npz(*parts, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression, compresslevel=1) as archive:
        for index, part in enumerate(parts):
            archive.writestr(f'a{index}.npy', part)
    return file.getvalue()


def safetensors(header):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(header)) + header + bytes(16)


def shared(opening, each, count=60):
    """A container that holds its predecessor twice, many times."""
    steps = (each(b'h' + bytes([i - 1])) + b'q' + bytes([i]) for i in range(1, count))
    return opening + b'q\x00' + b''.join(steps)


def long_text(letters=10**6):
    return b'X' + struct.pack('<I', letters) + b'k' * letters + b'q\x00'


LARGE = b'\x8a\xff' + b'\xff' * 254 + b'\x7f'  # an integer of 255 bytes
ARRAY = (
    named('numpy._core.multiarray._reconstruct') + named('numpy.ndarray') + b'K\x00\x85C\x01b\x87R'
)
DTYPE = named('numpy.dtype') + text('f4') + b'\x89\x88\x87R'
EQUAL = [2.0**k for k in range(-1037, 1020, 61)]  # their hashes are the same
HISTORY = named('mmengine.logging.history_buffer.HistoryBuffer')
LISTS = shared(b']', lambda last: b'](' + last + last + b'e')
DEEP = b'N' + b'\x85' * 10**6
BOMBS = {
    'shared lists': LISTS,
    'shared tuples': shared(b')', lambda last: last + last + b'\x86'),
    'shared tuples as a key': b'}' + shared(b')', lambda last: last + last + b'\x86') + b'Ns',
    'shared lists in a history': HISTORY + LISTS + b'h\x01\x86R',
    'shared lists in the state of a history': HISTORY + b')\x81}' + text('_log_history') + LISTS
    + b'sb',
    'shared lists in an array': named('numpy._core.multiarray._reconstruct') + LISTS
    + b'h\x01h\x01\x87R',
    'a container in itself': b']q\x00h\x00a',
    'a huge memo': b'Nr\xff\xff\xff\x7f\x85',
    'a deep tuple': DEEP,
    'a deep tuple as a key': b'}' + DEEP + b'Ns',
    'a deep tuple in a set': b'\x8f(' + DEEP + b'\x90',
    'a deep tuple as an argument': named('functools.partial') + DEEP + b'R',
    'a deep tuple of a history': HISTORY + DEEP + b'R',
    'a less deep tuple': b'N' + b'\x85' * 10**5,
    'deep lists': b']' * 10**5 + b'a' * (10**5 - 1),
    'deep dicts': b'}K\x01' * 10**5 + b'N' + b's' * 10**5,
    'bytes that are not there': b'\x8e' + struct.pack('<Q', 2**40) + b'x',
    'a bytearray that is not there': b'\x96' + struct.pack('<Q', 2**40) + b'x',
    'text that is not there': b'X\xff\xff\xff\xffx',
    'an integer that is not there': b'\x8b\xff\xff\xff\x7fx',
    'a frame that is not there': b'\x95' + struct.pack('<Q', 2**62) + b'N\x85\x85\x8b',
    'many sets': b'(' + b'\x8f' * 1_000_000 + b't',
    'many marks': b'(' * 1_000_000,
    'many dicts': b'(' + named('collections.OrderedDict') + b'q\x00' + b'h\x00)R' * 300_000 + b't',
    'bytes made': named('builtins.bytes') + b'J\xff\xff\xff\x7f\x85R',
    'a bytearray made': named('builtins.bytearray') + b'J\xff\xff\xff\x7f\x85R',
    'bytearrays copied': named('builtins.bytearray') + b'q\x00B' + struct.pack('<I', 10**7)
    + bytes(10**7) + b'q\x01' + b'h\x00h\x01\x85R' * 1000,
    'texts encoded': named('_codecs.encode') + b'q\x00X' + struct.pack('<I', 10**7)
    + bytes(10**7) + b'q\x01' + b'h\x00h\x01\x85R' * 1000,
    'sets copied': b'](' + b''.join(b'J' + struct.pack('<i', i) for i in range(10**5)) + b'eq\x01'
    + named('builtins.set') + b'q\x00' + b'h\x00h\x01\x85R' * 10**4,
    'keys that collide': b'}(' + b''.join(
        b'\x8a\x0a' + (i * (2**61 - 1)).to_bytes(10, 'little') + b'N' for i in range(1, 10**5))
    + b'u',
    'tuples as keys': b'}(' + b'K\x01K\x02K\x03\x87N' * 10**5 + b'u',
    'floats that collide, as keys': b'}(' + b''.join(
        named('builtins.complex') + b'G' + struct.pack('>d', a) + b'G' + struct.pack('>d', b)
        + b'\x86RN' for a in EQUAL for b in EQUAL) * 8 + b'u',
    'one of many floats, again and again': b'\x8f(' + b''.join(
        b'G' + struct.pack('>d', x) for x in EQUAL) + b'q\x00' + b'h\x00' * 350_000 + b'\x90',
    'a shape of huge integers': ARRAY + b'(K\x01(' + LARGE + b'q\x00' + b'h\x00' * 10**5 + b't'
    + DTYPE + b'\x89C\x00tb',
    'shared lists in a shape': ARRAY + b'(K\x01(' + LISTS + b't' + DTYPE + b'\x89C\x00tb',
    'shared lists in the state of a type': DTYPE + b'(K\x03' + LISTS
    + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb',
    'shared lists as a type': named('numpy.dtype') + LISTS + b'\x89\x88\x87R',
    'shared lists as the type of a number': named('numpy._core.multiarray.scalar') + LISTS
    + b'C\x00\x86R',
    'shared lists as a name': named('builtins.getattr') + named('a.b') + LISTS + b'\x86R',
    'a name that grows': named('builtins.getattr') + b'q\x00' + b'h\x00' * 19_999 + named('a.b')
    + (text('x' * 200) + b'\x86R') * 20_000,
    'a long text many times': b'](' + long_text() + b'h\x00' * 10**5 + b'e',
    'a long text many times in a key': b'}(' + long_text() + b'h\x00' * 99 + b'tq\x01('
    + b'h\x01' * 99 + b'tNs',
    'a long key of dicts in dicts': b'}' + long_text() + b'}' + b'h\x00}' * 90 + b'h\x00K\x01s'
    + b's' * 91,
    'a long key above many': b'}' + long_text() + b'}(' + b''.join(
        text(str(i)) + b'K\x01' for i in range(20_000)) + b'us',
    'an array of a huge type': named('numpy.dtype') + text('V999999999') + b'\x89\x88\x87R',
    'a long name': b'c' + b'a' * 10**6 + b'\nb\n',
    'digits': b'I' + b'9' * 10**6 + b'\n',
    'a reference': b'Px\n',
}  # fmt: skip


def archives():
    """Reader and content by name. They are made for the one test that reads them."""
    return {
        'npz, far larger when unpacked': ('npz', npz(npy('(300000000,)', bytes(1_200_000_000)))),
        'npz, many arrays': ('npz', npz(*[npy('(90000000,)', bytes(90_000_000), '|u1')] * 8)),
        'npz, many small arrays': ('npz', npz(*[npy('(1,)', b'abcd')] * 140_000, compression=0)),
        'npz, a huge shape': ('npz', npz(npy('(99999999999999,)'))),
        'npz, a shape beyond integers': ('npz', npz(npy('(0, 99999999999999999999)'))),
        'npz, a negative shape': ('npz', npz(npy('(-2, -2)', bytes(16)))),
        'npz, items without size': ('npz', npz(npy('(999999999,)', kind='|S0'))),
        'npz, objects': ('npz', npz(npy('(1,)', bytes(8), '|O'))),
        'npz, brackets': ('npz', npz(npy('(' * 9000))),
        'npz, signs': ('npz', npz(npy('-' * 9000 + '1'))),
        'safetensors, a huge header': ('pth', struct.pack('<Q', 2**40) + b'{}'),
        'safetensors, brackets': ('pth', safetensors(b'[' * 10**5)),
        'safetensors, a huge shape': ('pth', safetensors(
            {'a': {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 16]}})),
        'safetensors, many tensors': ('pth', safetensors(
            {str(i): {'dtype': 'U8', 'shape': [0], 'data_offsets': [0, 0]}
             for i in range(60_000)})),
        'safetensors, one name twice': ('pth', safetensors(
            b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
            b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}')),
    }  # fmt: skip


FUZZ = 'import sys; from benchmarks.fuzz_checkpoints import main; sys.exit(main())'


@pytest.mark.slow
def test_no_small_file_takes_the_process(tmp_path):
    """All in one process that may take 1 GB more than it has, and 10 s for each file."""
    files = []
    for kind, part in BOMBS.items():
        part = b'\x80\x04' + part + b'.'
        head = b''.join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
        files += [
            ('pth', f'{kind}.pth', again(pickled(part[2:-1]))),
            ('haiku', f'{kind}.npz', part),
        ]
        if len(part) < 10**6:
            files.append(('pth', f'{kind}, legacy.pth', head + part + pickle.dumps([])))
    files += [
        (reader, kind + ('.safetensors' if 'safetensors' in kind else '.npz'), content)
        for kind, (reader, content) in archives().items()
    ]
    for _, name, content in files:
        (tmp_path / name).write_bytes(content)
    paths = [f'{reader}:{tmp_path / name}' for reader, name, _ in files]
    result = run_apart(FUZZ, '--files', *paths, timeout=600, code=True)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    outcomes = {line['file']: line['outcome'] for line in lines if 'outcome' in line}
    assert len(outcomes) == len(files), (lines[-1:], result.stderr[-2000:])
    assert {k: v for k, v in outcomes.items() if v not in ('refused', 'loaded')} == {}
    assert max(line.get('seconds', 0) for line in lines) < 10, lines
    # Harmless as they are: nothing was built from a number of the file.
    loaded = {name.rpartition('/')[2] for name, value in outcomes.items() if value == 'loaded'}
    harmless = ('a huge memo', 'an array of a huge type')
    harmless += (
        'floats that collide',
        'a long key',
        'a long text many times in',
    )  # in a .pth, which names nothing by it
    assert {name for name in loaded if not name.startswith(harmless)} == set()


@pytest.mark.slow
def test_mutated_files_are_read_rightly_or_refused():
    result = run_apart(FUZZ, '--count', 1000, code=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert '1000 files, 0 failures' in result.stdout
    for line in result.stdout.splitlines()[:-1]:
        assert 'loaded' in line, result.stdout
        assert 'refused' in line, result.stdout


def test_tensors_of_safetensors_outlive_their_file(tmp_path):
    """The tensors were mapped to the file once; shortening it killed the process (SIGBUS)."""
    path, state = tmp_path / 'a.safetensors', {}
    for number, dtype in enumerate(DTYPES.values()):
        state[f'w{number}'] = torch.randint(0, 2, (3, 300)).to(dtype)
    state.update(scalar=torch.tensor(2.5), empty=torch.zeros(0, 4))
    save_file(state, path, metadata={'a': 'b'})
    found = safe_load(path)
    assert found['meta'] == {'a': 'b'}
    path.write_bytes(b'')
    assert found['state_dict'].keys() == state.keys()
    for name, value in state.items():
        assert found['state_dict'][name].dtype == value.dtype
        bits = [t.flatten().view(torch.uint8) for t in (found['state_dict'][name], value)]
        assert torch.equal(*bits), name


def described(rng):
    """A header of two tensors of twelve bytes each, with one thing about it changed, perhaps."""
    entry = dict(
        dtype=rng.choice(['F32', 'I32', 'U32']), shape=rng.choice([[3], [1, 3], [3, 1, 1]])
    )
    entries = {name: dict(entry, data_offsets=[k * 12, k * 12 + 12]) for k, name in enumerate('ab')}
    change = rng.choice(['nothing', 'dtype', 'shape', 'offset'])
    if change == 'dtype':
        entries['a']['dtype'] = rng.choice(['F16', 'F64', 'BF16', 'I8', 'BOOL', 'C64', 'no'])
    elif change == 'shape':
        entries['a']['shape'] = rng.choice([[], [6], [3, 2], [-3, -1], [0], [3.0], '3'])
    elif change == 'offset':
        entries['b']['data_offsets'][rng.randrange(2)] += rng.choice([-12, -1, 1, 12])
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, 'little') + header + bytes(range(24))


def garbled(rng, content):
    """A file with some bytes of its header changed."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(8, 8 + int.from_bytes(content[:8], 'little'))
        changed[place] = rng.choice(b'0123456789{}[]",:FIUB ')
    return bytes(changed)


def test_mutated_safetensors_are_read_as_the_library_reads_them(tmp_path):
    rng, path, loaded = random.Random(0), tmp_path / 'a.safetensors', 0
    content = save({'a': torch.arange(6.0).reshape(2, 3), 'b': torch.ones(2).half()})
    for number in range(1000):
        changed = described(rng) if number % 2 else garbled(rng, content)
        path.write_bytes(changed)
        try:
            wanted = load(changed)
        except Exception:
            with pytest.raises(CheckpointError):
                safe_load(path)
            continue
        found, loaded = safe_load(path)['state_dict'], loaded + 1
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert 100 < loaded < 900


def test_another_thread_keeps_its_list_while_files_are_read(tmp_path):
    """Eight thousand of its loads failed when reading emptied the list of the process."""
    torch.save(dict(a=np.arange(3)), tmp_path / 'a.pth')
    torch.save(dict(a=pytest.approx), tmp_path / 'other.pth')
    stop, errors = threading.Event(), []

    def read():
        while not stop.is_set():
            safe_load(tmp_path / 'a.pth')

    threads = [threading.Thread(target=read) for _ in range(2)]
    with torch.serialization.safe_globals([pytest.approx]):
        for thread in threads:
            thread.start()
        for _ in range(200):
            try:
                torch.load(tmp_path / 'other.pth', weights_only=True)
            except pickle.UnpicklingError as error:
                errors.append(error)
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
