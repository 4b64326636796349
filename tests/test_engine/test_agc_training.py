"""Training steps with AGC, against DeepMind's optimizer: written out here, and as recorded.

``tests/data/agc_f64_silu.npz`` is a recording of 30 steps in float64, from two starts: all
losses, the norm of every final parameter, and the final parameters of at most 10,000 values.
``agc_step0.npz`` holds a part of the first step of another one.
"""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from nf_plugins.checkpoint.convert import convert
from nf_plugins.checkpoint.haiku import read_haiku
from nf_plugins.functional import adaptive_clip_grad_, unitwise_norm
from nf_plugins.models import NFResNet
from nf_plugins.models.weight_names import haiku_rename

from ..conftest import DATA, ROOT, relative_error
from ..test_models.official import Classifier

STARTS = ['perturbed', 'initlike_skip0']
SETTINGS = dict(lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-05, clipping=0.01, eps=0.001)


def haiku_state(model, arrays):
    source = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    return convert(source, model, haiku_rename(model))


def haiku_names(model):
    """The parameters by their names in haiku."""
    params, rename = dict(model.named_parameters()), haiku_rename(model)
    return {
        name: params[rename(name, torch.empty(1, 1, 1, 1))[0]].detach()
        for name in read_haiku(DATA / 'nf_resnet_50_silu_se1_skip0_w1.npz')
    }


def start(path, kind, attention, act):
    """The width-1 NF-ResNet-50 in float64, at one of the two starts."""
    model = Classifier(NFResNet(50, 16, attention=attention, act_cfg=dict(type=act)), act)
    model.load_state_dict(haiku_state(model, read_haiku(path)))
    if kind == 'initlike_skip0':
        values = {'gain': 1.0, 'skip_gain': 0.0, 'bias': 0.0}
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.split('.')[-1] in values:
                    p.fill_(values[name.split('.')[-1]])
    return model.double().train()


def loss_of(model, images, labels):
    return torch.nn.functional.cross_entropy(model(images)['logits'], labels)


def train(model, images, labels, steps):
    """With what the configs use: the wrapper, torch's SGD and the shared parameter groups."""
    groups = Config.fromfile(str(ROOT / 'configs/_base_/schedules/param_groups.py'))
    optimizer = {k: SETTINGS[k] for k in ('lr', 'momentum', 'nesterov', 'weight_decay')}
    clip_grad = dict(
        type='agc',
        clip_factor=SETTINGS['clipping'],
        eps=SETTINGS['eps'],
        skip=['head.fc.weight'],
    )
    cfg = dict(
        type='nf_plugins.AGCOptimWrapper',
        clip_grad=clip_grad,
        optimizer=dict(type='SGD', **optimizer),
        **groups.optim_wrapper,
    )
    wrapper = build_optim_wrapper(model, cfg)
    losses = []
    for _ in range(steps):
        with wrapper.optim_context(model):
            loss = loss_of(model, images, labels)
        wrapper.update_params(loss)
        losses.append(loss.item())
    with torch.no_grad():
        losses.append(loss_of(model, images, labels).item())
    return losses


def train_by_hand(model, images, labels, steps):
    """DeepMind's optimizer in numpy: clip the raw gradient, add decay of `w`, Nesterov."""
    params = dict(model.named_parameters())
    buffers = {name: np.zeros(p.shape) for name, p in params.items()}

    def norm(x):
        axes = None if x.ndim <= 1 else tuple(range(1, x.ndim))
        return np.sqrt(np.sum(x**2, axis=axes, keepdims=True))

    losses = []
    for step in range(steps + 1):
        loss = loss_of(model, images, labels)
        losses.append(loss.item())
        if step == steps:
            return losses
        gradients = torch.autograd.grad(loss, list(params.values()))
        for (name, p), gradient in zip(params.items(), gradients):
            w, g = p.detach().numpy(), gradient.numpy()
            if name != 'head.fc.weight':
                limit = SETTINGS['clipping'] * np.maximum(norm(w), SETTINGS['eps'])
                g = np.where(norm(g) < limit, g, g * limit / np.maximum(norm(g), 1e-6))
            if w.ndim > 1:  # haiku's `w`: all else is a vector or a scalar
                g = g + SETTINGS['weight_decay'] * w
            buffers[name] = 0.9 * buffers[name] + g
            with torch.no_grad():
                p -= torch.as_tensor(SETTINGS['lr'] * (g + 0.9 * buffers[name]))


@pytest.mark.slow
@pytest.mark.parametrize('kind', STARTS)
def test_equals_the_optimizer_written_out(kind):
    path = DATA / 'nf_resnet_50_relu_se0_skip1_w1.npz'
    images, labels = torch.randn(2, 3, 32, 32).double(), torch.tensor([3, 7])
    ours, hand = (start(path, kind, None, 'ReLU') for _ in range(2))
    losses = train(ours, images, labels, 5)
    np.testing.assert_allclose(losses, train_by_hand(hand, images, labels, 5), rtol=1e-9)
    assert losses[-1] < losses[0]
    for (name, p), q in zip(ours.named_parameters(), hand.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('kind', STARTS)
def test_equals_thirty_recorded_steps(kind):
    with np.load(DATA / 'agc_f64_silu.npz') as archive:
        recorded = {name: archive[name] for name in archive.files}
    meta = json.loads(str(recorded['meta']))
    assert {name: meta[name] for name in SETTINGS} == SETTINGS

    model = start(DATA / meta['source_params'], kind, meta['attention'], 'SiLU')
    images = torch.from_numpy(recorded['input']).permute(0, 3, 1, 2).double()
    losses = train(model, images, torch.from_numpy(recorded['labels']), 30)
    np.testing.assert_allclose(losses, recorded[f'{kind}/official/loss'], rtol=1e-10)

    def of(what):
        prefix = f'{kind}/official/{what}/'
        return {k[len(prefix) :]: v for k, v in recorded.items() if k.startswith(prefix)}

    state = haiku_names(model)
    norms, final = of('norm'), of('final')
    assert norms.keys() == state.keys()
    assert len(final) == (195 if kind == 'perturbed' else 0)
    for name, norm in norms.items():
        # Of 0 there is no relative error.
        np.testing.assert_allclose(state[name].norm(), norm, rtol=1e-8, atol=1e-12, err_msg=name)
    for name, expected in final.items():  # recorded in float32
        assert relative_error(state[name], torch_layout(expected).double()) < 1e-6, name


STEP0 = dict(np.load(DATA / 'agc_step0.npz'))


def torch_layout(array):
    """HWIO to OIHW, IO to OI."""
    x = torch.from_numpy(np.array(array))
    return x.permute(3, 2, 0, 1).contiguous() if x.dim() == 4 else x.T if x.dim() == 2 else x


@pytest.mark.parametrize('name', sorted(k for k in STEP0 if '/grad/' in k))
def test_first_recorded_step(name):
    """Clipping needs of the weights only their norms, which are recorded.

    The recording lists the classifier's weight clipped as well, though the run leaves it.
    """
    grad, clipped, pnorm, gnorm = (
        torch_layout(STEP0[name.replace('/grad/', f'/{what}/')])
        for what in ('grad', 'clipped', 'pnorm', 'gnorm')
    )
    torch.testing.assert_close(unitwise_norm(grad).flatten(), gnorm.flatten())
    noise = torch.randn_like(grad)
    param = torch.nn.Parameter(noise / unitwise_norm(noise) * pnorm.view_as(unitwise_norm(noise)))
    param.grad = grad.clone()
    adaptive_clip_grad_([param])
    torch.testing.assert_close(param.grad, clipped)
