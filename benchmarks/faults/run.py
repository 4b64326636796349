"""Score the verdicts on faults, on healthy networks and on trainings."""

from __future__ import annotations

import functools
import random
import zlib
from typing import Any

import torch
from torch import Tensor

from nf_plugins.spp import analyze, zero_gains
from nf_plugins.spp.rules import names_of

from .faults import FAULTS, Fault
from .held_out import HELD_OUT_FAULTS, Site, execution_order
from .networks import CLASSICS, HELD_OUT, LANGUAGE, SUBJECTS, build


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
    net = build(network, seed)
    x = example(network, seed=seed)
    rng = random.Random(zlib.crc32(f'{network} {kind} {seed}'.encode()))
    if kind in FAULTS:
        found = FAULTS[kind](net, x, rng)
    else:
        torch.manual_seed(rng.randrange(1 << 30))
        found = HELD_OUT_FAULTS[kind](Site(net, x, rng, order(network), network in LANGUAGE))
    if found is None:
        return None
    faults = found if isinstance(found, list) else [found]
    inputs = next((f.inputs for f in faults if f.inputs is not None), x)
    options = {key: value for f in faults for key, value in f.options.items()}
    verdicts = analyze(net, inputs, **options).verdicts()
    return score(network, kind, faults, verdicts)


def score(network: str, kind: str, faults: list[Fault], verdicts: list[dict]) -> dict[str, Any]:
    """Score verdicts: all faults must be named, and all that have a place localised."""
    right = [[v for v in verdicts if names_of(v) & set(f.rules)] for f in faults]
    named = all(right)
    placed = [(f, own) for f, own in zip(faults, right) if f.where is not None]
    found = [any(localised(f, v) for v in own) for f, own in placed]
    every = [v for own in right for v in own]
    loud = [v for v in verdicts if v['severity'] != 'info' and v not in every]
    return dict(
        network=network,
        fault=kind,
        where=' and '.join(f.where for f, _ in placed) if placed else None,
        named=named,
        localised=all(found) if placed and named else None,
        right=[v['rule'] for v in every],
        wrong=[v['rule'] for v in loud],
        verdicts=[{k: v[k] for k in ('rule', 'severity', 'name', 'message')} for v in verdicts],
    )


@functools.lru_cache(2)
def order(network: str) -> list[str]:
    """Names of the modules of a network in order of execution."""
    return execution_order(build(network), example(network))


def example(network: str, size: int = 64, batch: int = 4, seed: int = 0) -> Tensor:
    """What a network is called with: noise, or tokens."""
    if network in LANGUAGE:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(1000, (batch, 32), generator=generator)
    return noise(size, batch, seed)


SIZES = {
    'inception_v3': 160,
    'efficientformer': 224,
    'alexnet': 96,
    'beit': 224,
    'levit': 224,
    'cait': 224,
    'botnet': 256,
    'halonet': 256,
    'crossvit': 240,
    'maxvit_rmlp': 256,
    'inception_v4': 160,
    'eva02': 224,
    'resnetv2_50x1': 96,
}
FIXED = (
    'vit_b_32 deit deit3 xcit pit visformer tnt twins gmlp resmlp swin pvt efficientvit_m '
    'tiny_vit swiftformer nextvit coat convit volo sequencer nest davit focalnet hiera gcvit '
    'mvitv2 vit_tiny mixer gmixer lambda bat_'
)


def healthy(network: str, given: str) -> dict[str, Any] | None:
    """Say what is said of a published network; None for unit gain where no gain is zero."""
    net = build(network)
    if given == 'unit gain' and not zero_gains(net):
        return None
    name = network.partition(' ')[2]
    size = next((s for key, s in SIZES.items() if name.startswith(key)), 64)
    if any(name.startswith(key) for key in FIXED.split()):
        size = 224
    if network in SUBJECTS or network in HELD_OUT:
        size = 64
    if given == 'images' and network in LANGUAGE:
        return None
    x = example(network, size, 4 if size < 200 else 2)
    x = smooth_images(size) if given == 'images' else x
    verdicts = analyze(net, x, unit_gain=given == 'unit gain').verdicts()
    return dict(
        network=network,
        input=given,
        loud=[v['rule'] for v in verdicts if v['severity'] != 'info'],
        verdicts=[{k: v[k] for k in ('rule', 'severity', 'name', 'message')} for v in verdicts],
    )


def summary(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Count what the results come to."""
    faults, twins = results['faults'], results['healthy']
    placed = [r for r in faults if r['localised'] is not None]
    said = [v for r in faults for v in r['verdicts'] if v['severity'] != 'info']
    wrong = sum(len(r['wrong']) for r in faults)
    modern = [r for r in twins if r['network'].rpartition(' ')[2] not in CLASSICS]
    good = [r for r in results['trainings'] if r['recipe'] == 'good']
    bad = [r for r in results['trainings'] if r['recipe'] != 'good']
    return dict(
        faults=len(faults),
        kinds=len({r['fault'] for r in faults}),
        networks=len({r['network'] for r in faults}),
        named=_share(sum(r['named'] for r in faults), len(faults)),
        localised=_share(sum(bool(r['localised']) for r in placed), len(placed)),
        verdicts_beside_the_fault=_share(wrong, max(len(said), 1)),
        healthy_networks=len({r['network'] for r in twins}),
        healthy=len(twins),
        healthy_with_a_warning=_share(sum(bool(r['loud']) for r in twins), len(twins)),
        without_classics=_share(sum(bool(r['loud']) for r in modern), len(modern)),
        good_trainings=len(good),
        good_with_a_warning=sum(bool(r['loud']) for r in good),
        bad_trainings=len(bad),
        bad_with_a_warning=sum(bool(r['loud']) for r in bad),
    )


def _share(count: int, of: int) -> float:
    return round(count / max(1, of), 4)
