"""The rule of docs/residual_blocks.md, on a small network for each kind of sum that it decides."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nf_plugins.functional.standardization import kernels_c
from nf_plugins.models import NFResNet
from nf_plugins.spp import analyze, find_residuals


class Net(nn.Module):
    """Layers by name, and what to do with them: ``forward(layers, x)``."""

    def __init__(self, forward, stem=None, **layers):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1) if stem is None else stem
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, self.stem(x))


def conv(inputs=8, outputs=8, size=3, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups)


def plain(*convs):
    """Convolutions with a ReLU between two."""
    layers = [layer for c in convs for layer in (c, nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def body():
    return plain(conv(), conv())


def linear_path(outputs=8, stride=1):
    """GhostNet's shortcut: depthwise, norm, pointwise, norm."""
    return nn.Sequential(
        *(conv(stride=stride, groups=8), nn.BatchNorm2d(8)),
        *(conv(8, outputs, 1), nn.BatchNorm2d(outputs)),
    )


def up(x):
    return F.interpolate(x, scale_factor=2)


def down(x):
    return F.avg_pool2d(x, 2)


def parameter(*shape):
    return nn.Parameter(torch.rand(*shape) + 0.5)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


class Layer(nn.Module):
    """A transformer layer."""

    def __init__(self, width=8):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def attend(self, x):
        return self.proj(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


# ------------------------------------------------------------------- sums, spelled otherwise
def added(join, count=1):
    return lambda: Net(lambda m, x: join(x, m.body(x)), body=body()), count


def product(name):
    """``x + h @ w`` in one operation."""

    def forward(m, x):
        t = tokens(x)
        if name == 'addmm':
            t = t[0]
            return torch.addmm(t, F.relu(m.fc(t)), m.weight)
        return torch.baddbmm(t, F.relu(m.fc(t)), m.weight.expand(len(t), 8, 8))

    return lambda: Net(forward, fc=nn.Linear(8, 8), weight=parameter(8, 8)), 1


def index_add(x, y):
    return x.index_add(1, torch.arange(8), y)


SPELLINGS = {
    'stack, sum': added(lambda x, y: torch.stack([x, y]).sum(0)),
    'stack, mean': added(lambda x, y: torch.stack([x, y]).mean(0)),
    'stack last, sum': added(lambda x, y: torch.stack([y, x], -1).sum(-1)),
    'cat, view, sum': added(lambda x, y: torch.cat([x, y]).view(2, *x.shape).sum(0)),
    'unsqueezed, cat, sum': added(lambda x, y: torch.cat([x[None], y[None]]).sum(0)),
    'einsum': added(lambda x, y: torch.einsum('knchw->nchw', torch.stack([x, y]))),
    'foreach': added(lambda x, y: torch._foreach_add([x], [y])[0]),
    'foreach, alpha': added(lambda x, y: torch._foreach_add([x], [y], alpha=0.5)[0]),
    'minus minus': added(lambda x, y: y - (-x)),
    'minus a negated branch': added(lambda x, y: x - y.neg()),
    'sub, alpha': added(lambda x, y: torch.sub(y, x, alpha=-1)),
    'index_add': added(index_add),
    'scatter_add': added(
        lambda x, y: x.scatter_add(1, torch.arange(8).view(1, 8, 1, 1).expand_as(y), y)
    ),
    'index_put': added(lambda x, y: x.index_put((torch.arange(len(x)),), y, accumulate=True)),
    'addcdiv': added(lambda x, y: torch.addcdiv(x, y, torch.tensor(2.0))),
    'addmm': product('addmm'),
    'baddbmm': product('baddbmm'),
    'broadcast': added(lambda x, y: x + y.mean((2, 3), keepdim=True)),
    'complex': added(lambda x, y: (torch.complex(x, x) + torch.complex(y, y)).abs()),
    'difference to the stream': added(lambda x, y: y - x, 0),
    'negated': added(lambda x, y: -x + y, 0),
    'maximum': added(torch.maximum, 0),
}


# ------------------------------------------------------------------------------- shortcuts
def projected(shortcut, branch, join=torch.add):
    return Net(lambda m, x: join(m.shortcut(x), m.branch(x)), shortcut=shortcut, branch=branch)


class Outside(nn.Module):
    """DLA: the shortcut is computed outside the block and passed in."""

    def __init__(self):
        super().__init__()
        self.block = nn.Module()
        self.block.body = body()
        self.block.forward = lambda x, shortcut: self.block.body(x) + shortcut
        self.project, self.stem = conv(size=1), conv(3)
        self.last = body()

    def forward(self, x):
        x = self.stem(x)
        bottom = F.max_pool2d(x, 3, 1, 1)
        y = self.block.forward(bottom, self.project(bottom))
        return torch.cat([y + self.last(y), y, bottom], 1)


def scaled_shortcut(m, x):
    for _ in range(2):
        x = m.scale * x + (F.avg_pool2d(m.norm(x), 3, 1, 1) - m.norm(x))
    return x


def zero_padded(m, x):
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + m.body(x)


def dual_path(m, x):
    wide = m.first(F.relu(x))
    y = m.grow(x)
    x = torch.cat([wide[:, :8] + y[:, :8], wide[:, 8:], y[:, 8:]], 1)
    y = m.more(x)
    return torch.cat([x[:, :8] + y[:, :8], x[:, 8:], y[:, 8:]], 1)


def dual_paths_in_a_tuple(m, x):
    """smp's DPN: the sum and what stands beside it are two tensors, which others read as well."""
    wide = m.first(F.relu(x))
    y = m.grow(x)
    x, beside = wide[:, :8] + y[:, :8], torch.cat([wide[:, 8:], y[:, 8:]], 1)
    first = F.relu(torch.cat([x, beside], 1))
    y = m.more(torch.cat([x, beside], 1))
    x, beside = x + y[:, :8], torch.cat([beside, y[:, 8:]], 1)
    return first, torch.cat([x, beside], 1)


def dual(forward):
    """A network of two dual-path blocks."""
    more = plain(conv(16, 8), conv(8, 12))
    return Net(forward, first=conv(8, 12), grow=plain(conv(), conv(8, 12)), more=more)


def additive_unet(m, x):
    """LinkNet: each level of the decoder adds what the encoder had there."""
    levels = []
    for down_layer, block in zip(m.down, m.blocks):
        x = down_layer(x)
        x = x + block(x)
        levels.append(x)
    x = m.deepest(x) + x
    for skip, layer in zip(levels[-2::-1], m.up):
        x = skip + layer(x)
    return x


class Sparse(nn.BatchNorm1d):
    """SparK's norm: the positions that are not masked, written into zeros."""

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        places = torch.ones(x.shape[:3]).nonzero(as_tuple=True)
        out = torch.zeros_like(x)
        out[places] = super().forward(x[places])
        return out.permute(0, 3, 1, 2)


SHORTCUTS = {
    'written into zeros': (
        lambda: projected(
            nn.Sequential(conv(8, 16, 1), Sparse(16)),
            nn.Sequential(conv(), Sparse(8), nn.ReLU(), conv(8, 16), Sparse(16)),
        ),
        1,
    ),
    'two linear layers beside two': (lambda: projected(linear_path(), body()), 1),
    'the same with a stride': (
        lambda: projected(linear_path(16, 2), plain(conv(stride=2), conv(outputs=16))),
        1,
    ),
    'beside four': (lambda: projected(linear_path(), plain(conv(), conv(), conv(), conv())), 1),
    'passed in': (Outside, 2),
    'a pre-activation of its own': (
        lambda: projected(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv(size=1)), body()),
        1,
    ),
    'pooled and padded': (
        lambda: projected(
            nn.Sequential(nn.AvgPool2d(2), nn.ZeroPad3d((0, 0, 0, 0, 4, 4))),
            plain(conv(stride=2), conv(outputs=16)),
        ),
        1,
    ),
    'padded with channels': (lambda: Net(zero_padded, body=plain(conv(stride=2), conv(8, 16))), 1),
    'repeated channels': (
        lambda: Net(lambda m, x: x.repeat(1, 2, 1, 1) + m.body(x), body=conv(8, 16)),
        1,
    ),
    'a parameter times it': (
        lambda: Net(scaled_shortcut, scale=parameter(8, 1, 1), norm=nn.GroupNorm(1, 8)),
        2,
    ),
    'dual paths': (
        lambda: dual(dual_path),
        2,
    ),
    'dual paths in a tuple': (
        lambda: dual(dual_paths_in_a_tuple),
        2,
    ),
    'levels of an additive decoder': (
        lambda: Net(
            additive_unet,
            down=nn.ModuleList([conv(stride=2), conv(stride=2), conv()]),
            blocks=nn.ModuleList(body() for _ in range(3)),
            deepest=body(),
            up=nn.ModuleList(
                [conv(), nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, stride=2))]
            ),
        ),
        4,
    ),
    'one layer beside the identity': (lambda: Net(lambda m, x: x + m.one(x), one=conv()), 1),
    'one layer beside a projection': (lambda: projected(conv(size=1), plain(conv())), 0),
    'one layer and a ReLU': (lambda: projected(conv(size=1), plain(conv()).append(nn.ReLU())), 0),
    'two linear paths (LoRA)': (
        lambda: projected(conv(), nn.Sequential(conv(8, 2, 1), conv(2, 8, 1))),
        0,
    ),
    'two equal paths': (lambda: projected(body(), body()), 0),
    'two paths that bend': (
        lambda: projected(plain(conv()).append(nn.ReLU()), plain(conv(), conv(), conv())),
        0,
    ),
    'no branch': (lambda: Net(lambda m, x: x + x.sin()), 0),
}


