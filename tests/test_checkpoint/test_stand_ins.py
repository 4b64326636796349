"""Objects in checkpoints that are no tensors are read as data, under any name."""

import argparse
import array
import collections
import copy
import datetime
import decimal
import enum
import fractions
import functools
import io
import ipaddress
import os
import pathlib
import pickle
import random
import re
import subprocess
import sys
import types
import typing
import uuid
import zipfile
import zoneinfo

import addict
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from torch import nn
from torchvision.transforms import InterpolationMode

from nf_plugins.checkpoint import INERT_NAMES, SAFE_GLOBALS, safe_load
from nf_plugins.checkpoint.inert import DICTS, Inert, InertDict, Name
from nf_plugins.errors import CheckpointError

from ..conftest import ROOT


class Mode(enum.Enum):
    FAST = 'fast'


class Bits(enum.Flag):
    A = 1
    B = 2


Point = collections.namedtuple('Point', 'x y')


def weighted_mean(history):
    """A statistic that a user registers."""


HARMLESS = {
    'namespace': argparse.Namespace(lr=0.1, sub=argparse.Namespace(a=1)),
    'simple namespace': types.SimpleNamespace(a=[1]),
    'mmengine Config': Config(dict(a=dict(b=[1, dict(c=2)]))),
    'mmengine ConfigDict': ConfigDict(classes=('a', 'b'), palette=dict(a=[ConfigDict(b=1)])),
    'addict': addict.Dict(a=dict(b=1)),
    'path': pathlib.Path('/a/b'),
    'windows path': pathlib.PureWindowsPath('c:\\x'),
    'datetime': datetime.datetime(2020, 1, 2, 3, 4, 5, 6),
    'datetime with zone': datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
    'datetime of a place': datetime.datetime(2020, 1, 2, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin')),
    'date': datetime.date(2020, 1, 1),
    'time': datetime.time(1, 2, 3),
    'timedelta': datetime.timedelta(1, 2, 3),
    'defaultdict': collections.defaultdict(list, a=[1]),
    'defaultdict without a factory': collections.defaultdict(None, a=1),
    'deque': collections.deque([1, 2], maxlen=3),
    'Counter': collections.Counter('aab'),
    'OrderedDict': collections.OrderedDict(a=1),
    'ChainMap': collections.ChainMap({'a': 1}),
    'UserDict': collections.UserDict(a=1),
    'frozenset': frozenset([1, 2]),
    'set': {1, 'a', (2, 3)},
    'slice': slice(1, None, 2),
    'range': range(3),
    'partial': functools.partial(weighted_mean, 1, b=2),
    'enum': Mode.FAST,
    'flags': Bits.A | Bits.B,
    'interpolation': InterpolationMode.BICUBIC,
    'UUID': uuid.UUID(int=5),
    'Decimal': decimal.Decimal('1.50'),
    'Fraction': fractions.Fraction(1, 3),
    'complex': 1 + 2j,
    'bytes': b'xyz',
    'no bytes': b'',
    'bytearray': bytearray(b'x'),
    'ellipsis': ...,
    'type of None': type(None),
    'pattern': re.compile('a+'),
    'old polynomial': np.poly1d([1, 2]),
    'polynomial': np.polynomial.Polynomial([1, 2]),
    'array': array.array('i', [1]),
    'address': ipaddress.ip_address('1.2.3.4'),
    'random.Random': random.Random(0),
    'annotation': typing.Dict[str, typing.Any],  # noqa: UP006
    'union': int | None,
    'alias': list[int],
    'class': torch.optim.SGD,
    'function': nn.functional.relu,
    'own function': weighted_mean,
    'builtin': len,
    'numpy type': np.float32,
    'numpy array type': np.ndarray,
    'dtype': np.dtype('>f4'),
    'structured dtype': np.dtype([('a', 'i4'), ('b', [('c', 'f8')])]),
    'str array': np.array(['a', 'bc']),
    'bytes array': np.array([b'a', b'bc']),
    'object array': np.array([1, 'a', None, {'b': 2}], dtype=object),
    'structured array': np.array([(1, 2.0)], dtype=[('a', 'i4'), ('b', 'f8')]),
    'record array': np.rec.array([(1, 2.0)], dtype=[('a', 'i4'), ('b', 'f8')]),
    'times': np.array(['2020-01-01T00', 'NaT'], 'M8[h]'),
    'masked value': np.ma.masked,
    'masked array': np.ma.masked_array([1, 2], [0, 1]),
    'big-endian array': np.arange(5, dtype='>i4'),
    'Fortran array': np.asfortranarray(np.ones((2, 3))),
    'empty array': np.zeros((0, 3)),
    'generator': np.random.default_rng(0),
    'random state': np.random.RandomState(0),
    'np.str_': np.str_('x'),
    'np.datetime64': np.datetime64('2020-01-01'),
    'np.void': np.void(b'ab'),
    'version': torch.__version__,
    'torch.Size': torch.Size([1, 2]),
    'device': torch.device('cuda', 1),
    'dtype of torch': torch.float16,
}  # fmt: skip


def same(first, second):
    """Return whether two values are equal for all users."""
    if isinstance(first, (np.random.Generator, np.random.RandomState, random.Random)):
        draw = 'random' if hasattr(first, 'random') else 'random_sample'
        return getattr(first, draw)() == getattr(second, draw)()
    if isinstance(first, np.ndarray):
        native = [array.dtype.newbyteorder('=') for array in (first, second)]
        return native[0] == native[1] and str(first) == str(second)
    if isinstance(first, functools.partial):
        return (first.func, first.args, first.keywords) == (
            second.func, second.args, second.keywords)  # fmt: skip
    if isinstance(first, Config):
        return first.to_dict() == second.to_dict()
    return bool(first == second)


@pytest.mark.parametrize('protocol', [2, 4, 5])
@pytest.mark.parametrize('kind', HARMLESS)
def test_harmless_data_is_read_and_written_back(kind, protocol, tmp_path):
    """PyTorch checks the saved file: it makes the original object from it."""
    path, value = tmp_path / 'a.pth', copy.deepcopy(HARMLESS[kind])
    checkpoint = dict(a=value, state_dict=nn.Linear(1, 1).state_dict())
    torch.save(checkpoint, path, pickle_protocol=protocol)
    loaded = safe_load(path)
    torch.save(copy.deepcopy(loaded), path)
    assert b'nf_plugins' not in path.read_bytes()
    assert same(value, torch.load(path, weights_only=False)['a'])
    again = safe_load(path)['a']
    assert type(again) is type(loaded['a']) or isinstance(again, np.ndarray)


def test_config_dicts_are_dicts(tmp_path):
    meta = dict(dataset_meta=ConfigDict(classes=('a', 'b'), more=addict.Dict(c=1)))
    torch.save(meta, tmp_path / 'a.pth')
    assert safe_load(tmp_path / 'a.pth') == meta


def test_a_stand_in_says_what_it_stands_for(tmp_path):
    torch.save([decimal.Decimal('1.5'), torch.optim.SGD], tmp_path / 'a.pth')
    number, name = safe_load(tmp_path / 'a.pth')
    assert isinstance(number, Inert)
    assert (number.name, number.args) == ('decimal.Decimal', ('1.5',))
    assert name == Name('torch.optim.sgd', 'SGD')


def pickled(*parts):
    """A checkpoint with a pickle made by hand."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('a/data.pkl', b''.join((b'\x80\x04', *parts, b'.')))
        archive.writestr('a/version', '3\n')
    return file.getvalue()


def named(name):
    module, _, qualname = name.rpartition('.')
    return f'c{module}\n{qualname}\n'.encode()


def text(value):
    return b'X' + len(value).to_bytes(4, 'little') + value.encode()


def test_foreign_names_that_are_not_here(tmp_path):
    path = tmp_path / 'a.pth'
    config = named('omegaconf.dictconfig.DictConfig') + b')\x81}' + text('_content') + b'}sb'
    mode = named('elsewhere.options.Mode') + text('fast') + b'\x85R'
    easy = named('easydict.EasyDict') + b')\x81' + text('a') + b'K\x01s'
    path.write_bytes(pickled(b'(', config, mode, easy, b't'))
    config, mode, easy = safe_load(path)
    assert (config.name, config.state) == ('omegaconf.dictconfig.DictConfig', {'_content': {}})
    assert (mode.name, mode.args) == ('elsewhere.options.Mode', ('fast',))
    assert isinstance(easy, InertDict)
    torch.save([config, mode, easy], path)  # nobody knows the names: plain dicts
    assert torch.load(path, weights_only=True)[1]['name'] == 'elsewhere.options.Mode'


def test_a_config_whose_parts_refer_to_it(tmp_path):
    """As omegaconf writes them."""
    path = tmp_path / 'a.pth'
    node = named('omegaconf.nodes.AnyNode') + b')\x81}(' + text('_val') + b'K\x05'
    node += text('_parent') + b'h\x00ub'
    content = b'}' + text('lr') + node + b's'
    path.write_bytes(
        pickled(
            named('omegaconf.dictconfig.DictConfig'),
            b')\x81q\x00}',
            text('_content'),
            content,
            b'sb',
        )
    )
    config = safe_load(path)
    for same_config in (config, copy.deepcopy(config)):
        part = same_config.state['_content']['lr']
        assert part.state == {'_val': 5, '_parent': same_config}
        repr(same_config)
    torch.save(config, path)
    again = torch.load(path, weights_only=True)
    assert again['state']['_content']['lr']['state']['_parent'] is again


def concrete(pattern):
    """A name that an entry of our lists allows."""
    for old, new in ((':', '.'), ('[A-Z]*', 'Xyz'), ('[46]*', '4'), ('[Up]*', 'p'), ('*', 'x')):
        pattern = pattern.replace(old, new)
    return pattern


NAMES = sorted(
    {name for _, name in SAFE_GLOBALS}
    | {concrete(pattern) for pattern in INERT_NAMES | DICTS}
    | {'builtins.dict', 'builtins.set', 'builtins.frozenset', 'collections.OrderedDict'}
    | {'collections.Counter', 'torch._utils._rebuild_tensor_v2', 'torch._utils._rebuild_parameter'}
    | {'torch._tensor._rebuild_from_type_v2', 'torch._utils._rebuild_wrapper_subclass'}
    | {'torch._utils._rebuild_sparse_tensor', 'torch._utils._rebuild_qtensor', 'torch.device'}
    | {'omegaconf.OmegaConf', 'mmengine.config.config.Config', 'elsewhere.Mode'}
)
COMMAND = named('posix.mkdir') + text('harmed') + b'\x85'
HOSTILE = {
    'the name, called with a function': lambda n: [named(n), named('posix.mkdir'), b'\x85R'],
    'with a function and its argument': lambda n: [
        named(n), named('posix.mkdir'), text('harmed'), b'\x86R'],
    'with a call': lambda n: [named(n), COMMAND, b'R\x85R'],
    'made without arguments': lambda n: [named(n), b')R'],
    'made by new': lambda n: [named(n), named('posix.mkdir'), b'\x85\x81'],
    'made by new with keywords': lambda n: [
        named(n), b')}', text('x'), named('os.system'), b's\x92'],
    'the result, called': lambda n: [named(n), b')R', text('harmed'), b'\x85R'],
    'its attributes': lambda n: [named(n), b'}', text('__call__'), named('posix.mkdir'), b'sb'],
    'attributes of a result': lambda n: [
        named(n), b')\x81}(', text('__class__'), named('posix.mkdir'), text('__reduce_ex__'),
        named('posix.mkdir'), b'ub'],
    'a state of slots': lambda n: [
        named(n), b')\x81N}', text('__dict__'), named('os.system'), b's\x86b'],
    'its method': lambda n: [named('builtins.getattr'), named(n), text('__init__'), b'\x86R'],
    'its globals': lambda n: [
        named('builtins.getattr'), named('builtins.getattr'), named(n), text('__globals__'),
        b'\x86R', text('x'), b'\x86R'],
    'its items': lambda n: [named(n), b')R', text('a'), named('posix.mkdir'), b's'],
    'its list': lambda n: [named(n), b')R', named('posix.mkdir'), b'a'],
    'a reducer of functools': lambda n: [
        named('functools.reduce'), named(n), b'(', named('posix.mkdir'), text('harmed'), b't\x86R'],
    'a partial, called': lambda n: [
        named('functools.partial'), named('posix.mkdir'), text('harmed'), b'\x86R)R', named(n)],
    'old instances': lambda n: [b'(', text('harmed'), b'iposix\nmkdir\n', named(n)],
}  # fmt: skip


def try_hostile_files(name, events=()):
    """Read each hostile file of a name here, and use what comes; the events while it is read."""
    for kind, parts in HOSTILE.items():
        with open('a.pth', 'wb') as file:
            file.write(pickled(*parts(name)))
        before = len(events)
        try:
            loaded = safe_load('a.pth')
        except CheckpointError:
            assert list(events[before:]) == [], (name, kind)
            continue
        repr(loaded)
        copy.deepcopy(loaded), copy.copy(loaded)
        assert loaded == loaded
        assert list(events[before:]) == [], (name, kind)


@pytest.mark.parametrize('name', NAMES)
def test_hostile_files_under_an_allowed_name_do_nothing(name, tmp_path, monkeypatch):
    """Also when what was read is copied, compared and shown."""
    monkeypatch.chdir(tmp_path)
    statistics = dict(HistoryBuffer._statistics_methods)
    try_hostile_files(name)
    assert os.listdir('.') == ['a.pth']
    assert HistoryBuffer._statistics_methods == statistics


WATCHED = ('os.', 'subprocess.', 'shutil.', 'import', 'exec', 'compile', 'socket.', 'ctypes.')


def watch_hostile_files():
    """Try every name while Python reports imports, commands and files; in a process of its own."""
    events = []
    try_hostile_files('decimal.Decimal')  # whatever is imported at the first use
    sys.addaudithook(lambda event, args: event.startswith(WATCHED) and events.append(event))
    for name in NAMES:
        try_hostile_files(name, events)
    assert os.listdir('.') == ['a.pth']
    pickle.loads(b'\x80\x04' + COMMAND + b'R.')  # or the watch would show nothing
    assert os.path.isdir('harmed')
    assert 'os.mkdir' in events
    print(f'{len(NAMES)} names')


@pytest.mark.slow
def test_nothing_is_imported_or_executed_under_an_allowed_name(tmp_path):
    code = f'from {__name__} import watch_hostile_files; watch_hostile_files()'
    result = subprocess.run(
        [sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH': str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.stdout == f'{len(NAMES)} names\n', result.stderr[-2000:]


@pytest.mark.parametrize(
    'name',
    ['posix.mkdir', 'os.system', 'subprocess.Popen', 'builtins.eval', 'builtins.__import__',
     'shutil.rmtree', 'runpy.run_path', 'torch.hub.load', 'torch.nn.modules.linear.Linear',
     'importlib.import_module', 'webbrowser.open', 'nt.system', 'pip.main', 'operator.attrgetter',
     'typing.x', 'functools.singledispatch', 'pathlib.Path.touch', 'decimal.x', 'omegaconf.x',
     'mmengine.fileio.load', 'nf_plugins.checkpoint.inert.find'],
)  # fmt: skip
def test_other_calls_are_refused_by_name(name, tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(pickled(named(name), text('harmed'), b'\x85R'))
    with pytest.raises(CheckpointError, match=f'it names {re.escape(name)}, which weights do not'):
        safe_load(path)


def test_statistics_in_a_file_change_nothing(tmp_path):
    path, before = tmp_path / 'a.pth', dict(HistoryBuffer._statistics_methods)
    history = HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 2], max_length=10)
    try:
        HistoryBuffer.register_statistics(weighted_mean)
        HistoryBuffer._statistics_methods['mean'] = min
        torch.save(history, path)
    finally:
        HistoryBuffer._statistics_methods.clear()
        HistoryBuffer._statistics_methods.update(before)
    loaded = safe_load(path)
    assert HistoryBuffer._statistics_methods == before
    assert type(loaded) is HistoryBuffer
    assert loaded.statistics('mean') == history.mean() == 9.0 / 4
    assert loaded.statistics('max', 1) == 6.0
    loaded.update(7.0)
    assert loaded.current() == 7.0
    assert loaded.max_length == 10
    torch.save(loaded, path)
    assert len(safe_load(path).data[0]) == 4


BAD_HISTORIES = {
    'arguments': lambda: b'K\x01\x85R',
    'a list': lambda: b')\x81}' + text('_log_history') + b']sb',
    'no number': lambda: b')\x81}' + text('max_length') + text('x') + b'sb',
    'no dict': lambda: b')\x81Nb',
    'a negative length': lambda: b')\x81}' + text('max_length') + b'J\xff\xff\xff\xffsb',
}


@pytest.mark.parametrize('bad', BAD_HISTORIES)
def test_histories_hold_numbers_only(bad, tmp_path):
    path = tmp_path / 'a.pth'
    history = named('mmengine.logging.history_buffer.HistoryBuffer')
    path.write_bytes(pickled(history, BAD_HISTORIES[bad]()))
    with pytest.raises(CheckpointError):
        safe_load(path)


class Own:
    def __init__(self, value):
        self.value = value


def test_what_a_user_registers_counts(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(dict(a=Own(3)), path)
    with pytest.raises(CheckpointError, match='it names .*Own'):
        safe_load(path)
    with torch.serialization.safe_globals([Own]):
        assert safe_load(path)['a'].value == 3
    SAFE_GLOBALS.append(Own)
    try:
        assert safe_load(path)['a'].value == 3
    finally:
        SAFE_GLOBALS.remove(Own)
    INERT_NAMES.add(f'{__name__}:Own')
    try:
        assert safe_load(path)['a'].state == {'value': 3}
    finally:
        INERT_NAMES.remove(f'{__name__}:Own')
    with torch.serialization.safe_globals([os.mkdir]):
        path.write_bytes(pickled(named('posix.mkdir'), text(str(tmp_path / 'harmed')), b'\x85R'))
        with pytest.raises(CheckpointError, match=r'it names posix\.mkdir'):
            safe_load(path)


@pytest.mark.parametrize('force', [None, '1'])
def test_reading_changes_nothing_for_the_process(force, tmp_path, monkeypatch):
    """Another thread's ``torch.load`` keeps its list; the tools' switch of PyTorch is no matter."""
    if force:
        monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', force)
    torch.save(dict(a=HistoryBuffer([1.0], [1])), tmp_path / 'a.pth')

    def fail(*args):
        raise AssertionError('the list of the process was changed')

    for name in ('clear_safe_globals', 'add_safe_globals'):
        monkeypatch.setattr(torch.serialization, name, fail)
    before = torch.serialization.get_safe_globals()
    safe_load(tmp_path / 'a.pth')
    assert torch.serialization.get_safe_globals() == before


def test_messages_do_not_steer_terminals(tmp_path):
    path = tmp_path / 'a.pth'
    for name in ('\x1b[2J.x', 'a.\x9b31m', 'a.\u202egnp', 'a.x\rerror: all is well'):
        path.write_bytes(pickled(named(name), b')R'))
        with pytest.raises(CheckpointError) as error:
            safe_load(path)
        assert str(error.value).isprintable()
    strange = tmp_path / 'a\x1b]0;owned\x07.pth'
    for make in (lambda: None, lambda: strange.write_bytes(b'x')):
        make()
        with pytest.raises(CheckpointError) as error:
            safe_load(strange)
        assert str(error.value).isprintable()
