"""A config that fine-tunes published weights on a folder of images.

python tools/model_converters/from_published.py dm_nfnet_f0.dm_in1k nf.py --data-root data/flowers

writes ``nf.py``, for ``tools/train.py nf.py``. The folder has one folder of images per
class, or ``train`` and ``val`` that have. Without ``val``, every fifth image of a class is for
validation; ``nf_train.txt`` and ``nf_val.txt`` list which.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope

from nf_plugins.cli.arguments import ArgumentParser, positive
from nf_plugins.cli.command_line import command_line, quiet
from nf_plugins.cli.model_config import importing_config
from nf_plugins.config import build_model
from nf_plugins.errors import UsageError, as_usage_error, say
from nf_plugins.models.fine_tuning import fine_tuning_config
from nf_plugins.models.hub import find
from nf_plugins.utils.files import atomic_write_all, check_writable_dir

IMAGES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')
"""What mmpretrain's CustomDataset takes for an image."""
SHARE = 5
"""One image of so many is for validation where there is no folder for it."""
UPDATES = 100
"""A training with fewer updates of the weights is too short for most data."""


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description='Write a config that fine-tunes published weights.')
    parser.add_argument('name', help='published weights, such as dm_nfnet_f0.dm_in1k or F0')
    parser.add_argument('dst', help='config to write (.py)')
    parser.add_argument('--data-root', required=True, help='folder of the images')
    parser.add_argument(
        '--num-classes', type=positive, help='default: as many as there are folders'
    )
    parser.add_argument('--weights', help='file of these weights at hand, to load instead')
    parser.add_argument('--epochs', type=positive, default=10, help='default: 10')
    parser.add_argument('--batch-size', type=positive, default=32, help='default: 32')
    return parser.parse_args()


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, in mmpretrain's order."""
    return (
        sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    )


def images_in(folder: Path) -> list[Path]:
    """The images of a folder and of the folders in it."""
    files = (path for path in folder.rglob('*') if path.suffix.lower() in IMAGES)
    return sorted(path for path in files if path.is_file())


def split_images(root: Path, classes: list[str]) -> dict[str, str]:
    """Lists of the images for training and for validation, as CustomDataset reads them."""
    lines: dict[str, list[str]] = dict(train=[], val=[])
    for label, name in enumerate(classes):
        images = [path.relative_to(root).as_posix() for path in images_in(root / name)]
        if len(images) < 2:
            raise UsageError(f'{root / name} has {len(images)} images: at least 2 are needed')
        for number, image in enumerate(images):
            lines['val' if number % SHARE == 1 else 'train'].append(f'{image} {label}')
    return {part: '\n'.join(found) + '\n' for part, found in lines.items()}


def find_data(root: Path, dst: Path) -> tuple[list[str], dict[str, dict], dict[Path, str]]:
    """The images of a folder.

    Args:
        root: The folder.
        dst: The config, beside which lists are written.

    Returns:
        The classes, none where there is no folder yet; settings of the data sets for training and
        validation; and lists of images to write.
    """
    whole: dict[str, dict] = {part: dict(data_prefix=part) for part in ('train', 'val')}
    if not root.exists():
        return [], whole, {}
    if (root / 'train').is_dir():
        if not (root / 'val').is_dir():
            raise UsageError(f'{root} has a folder train and none called val, for validation')
        classes = class_folders(root / 'train')
        others = class_folders(root / 'val')
        if classes != others:
            odd = sorted(set(classes) ^ set(others))
            raise UsageError(f'{root}/train and {root}/val differ in {", ".join(odd[:5])}')
        return classes, whole, {}
    classes = class_folders(root)
    lists = {
        dst.with_name(f'{dst.stem}_{k}.txt'): v for k, v in split_images(root, classes).items()
    }
    parts = {
        part: dict(data_prefix='', ann_file=os.path.abspath(path))
        for part, path in zip(('train', 'val'), lists)
    }
    return classes, parts, lists


def check_classes(root: Path, classes: list[str], wanted: int | None) -> int:
    """The number of classes, if that of the folders is the one that is wanted."""
    if not root.exists():
        if wanted is None:
            raise UsageError(f'there is no {root}: say --num-classes, or give the folder of images')
        say(
            f'there is no {root} yet: put folders train and val there, with one per class',
            error=True,
        )
        return wanted
    if len(classes) < 2:
        raise UsageError(f'{root} needs a folder of images for each class, and has {len(classes)}')
    if wanted not in (None, len(classes)):
        listed = ', '.join(classes[:5]) + ', ...' * (len(classes) > 5)
        raise UsageError(f'--num-classes {wanted}, but {root} has {len(classes)}: {listed}')
    return len(classes)


def count_training_images(root: Path, lists: dict[Path, str]) -> int | None:
    """The number of images for training; None where there is no folder yet."""
    if lists:
        return next(iter(lists.values())).count('\n')
    return len(images_in(root / 'train')) if root.exists() else None


def warn_of_few_updates(images: int, epochs: int, batch_size: int) -> None:
    """Say how to train for longer if there are few images."""
    per_epoch = math.ceil(images / batch_size)
    if per_epoch * epochs < UPDATES:
        more = math.ceil(UPDATES / per_epoch)
        say(
            f'{images} images for training: {epochs} epochs update the weights only '
            f'{per_epoch * epochs} times. For {UPDATES} updates, run this again with '
            f'--epochs {more}',
            error=True,
        )


@command_line
def main() -> None:
    args = parse_args()
    quiet()
    dst, root = Path(args.dst), Path(args.data_root)
    if dst.suffix != '.py':
        raise UsageError(f'DST is a config: its name must end in .py, got {args.dst!r}')
    with as_usage_error(f'cannot write {dst}'):
        check_writable_dir(dst.absolute().parent)
    entry = find(args.name)
    with as_usage_error(f'cannot read {root}'):
        classes, parts, lists = find_data(root, dst)
    number = check_classes(root, classes, args.num_classes)
    with as_usage_error(f'cannot read {root}'):
        images = count_training_images(root, lists)
    options: dict[str, Any] = dict(epochs=args.epochs, batch_size=args.batch_size, images=images)
    cfg = fine_tuning_config(entry, number, os.fspath(root), parts, classes, **options)
    if args.weights:
        cfg.load_from = f'{entry.source}://{os.path.abspath(os.path.expanduser(args.weights))}'
    cfg = importing_config(cfg)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):  # only to see that it can be
        build_model(cfg, args.dst)
    with as_usage_error(f'cannot write {dst}'):
        atomic_write_all({dst: cfg.pretty_text, **lists})
    say('written:', dst, *lists)
    say(f'{number} classes; train with: python tools/train.py {dst}')
    if images:
        warn_of_few_updates(images, args.epochs, args.batch_size)


if __name__ == '__main__':
    main()