# --------------------------------------------------------------------------------- streams
class Divided(nn.Module):
    """TimeSformer: the tokens without the class token, then all of them."""

    def __init__(self):
        super().__init__()
        self.stem, self.cls = conv(3), parameter(1, 1, 8)
        self.time, self.space = Layer(), Layer()

    def forward(self, x):
        x = tokens(self.stem(x))
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        for _ in range(2):
            rest = x[:, 1:] + self.time.attend(x[:, 1:])
            first = x[:, 0].unsqueeze(1)
            y = self.space.attend(torch.cat([first, rest], 1))
            x = torch.cat([first, rest], 1) + torch.cat([y[:, :1], y[:, 1:]], 1)
            x = x + self.space.fc2(F.gelu(self.space.fc1(x)))
        return x


class Crossing(nn.Module):
    """CoaT: two streams of two sizes, each of which reads the other."""

    def __init__(self):
        super().__init__()
        self.stem, self.shrink = conv(3), conv(stride=2)
        self.a, self.b, self.c, self.d = (nn.ModuleList(body() for _ in range(2)) for _ in 'abcd')

    def forward(self, x):
        x = self.stem(x)
        y = self.shrink(x)
        for a, b, c, d in zip(self.a, self.b, self.c, self.d):
            p, q = a(x), b(y)
            x, y = x + (p + up(q)), y + (q + down(p))
            x, y = x + c(x), y + d(y)
        return x, y


