"""An analysis leaves the network as it was, whatever it holds and wherever it stops."""

import copy
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from contextlib import _GeneratorContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from mmcv.cnn.bricks import DropPath as MmcvDropPath
from timm.layers import DropPath as TimmDropPath
from timm.layers import drop_path as timm_drop_path
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint as by_name_checkpoint
from torchvision.ops import StochasticDepth

import nf_plugins.spp
from nf_plugins.layers.drop_path import DropPath as OursDropPath
from nf_plugins.models import NFResNet
from nf_plugins.spp import analyze
from nf_plugins.spp.execution import is_random_depth, preserved
from nf_plugins.spp.snapshot import Snapshot

X = torch.Generator().manual_seed(1)
X = torch.randn(2, 3, 8, 8, generator=X)


class FrozenDict(OrderedDict):
    """As the config of diffusers' models."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__frozen = True

    def refuse(self, *args, **kwargs):
        raise Exception('it is frozen')

    def __setitem__(self, name, value):
        if hasattr(self, '_FrozenDict__frozen'):
            self.refuse()
        super().__setitem__(name, value)

    __delitem__ = setdefault = pop = update = clear = copy = __iter__ = items = refuse


class FrozenList(list):
    def refuse(self, *args):
        raise TypeError('it is read-only')

    append = extend = clear = __setitem__ = __iter__ = copy = refuse


class Tree(dict):
    """A dict that is its own attributes."""

    def __init__(self):
        self.__dict__ = self


@dataclass(frozen=True)
class Settings:
    rate: float
    names: tuple


class Slotted:
    __slots__ = ('calls', 'unset')

    def __init__(self):
        self.calls = 0


Pair = namedtuple('Pair', 'first second')


class Odd(nn.Module):
    """Attributes of every kind; with ``messy`` a forward pass changes what it can."""

    __slots__ = ('later', 'slot')

    def __init__(self, messy):
        super().__init__()
        self.messy = messy
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.config = FrozenDict(a=1, b=[2])
        self.frozen_list = FrozenList([1, 2])
        self.settings = Settings(0.5, ('a',))
        self.view = MappingProxyType({'a': 1})
        self.slot, self.slotted = 0, Slotted()
        self.me, self.tree, self.ring = [self], Tree(), []
        self.ring.append(self.ring)
        self.tree.self = self.tree
        self.__dict__['itself'] = self
        self.huge, self.table = list(range(200_000)), dict.fromkeys(range(200_000))
        self.nested = {'deep': [{'list': []}], 'pair': Pair([], {})}
        self.order = OrderedDict(a=1, b=2, c=3)
        self.counts, self.lists = Counter(a=1), defaultdict(list)
        self.queue, self.seen = deque([1, 2, 3], maxlen=3), {1, 2}
        self.space = SimpleNamespace(calls=0, items=[])
        self.plain, self.hidden = torch.zeros(3), [nn.BatchNorm2d(3)]
        self.register_buffer('state', torch.tensor([0.0, -0.0, float('nan')]))
        self.register_buffer('wide', torch.zeros(1).expand(10**12))
        self._value = 1
        self.gain = nn.Parameter(torch.zeros(()))

    @property
    def value(self):
        return self._value

    @value.setter
    def value(self, value):
        self._value = value

    @property
    def with_cp(self):
        raise AttributeError('no such option')

    @cached_property
    def lazy(self):
        return torch.ones(3)

    def forward(self, x):
        _ = self.lazy
        if self.messy:
            self.change(x)
        return x + self.gain * self.norm(torch.relu(self.hidden[0](self.conv(x))))

    def change(self, x):
        self.slot, self.later = 1, x
        self.slotted.calls, self.slotted.unset = 1, x
        self.value, self.new = 2, x
        self.me.append(x)
        self.tree['more'] = x
        self.ring.append(x)
        self.huge.append(x)
        self.table.clear()
        self.nested['deep'][0]['list'].append(x)
        self.nested['pair'].first.append(x)
        self.nested['pair'].second['x'] = x
        self.order.move_to_end('a')
        self.counts['a'] += 1
        self.lists['x'].append(x)
        self.queue.append(4)
        self.seen ^= {2, 3}
        self.space.calls += 1
        self.space.items.append(x)
        OrderedDict.__setitem__(self.config, 'a', 2)
        self.config['b'].append(3)
        list.append(self.frozen_list, 3)
        del self.settings
        with torch.no_grad():
            self.plain.add_(1)
            self.state.zero_()
            self.conv.weight.mul_(2)
            self.conv.bias.data = torch.ones(3)
            self.norm.weight.data.fill_(2)
        self.conv.weight.requires_grad_(False)
        self.hidden.append(1)


def describe(value, seen=None):
    """A structure of all that can be reached, tensors as bytes; identities by first sight."""
    seen = {} if seen is None else seen
    if isinstance(value, (int, float, str, type(None), type)):
        return value
    if id(value) in seen:
        return f'#{seen[id(value)]}'
    seen[id(value)] = len(seen)
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu()
        data = data[:1] if data.numel() > 10**6 else data
        data = data.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
        return (id(value), str(value.dtype), value.requires_grad, data.numpy().tobytes())
    name = type(value).__name__
    if isinstance(value, (dict, MappingProxyType)):
        base = OrderedDict if isinstance(value, OrderedDict) else dict
        pairs = value.items() if isinstance(value, MappingProxyType) else base.items(value)
        return name, id(value), [(k, describe(v, seen)) for k, v in pairs]
    if isinstance(value, (list, tuple, deque)):
        base = next(b for b in (list, tuple, deque) if isinstance(value, b))
        return name, id(value), [describe(v, seen) for v in base.__iter__(value)]
    if isinstance(value, set):
        return name, id(value), sorted(map(repr, value))
    slots = [
        (slot, describe(getattr(value, slot, 'unset'), seen))
        for cls in type(value).__mro__
        for slot in vars(cls).get('__slots__', ())
        if slot != '__weakref__'
    ]
    return name, id(value), slots, describe(getattr(value, '__dict__', None), seen)


def of_the_process():
    """What must be as before for everybody else."""
    return (
        torch.utils.checkpoint.checkpoint,
        torch.utils.checkpoint.CheckpointFunction,
        torch.backends.mha.get_fastpath_enabled(),
        torch._dynamo.eval_frame._stance,
        torch.is_grad_enabled(),
        len(_get_current_dispatch_mode_stack()),
        len(_get_current_function_mode_stack()),
        len(torch.nn.modules.module._global_forward_hooks),
        torch.get_rng_state().numpy().tobytes(),
        str(np.random.get_state()),
    )


@pytest.mark.slow
@pytest.mark.parametrize('messy', [False, True])
@pytest.mark.parametrize('backward', [False, True])
def test_whatever_attributes_it_has(messy, backward):
    net = nn.Sequential(Odd(messy), Odd(messy)).eval()
    net[0].norm.train()
    net[1].conv.weight.grad = torch.ones(3, 3, 3, 3)
    before, process = describe(net), of_the_process()
    analyze(net, X, backward=backward, unit_gain=True)
    assert describe(net) == before
    assert of_the_process() == process


class Stop(BaseException):
    """As KeyboardInterrupt, which would stop pytest where it is not caught."""


@pytest.mark.slow
@pytest.mark.parametrize('kind', [ValueError, Stop])
@pytest.mark.parametrize('where', ['train', 'forward', 'hook', 'second pass', 'backward'])
def test_an_exception_at_every_stage(kind, where, monkeypatch):
    messy = where != 'second pass'
    net = nn.Sequential(Odd(messy), Odd(messy))
    calls = itertools.count()

    def fail(*args, **kwargs):
        if where != 'second pass' or next(calls):
            raise kind('here')

    if where == 'train':
        monkeypatch.setattr(Odd, 'train', fail)
    elif where == 'backward':
        monkeypatch.setattr(torch.autograd, 'grad', fail)
    elif where == 'hook':
        net[1].norm.register_forward_hook(fail)
    else:
        net[1].norm.register_forward_pre_hook(fail)
    if where == 'second pass':  # that which looks for the first such value
        net[1].norm.weight.data.fill_(float('inf'))
        net[1].gain.data.fill_(1)
    before, process = describe(net), of_the_process()
    with pytest.raises(kind):
        analyze(net, X, backward=where == 'backward', unit_gain=True)
    assert describe(net) == before
    assert of_the_process() == process


def small():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.gain, self.calls = body, nn.Parameter(torch.zeros(())), [0]

        def forward(self, x):
            self.calls.append(1)
            return x + self.gain * self.body(x)

    return nn.Sequential(Block(), Block())


def input_of_small():
    return torch.randn(2, 3, 8, 8)


class Encoder(nn.Module):
    """Residual convolutions, and a layer that torch would fuse."""

    def __init__(self):
        super().__init__()
        self.blocks = small()
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.0)

    def forward(self, x):
        return self.layer(self.blocks(x).flatten(1, 2))


PACKAGE = str(Path(nf_plugins.spp.__file__).parent)


def analyze_until_stopped(watch, callback, net, x):
    """Analyse under ``sys.settrace`` or ``sys.setprofile``, whose callback may raise Stop."""
    watch(callback)
    try:
        analyze(net, x, unit_gain=True)
    except Stop:
        pass
    finally:
        watch(None)


def lines_of_an_analysis(net, x):
    """The lines of the package that run, each with how often."""
    counts = Counter()

    def trace(frame, event, arg):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == 'line':
            counts[frame.f_code.co_filename, frame.f_lineno] += 1
        return trace

    analyze_until_stopped(sys.settrace, trace, net, x)
    return counts


@pytest.mark.slow
def test_an_interrupt_at_every_line():
    """At the first or the last time that a line runs.

    Lines of ``NF_PLUGINS_LINES`` such points, drawn by chance; 0 for all of them.
    """
    net, x = Encoder().eval(), input_of_small()
    analyze(net, x)
    counts = lines_of_an_analysis(net, x)
    assert len(counts) > 300
    before, process = describe(net), of_the_process()
    points = sorted({(line, number) for line, count in counts.items() for number in (1, count)})
    drawn = int(os.environ.get('NF_PLUGINS_LINES', 120)) or len(points)
    for line, number in random.Random(0).sample(points, drawn):
        left = number

        def trace(frame, event, arg, line=line):
            nonlocal left
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            if event == 'line' and (frame.f_code.co_filename, frame.f_lineno) == line:
                left -= 1
                if left == 0:
                    raise Stop
            return trace

        analyze_until_stopped(sys.settrace, trace, net, x)
        assert describe(net) == before, (line, number)
        assert of_the_process() == process, (line, number)


@pytest.mark.slow
@pytest.mark.parametrize('moment', [('__enter__', 'c_return'), ('__exit__', 'c_call')])
def test_an_interrupt_between_a_context_and_its_block(moment):
    """Torch's own contexts take modes off and put them back; a signal may leave them half-way."""
    net, x = Encoder().eval(), input_of_small()
    analyze(net, x, unit_gain=True)
    before, process = describe(net), of_the_process()
    codes = {getattr(_GeneratorContextManager, name).__code__ for name in ('__enter__', '__exit__')}

    def moments(stop_at=None):
        """Count the moments of an analysis, up to that at which it is stopped."""
        seen = 0

        def profile(frame, event, arg):
            nonlocal seen
            if arg is next and frame.f_code in codes and (frame.f_code.co_name, event) == moment:
                seen += 1
                if seen == stop_at:
                    raise Stop

        analyze_until_stopped(sys.setprofile, profile, net, x)
        return seen

    count = moments()
    assert count > 60
    for number in range(1, count + 1, count // 60):
        assert moments(number) == number
        assert of_the_process() == process, number
        assert describe(net) == before, number


@pytest.mark.slow
# Python drops what is raised in the callback of a weak reference.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_signals_at_any_moment():
    net, x = Encoder().eval(), input_of_small()
    analyze(net, x, unit_gain=True)
    start = time.perf_counter()
    analyze(net, x, unit_gain=True)
    length = time.perf_counter() - start
    before, process = describe(net), of_the_process()

    def stop(*args):
        raise Stop

    handler = signal.signal(signal.SIGALRM, stop)
    stopped = 0
    try:
        for i in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, length * (i + 1) / 60)
                analyze(net, x, unit_gain=True)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop:
                stopped += 1
            assert describe(net) == before
            assert of_the_process() == process
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert stopped > 10


