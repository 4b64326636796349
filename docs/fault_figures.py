"""The pictures of faults and of their repairs in docs/reading_spps.md.

python docs/fault_figures.py
"""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

from PIL import Image

from nf_plugins.spp import analyze, plot_profiles
from nf_plugins.utils.files import atomic_write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import quiet
from benchmarks.faults.faults import FAULTS
from benchmarks.faults.networks import build
from benchmarks.faults.run import noise

FIGURES = {
    'input': ('torchvision resnet18', 'raw_pixels'),
    'norms': ('timm vit_tiny', 'missing_norm'),
    'method': ('NFResNet', 'alpha_one'),
    'weights': ('timm convnext_atto', 'zero_filters'),
    'variance': ('timm vit_tiny', 'large_layer'),
    'units': ('timm vit_tiny', 'dead_relus'),
    'features': ('timm vit_tiny', 'same_tokens'),
}
"""Name of a picture -> network and kind of fault."""


@quiet()
def main() -> None:
    for name, (network, kind) in FIGURES.items():
        net, x = build(network), noise()
        repaired = analyze(net, x, label=f'{network.split()[-1]}, repaired')
        fault = FAULTS[kind](net, x, random.Random(0))
        given = x if fault.inputs is None else fault.inputs
        broken = analyze(net, given, label=f'with the fault: {kind}', **fault.options)
        print(name, fault.where, broken.summary(), sep='\n    ')
        buffer = io.BytesIO()
        plot_profiles([broken, repaired]).savefig(buffer, format='png', dpi=110)
        small = io.BytesIO()
        Image.open(buffer).convert('P', palette=Image.Palette.ADAPTIVE, colors=64).save(
            small, 'PNG', optimize=True
        )
        path = Path(__file__).parent / f'images/fault_{name}.png'
        atomic_write(path, small.getvalue())


if __name__ == '__main__':
    main()