class Wrapped(nn.Module):
    """UNet2DCondition: a skip around transformer layers between two projections."""

    def __init__(self, layers):
        super().__init__()
        self.stem, self.norm = conv(3), nn.GroupNorm(2, 8)
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)
        self.layers = nn.Sequential(*(Layer() for _ in range(layers)))

    def forward(self, x):
        x = self.stem(x)
        y = self.outer(self.layers(self.inner(tokens(self.norm(x)))))
        return x + y.transpose(1, 2).reshape(x.shape)


class Words(nn.Module):
    """Token numbers on the way, reshaped first."""

    def __init__(self, ids):
        super().__init__()
        self.embed, self.layers, self.ids = (
            nn.Embedding(16, 8),
            nn.Sequential(Layer(), Layer()),
            ids,
        )

    def forward(self, x):
        x = (x.flatten(1)[:, :12] * 255).byte().long() % 16 if self.ids is None else x
        return self.layers(self.embed(x.view(-1, x.shape[-1])))


def to_bytes(m, x):
    x = x + m.one(x)
    x = x.clamp(0, 1).mul(255).round().byte()
    x = x / 255
    return x + m.two(x)


def own_parts(m, x):
    a, b = x.chunk(2, 1)
    return torch.cat([a + m.body(a), b], 1)


def coupled(m, x):
    """RevNet: each half is added to what is computed from the other one."""
    x, y = x.chunk(2, 1)
    for f, g in ((m.a, m.b), (m.c, m.d)):
        x = x + f(y)
        y = y + g(x)
    return torch.cat([x, y], 1)


def gated_inside(m, x):
    y = m.body(x)
    t = tokens(down(y))
    gate = m.layer(t).transpose(1, 2).reshape(down(y).shape)
    return x + y * up(gate).sigmoid()


def relative_attention(m, x):
    """XLNet: scores of contents and of places, by products with weights that no layer holds."""
    x = tokens(x)
    q, k, v = (torch.bmm(x, w.expand(len(x), 8, 8)) for w in (m.q, m.k, m.v))
    scores = torch.bmm(q, k.transpose(1, 2)) + torch.bmm(q, m.places.expand(len(x), 8, 64))
    return x + torch.bmm(torch.bmm(scores.softmax(-1), v), m.out.expand(len(x), 8, 8))


