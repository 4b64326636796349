"""Measure what docs/scale.md says.

    python -m benchmarks.scale --out benchmarks/results/scale.json

The time of processes on one machine shows what each part adds, and not what a network of machines
would take.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.common import command, machine, quiet
from nf_plugins.cli.arguments import ArgumentParser, positive
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import as_usage_error
from nf_plugins.utils.files import atomic_write

from . import memory, processes
from .report import tables

MODULE = 'benchmarks.scale'
DEVICES, BATCH = 32, 128
"""As in the configs of NFNets."""


def on_paper(arch: str, size: int) -> dict:
    """Compute what a device holds and sends, from the measured bytes of an image."""
    found = memory.measure(arch, size)
    rows = [
        dict(
            activations=name,
            with_cp=with_cp,
            states='FSDP2' if sharded > 1 else 'DDP',
            gib=memory.per_device(found, BATCH, number, with_cp, sharded),
        )
        for name, number in (('float32', 4), ('bfloat16', 2))
        for with_cp in (False, True)
        for sharded in (1, DEVICES)
    ]
    sent = {
        name: memory.communication(found, DEVICES, number)
        for name, number in (('float32', 4), ('bfloat16', 2))
    }
    return dict(arch=arch, size=size, devices=DEVICES, batch=BATCH, **found, memory=rows, sent=sent)


@command_line
@quiet()
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', default='f5')
    parser.add_argument('--size', type=positive, default=416, help='height and width of an image')
    parser.add_argument('--processes', type=positive, nargs='+', default=[1, 2, 4, 8])
    parser.add_argument('--rounds', type=positive, default=5)
    parser.add_argument('--out', type=Path, help='JSON file')
    with as_usage_error('bad arguments'):
        args = parser.parse_args()
    found = dict(machine=machine(), command=command(MODULE))
    found['paper'] = on_paper(args.arch, args.size)
    found['processes'] = {n: processes.measure(n, args.rounds) for n in args.processes}
    print('\n'.join(tables(found)))
    if args.out:
        with as_usage_error(f'cannot write {args.out}'):
            atomic_write(args.out, json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
