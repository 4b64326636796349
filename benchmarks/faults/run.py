"""Score the verdicts on faults, on healthy networks and on trainings."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nf_plugins.spp import analyze

from .faults import FAULTS, Fault
from .networks import HEALTHY, SUBJECTS, build


def noise(size: int = 64, batch: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def smooth_images(size: int = 64, batch: int = 4) -> Tensor:
    """Crops of scikit-learn's photographs, normalized as ImageNet's are."""
    from sklearn.datasets import load_sample_images

    mean, std = torch.tensor([123.7, 116.3, 103.5]), torch.tensor([58.4, 57.1, 57.4])
    images = []
    for i in range(batch):
        image = torch.tensor(load_sample_images().images[i % 2]).float()
        image = ((image - mean) / std).permute(2, 0, 1)[None]
        crop = image[..., 40 * (i // 2) : 40 * (i // 2) + 360, 30 * i : 30 * i + 360]
        images.append(torch.nn.functional.interpolate(crop, (size, size), mode='area'))
    return torch.cat(images)


def localised(fault: Fault, verdict: dict) -> bool | None:
    """Whether a verdict names the block that has the fault; None where it has no place."""
    if fault.where is None:
        return None
    name = verdict['name']
    inside = bool(name) and (fault.where + '.').startswith(name + '.')
    holds = bool(name) and (name + '.').startswith(fault.where + '.')
    return inside or holds or fault.where in verdict['message']


def seeded(network: str, kind: str, seed: int = 0) -> dict[str, Any] | None:
    """Seed a fault into a network, and score what is said of it; None where it does not apply."""
    net = build(SUBJECTS[network], seed)
    x = noise(seed=seed)
    rng = random.Random(zlib.crc32(f'{network} {kind} {seed}'.encode()))
    fault = FAULTS[kind](net, x, rng)
    if fault is None:
        return None
    inputs = x if fault.inputs is None else fault.inputs
    verdicts = analyze(net, inputs, **fault.options).verdicts()
    loud = [v for v in verdicts if v['severity'] != 'info']
    right = [v for v in verdicts if {v['rule'], *v['symptoms']} & set(fault.rules)]
    named = bool(right)
    places = [localised(fault, v) for v in right]
    return dict(
        network=network,
        fault=kind,
        where=fault.where,
        named=named,
        localised=None if fault.where is None or not named else any(places),
        right=[v['rule'] for v in right],
        wrong=[v['rule'] for v in loud if v not in right],
        verdicts=[{k: v[k] for k in ('rule', 'severity', 'name', 'message')} for v in verdicts],
    )


def all_faults(networks: list[str], kinds: list[str]) -> Iterator[dict[str, Any]]:
    for network in networks:
        for kind in kinds:
            if (found := seeded(network, kind)) is not None:
                yield found


SIZES = {
    'inception_v3': 160,
    'efficientformer': 224,
    'alexnet': 96,
    'beit': 224,
    'levit': 224,
    'cait': 224,
}
FIXED = 'vit_b_32 deit deit3 xcit pit visformer tnt twins gmlp resmlp swin pvt'


def healthy(network: str, given: str) -> dict[str, Any]:
    """Say what is said of a published network at its own initialisation."""
    net = build(HEALTHY[network] if network in HEALTHY else SUBJECTS[network])
    name = network.partition(' ')[2]
    size = next((s for key, s in SIZES.items() if name.startswith(key)), 64)
    if any(name.startswith(key) for key in FIXED.split()):
        size = 224
    if network in SUBJECTS:
        size = 64
    x = smooth_images(size) if given == 'images' else noise(size, 4 if size < 200 else 2)
    verdicts = analyze(net, x, unit_gain=given == 'unit gain').verdicts()
    return dict(
        network=network,
        input=given,
        loud=[v['rule'] for v in verdicts if v['severity'] != 'info'],
        verdicts=[{k: v[k] for k in ('rule', 'severity', 'name', 'message')} for v in verdicts],
    )
