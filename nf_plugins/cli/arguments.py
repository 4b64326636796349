"""Arguments of the command line tools."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from mmengine.config import DictAction

from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.spp.from_config import Options
from nf_plugins.utils.files import check_writable_dir


class ArgumentParser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f'{message} (see {self.prog} --help)')


def positive(text: str) -> int:
    """Convert the text of an argument to a positive integer."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def output_folder(out_dir: str | None, tool: str, config: str) -> Path:
    """Return the folder of a tool's files: a given one, or one named after the config.

    Raises:
        UsageError: It cannot be written into.
    """
    folder = Path(out_dir or Path('work_dirs', tool, Path(config).stem))
    with as_usage_error(f'cannot write into {folder}'):
        check_writable_dir(folder)
    return folder


def add_weights_key(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights-key``, which selects the weights in a checkpoint."""
    parser.add_argument(
        '--weights-key',
        metavar='KEY',
        help='take the weights under this key of the checkpoint, such as model_ema; write a dot '
        'between the keys of nested dicts (default: the first of state_dict, model, ...)',
    )


def with_weights_key(path: str, key: str | None) -> str:
    """Join the path of a checkpoint and the key of its weights: ``PATH#KEY``."""
    return path if key is None else f'{path}#{key}'


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all mm tools have."""
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--no-pin-memory', action='store_true', help='do not pin memory')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value; a list as key="[a,b]" or key=a,b',
    )
    add_weights_key(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes this argument.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_measuring_arguments(parser: Any) -> None:
    """Add the arguments of :class:`nf_plugins.spp.from_config.Options` that several tools share.

    An argument that is not given is None. :func:`measuring_options` replaces None by the default.
    """
    parser.add_argument(
        '--mode',
        choices=('train', 'eval', 'asis'),
        help='mode of the network: in train mode batch norm uses the batch; asis: each module as '
        'while it trains (default: train)',
    )
    parser.add_argument('--seed', type=int, help='seed of weights and noise (default: 0)')
    parser.add_argument('--batch-size', type=positive, help='number of images (default: 8)')
    parser.add_argument(
        '--input-size',
        type=positive,
        nargs='+',
        action=_Sides,
        help='side, or height and width, of the noise (default: the training size of the config)',
    )
    parser.add_argument(
        '--module',
        metavar='PATH',
        help="path in the model of the part to measure, '' for all of it (default: the backbone)",
    )
    parser.add_argument('--device', help='device to measure on (default: cpu)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value',
    )
    add_weights_key(parser)


class _Sides(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        if len(values) > 2:
            parser.error(f'{option} takes a side, or a height and a width')
        setattr(namespace, self.dest, values)


def measuring_options(args: argparse.Namespace) -> Options:
    """Return the measuring options from the arguments of a tool, with defaults."""
    given = {field.name: getattr(args, field.name, None) for field in fields(Options)}
    return Options(**{name: value for name, value in given.items() if value is not None})
