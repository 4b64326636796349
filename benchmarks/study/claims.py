"""Claims of the papers. Each has a criterion, which was written before the study was run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from .film import mean_share
from .landscape import predicted_shares, row_width
from .results import Rows
from .runs import NETWORKS


class Claim(NamedTuple):
    """Claim of a paper.

    Args:
        part: The part of the study that tests it.
        text: What the paper says.
        criterion: When the study confirms it.
        judge: Returns whether the criterion holds, and what was measured. It raises LookupError if
            runs are missing.
    """

    part: str
    text: str
    criterion: str
    judge: Callable[[Rows], tuple[bool, str]]


def some(rows: Rows) -> Rows:
    """Return the rows.

    Raises:
        LookupError: There are none.
    """
    if not rows.rows:
        raise LookupError('no such run')
    return rows


def deepest(rows: Rows) -> Rows:
    return rows.where(blocks=max(some(rows).values('blocks')))


def none_fails(*networks: str) -> Callable[[Rows], tuple[bool, str]]:
    """No run of these networks fails at the smallest learning rate."""

    def judge(rows: Rows) -> tuple[bool, str]:
        lowest = rows.where(lr=min(some(rows).values('lr')))
        found = [some(lowest.where(network=network)) for network in networks]
        failed, runs = sum(f.failed() for f in found), sum(len(f.rows) for f in found)
        accuracy = [deepest(f).mean() for f in found]
        least = ' and '.join(f'{a:.1f} %' for a in accuracy)
        return failed == 0, f'{failed} of {runs} runs fail; at the largest depth {least}'

    return judge


def all_fail(*networks: str) -> Callable[[Rows], tuple[bool, str]]:
    """All runs of these networks fail at the largest depth."""

    def judge(rows: Rows) -> tuple[bool, str]:
        found = [some(deepest(rows).where(network=network)) for network in networks]
        failed, runs = sum(f.failed() for f in found), sum(len(f.rows) for f in found)
        return failed == runs, f'{failed} of {runs} runs fail'

    return judge


def predicted(rows: Rows) -> tuple[bool, str]:
    rows = some(rows.where(lr=min(some(rows).values('lr'))))
    bad = Rows([r for r in rows.rows if r['prediction']['errors']])
    good = Rows([r for r in rows.rows if not r['prediction']['errors']])
    holds = bad.failed() >= 0.9 * len(some(bad).rows)
    holds &= good.failed() <= 0.1 * len(some(good).rows)
    return holds, (
        f'{bad.failed()} of {len(bad.rows)} runs with an error fail, '
        f'and {good.failed()} of {len(good.rows)} without'
    )


def larger_rates(rows: Rows) -> tuple[bool, str]:
    holds, said = True, []
    for size in sorted(some(rows).values('batch_size')):
        mine = rows.where(batch_size=size)
        limit = {}
        for clip in mine.values('clip_factor'):
            cell = mine.where(clip_factor=clip)
            limit[clip] = max(
                (lr for lr in cell.values('lr') if not cell.where(lr=lr).failed()), default=0.0
            )
        without, best = limit[None], max(v for c, v in limit.items() if c is not None)
        holds &= best > without
        said.append(f'batch {size}: {without:g} without and {best:g} with AGC')
    return holds, '; '.join(said)


def _at(rows: Rows, network: str, size: int, key: str = 'accuracy') -> float:
    return some(rows.where(network=network, batch_size=size)).mean(key)


def small_batches(rows: Rows) -> tuple[bool, str]:
    sizes = some(rows).values('batch_size')
    gaps = [_at(rows, 'nf-agc', size) - _at(rows, 'bn', size) for size in (min(sizes), max(sizes))]
    text = (
        f'NF minus batch norm: {gaps[0]:+.1f} at batch {min(sizes)}, {gaps[1]:+.1f} at {max(sizes)}'
    )
    return gaps[0] >= gaps[1] + 5, text


def running_statistics(rows: Rows) -> tuple[bool, str]:
    size = min(some(rows).values('batch_size'))
    running, batch = (_at(rows, 'bn', size, key) for key in ('accuracy', 'batch_accuracy'))
    return running < batch - 5, (
        f'{running:.1f} % with running statistics, {batch:.1f} % with those of the batch'
    )


def collapses(rows: Rows) -> tuple[bool, str]:
    largest = {}
    for network in ('plain', 'pws', 'ws'):
        frames = [f for r in some(rows.where(network=network)).rows for f in r['film']]
        largest[network] = max(share for f in frames for share in mean_share(f) if share == share)
    plain, pws, ws = largest.values()
    failed = rows.where(network='plain')
    text = (
        f'largest share {plain:.2f} in the plain network, {pws:.2f} with PWS, {ws:.2f} with '
        f'Scaled WS; {failed.failed()} of {len(failed.rows)} plain runs fail'
    )
    return plain > 2 * max(pws, ws) and failed.failed() > 0, text


def lead(rows: Rows, others: Rows) -> tuple[float, float]:
    """Return how much higher the mean accuracy of some rows is, and both spreads together.

    Raises:
        LookupError: There are no rows, or those of one seed only.
    """
    if min(len(some(rows).rows), len(some(others).rows)) < 2:
        raise LookupError('one seed has no spread')
    return rows.mean() - others.mean(), rows.spread() + others.spread()


def less_without(network: str) -> Callable[[Rows], tuple[bool, str]]:
    """The accuracy is lower than that of NF, by more than both spreads."""

    def judge(rows: Rows) -> tuple[bool, str]:
        less, spread = lead(rows.where(network='nf'), rows.where(network=network))
        return less > spread, f'{-less:+.1f} points; both spreads together {spread:.1f}'

    return judge


def _smoothed(rows: Rows, measure: Callable[[Rows], list[float]]) -> dict[str, list[float]]:
    """Return what was measured of each network of the landscapes, the plain one last."""
    return {n: measure(some(rows.where(network=n))) for n in ('nf', 'pws', 'bn', 'plain')}


def wider(rows: Rows) -> tuple[bool, str]:
    def widths(found: Rows) -> list[float]:
        return [row_width(row) for row in some(Rows([r for r in found.rows if 'valley' in r])).rows]

    found = _smoothed(rows, widths)
    if min(map(len, found.values())) < 2:
        raise LookupError('one seed has no spread')
    mean, spread = (
        {n: f(v) for n, v in found.items()} for f in (statistics.fmean, statistics.stdev)
    )
    holds = all(
        mean[n] - mean['plain'] > spread[n] + spread['plain'] for n in found if n != 'plain'
    )
    return holds, 'width ' + ', '.join(
        f'{NETWORKS[n].label} {mean[n]:.2f} ± {spread[n]:.2f}' for n in found
    )


def predictive(rows: Rows) -> tuple[bool, str]:
    found = _smoothed(
        rows,
        lambda found: [share for row in found.rows for share in predicted_shares(row).values()],
    )
    median = {n: statistics.median(shares) for n, shares in found.items()}
    plain = abs(1 - median['plain'])
    holds = all(abs(1 - median[n]) < plain for n in found if n != 'plain')
    return holds, 'median ' + ', '.join(f'{NETWORKS[n].label} {median[n]:.2f}' for n in found)


def transfers(rows: Rows) -> tuple[bool, str]:
    found = transferred(some(rows))
    if len(rows.rows) < 2:
        raise LookupError('one seed has no spread')
    holds, said = True, []
    for images, starts in found.items():
        scratch, weights = starts['scratch'], starts['weights']
        gain = statistics.fmean(weights) - statistics.fmean(scratch)
        spread = statistics.stdev(weights) + statistics.stdev(scratch)
        holds &= gain > spread
        said.append(f'{gain:+.1f} points with {images} digits (both spreads {spread:.1f})')
    return holds, '; '.join(said)


def at_best_lr(rows: Rows) -> Rows:
    """Return the rows of the learning rate that is best on the validation images."""
    return rows.where(lr=some(rows).best_lr())


def as_good_as_layer_norm(*networks: str) -> Callable[[Rows], tuple[bool, str]]:
    """Each of these is at most both spreads worse than layer norm."""

    def judge(rows: Rows) -> tuple[bool, str]:
        norm = at_best_lr(rows.where(network='vit-ln'))
        holds, said = True, [f'layer norm {norm.mean():.1f} %']
        for network in networks:
            found = at_best_lr(rows.where(network=network))
            less, spread = lead(norm, found)
            holds &= less <= spread
            label = NETWORKS[network].label.removeprefix('ViT, ')
            said.append(f'{label} {found.mean():.1f} % (both spreads {spread:.1f})')
        return holds, '; '.join(said)

    return judge


def norms_matter(rows: Rows) -> tuple[bool, str]:
    norm, none = (at_best_lr(rows.where(network=name)) for name in ('vit-ln', 'vit-none'))
    less, spread = lead(norm, none)
    return less > spread, f'{-less:+.1f} points; both spreads together {spread:.1f}'


def copies_help(rows: Rows) -> tuple[bool, str]:
    once, numbers = at_best_lr(rows.where(multiplicity=1)), some(rows).values('multiplicity')
    several = [at_best_lr(rows.where(multiplicity=number)) for number in numbers if number > 1]
    best = max(several, key=lambda found: found.mean('val_accuracy'))
    more, spread = lead(best, once)
    return more > spread, (
        f'{more:+.1f} points with {best.rows[0]["multiplicity"]} augmentations; '
        f'both spreads together {spread:.1f}'
    )


def transferred(rows: Rows) -> dict[int, dict[str, list[float]]]:
    """Return the accuracies on the digits: number of images -> start -> one for each seed."""
    found: dict[int, dict[str, list[float]]] = {}
    for row in rows.rows:
        for digits in row['transfer']:
            starts = found.setdefault(digits['images'], dict(scratch=[], weights=[]))
            for start, values in starts.items():
                values.append(digits[start])
    return found


NF, AGC, PWS = 'Brock et al. 2021a', 'Brock et al. 2021b', 'arXiv 2103.11590'
CLAIMS = [
    Claim(
        'depth',
        f'NF networks train at any depth ({NF}).',
        'No run of NF, with or without AGC, fails at the smaller learning rate.',
        none_fails('nf', 'nf-agc'),
    ),
    Claim(
        'depth',
        'Networks with batch norm train at any depth, in both orders of norm and ReLU.',
        'No run of them fails at the smaller learning rate.',
        none_fails('bn', 'relu-bn'),
    ),
    Claim(
        'depth',
        'SkipInit and Fixup train at any depth (De and Smith 2020, Zhang et al. 2019).',
        'No run of them fails at the smaller learning rate.',
        none_fails('skipinit', 'fixup'),
    ),
    Claim(
        'depth',
        f'Without Scaled WS, a deep NF network does not train: its channels get means ({NF}).',
        'All its runs fail at the largest depth.',
        all_fail('nf-no-ws'),
    ),
    Claim(
        'depth',
        'A deep network without any of these methods does not train.',
        'All plain runs fail at the largest depth.',
        all_fail('plain'),
    ),
    Claim(
        'depth',
        f'The signal propagation plot of the untrained network shows this ({NF}).',
        'At the smaller learning rate, at least 90 % of the runs for which a rule says "error" '
        'fail, and at most 10 % of the others.',
        predicted,
    ),
    Claim(
        'batch',
        f'NF networks are better than batch norm at small batches ({AGC}).',
        'The lead of NF over batch norm is at least 5 points larger at the smallest batch than at '
        'the largest.',
        small_batches,
    ),
    Claim(
        'batch',
        'The reason is that running statistics do not fit.',
        'At the smallest batch, batch norm is at least 5 points better with the statistics of the '
        'batch than with running statistics.',
        running_statistics,
    ),
    Claim(
        'agc',
        f'AGC allows larger learning rates ({AGC}).',
        'At each batch size, the largest learning rate at which no run fails is larger with AGC.',
        larger_rates,
    ),
    Claim(
        'collapse',
        f'The average gradient of an un-normalised network shifts, and it collapses; PWS and WS '
        f'prevent this ({PWS}).',
        'Runs of the plain network fail, and the largest share of the mean in its gradient is more '
        'than twice that of PWS and of Scaled WS.',
        collapses,
    ),
    Claim(
        'landscape',
        'Scaled WS, PWS and batch norm smooth the loss around the trained weights (Santurkar et '
        'al. 2018, Qiao et al. 2019).',
        'Along random directions that are normalised by filter, the valley is wider with each of '
        'NF, PWS and batch norm than in the plain network, by more than both standard deviations. '
        'Its width is measured where the loss has risen by 0.5.',
        wider,
    ),
    Claim(
        'landscape',
        'They make the gradient more predictive while a network trains (Santurkar et al. 2018).',
        'For the step along minus the gradient that is predicted to reduce the loss by a tenth, '
        'the median of actual : predicted decrease is closer to 1 with each of them than in the '
        'plain network.',
        predictive,
    ),
    Claim(
        'transfer',
        f'NF networks can be fine-tuned, which helps where there are few images ({AGC}).',
        'With each number of digits, the accuracy from the weights of Fashion-MNIST is higher '
        'than from scratch, by more than both standard deviations.',
        transfers,
    ),
    Claim(
        'pointwise',
        'DyT and Derf take the place of layer norm in a transformer (Zhu et al. 2025, Chen et al. '
        '2025).',
        'The accuracy with each is at most both standard deviations below that with layer norm. '
        'Each has the learning rate that is best for it on the validation images.',
        as_good_as_layer_norm('vit-dyt', 'vit-derf'),
    ),
    Claim(
        'pointwise',
        'A transformer needs something in the place of its norms.',
        'The accuracy is lower without norms than with layer norm, by more than both standard '
        'deviations, also at the best learning rates.',
        norms_matter,
    ),
    Claim(
        'multiplicity',
        'Several augmentations of an image in a batch raise the accuracy, at equal steps and '
        'batches (Fort et al. 2021).',
        'The accuracy is higher with the number of augmentations that is best on the validation '
        'images than with one, by more than both standard deviations.',
        copies_help,
    ),
    *(
        Claim(
            'ablation',
            f'{what} contributes to the accuracy.',
            'The accuracy is lower without it, by more than both standard deviations.',
            less_without(network),
        )
        for what, network in {
            'Scaled WS': 'nf-no-ws',
            'The gain of the filters': 'no-gain',
            'Gamma, the gain of the activations,': 'no-gamma',
            'Beta, the scale of the input of a block,': 'no-beta',
            'Alpha = 0.2 (instead of 1)': 'alpha1',
        }.items()
    ),
]


VERDICTS = {True: 'yes', False: '**no**', None: 'open'}


def judged(claim: Claim, rows: Rows) -> tuple[bool | None, str]:
    """Judge a claim; the verdict is None if runs are missing."""
    try:
        return claim.judge(rows.where(part=claim.part))
    except LookupError:
        return None, 'not enough runs'


def claims_table(
    rows: Rows, unfinished: Collection[str] = (), others: Mapping[str, Rows] | None = None
) -> str:
    """Judge all claims of which there are results, and make a table.

    Args:
        rows: All rows.
        unfinished: Parts of which runs are missing; what is said of them holds so far only.
        others: Rows of the same study on other processors, by their names.
    """
    others = others or {}
    head = ['claim', 'confirmed if', 'measured', 'confirmed', *(f'on {cpu}' for cpu in others)]
    rule = ['---', '---', '---', *[':---:'] * (1 + len(others))]
    lines = [head, rule]
    for claim in CLAIMS:
        holds, measured = judged(claim, rows)
        said = VERDICTS[holds]
        if holds is not None and claim.part in unfinished:
            said += ', so far'
        elsewhere = [VERDICTS[judged(claim, found)[0]] for found in others.values()]
        lines.append([claim.text, claim.criterion, measured, said, *elsewhere])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
