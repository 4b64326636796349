"""Write docs/study.md, tables and figures from the results of the study.

    python -m benchmarks.study.page

The text is in page.md. All its numbers that depend on the results are fields.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from nf_plugins.cli.arguments import ArgumentParser
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import UsageError
from nf_plugins.utils.files import atomic_write

from .claims import claims_table, transferred
from .figures import KINDS, clip_label, shares, write_figures
from .film import mean_share
from .landscape import predicted_shares, row_width
from .results import OUT, Results, Rows
from .runs import CHANCE, NETWORKS, PARTS, Run, runs_of

TEMPLATE, PAGE = Path(__file__).with_name('page.md'), ROOT / 'docs/study.md'


def accuracy(rows: Rows, key: str = 'accuracy') -> str:
    """Show the mean over the seeds and, with several seeds, the standard deviation."""
    return mean_and_spread([row[key] for row in rows.rows])


def mean_and_spread(values: list[float], form: str = '.1f') -> str:
    """Show a mean and, of several values, the standard deviation."""
    spread = f' ± {statistics.stdev(values):{form}}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):{form}}{spread}'


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """Make a table."""
    table = [head, ['---', *['---:'] * (len(head) - 1)], *lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in table)


def cell(rows: Rows) -> str:
    """Show the accuracy, or that all runs or some have failed."""
    failed = rows.failed()
    if not rows.rows:
        return ''
    if failed == len(rows.rows):
        return 'fails'
    return accuracy(rows) + (f' ({failed} fail)' if failed else '')


def grid(rows: Rows, columns: list[tuple[str, dict]]) -> str:
    """Make a table of accuracies: a line for each network."""
    lines = [
        [NETWORKS[network].label, *(cell(rows.where(network=network, **c)) for _, c in columns)]
        for network in rows.values('network')
    ]
    return markdown(['network', *(title for title, _ in columns)], lines)


def depth_table(rows: Rows) -> str:
    """Make the table of depths and learning rates."""
    pairs = sorted({(r['blocks'], r['lr']) for r in rows.rows})
    columns = [
        (f'{Run("", "", blocks).convs} convs, lr {lr:g}', dict(blocks=blocks, lr=lr))
        for blocks, lr in pairs
    ]
    return grid(rows, columns)


def prediction_table(rows: Rows) -> str:
    """Count the runs by what the rules said before the first step, and by what happened."""
    lines = []
    for title, says in (
        ('an error: it will fail', lambda p: p['errors']),
        ('a warning', lambda p: p['warnings'] and not p['errors']),
        ('nothing', lambda p: not p['warnings'] and not p['errors']),
    ):
        found = Rows([r for r in rows.rows if says(r['prediction'])])
        rules = Counter(
            rule
            for r in found.rows
            for rule in r['prediction']['errors'] or r['prediction']['warnings']
        )
        named = ', '.join(f'`{rule}` {count}' for rule, count in sorted(rules.items()))
        failed = found.failed()
        lines.append([title, str(failed), str(len(found.rows) - failed), named])
    head = ['the rules say before the first step', 'runs that failed', 'runs that learnt', 'rules']
    return markdown(head, lines)


def batch_table(rows: Rows) -> str:
    """Make the table of batch sizes."""
    sizes = sorted(rows.values('batch_size'))
    text = grid(rows, [(f'batch {size}', dict(batch_size=size)) for size in sizes])
    bn = [accuracy(rows.where(network='bn', batch_size=s), 'batch_accuracy') for s in sizes]
    return f'{text}\n| batch norm, statistics of the batch | {" | ".join(bn)} |'


def agc_table(rows: Rows) -> str:
    """Make the table of the largest learning rates at which no run fails."""
    sizes = sorted(rows.values('batch_size'))

    def largest(**where: Any) -> str:
        found = rows.where(**where)
        lrs = [lr for lr in found.values('lr') if not found.where(lr=lr).failed()]
        if not lrs:
            return 'none'
        best = found.best_lr()
        return f'{max(lrs):g}; best {best:g}: {accuracy(found.where(lr=best))}'

    lines = [
        [clip_label(clip), *(largest(batch_size=size, clip_factor=clip) for size in sizes)]
        for clip in sorted(rows.values('clip_factor'), key=lambda c: -(c or 1e9))
    ]
    return markdown(['clipping', *(f'batch {size}' for size in sizes)], lines)


def clipped_table(rows: Rows) -> str:
    """Make the table of the units that AGC clips."""
    clips = sorted((c for c in rows.values('clip_factor') if c), reverse=True)
    found = {clip: shares(rows.where(clip_factor=clip)) for clip in clips}
    stages = ['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'classifier']
    lines = [
        [f'{kind}, {clip_label(clip)}']
        + [f'{100 * v:.0f} %' if (v := found[clip].get(f'{s} {kind}')) is not None else ''
           for s in stages]
        for kind in KINDS
        for clip in clips
    ]  # fmt: skip
    return markdown(['parameters', *stages], lines)


def collapse_table(rows: Rows) -> str:
    """Make the table of the collapse."""
    lines = []
    for network in rows.values('network'):
        for lr in sorted(rows.where(network=network).values('lr')):
            mine = rows.where(network=network, lr=lr)
            found = [
                (max((s for s in mean_share(frame) if s == s), default=0.0), frame['step'])
                for row in mine.rows
                for frame in row['film']
            ]
            first = max(share for share, step in found if step == 0)
            largest, step = max(found)
            ended = sum(row['failed'] == 'non-finite' for row in mine.rows)
            lines.append(
                [NETWORKS[network].label, f'{lr:g}', cell(mine), f'{ended} of {len(mine.rows)}',
                 f'{first:.2g}', f'{largest:.2g}', str(step)]
            )  # fmt: skip
    head = ['network', 'lr', 'test accuracy', 'not finite', 'share at step 0', 'largest share']
    return markdown([*head, 'at step'], lines)


def landscape_table(rows: Rows) -> str:
    """Make the table of the landscapes: after the training, and while it lasts."""
    steps = sorted({moment['step'] for row in rows.rows for moment in row['descent']})
    lines = []
    for network in rows.values('network'):
        mine = rows.where(network=network).rows
        valleys = [row for row in mine if 'valley' in row]
        shares = [predicted_shares(row) for row in mine]
        widths = [
            mean_and_spread([row_width(r, key) for r in valleys if key in r['valley']], '.2f')
            if any(key in row['valley'] for row in valleys)
            else ''
            for key in ('lines', 'running')
        ]
        lines.append(
            [NETWORKS[network].label, cell(Rows(mine)), *widths]
            + [f'{statistics.median(s[step] for s in shares if step in s):.2f}' for step in steps]
        )
    head = ['network', 'test accuracy', 'width of the valley', 'with running statistics']
    return markdown([*head, *(f'step {step}' for step in steps)], lines)


def transfer_table(rows: Rows) -> str:
    """Make the table of the digits."""
    found = transferred(rows)
    starts = dict(scratch='from scratch', weights='from the weights of Fashion-MNIST')
    lines = [
        [title, *(mean_and_spread(found[images][start]) for images in found)]
        for start, title in starts.items()
    ]
    return markdown(['NF', *(f'{images} digits' for images in found)], lines)


def multiplicity_table(rows: Rows) -> str:
    """Make the table of the numbers of augmentations."""
    lines = []
    for number in rows.values('multiplicity'):
        mine = rows.where(multiplicity=number)
        accuracies = [accuracy(mine, key) for key in ('val_accuracy', 'accuracy')]
        loss = mine.mean('loss') if not mine.failed() else math.nan
        lines.append([str(number), *accuracies, f'{loss:.2f}'])
    head = ['augmentations', 'validation accuracy', 'test accuracy', 'last training loss']
    return markdown(head, lines)


TABLES: dict[str, Callable[[Rows], dict[str, str]]] = {
    'depth': lambda rows: dict(depth=depth_table(rows), prediction=prediction_table(rows)),
    'ablation': lambda rows: dict(ablation=grid(rows, _lrs(rows))),
    'batch': lambda rows: dict(batch=batch_table(rows)),
    'agc': lambda rows: dict(agc=agc_table(rows), clipped=clipped_table(rows)),
    'collapse': lambda rows: dict(collapse=collapse_table(rows)),
    'landscape': lambda rows: dict(landscape=landscape_table(rows)),
    'transfer': lambda rows: dict(transfer=transfer_table(rows), pretrained=accuracy(rows)),
    'pointwise': lambda rows: dict(pointwise=grid(rows, _lrs(rows))),
    'multiplicity': lambda rows: dict(multiplicity=multiplicity_table(rows)),
}


def _lrs(rows: Rows) -> list[tuple[str, dict]]:
    return [(f'lr {lr:g}', dict(lr=lr)) for lr in sorted(rows.values('lr'))]


def elsewhere(results: Results) -> dict[str, Results]:
    """Return the results of other processors, ``results_*.json`` in the same folder."""
    found = [Results(path) for path in sorted(results.path.parent.glob('results_*.json'))]
    return {other.content['machine']['cpu']: other for other in found}


def comparison(results: Results, other: Results) -> str:
    """Say how much the results of the same runs differ between two processors."""
    here, there = results.rows(), other.rows()
    pairs = [(here[run], there[run]) for run in here if run in there]
    differences = [abs(a['accuracy'] - b['accuracy']) for a, b in pairs]
    ended = sum((a['failed'] is None) != (b['failed'] is None) for a, b in pairs)
    return (
        f'on {other.content["machine"]["cpu"]} ([{other.path.name}]'
        f'(../benchmarks/results/study/{other.path.name})), the accuracies of the same '
        f'{len(pairs)} runs differ by {statistics.median(differences):.1f} points (median) and by '
        f'{max(differences):.1f} at most, and {ended} runs fail on one of the two processors only'
    )


def fields(results: Results, others: dict[str, Results]) -> dict[str, Any]:
    """Return the fields of the text."""
    found = results.rows()
    rows = Rows(list(found.values()))
    wanted = runs_of(list(PARTS), [0, 1, 2], more=False)
    missing = [run for run in wanted if run not in found]
    parts, seeds = rows.values('part'), len(rows.values('seed'))
    return dict(
        runs=len(rows.rows),
        present='the whole default study'
        if not missing
        else f'{len(missing)} of the default study are missing',
        seeds=f'{seeds} seeds' if seeds > 1 else 'one seed',
        minutes=f'{sum(row["cpu_seconds"] for row in rows.rows) / 60:.0f}',
        chance=f'{CHANCE:g}',
        cpu=results.content['machine']['cpu'],
        torch=results.content['machine']['torch'],
        elsewhere='; '.join(comparison(results, other) for other in others.values()),
        claims=claims_table(
            rows,
            {run.part for run in missing},
            {cpu: Rows(list(other.rows().values())) for cpu, other in others.items()},
        ),
        **{
            name: text
            for part in parts
            for name, text in TABLES[part](rows.where(part=part)).items()
        },
    )


def page(results: Results) -> str:
    """Return the page of some results. A section without results is left out."""
    parts = Rows(list(results.rows().values())).values('part')
    others = elsewhere(results)
    parts += ['elsewhere'] if others else []

    def section(match: re.Match) -> str:
        return match[2] if match[1] in parts else ''

    text = re.sub(
        r'<!-- part: (\w+) -->\n(.*?)<!-- end -->\n\n', section, TEMPLATE.read_text(), flags=re.S
    )
    return text.format_map(fields(results, others))


@command_line
def main() -> None:
    parser = ArgumentParser(description='Write the page and the figures of the study.')
    parser.add_argument('--results', type=Path, default=OUT, help='folder of results.json')
    parser.add_argument('--page', type=Path, default=PAGE, help=argparse.SUPPRESS)
    args = parser.parse_args()
    results = Results(args.results / 'results.json')
    if not results.content['runs']:
        raise UsageError(f'no results in {args.results}: `make study` makes them')
    atomic_write(args.page, page(results))
    write_figures(Rows(list(results.rows().values())), args.results)


if __name__ == '__main__':
    main()