def test_what_cannot_be_put_back_is_said_and_all_else_is():
    class Refusing(nn.Module):
        pass

    net = nn.Sequential(Refusing(), nn.BatchNorm2d(3))

    class Key:
        broken = False

        def __hash__(self):
            if self.broken:
                raise RuntimeError('no hash')
            return 1

    key = Key()
    net[0].table = {key: 1}
    before = Snapshot(net)
    net[0].table.clear()
    key.broken = True
    net[1].running_mean.add_(1)
    net.eval()
    with pytest.raises(RuntimeError, match=r'could not be put back: 0.table \(no hash\)'):
        before.restore()
    assert net.training
    assert not net[1].running_mean.any()


def test_what_did_not_change_is_not_touched():
    """A graph made before the analysis can still go back."""
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3).eval())
    versions = [t._version for t in (*net.parameters(), *net.buffers())]
    with preserved(net, 'eval'):
        net(X)
    assert [t._version for t in (*net.parameters(), *net.buffers())] == versions


class Own(TimmDropPath):
    pass


class Renamed(Own):
    """Of a subclass, with a layer of its own."""

    def __init__(self, rate):
        super().__init__(rate)
        self.norm = nn.Identity()


class SwinDropPath(nn.Module):
    """As in transformers: a class of its own."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        return timm_drop_path(x, self.rate, self.training)


class OwnStochasticDepth(StochasticDepth):
    pass


DROPS = [
    OursDropPath,
    MmcvDropPath,
    TimmDropPath,
    type('A', (OursDropPath,), {}),
    type('B', (MmcvDropPath,), {}),
    Own,
    Renamed,
    SwinDropPath,
    type('C', (SwinDropPath,), {}),
    lambda rate: StochasticDepth(rate, 'row'),
    lambda rate: OwnStochasticDepth(rate, 'row'),
]


class Dropping(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 3, 3, padding=1), drop

    def forward(self, x):
        # The value itself is changed: what the tracer knows of masks does not help.
        return x + torch.tanh(self.drop(self.conv(x)))


@pytest.mark.parametrize('make', DROPS)
def test_nothing_is_dropped_while_it_is_measured(make):
    torch.manual_seed(0)
    net = nn.Sequential(*(Dropping(make(0.9)) for _ in range(3)))
    plain = copy.deepcopy(net)
    for block in plain:
        block.drop = nn.Identity()
    x = torch.randn(8, 3, 8, 8)
    assert analyze(net, x).blocks == analyze(plain, x).blocks
    assert all(block.drop.training for block in net)


def test_blocks_named_after_their_drop_path_are_trained_blocks():
    class BlockWithDropPath(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

    assert not is_random_depth(BlockWithDropPath())


@pytest.mark.filterwarnings('ignore:.*use_reentrant parameter:UserWarning')
@pytest.mark.parametrize('reentrant', [True, False, None])
@pytest.mark.parametrize('imported', ['function', 'module'])
def test_no_recomputation(reentrant, imported):
    options = {} if reentrant is None else dict(use_reentrant=reentrant)

    class Checkpointed(Dropping):
        def forward(self, x):
            by_name = by_name_checkpoint
            function = by_name if imported == 'function' else torch.utils.checkpoint.checkpoint
            return function(super().forward, x, **options)

    torch.manual_seed(0)
    net = nn.Sequential(*(Checkpointed(nn.BatchNorm2d(3)) for _ in range(3)))
    plain = nn.Sequential(*(Dropping(block.drop) for block in net))
    plain.load_state_dict(net.state_dict())
    x = torch.randn(4, 3, 8, 8)
    before = describe(net)
    found = analyze(net, x, backward=True).blocks
    expected = analyze(plain, x, backward=True).blocks
    # The two networks have classes of other names.
    assert found == [replace(b, family=a.family) for a, b in zip(found, expected)]
    assert len(found) == len(expected)
    assert all(block.grad_avg_var > 0 for block in found)
    assert describe(net) == before


def training(seed, steps, results):
    """Some steps; the losses."""
    gen = torch.Generator().manual_seed(seed)
    net = NFResNet(26, base_channels=4, skipinit=1.0, with_cp=True)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=gen) * 0.3
    encoder = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.0)
    for parameter in encoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=gen) * 0.3
    models = nn.ModuleList([net, encoder])
    sgd = torch.optim.SGD(models.parameters(), 1e-3)
    losses = []
    for _ in range(steps):
        x = torch.randn(2, 3, 32, 32, generator=gen)
        loss = net(x)[-1].square().mean() + encoder(x[:, 0, :8, :8]).square().mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        encoder.eval()
        with torch.no_grad():
            losses += [loss.item(), encoder(x[:, 0, :8, :8]).sum().item()]
        encoder.train()
    results[seed] = losses


@pytest.mark.slow
def test_eight_threads():
    """Four analyse, two of them the same network, and four train."""
    nets = [NFResNet(26, base_channels=4, skipinit=1.0, drop_path_rate=0.5) for _ in range(3)]
    nets = [nets[0], nets[0], nets[1], Encoder().eval()]
    inputs = [torch.randn(2, 3, 32, 32)] * 3 + [input_of_small()]
    expected = [analyze(net, x).to_dict() for net, x in zip(nets, inputs)]
    alone, together = {}, {}
    for seed in range(4):
        training(seed, 3, alone)
    before = [describe(net) for net in nets]
    process = of_the_process()
    found, errors = [], []

    def many(number):
        try:
            for _ in range(3):
                found.append((number, analyze(nets[number], inputs[number]).to_dict()))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=many, args=(i,)) for i in range(4)]
    threads += [threading.Thread(target=training, args=(i, 3, together)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not errors
    assert len(found) == 12
    for number, record in found:
        for block, other in zip(record['blocks'], expected[number]['blocks']):
            assert block['avg_var'] == pytest.approx(other['avg_var'], rel=1e-5)
            if other['res_avg_var'] is not None:
                assert block['res_avg_var'] == pytest.approx(other['res_avg_var'], rel=1e-5)
    assert together.keys() == alone.keys()
    for seed in alone:
        assert together[seed] == pytest.approx(alone[seed], rel=1e-4)
    assert [describe(net) for net in nets] == before
    assert of_the_process()[:-2] == process[:-2]  # the random states are everybody's


class Merging(nn.Linear):
    """As LoRA's layers: ``train`` takes the update out of the weight, or puts it in."""

    def __init__(self):
        super().__init__(8, 8)
        self.update, self.merged = nn.Parameter(torch.randn(8, 8)), False
        self.train(False)

    def train(self, mode=True):
        super().train(mode)
        if hasattr(self, 'merged') and self.merged == mode:
            self.weight.data += -self.update if mode else self.update
            self.merged = not mode
        return self

    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('now', [True, False])
