"""The trainings of the study: networks, one kind of run, and a short grid of runs for each part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple


class Network(NamedTuple):
    """Network of the study, which is one line in the figures.

    Args:
        label: Its name in tables and figures.
        config: Path of the config in the folder of the configs.
        change: Changes of the config's model.
    """

    label: str
    config: str
    change: dict[str, Any] = {}


_NF = 'nf_resnet/nf-resnet26_fashion-mnist.py'
_V2 = 'baselines/resnetv2-26-{}_fashion-mnist.py'
_DYT = 'dyt/vit-dyt_fashion-mnist.py'
_RELU = dict(type='ReLU')
_EARLIER = {  # what the two earlier methods do not have
    'neck.act_cfg': dict(_delete_=True, **_RELU),
    'backbone': dict(_delete_=True, base_channels=8, in_channels=1, stem='cifar'),
}


def _earlier(kind: str) -> dict[str, Any]:
    return {**_EARLIER, 'backbone': {**_EARLIER['backbone'], 'type': f'nf_plugins.{kind}'}}


NETWORKS = {
    'nf': Network('NF', _NF),
    'nf-agc': Network('NF with AGC', _NF),
    # Plain convolutions whose weights have the variance of the standardized ones, 1 / fan-in.
    'nf-no-ws': Network(
        'NF without Scaled WS',
        _NF,
        {
            'backbone.conv_cfg': None,
            'backbone.init_cfg': dict(
                type='Kaiming', layer='Conv2d', mode='fan_in', nonlinearity='linear'
            ),
        },
    ),
    'pws': Network('PWS', 'pws_resnet/pws-resnet26_fashion-mnist.py'),
    'bn': Network('batch norm', _V2.format('bn')),
    'relu-bn': Network('batch norm, ReLU first', _V2.format('bn'), {'backbone.order': 'relu_bn'}),
    'gn': Network('group norm', _V2.format('gn')),
    'wsgn': Network('WS and group norm', _V2.format('wsgn')),
    'skipinit': Network('SkipInit', _NF, _earlier('SkipInitResNet')),
    'fixup': Network('Fixup', _NF, _earlier('FixupResNet')),
    'plain': Network('plain', _V2.format('plain')),
    # For the collapse: Scaled WS in the plain network, without alpha, beta and SkipInit gains.
    'ws': Network(
        'Scaled WS alone',
        _V2.format('plain'),
        {'backbone.conv_cfg': dict(type='nf_plugins.ScaledWS', gamma=1.7139588594436646)},
    ),
    # NF with one part of the method changed.
    'skip0': Network('SkipInit gains start at 0', _NF, {'backbone.skipinit': 0.0}),
    'no-skip': Network('no SkipInit gains', _NF, {'backbone.skipinit': None}),
    'no-gain': Network(
        'no gains of the filters',
        _NF,
        {'backbone.conv_cfg': dict(type='nf_plugins.ScaledWS', gain_init=None)},
    ),
    'no-gamma': Network(
        'no gamma of the activations',
        _NF,
        {'backbone.act_cfg.gamma': 1.0, 'neck.act_cfg': dict(_delete_=True, **_RELU)},
    ),
    'no-beta': Network('no beta', _NF, {'backbone.rescale_input': False}),
    'alpha1': Network('alpha 1', _NF, {'backbone.alpha': 1.0}),
    'drop-path': Network('stochastic depth 0.1', _NF, {'backbone.drop_path_rate': 0.1}),
    # A small ViT with a function of single elements in the places of its norms, or with nothing.
    'vit-ln': Network('ViT, layer norm', 'baselines/vit-ln_fashion-mnist.py'),
    'vit-dyt': Network('ViT, DyT', _DYT),
    'vit-derf': Network('ViT, Derf', _DYT, {'backbone.norm_cfg.type': 'nf_plugins.Derf'}),
    'vit-none': Network(
        'ViT without norms', _DYT, {'backbone.norm_cfg': dict(_delete_=True, type='Identity')}
    ),
}
ABLATION = ['nf-agc', 'nf', 'nf-no-ws', 'skip0', 'no-skip', 'no-gain', 'no-gamma', 'no-beta']
ABLATION += ['alpha1', 'drop-path']
CLIP_FACTOR = 0.1
"""Threshold of AGC where it is not varied."""
CHANCE = 15.0
"""Test accuracy in percent; a run that is not better has learnt nothing."""


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        part: The part of the study.
        network: A key of :data:`NETWORKS`.
        blocks: Blocks in each of the four stages; layers of a transformer.
        batch_size: Images in a batch.
        lr: Learning rate after the warm-up.
        steps: Number of steps.
        seed: Seed of the weights and of the order of the images.
        clip_factor: Threshold of AGC, or None.
        multiplicity: Augmentations of an image in a batch.
    """

    part: str
    network: str
    blocks: int = 2
    batch_size: int = 32
    lr: float = 0.1
    steps: int = 60
    seed: int = 0
    clip_factor: float | None = None
    multiplicity: int = 1

    @property
    def convs(self) -> int:
        """Convolutions: the stem, three of each block, and one of each transition."""
        return 1 + 4 * (3 * self.blocks + 1)


