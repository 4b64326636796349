"""The pictures of faults and of their repairs in docs/reading_spps.md.

    python docs/fault_figures.py [NAME ...]

The left panel is a curve of the plot, the right one is what the rule looks at, with its threshold.
"""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from nf_plugins.spp import SignalProfile, analyze
from nf_plugins.spp.report.axes import COLOURS, TITLES
from nf_plugins.utils.files import atomic_write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import quiet
from benchmarks.faults.faults import FAULTS
from benchmarks.faults.networks import build
from benchmarks.faults.run import noise

Points = tuple[list[float], list[float]]


@dataclass
class Picture:
    """A fault, its curve, and what its rule looks at.

    Args:
        network: Name of a network of ``benchmarks.faults``.
        kind: Kind of fault.
        metric: Field of a block, for the left panel.
        look: Returns the points of the right panel.
        labels: Names of the axes of the right panel.
        threshold: What the rule compares with.
        log: Which panels have a logarithmic axis: 'left', 'right', 'both' or ''.
        title: What the fault is, for the legend.
        options: Arguments of ``analyze``.
    """

    network: str
    kind: str
    metric: str
    look: Callable[[SignalProfile], Points]
    labels: tuple[str, str]
    threshold: float | None
    title: str
    log: str = 'both'
    options: dict[str, Any] = field(default_factory=dict)


def blocks(value: Callable[[Any], float | None]) -> Callable[[SignalProfile], Points]:
    """Points of the blocks for which a value is known."""

    def look(profile: SignalProfile) -> Points:
        pairs = [(float(b.index), v) for b in profile.blocks if (v := value(b)) is not None]
        return [x for x, _ in pairs], [y for _, y in pairs]

    return look


def facts(kind: str, value: str) -> Callable[[SignalProfile], Points]:
    """Points of the evidence of a kind, in order of execution."""

    def look(profile: SignalProfile) -> Points:
        found = [getattr(fact, value) for fact in getattr(profile.evidence, kind)]
        pairs = [(float(i), v) for i, v in enumerate(found) if v is not None]
        return [x for x, _ in pairs], [y for _, y in pairs]

    return look


def added(block: Any) -> float | None:
    """Share of the variance that a branch adds."""
    if not block.res_avg_var or block.branch_gain is None:
        return None
    return block.branch_gain**2 * block.res_avg_var / block.avg_var


PICTURES = dict(
    input=Picture(
        'NFResNet', 'raw_pixels', 'avg_var', facts('inputs', 'std'),
        ('Input', 'Standard deviation of the input'), 10.0, 'pixels of 0 to 255',
    ),
    norms=Picture(
        'timm vit_tiny', 'missing_norm', 'res_avg_var',
        blocks(lambda b: None if b.kind == 'stem' else b.norms),
        ('Block index', 'Norms of the branch'), None, 'a norm is missing', 'left',
    ),
    method=Picture(
        'NFResNet', 'alpha_one', 'avg_var', facts('method', 'alpha'),
        ('Block of the method', 'alpha'), 0.5, 'alpha too large', 'left',
    ),
    weights=Picture(
        'timm convnext_atto', 'zero_filters', 'avg_var', facts('layers', 'zero_rows'),
        ('Layer', 'Share of filters that are zero'), 0.1, 'filters are zero', '',
    ),
    variance=Picture(
        'timm vit_tiny', 'large_layer', 'avg_var', facts('layers', 'energy'),
        ('Layer', 'Squared weights of a filter'), None, 'a layer is too large',
    ),
    branches=Picture(
        'timm vit_tiny', 'silent_branch', 'res_avg_var', blocks(added),
        ('Block index', 'Share of the variance that it adds'), 1e-6, 'a branch is dead',
    ),
    units=Picture(
        'timm vit_tiny', 'dead_relus', 'res_avg_var', facts('activations', 'dead'),
        ('Activation', 'Share of units that never fire'), 0.3, 'units never fire', 'left',
    ),
    features=Picture(
        'timm vit_tiny', 'same_tokens', 'avg_sq_mean', blocks(lambda b: b.token_cosine),
        ('Block index', 'Mean cosine of two tokens'), 0.95, 'one bias outweighs all', 'left',
    ),
    training=Picture(
        'NFResNet', 'all_large', 'avg_var', blocks(lambda b: b.grad_avg_var),
        ('Block index', 'Variance of the gradient'), None, 'all weights too large',
        options=dict(backward=True),
    ),
)  # fmt: skip
"""Group of rules -> its picture."""


def draw(picture: Picture, broken: SignalProfile, repaired: SignalProfile) -> Image.Image:
    """Draw the curve of a fault and what its rule looks at, with and without the fault."""
    figure = Figure(figsize=(10, 3.4), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    curve = blocks(lambda b: getattr(b, picture.metric))
    for ax, look, side in ((left, curve, 'left'), (right, picture.look, 'right')):
        for profile, colour, marker, size, label in (
            (repaired, COLOURS[0], 'o', 7, 'repaired'),
            (broken, COLOURS[1], 's', 3.5, f'fault: {picture.title}'),
        ):
            line = '-' if ax is left else ''
            ax.plot(
                *look(profile), line, marker=marker, color=colour, markersize=size,
                linewidth=1.3, label=label,
            )  # fmt: skip
        if picture.log in (side, 'both'):
            ax.set_yscale('log')
        ax.grid(axis='y', color='0.9')
    left.set(xlabel='Block index', ylabel=TITLES[picture.metric])
    right.set(xlabel=picture.labels[0], ylabel=picture.labels[1])
    if len(picture.look(repaired)[0]) == 1:
        right.set(xlim=(-1, 1), xticks=[])
    if picture.threshold is not None:
        look = dict(color='0.3', linestyle='--', linewidth=1, label='threshold of the rule')
        right.axhline(picture.threshold, **look)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    return Image.open(buffer).convert('P', palette=Image.Palette.ADAPTIVE, colors=64)


@quiet()
def main() -> None:
    for name in sys.argv[1:] or PICTURES:
        picture = PICTURES[name]
        torch.manual_seed(0)
        net, x = build(picture.network), noise()
        repaired = analyze(net, x, **picture.options)
        fault = FAULTS[picture.kind](net, x, random.Random(0))
        given = x if fault.inputs is None else fault.inputs
        broken = analyze(net, given, **{**fault.options, **picture.options})
        print(name, fault.where, broken.summary(), sep='\n    ')
        small = io.BytesIO()
        draw(picture, broken, repaired).save(small, 'PNG', optimize=True)
        atomic_write(Path(__file__).parent / f'images/fault_{name}.png', small.getvalue())


if __name__ == '__main__':
    main()