STREAMS = {
    'relative attention': (
        lambda: Net(
            relative_attention,
            **{name: parameter(8, 8) for name in ('q', 'k', 'v', 'out')},
            places=parameter(8, 64),
        ),
        1,
    ),
    'cut and put together': (Divided, 6),
    'crossing': (Crossing, 8),
    'a skip around one layer': (lambda: Wrapped(1), 2),
    'a skip around two layers': (lambda: Wrapped(2), 4),
    'whole numbers in between': (lambda: Net(to_bytes, one=body(), two=body()), 2),
    'numbers of tokens': (lambda: Words(None), 4),
    'one half': (lambda: Net(own_parts, body=plain(conv(4, 4), conv(4, 4))), 1),
    'coupled halves': (
        lambda: Net(coupled, **{name: plain(conv(4, 4), conv(4, 4)) for name in 'abcd'}),
        4,
    ),
    'a transformer in a gate of the branch': (
        lambda: Net(gated_inside, body=body(), layer=Layer()),
        1,
    ),
    'spectrum': (lambda: Net(lambda m, x: x + torch.fft.fft2(x).real), 1),
    'complex stream': (
        lambda: Net(
            lambda m, x: (
                (z := torch.fft.rfft2(x)) + torch.complex(m.a(z.real), m.b(z.imag))
            ).abs(),
            a=body(),
            b=body(),
        ),
        1,
    ),
}


# ------------------------------------------------------------------------- no blocks at all
class Pyramid(nn.Module):
    """Top-down sums over stages of plain convolutions."""

    def __init__(self, lateral=True, read=True):
        super().__init__()
        self.stem = conv(3)
        self.stages = nn.ModuleList(plain(conv(stride=2), conv()) for _ in range(3))
        self.lateral = nn.ModuleList(conv(size=1) if lateral else nn.Identity() for _ in range(3))
        self.out = nn.ModuleList(conv() for _ in range(3)) if read else None

    def forward(self, x):
        x, levels = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        top = self.lateral[2](levels[2])
        outs = [top]
        for i in (1, 0):
            top = self.lateral[i](levels[i]) + up(top)
            outs.append(top)
        return [conv(x) for conv, x in zip(self.out, outs)] if self.out else top


def squeeze_gates(m, x):
    channels = m.b(F.relu(m.a(x.mean((2, 3), keepdim=True)))).sigmoid()
    return x * channels + x * m.c(x).sigmoid()


def additive_gate(m, x):
    deep = up(m.deeper(m.deep(x)))
    gate = m.psi(F.relu(m.left(x) + m.right(deep))).sigmoid()
    return m.join(torch.cat([x * gate, deep], 1))


def quantized(m, x):
    code = m.codes[torch.cdist(tokens(x), m.codes.expand(len(x), -1, -1)).argmin(-1)]
    code = code.transpose(1, 2).reshape(x.shape)
    return m.body(x + (code - x).detach())


def rounded(m, x):
    return m.body(x + (m.body(x).round() - x).detach())


def one_hot(m, x):
    soft = m.body(x).softmax(1)
    hard = (soft == soft.amax(1, keepdim=True)).float()
    return hard - soft.detach() + soft


def cell(m, x):
    """PNASNet: sums of two paths each, put beside one another."""
    sums = [m.a(x) + m.b(x), m.c(x) + F.max_pool2d(x, 3, 1, 1), m.d(x) + m.e(x)]
    return m.out(torch.cat(sums, 1))


def luma(m, x):
    red, green, blue = x[:, 0], x[:, 1], x[:, 2]
    y = red * 0.299 + green * 0.587 + blue * 0.114
    planes = torch.stack([y, 0.564 * (blue - y) + 128, 0.713 * (red - y) + 128], 1)
    return m.body(torch.cat([planes, x[:, 3:]], 1))


def equilibrium(m, x):
    z = torch.zeros_like(x)
    for _ in range(4):
        z = torch.relu(m.one(z) + x)
    return z


def deep_equilibrium(m, x):
    z = torch.zeros_like(x)
    for _ in range(4):
        z = m.norm(z + m.norm(x + m.two(F.relu(m.one(z)))))
    return z


def refined(m, x):
    """RAFT: a field that each step corrects, with what was computed before the steps."""
    context = F.relu(m.context(x))
    hidden, field = x.tanh(), torch.zeros(len(x), 2, *x.shape[2:])
    for _ in range(3):
        given = torch.cat([hidden, context, field], 1)
        update = m.update(given).sigmoid()
        hidden = (1 - update) * hidden + update * m.state(given).tanh()
        field = field + m.head(hidden)
    return field