class Part(NamedTuple):
    """Part of the study.

    Args:
        title: What it is about.
        runs: Makes its runs with seed 0; True makes more of them.
    """

    title: str
    runs: Callable[[bool], Iterator[Run]]


def depth(more: bool) -> Iterator[Run]:
    networks = list(NETWORKS)[:11]
    sizes = [(2, (0.05, 0.2)), (8, (0.05, 0.2)), (33, (0.05, 0.2) if more else (0.05,))]
    for blocks, lrs in sizes:
        for network, lr in product(networks, lrs):
            clip = CLIP_FACTOR if network == 'nf-agc' else None
            yield Run('depth', network, blocks, 16, lr, 30, clip_factor=clip)


def ablation(more: bool) -> Iterator[Run]:
    for network, lr in product(ABLATION, (0.05, 0.2) if more else (0.1,)):
        clip = CLIP_FACTOR if network == 'nf-agc' else None
        yield Run('ablation', network, 4, 32, lr, 60, clip_factor=clip)


def batch(more: bool) -> Iterator[Run]:
    images = 8192 if more else 1536
    for size in (2, 8, 32, 128, *((512, 1024) if more else ())):
        for network in ('nf-agc', 'bn'):
            clip = CLIP_FACTOR if network == 'nf-agc' else None
            # The learning rate is in proportion to the batch, as in the papers.
            yield Run('batch', network, 2, size, 0.1 * size / 32, images // size, clip_factor=clip)


def agc(more: bool) -> Iterator[Run]:
    sizes, clips = (
        ((16, 64, 256), (None, 0.5, 0.1, 0.02)) if more else ((16, 64), (None, 0.1, 0.02))
    )
    for size, clip, lr in product(sizes, clips, (0.2, 0.8, 3.2)):
        yield Run('agc', 'nf' if clip is None else 'nf-agc', 2, size, lr, 25, clip_factor=clip)


def collapse(more: bool) -> Iterator[Run]:
    lrs = (0.05, 0.1, 0.2) if more else (0.1, 0.2)
    for network, lr in product(('plain', 'ws', 'pws', 'nf'), lrs):
        yield Run('collapse', network, 2, 32, lr, 45)


def landscape(more: bool) -> Iterator[Run]:
    for network in ('nf', 'pws', 'bn', 'plain'):
        yield Run('landscape', network, 2, 32, 0.05, 200)


def transfer(more: bool) -> Iterator[Run]:
    yield Run('transfer', 'nf', 2, 32, 0.05, 200)


def pointwise(more: bool) -> Iterator[Run]:
    networks = [name for name in NETWORKS if name.startswith('vit-')]
    lrs = (1e-3, 2e-3, 4e-3, 8e-3) if more else (2e-3, 4e-3)
    for network, lr in product(networks, lrs):
        yield Run('pointwise', network, 6, 64, lr, 150)


def multiplicity(more: bool) -> Iterator[Run]:
    for number, lr in product((1, 2, 4, 8), (0.05, 0.1, 0.2) if more else (0.1,)):
        clip = CLIP_FACTOR
        yield Run('multiplicity', 'nf-agc', 2, 64, lr, 150, 0, clip, multiplicity=number)


PARTS = {
    'depth': Part('Depth', depth),
    'ablation': Part('What each part of the method contributes', ablation),
    'batch': Part('Batch size', batch),
    'agc': Part('Adaptive gradient clipping', agc),
    'collapse': Part('The collapse', collapse),
    'landscape': Part('Loss landscapes', landscape),
    'transfer': Part('Transfer', transfer),
    'pointwise': Part('Transformers without norms', pointwise),
    'multiplicity': Part('Several augmentations of an image', multiplicity),
}


def runs_of(parts: list[str], seeds: list[int], more: bool) -> list[Run]:
    """Return the runs of some parts: all of a seed before those of the next, deep ones last."""
    runs = [
        replace(run, seed=seed)
        for seed in seeds
        for part in parts
        for run in PARTS[part].runs(more)
    ]
    return sorted(runs, key=lambda run: (seeds.index(run.seed), run.blocks > 8))
