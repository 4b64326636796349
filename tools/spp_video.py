"""Animate how the signal propagation of a network changes during its training.

    python tools/spp_video.py work_dirs/nf-resnet_digits --out spp.gif

shows the records of the training hook, one frame per record; a config and some of
its checkpoints do as well. The extension of ``--out`` says what is made: a GIF, an
MP4 or an interactive page.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.utils import ProgressBar

from nf_plugins.cli.arguments import (
    ArgumentParser,
    add_measuring_arguments,
    measuring_options,
    with_weights_key,
)
from nf_plugins.cli.command_line import command_line, quiet
from nf_plugins.errors import UsageError, as_usage_error, say
from nf_plugins.spp.from_config import ConfiguredBackbone
from nf_plugins.spp.report.film import FORMATS, missing_packages, render
from nf_plugins.spp.report.records import (
    Record,
    find_records,
    merge_records,
    newest_training,
    read_record,
)
from nf_plugins.utils.files import atomic_write, check_writable_dir

FPS = (0.01, 100.0)
MEASURING = ('mode', 'seed', 'batch_size', 'input_size', 'device', 'cfg_options', 'weights_key')
"""Options that are for a config with checkpoints alone."""


def frame_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not FPS[0] <= rate <= FPS[1]:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from {FPS[0]:g} to {FPS[1]:g}')
    return rate


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(
        description='Animate how the signal propagation of a network changes during its training.'
    )
    parser.add_argument(
        'source',
        nargs='+',
        metavar='SOURCE',
        help='a work dir (or a folder in it) with records of the training hook; or record files; '
        'or a config and its checkpoints',
    )
    parser.add_argument('--out', required=True, help='file to write: *.gif, *.mp4 or *.html')
    parser.add_argument('--fps', type=frame_rate, default=4.0, help='records a second (default: 4)')
    parser.add_argument('--title', help="default: the config's name")
    group = parser.add_argument_group('with a config and checkpoints')
    add_measuring_arguments(group)
    return parser.parse_args()


@contextmanager
def progress(count: int, what: str) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr; yields what to call after each step."""
    print(what, file=sys.stderr)
    bar = ProgressBar(count, file=sys.stderr)
    try:
        yield bar.update
    finally:
        print(file=sys.stderr)


def is_config(sources: list[str]) -> bool:
    """Whether the first source is a config: also a JSON file, unless all sources are."""
    suffixes = [Path(source).suffix for source in sources]
    if suffixes[0] == '.json':
        return set(suffixes) != {'.json'}
    return suffixes[0] in ('.py', '.yaml', '.yml')


def read_sources(sources: list[str]) -> list[Record]:
    """The records of a work dir or of record files."""
    for source in sources:
        if not os.path.exists(source):
            raise UsageError(f'no such file or folder: {source}')
    if any(Path(source).is_dir() for source in sources):
        if len(sources) > 1:
            raise UsageError(
                f'one work dir at a time, or record files; got {len(sources)} sources: '
                f'{", ".join(sources[:3])}'
            )
        with as_usage_error(f'cannot read {sources[0]}'):
            records = map(read_record, find_records(sources[0]))
            return merge_records(newest_training(records))
    if Path(sources[0]).suffix in ('.pth', '.pt'):
        raise UsageError(f'{sources[0]}: checkpoints need their config before them')
    with as_usage_error('cannot read the records'):
        return merge_records(map(read_record, sources))


def measure_checkpoints(args: argparse.Namespace) -> list[Record]:
    """Measure the checkpoints of a config on the same noise."""
    config, *checkpoints = args.source
    if not checkpoints:
        raise UsageError(f'{config} needs checkpoints after it, as many as there shall be frames')
    network = ConfiguredBackbone(config, measuring_options(args), args.cfg_options)
    checkpoints = [with_weights_key(path, args.weights_key) for path in checkpoints]
    network.check(checkpoints)
    with progress(len(checkpoints), 'measuring') as advance:
        return network.measure_training(checkpoints, advance)


@command_line
def main() -> None:
    with as_usage_error('bad arguments'):
        args = parse_args()
    quiet()
    out = Path(args.out)
    form = out.suffix[1:].lower()
    if form not in FORMATS:
        raise UsageError(f'--out must end in {", ".join("." + f for f in FORMATS)}, got {args.out}')
    missing = missing_packages(form)
    if missing:
        raise UsageError(f'a .{form} file needs packages that are missing: pip install '
                         f'{" ".join(missing)}')  # fmt: skip
    with as_usage_error(f'cannot write {out}'):
        check_writable_dir(out.absolute().parent)
        if out.is_dir():
            raise IsADirectoryError('it is a folder')

    if is_config(args.source):
        records = measure_checkpoints(args)
    else:
        given = [key for key in MEASURING if getattr(args, key) is not None]
        if given:
            option = '--' + given[0].replace('_', '-')
            raise UsageError(f'{option} is for a config with checkpoints; records are as they are')
        records = read_sources(args.source)

    title = args.title
    if title is None:
        title = Path(records[0].profile.config or 'Signal propagation').stem
    with as_usage_error(f'cannot make {out}'), progress(len(records), 'drawing') as advance:
        content = render(records, form, args.fps, title, advance)
    with as_usage_error(f'cannot write {out}'):
        atomic_write(out, content)
    say(f'written: {out} ({len(records)} frame{"s" * (len(records) != 1)})')


if __name__ == '__main__':
    main()
