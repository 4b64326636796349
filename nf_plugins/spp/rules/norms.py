"""Norms that are missing, and batch norms whose statistics do not fit."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict

from nf_plugins.registry import RULES

from ..evidence import LayerFact, NormFact
from ..profile import BlockSignal, SignalProfile
from .base import Finding, Findings, also, block_at, called, evidence_of, kind_of, role, says, some


@RULES.register_module()
@says('warning')
def norm_missing(
    profile: SignalProfile, blocks: list[BlockSignal], *, siblings: float = 0.75
) -> Findings:
    """A block lacks a norm that its siblings have."""
    missing: list[tuple[BlockSignal, str]] = []
    for part in ('norms', 'shortcut_norms'):
        groups = defaultdict(list)
        for before, b in zip([None, *blocks], blocks):
            if b.layers and (part == 'norms' or b.kind == 'transition'):
                # Plain blocks that change the shape may lack a norm (RepVGG's identity).
                same = b.kind != 'plain' or (before is not None and before.shape == b.shape)
                groups[kind_of(b), same].append(b)
        for group in groups.values():
            for b in group:
                others = Counter(getattr(o, part) for o in group if o is not b)
                usual, count = max(others.items(), key=lambda item: item[1], default=(0, 0))
                if count < 2 or count < siblings * sum(others.values()):
                    continue
                if getattr(b, part) < usual:
                    where = 'its branch' if part == 'norms' else 'its shortcut'
                    missing.append((b, f'{where} has {getattr(b, part)} of {usual} norms'))
    if missing:
        first, text = min(missing, key=lambda item: item[0].index)
        cause = f'{called(first)} lacks a norm that its siblings have: {text}'
        names = _norms_without(profile, blocks, first)
        if names:
            cause += f' ({some(names)} {"is" if len(names) == 1 else "are"} missing)'
        if len(missing) > 1:
            cause += f'; so it is in {some(b.name for b, _ in missing)}'
        yield Finding('warning', first.index, cause, REMEDY)
        return
    lacking = _modules_without(profile, siblings)
    if lacking:
        index, module, names = min(lacking, key=lambda item: item[0])
        paths = [f'{module}.{name}' for name in names]
        cause = f'{module} lacks a norm that its siblings have, {some(paths)}'
        cause += also(other for _, other, _ in lacking)
        yield Finding('warning', index, cause, REMEDY)


REMEDY = 'Add the norm, as its siblings have it'


def _modules_without(profile: SignalProfile, siblings: float) -> list[tuple[int, str, list[str]]]:
    """Modules inside a block, repeated there, that lack norms: block, path, names of the norms."""
    evidence = evidence_of(profile)
    parts: dict[str, tuple[int, set[str], set[str]]] = {}
    facts: list[LayerFact | NormFact] = [*evidence.layers, *evidence.norms]
    for fact in facts:
        owner, _, leaf = fact.module.rpartition('.')
        block = block_at(profile, fact.block)
        if block.module and owner.startswith(f'{block.module}.'):
            _, layers, norms = parts.setdefault(owner, (fact.block, set(), set()))
            (norms if isinstance(fact, NormFact) else layers).add(leaf)
    groups = defaultdict(list)
    for owner, (_, layers, _) in parts.items():
        groups[role(f'{owner}.'), frozenset(layers)].append(owner)
    found = []
    for group in groups.values():
        counts = Counter(leaf for owner in group for leaf in parts[owner][2])
        usual = {leaf for leaf, n in counts.items() if n >= max(3, siblings * (len(group) - 1))}
        repeated = Counter(parts[owner][0] for owner in group)
        for owner in group:
            index, layers, norms = parts[owner]
            if layers and usual - norms and repeated[index] > 1:
                found.append((index, owner, sorted(usual - norms)))
    return found


def _norms_without(
    profile: SignalProfile, blocks: list[BlockSignal], block: BlockSignal
) -> list[str]:
    """Paths, in a block, of the norms that most blocks of its class have and it has not."""
    modules = {b.module for b in blocks if b.module and b.family == block.family}
    counts: Counter[str] = Counter()
    own: set[str] = set()
    for path in {norm.module for norm in evidence_of(profile).norms}:
        for module in modules:
            if path.startswith(f'{module}.'):
                name = path.removeprefix(f'{module}.')
                own |= {name} if module == block.module else set()
                counts[name] += module != block.module
    least = max(2, len(modules) / 2)
    return [f'{block.module}.{n}' for n, count in counts.items() if count >= least and n not in own]


@RULES.register_module()
@says('warning', 'info')
def norm_statistics(
    profile: SignalProfile,
    blocks: list[BlockSignal],
    *,
    decades: float = 0.5,
    values: float = 16.0,
) -> Findings:
    """Running statistics that do not fit the data, were never trained, or are of one image."""
    norms = evidence_of(profile).norms
    running = [n for n in norms if n.running]
    untouched = [n for n in running if n.untouched]
    known = [n for n in running if n.log_ratio is not None and not n.untouched]
    wrong = [n for n in known if (n.log_ratio or 0) > decades]
    if untouched:
        where = some(n.module for n in untouched)
        remedy = "Measure in train mode (mode='train'), or train them first"
        if profile.mode == 'asis':
            remedy = 'Load trained statistics before these norms are frozen, or let them train'
        yield Finding(
            'warning',
            untouched[0].block,
            f'the running statistics of {len(untouched)} of {len(running)} batch norms ({where}) '
            'are those of a new layer, 0 and 1, so that these norms do nothing',
            remedy,
        )
    elif wrong:
        yield Finding(_severity(profile, wrong, known), wrong[0].block, *_misfit(wrong, known))
    elif not running:
        yield from _few_images(profile, norms, values)


def _misfit(wrong: list[NormFact], known: list[NormFact]) -> tuple[str, str]:
    worst = max(wrong, key=lambda n: n.log_ratio or 0)
    cause = (
        f'the running statistics of {len(wrong)} of {len(known)} batch norms do not fit the data: '
        f'in {worst.module} they are {10 ** (worst.log_ratio or 0):.3g} times off'
    )
    if worst.batches is not None and worst.batches < 10:
        cause += f', as they have seen {worst.batches} batches'
    if len(wrong) < len(known) / 2:
        return cause, f'Compute the statistics of {some(n.module for n in wrong)} anew'
    return cause, 'Measure with the data of the training, or compute the statistics anew'


def _severity(profile: SignalProfile, wrong: list[NormFact], known: list[NormFact]) -> str:
    """Noise does not fit what was trained on images, and says nothing about the network."""
    noise = profile.input.get('kind') == 'gaussian' and profile.state == 'trained'
    middle = statistics.median(n.log_ratio or 0 for n in known)
    return 'info' if noise and middle > 0.1 else 'warning'


def _few_images(profile: SignalProfile, norms: list[NormFact], values: float) -> Findings:
    inputs = evidence_of(profile).inputs
    batch = [n for n in norms if n.count]
    if inputs and inputs[0].shape[0] == 1 and batch:
        few = [n for n in batch if n.count < values]
        least = min(batch, key=lambda n: n.count)
        yield Finding(
            'warning' if few else 'info',
            (few or batch)[0].block,
            f'the statistics of {len(batch)} batch norms come from one image, in {least.module} '
            f'from {least.count} values',
            'Measure with a batch of several images',
        )
