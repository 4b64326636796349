"""Draw the figures of a page from the commands in the page.

    python docs/spp_figures.py docs/reading_spps.md

For each picture of the page, this runs the commands ``python tools/spp_analysis.py ...`` in the
fenced block before the picture, and draws all their networks into it. ``$NAME`` in a command is a
variable of the environment.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from pathlib import Path

from PIL import Image

from nf_plugins.cli.arguments import ArgumentParser
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.spp import SignalProfile
from nf_plugins.spp.plot import plot_profiles
from nf_plugins.utils.files import atomic_write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))
import spp_analysis

from benchmarks.common import quiet

BLOCK = re.compile(r'^```bash\n(.*?)^```|^!\[[^]]*\]\(([^)]+)\)', re.DOTALL | re.MULTILINE)


def commands_of(block: str) -> list[list[str]]:
    """Split the commands of a fenced block into arguments, and replace environment variables."""
    lines = block.replace('\\\n', ' ').splitlines()
    commands = [shlex.split(os.path.expandvars(line), comments=True) for line in lines]
    return [command for command in commands if command]


def figures_of(page: str) -> dict[str, list[list[str]]]:
    """Find path of a picture -> the arguments of ``spp_analysis.py`` in the block before it."""
    figures, runs = {}, []
    for match in BLOCK.finditer(page):
        block, picture = match.groups()
        if picture is None:
            runs = [c[2:] for c in commands_of(block) if c[1:2] == ['tools/spp_analysis.py']]
        elif runs and 'fault_' not in picture:  # those are of fault_figures.py
            figures[picture], runs = runs, []
    return figures


def measure(arguments: list[str]) -> list[SignalProfile]:
    """Measure the networks of one command."""
    unknown = [argument for argument in arguments if '$' in argument]
    if unknown:
        raise UsageError(f'set the variable of {unknown[0]} in the environment')
    return spp_analysis.measure(spp_analysis.parse_args(arguments))


def png(profiles: list[SignalProfile]) -> bytes:
    """Draw some profiles in 128 colours; it looks the same in a third of the size."""
    full, small = io.BytesIO(), io.BytesIO()
    plot_profiles(profiles).savefig(full)
    Image.open(full).convert('RGB').quantize(128).save(small, format='png', optimize=True)
    return small.getvalue()


@command_line
@quiet()
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('page', type=Path, help='a page in markdown')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='file names of some pictures')
    args = parser.parse_args()
    with as_usage_error(f'cannot read {args.page}'):
        figures = figures_of(args.page.read_text(encoding='utf-8'))
    if not figures:
        raise UsageError(f'{args.page} has no picture after a command of spp_analysis.py')
    for picture, runs in figures.items():
        path = args.page.parent / picture
        if args.only and path.name not in args.only:
            continue
        profiles = [profile for arguments in runs for profile in measure(arguments)]
        with as_usage_error(f'cannot write {path}'):
            atomic_write(path, png(profiles))
        print(f'{path}: {len(profiles)} networks, {path.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    main()