NONE = {
    'pyramid': (Pyramid, 0),
    'pyramid, last level alone': (lambda: Pyramid(read=False), 0),
    'pyramid without lateral layers': (lambda: Pyramid(lateral=False), 0),
    'gates': (lambda: Net(squeeze_gates, a=conv(8, 2, 1), b=conv(2, 8, 1), c=conv(8, 1, 1)), 0),
    'additive gate': (
        lambda: Net(
            additive_gate,
            deep=plain(conv(stride=2), conv()),
            deeper=plain(conv(), conv()),
            left=conv(size=1),
            right=conv(size=1),
            psi=conv(8, 1, 1),
            join=conv(16, 8),
        ),
        0,
    ),
    'straight-through code': (lambda: Net(quantized, codes=parameter(5, 8), body=body()), 0),
    'straight-through rounding': (lambda: Net(rounded, body=body()), 0),
    'straight-through one-hot': (lambda: Net(one_hot, body=body()), 0),
    'cell': (
        lambda: Net(
            cell,
            **{name: plain(conv(), conv(), conv()) for name in 'ac'},
            **{name: conv(size=1) for name in 'be'},
            d=body(),
            out=conv(24, 8),
        ),
        0,
    ),
    'colours': (lambda: Net(luma, body=body()), 0),
    'equilibrium': (lambda: Net(equilibrium, one=body()), 0),
    'deep equilibrium': (
        lambda: Net(deep_equilibrium, one=conv(), two=conv(), norm=nn.GroupNorm(2, 8)),
        0,
    ),
    'refinement': (
        lambda: Net(
            refined,
            context=conv(),
            update=conv(18, 8),
            state=conv(18, 8),
            head=plain(conv(), conv(8, 2)),
        ),
        0,
    ),
}


# ------------------------------------------------------------------------------ recurrence
class Recurrent(nn.Module):
    """``x + rnn(x)`` over the rows of an image."""

    def __init__(self, rnn, skip=True):
        super().__init__()
        self.stem, self.rnn, self.skip = conv(3), rnn, skip

    def forward(self, x):
        x = tokens(self.stem(x))
        y = self.rnn(x)[0]
        return x + y if self.skip else y