def test_weights_that_train_merges(mode, now):
    net = nn.Sequential(Merging(), Merging())
    net.train(now)
    before = describe(net)
    analyze(net, torch.randn(4, 8), mode=mode)
    assert describe(net) == before


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]


@pytest.mark.parametrize('dtype', [*FLOATS, torch.complex64, torch.int8, torch.bool])
def test_small_tensors_of_every_type(dtype):
    """They are noted together; each one goes back alone, also a number and an expanded one."""
    net = nn.Module()
    for name, shape in dict(a=(3,), b=(), c=(2, 0), d=(2, 2)).items():
        net.register_buffer(name, torch.ones(shape).to(dtype))
    net.register_buffer('e', torch.ones(1).to(dtype).expand(5))
    before, snapshot = describe(net), Snapshot(net)
    for tensor in (net.a, net.b, net.d.t()[0], net.e[:1]):
        tensor.copy_(torch.zeros(()).to(dtype))
    assert describe(net) != before
    snapshot.restore()
    assert describe(net) == before


def test_of_small_tensors_the_others_go_back_if_one_cannot():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    before = Snapshot(net)
    gone = net[0].running_mean
    gone.untyped_storage().resize_(0)
    net[1].running_mean.add_(1)
    with pytest.raises(RuntimeError, match='0.running_mean'):
        before.restore()
    assert not net[1].running_mean.any()
