"""Which of mmpretrain's own configs can be measured, and what is said of the others.

    python -m benchmarks.spp.config_coverage --out benchmarks/results/spp_configs.json

does with every config what ``tools/spp_analysis.py CONFIG`` does, up to the numbers: the network
is built and run on the meta device, where nothing is computed, or on the CPU if it needs values.
Configs with the same network and input share one run. Prints a line per config.
"""

from __future__ import annotations

import argparse
import functools
import json
import warnings
from collections import Counter
from pathlib import Path
from unittest import mock

import mmpretrain
import torch

from benchmarks.common import command, machine, quiet
from nf_plugins.cli.arguments import ArgumentParser
from nf_plugins.cli.command_line import command_line
from nf_plugins.config import build_backbone, load_config, part_name
from nf_plugins.errors import UsageError, as_usage_error, printable
from nf_plugins.spp import find_residuals
from nf_plugins.spp.from_config import gaussian_inputs
from nf_plugins.utils.files import atomic_write

CONFIGS = Path(mmpretrain.__file__).parent / '.mim' / 'configs'


def check(path: Path, known: dict[str, dict]) -> dict:
    """Build and run the network of one config; ``known`` are networks that ran before."""
    try:
        cfg = load_config(str(path))
        part = part_name(cfg, path.name)
        key = repr((cfg.get('default_scope'), cfg.model.get(part), cfg.get('train_pipeline')))
        if key not in known:
            known[key] = _run(cfg, path, part)
        return known[key]
    except UsageError as error:
        return dict(error=printable(error))


def _run(cfg, path: Path, part: str) -> dict:
    error: Exception | None = None
    for device in ('meta', 'cpu'):
        try:
            # Rates of stochastic depth are numbers, on any device.
            numbers = functools.partial(torch.linspace, device='cpu')
            with torch.device(device), mock.patch('torch.linspace', numbers):
                network = build_backbone(cfg, path.name, 0, part, init=device != 'meta')
                network.eval()  # that of some returns None
                inputs = gaussian_inputs(cfg, network, 1, None, 0).to(device)
            with as_usage_error(f'cannot run {path.name}'):
                return dict(part=part, blocks=len(find_residuals(network, inputs)), device=device)
        except Exception as failed:
            error = failed
    if isinstance(error, UsageError):
        raise error
    return dict(error=f'not one line: {type(error).__name__}: {error}')


@command_line
@quiet()
def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folders', nargs='+', help='only these folders of configs')
    parser.add_argument('--out', type=Path, help='JSON file with a row per config')
    with as_usage_error('bad arguments'):
        args: argparse.Namespace = parser.parse_args()
    warnings.simplefilter('ignore')
    known: dict[str, dict] = {}
    names = [path.relative_to(CONFIGS) for path in sorted(CONFIGS.rglob('*.py'))]
    names = [name for name in names if name.parts[0] in (args.folders or name.parts)]
    rows = {}
    for name in names:
        if name.parts[0] != '_base_':
            row = rows[str(name)] = check(CONFIGS / name, known)
            print(f'{name}: {row.get("error") or row["blocks"]}', flush=True)
    ran = sum('blocks' in row for row in rows.values())
    kinds = Counter(row['part'] for row in rows.values() if 'part' in row)
    print(f'{len(rows)} configs, {ran} run ({dict(kinds)}), {len(rows) - ran} say what is missing')
    if args.out:
        described = dict(**machine(), command=command('benchmarks.spp.config_coverage'))
        text = json.dumps(dict(machine=described, configs=rows), indent=1)
        with as_usage_error(f'cannot write {args.out}'):
            atomic_write(args.out, text + '\n')
    return 0


if __name__ == '__main__':
    main()