class ByCells(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.stem, self.cell = conv(3), cell

    def forward(self, x):
        x, state, outs = tokens(self.stem(x)), None, []
        for t in range(4):
            state = self.cell(x[:, t], state)
            outs.append(state[0] if isinstance(state, tuple) else state)
        return x[:, :4] + torch.stack(outs, 1)


RECURRENT = {
    **{
        f'{kind.__name__}{" decomposed" * double}': (
            lambda kind=kind, double=double: Recurrent(
                kind(8, 8, batch_first=True, num_layers=2).to(
                    torch.float64 if double else torch.float32
                )
            ),
            1,
        )
        for kind in (nn.GRU, nn.LSTM, nn.RNN)
        for double in (False, True)
    },
    **{
        kind.__name__: (lambda kind=kind: ByCells(kind(8, 8)), 1)
        for kind in (nn.GRUCell, nn.LSTMCell, nn.RNNCell)
    },
    'no skip': (lambda: Recurrent(nn.GRU(8, 8, batch_first=True), skip=False), 0),
}

CASES = {**SPELLINGS, **SHORTCUTS, **STREAMS, **NONE, **RECURRENT}


def prepared(name):
    torch.manual_seed(0)
    build, count = CASES[name]
    net, x = build().eval(), torch.randn(2, 3, 8, 8)
    if any(p.dtype == torch.float64 for p in net.parameters()):
        net, x = net.double(), x.double()
    return net, x, count


@pytest.mark.parametrize('name', CASES)
def test_count(name):
    net, x, count = prepared(name)
    assert len(find_residuals(net, x)) == count


@pytest.mark.slow
@pytest.mark.parametrize('name', RECURRENT)
def test_recurrence_with_a_gradient(name):
    net, x, count = prepared(name)
    blocks = analyze(net, x, mode='eval', backward=True).blocks
    assert sum(b.kind in ('residual', 'transition') for b in blocks) == count


@pytest.mark.parametrize('name', [name for name in SPELLINGS if SPELLINGS[name][1]])
def test_what_is_added_is_measured(name):
    """Whatever the sum is spelled like, the branch's end is the branch's output."""
    net, x, _ = prepared(name)
    block = next(b for b in analyze(net, x, mode='eval').blocks if b.kind == 'residual')
    assert block.res_avg_var > 0
    assert block.branch_gain == pytest.approx(
        {'stack, mean': 0.5, 'foreach, alpha': 0.5, 'addcdiv': 0.5}.get(name, 1)
    )


class CellsOnInputs(nn.Module):
    """A cell in a loop that reads the steps of the input itself, not of what a layer made of it."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        state = torch.zeros(len(x), 8)
        state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize('kind', [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
@pytest.mark.parametrize('steps', [3, 6])
def test_cells_on_raw_inputs(kind, steps):
    assert not find_residuals(CellsOnInputs(kind), torch.randn(2, steps, 8))


class Conditioned(nn.Module):
    """A diffusion network: its blocks read the stream, and the time step as another input."""

    def __init__(self):
        super().__init__()
        self.stem, self.embed = conv(4), nn.Linear(1, 8)
        self.times = nn.ModuleList(nn.Linear(8, size) for size in (8, 16))
        self.before = nn.ModuleList([conv(), conv(8, 16)])
        self.after = nn.ModuleList([conv(), conv(16, 16)])
        self.projection = conv(8, 16, 1)

    def forward(self, x, time):
        x, time = self.stem(x), F.silu(self.embed(time))
        for i, shortcut in enumerate((lambda x: x, self.projection)):
            y = self.before[i](F.silu(x)) + self.times[i](time)[:, :, None, None]
            x = shortcut(x) + self.after[i](F.silu(y))
        return x


def test_a_projection_beside_a_branch_that_reads_another_input():
    found = find_residuals(Conditioned(), (torch.randn(2, 4, 8, 8), torch.rand(2, 1)))
    assert [r.identity for r in found] == [True, False]


class TwoTowers(nn.Module):
    """Two inputs through towers of their own, whose ends are added in several ways."""

    def __init__(self, join):
        super().__init__()
        self.a, self.b, self.c = (nn.Sequential(conv(3), nn.ReLU(), conv()) for _ in 'abc')
        self.join = join

    def forward(self, x, y):
        return self.join(self, x, y)


@pytest.mark.parametrize(
    'join',
    [
        lambda m, x, y: m.a(x) + m.b(y),
        lambda m, x, y: m.a(x) + m.b(y) + m.c(x),
        lambda m, x, y: m.a(x) + m.b(x + y),
    ],
    ids=['apart', 'two of one input', 'one reads both'],
)
def test_towers_of_two_inputs_are_no_blocks(join):
    assert not find_residuals(TwoTowers(join), (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)))


class Siamese(nn.Module):
    """Two signals through the same layers, each of which reads the other one."""

    def __init__(self):
        super().__init__()
        self.key, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def cross(self, x, other):
        return x + self.out(torch.tanh(self.key(other) * x))

    def forward(self, a, b):
        return self.cross(a, b), self.cross(b, a)


def test_two_signals_through_shared_layers_are_no_recurrence():
    found = find_residuals(Siamese(), (torch.randn(2, 5, 8), torch.randn(2, 5, 8)))
    assert [r.name for r in found] == ['out', 'out']


class ListsInTheRoot(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.ModuleList(nn.Linear(8, 8) for _ in range(2)) for _ in 'ab')

    def forward(self, x):
        for first, second in zip(self.first, self.second):
            x = x + first(x).relu()
            x = x + second(x).relu()
        return x


def test_parts_in_lists_of_the_root_have_names_of_their_own():
    names = [r.name for r in find_residuals(ListsInTheRoot(), torch.randn(2, 8))]
    assert names == ['first.0', 'second.0', 'first.1', 'second.1']


def test_standardized_convolutions_keep_their_kernel_and_no_weight(monkeypatch):
    calls, forward = [], kernels_c.forward

    def counted(*args):
        calls.append(args)
        return forward(*args)

    monkeypatch.setattr(kernels_c, 'forward', counted)
    net, x = NFResNet(26, base_channels=8), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        net(x)
    usual = len(calls)
    found = find_residuals(net, x)
    assert len(calls) == 2 * usual
    todo, kept = [found[-1].node], set()
    while todo:
        node = todo.pop()
        if node not in kept:
            kept.add(node)
            todo.extend(node.parents)
    assert all(node.weight is None for node in kept)


def test_other_modes_see_the_standardization():
    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.__name__.partition('.')[0])
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Names() as mode:
        NFResNet(26, base_channels=8)(torch.randn(1, 3, 64, 64))
    assert any('var' in name for name in mode.names)
