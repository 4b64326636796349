"""The arguments of command line tools."""

from __future__ import annotations

import argparse
from typing import NoReturn

from mmengine.config import DictAction

from nf_plugins.errors import UsageError


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are one line, without its usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f'{message} (see {self.prog} --help)')


def positive(text: str) -> int:
    """The type of an argument that is a positive integer."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def add_weights_key(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights-key``, which says what weights of a checkpoint are meant."""
    parser.add_argument(
        '--weights-key',
        metavar='KEY',
        help='take the weights under this key of the checkpoint, such as model_ema; with a dot '
        'between the keys of nested dicts (default: the first of state_dict, model, ...)',
    )


def with_weights_key(path: str, key: str | None) -> str:
    """A checkpoint's path with the key of its weights: ``PATH#KEY``."""
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
    # torch.distributed.launch passes it.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
