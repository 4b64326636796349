"""Published weights by name: what they are, where they lie, and how they are read.

``timm://dm_nfnet_f0.dm_in1k`` and ``deepmind://F0`` are places of weights for ``load_from``,
``init_cfg=dict(type='Pretrained', checkpoint=...)`` and the tools. A file is downloaded once,
converted to the names here, and kept in torch's cache folder. ``timm:///path/to/file`` and
``deepmind:///path/to/file`` are files at hand.
"""

from __future__ import annotations

import difflib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger, print_log
from torch import Tensor, nn

from nf_plugins.checkpoint.convert import convert, encode_converted
from nf_plugins.checkpoint.download import cache_folder, fetch, sha256_of
from nf_plugins.checkpoint.foreign import SCHEMES
from nf_plugins.checkpoint.haiku import haiku_weights
from nf_plugins.checkpoint.loader import LOADERS
from nf_plugins.checkpoint.safe_load import safe_load
from nf_plugins.checkpoint.tensors import read_and_say
from nf_plugins.config_names import config_path
from nf_plugins.errors import CheckpointError, CheckpointNotFoundError, reason
from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import check_integer
from nf_plugins.utils.files import atomic_write
from nf_plugins.version import __version__

from .timm_models import HALF, MEAN, STD
from .weight_names import haiku_rename, timm_rename

__all__ = ['PUBLISHED', 'Published', 'find', 'get_model', 'published_config']

DEEPMIND = 'https://storage.googleapis.com/dm-nfnets'
"""Where DeepMind's files lie; ``NF_PLUGINS_DEEPMIND_ENDPOINT`` in the environment replaces it."""
_RELEASES = 'https://github.com/rwightman/pytorch-image-models/releases/download'
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
"""The file of a repository of timm on the hub: the first one that is there."""


@dataclass(frozen=True)
class Published:
    """A set of published weights.

    Args:
        name: The publisher's name.
        source: 'timm' or 'deepmind'.
        family: The type of the backbone.
        config: The config of the network, in ``configs``.
        parameters: Their number.
        train_size: Side of the images in training.
        test_size: Side of the images in the publisher's test.
        resize: Side to which the test images are resized before a square of ``test_size`` is
            cut out of the middle.
        squash: Resize both sides to ``resize``, whatever the shape of the image; else the short
            side, and the shape stays.
        interpolation: Of the resizing.
        mean: Of the channels red, green and blue, in 0 to 255.
        std: Of the channels.
        url: The same weights as a single file, without the hub; '' where there is none.
            ``-<sha8>`` in its name is the start of its SHA-256. DeepMind publishes no checksums.
        accuracy: Top-1 and top-5 on ImageNet, and who measured them; None where none are known.
    """

    name: str
    source: str
    family: str
    config: str
    parameters: int
    train_size: int
    test_size: int
    resize: int
    squash: bool = False
    interpolation: str = 'bicubic'
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    url: str = ''
    accuracy: tuple[float, float | None, str] | None = None

    @property
    def uri(self) -> str:
        """The place of the weights, for ``load_from`` and the like."""
        return f'{self.source}://{self.name}'

    @property
    def architecture(self) -> str:
        """The name without the tag of the training."""
        return self.name.partition('.')[0]

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be called: also by the architecture, or the config."""
        return self.name, self.architecture, self.config


_PARAMETERS = (71489284, 132634256, 193779228, 254924200, 316069172, 377214144, 438359116)
"""Of NFNet-F0 to F6, DeepMind's and timm's."""
_TRAIN_SIZES = (192, 224, 256, 320, 384, 416, 448)
_TEST_SIZES = (256, 320, 352, 416, 512, 544, 576)
_TOP1 = (83.6, 84.7, 85.1, 85.7, 85.9, 86.0, 86.5)
_TOP5 = (96.8, 97.1, 97.3, 97.5, 97.6, 97.6, 97.9)
_TIMM_RESIZE = (284, 351, 382, 442, 538, 570, 602)
_TIMM_TOP1 = (83.47, 84.70, 85.18, 85.68, 85.84, 86.10, 86.36)
_SHA8 = ('604f9c3a', 'fc540f82', '89875923', 'd74ab3aa', '0ac5b10b', 'ecb20ab1', 'e0f12116')


def _deepmind(level: int) -> Published:
    size = _TEST_SIZES[level]
    return Published(
        name=f'F{level}',
        source='deepmind',
        family='NFNet',
        config=f'nfnet-f{level}_32xb128_in1k',
        parameters=_PARAMETERS[level],
        train_size=_TRAIN_SIZES[level],
        test_size=size,
        resize=size + 32,
        squash=True,
        url=f'{DEEPMIND}/F{level}_haiku.npz',
        accuracy=(_TOP1[level], _TOP5[level], 'Brock et al. 2021b'),
    )


def _timm(
    name: str,
    family: str,
    parameters: int,
    sizes: tuple[int, int, int],
    url: str = '',
    top: tuple[float, float | None] | None = None,
    **fields: Any,
) -> Published:
    """A set of timm's, with the sides in training, in the test, and of its resizing."""
    train, test, resize = sizes
    return Published(
        name=name,
        source='timm',
        family=family,
        config=name,
        parameters=parameters,
        train_size=train,
        test_size=test,
        resize=resize,
        url=url and f'{_RELEASES}/{url}.pth',
        accuracy=top and (*top, 'timm'),
        **fields,
    )


def _dm_nfnet(level: int) -> Published:
    return _timm(
        f'dm_nfnet_f{level}.dm_in1k',
        'NFNet',
        _PARAMETERS[level],
        (_TRAIN_SIZES[level], _TEST_SIZES[level], _TIMM_RESIZE[level]),
        f'v0.1-dnf-weights/dm_nfnet_f{level}-{_SHA8[level]}',
        (_TIMM_TOP1[level], None),
        squash=True,
    )


def _light(name: str, parameters: int, sizes: tuple[int, int, int], sha8: str, *top: float):
    arch, _, tag = name.partition('.')
    file = f'v0.1-weights/{arch.replace("eca_", "eca")}_{tag[:3]}-{sha8}'
    return _timm(name, 'NFNet', parameters, sizes, file, (top[0], top[1]))


PUBLISHED: tuple[Published, ...] = (
    *map(_deepmind, range(7)),
    *map(_dm_nfnet, range(7)),
    _light('nfnet_l0.ra2_in1k', 35074488, (224, 288, 288), '45c6688d', 82.75, 96.52),
    _light('eca_nfnet_l0.ra2_in1k', 24143924, (224, 288, 288), 'e3e9ac50', 82.58, 96.49),
    _light('eca_nfnet_l1.ra2_in1k', 41407728, (256, 320, 320), '7dce93cd', 84.01, 97.03),
    _light('eca_nfnet_l2.ra3_in1k', 56722348, (320, 384, 384), 'da781a61', 84.70, 97.27),
    _timm(
        'nf_regnet_b1.ra2_in1k',
        'NFRegNet',
        10223984,
        (256, 288, 320),
        'v0.1-weights/nf_regnet_b1_256_ra2-ad85cfef',
        (79.37, None),
    ),
    _timm(
        'nf_resnet50.ra2_in1k',
        'NFResNet',
        25557032,
        (256, 288, 306),
        'v0.1-weights/nf_resnet50_ra2-9f236009',
        (80.66, None),
    ),
    _timm('test_nfnet.r160_in1k', 'NFNet', 383080, (160, 160, 168), mean=HALF, std=HALF),
)
"""All sets of published weights that the networks here take."""


def find(name: str) -> Published:
    """Find a set of published weights.

    Args:
        name: ``timm://NAME``, ``deepmind://NAME``, a name alone, that of timm's architecture
            where it has one set, or that of the config.

    Raises:
        CheckpointNotFoundError: There is none of this name; close ones are told.

    Example:
        >>> find('timm://dm_nfnet_f0').uri, find('deepmind://f0').config
        ('timm://dm_nfnet_f0.dm_in1k', 'nfnet-f0_32xb128_in1k')
    """
    scheme, mark, wanted = name.rpartition('://')
    of_source = [entry for entry in PUBLISHED if not mark or entry.source == scheme]
    for entry in of_source:
        if wanted.removesuffix('.py').lower() in map(str.lower, entry.names):
            return entry
    known = {other.lower(): entry.uri for entry in of_source for other in entry.names}
    close = difflib.get_close_matches(wanted.lower(), known, 3)
    told = list(dict.fromkeys(known[other] for other in close)) or [e.uri for e in of_source]
    which = 'close are' if close else 'there are'
    hint = f'; for a file at hand write {scheme}:///path/to/file' if mark else ''
    raise CheckpointNotFoundError(
        f'no published weights are named {name}; {which} {", ".join(told)}{hint}'
    )


def find_in_place_of_config(config: str) -> Published | None:
    """The published weights that stand where a config is expected, or None for a config.

    Raises:
        CheckpointNotFoundError: It begins as such a place, and there are none of this name.
    """
    if config.startswith(SCHEMES):
        return find(config)
    named = next((x for x in PUBLISHED if config in (x.name, x.architecture)), None)
    return None if os.path.exists(config) else named


def published_config(
    name: str | Published, num_classes: int | None = None, in_channels: int = 3
) -> Config:
    """The config of published weights: the network, and the images as the publisher tests them.

    Args:
        name: As for :func:`find`, or an entry of :data:`PUBLISHED`.
        num_classes: Classes; None for those of the weights (1000).
        in_channels: Channels of the images. The mean and the standard deviation of other than
            three are those of red, green and blue in turn; of one channel, their average.

    Returns:
        A whole config, with ``load_from``.
    """
    entry = name if isinstance(name, Published) else find(name)
    cfg = Config.fromfile(config_path(entry.config))
    model = cfg.model
    preprocessor = cfg.get('data_preprocessor') or model.data_preprocessor
    if num_classes is not None:
        check_integer('num_classes', num_classes)
        model.head.num_classes = preprocessor.num_classes = num_classes
        if num_classes < 5:
            model.head.topk = (1,)
    check_integer('in_channels', in_channels)
    if in_channels != 3:
        model.backbone.in_channels = in_channels
        preprocessor.update(
            mean=channel_values(entry.mean, in_channels),
            std=channel_values(entry.std, in_channels),
            to_rgb=False,
        )
    if in_channels == 1:
        for part in ('train', 'val', 'test'):
            cfg[f'{part}_dataloader'].dataset.pipeline[0].color_type = 'grayscale'
    cfg.load_from = entry.uri
    return cfg


def channel_values(rgb: tuple[float, ...], channels: int) -> list[float]:
    """What belongs to red, green and blue, for another number of channels.

    Example:
        >>> channel_values((1.0, 2.0, 3.0), 1), channel_values((1.0, 2.0, 3.0), 4)
        ([2.0], [1.0, 2.0, 3.0, 1.0])
    """
    if channels == 1:
        return [sum(rgb) / 3]
    return [rgb[channel % 3] for channel in range(channels)]


def get_model(
    name: str,
    pretrained: bool | str = True,
    num_classes: int | None = None,
    in_channels: int = 3,
    **options: Any,
) -> nn.Module:
    """Build a classifier, with published weights.

    Args:
        name: ``dm_nfnet_f0.dm_in1k``, ``F0`` and the like: as for :func:`find`.
        pretrained: Load the published weights; or the weights of this file.
        num_classes: Classes; None for those of the weights. Another number gets a new classifier.
        in_channels: Channels of the images; for other than three the first convolution is
            adapted as timm does.
        **options: More settings of the model, as for ``mmpretrain.get_model``.

    Returns:
        An ``ImageClassifier`` of mmpretrain in eval mode. It knows its config, so it can be given
        to ``mmpretrain.ImageClassificationInferencer``.

    Raises:
        CheckpointError: There are no such weights, they cannot be downloaded, or are damaged.
        ImportError: mmpretrain is not installed.
    """
    try:
        build = import_module('mmpretrain').get_model
    except ImportError as error:
        text = f'get_model builds classifiers of mmpretrain ({error}): pip install onedl-mmpretrain'
        raise ImportError(f'{text} torchvision') from error
    entry = find(name)
    cfg = published_config(entry, num_classes, in_channels)
    model = build(cfg, **options)
    _init(model if not pretrained else model.head)
    place = entry.uri if pretrained is True else pretrained
    if place:
        if '://' not in place:
            place = f'{entry.source}://{os.path.abspath(os.path.expanduser(place))}'
        import_module('mmengine.runner').load_checkpoint(model, place, 'cpu')
    return model.eval()


def _init(module: Any) -> None:
    """Initialise a module as its config says, without mmengine's lines about each parameter."""
    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        module.init_weights()
    finally:
        logger.setLevel(before)


def load_from_published(filename: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """The loader of ``timm://`` and ``deepmind://``: a checkpoint under the names here.

    Args:
        filename: ``timm://NAME``, or ``timm:///path/to/file``, whose names are kept: they are
            changed when a network takes them.
        map_location: Where the tensors are put.

    Raises:
        CheckpointError: The weights cannot be found, or not read.
    """
    scheme, _, place = filename.partition('://')
    if place.startswith(('/', '.', '~')):
        file = _file_at(os.path.expanduser(place))
        state, note = haiku_weights(file) if file.endswith('.npz') else read_and_say(file)
        if note:
            print_log(note, logger='current')
        return dict(state_dict=_moved(state, map_location), meta=dict(source=filename))
    entry = find(filename)
    with _alone(entry):
        if scheme == 'timm':
            checkpoint = _converted(entry, _download_from_hub(entry))
        else:
            checkpoint = _load_from_deepmind(entry)
    checkpoint['state_dict'] = _moved(checkpoint['state_dict'], map_location)
    return checkpoint


LOADERS[load_from_published] = SCHEMES


def _file_at(path: str) -> str:
    """A file, or that of the weights in a folder of timm."""
    for name in HUB_FILES:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    return path


def _moved(state: dict[str, Tensor], map_location: Any) -> dict[str, Tensor]:
    if map_location is None or callable(map_location):
        return state
    return {key: value.to(map_location) for key, value in state.items()}


def _folder() -> Path:
    return cache_folder() / 'nf_plugins'


_threads = threading.Lock()


@contextmanager
def _alone(entry: Published) -> Iterator[None]:
    """Keep other processes and threads from downloading and converting the same weights."""
    from filelock import FileLock

    lock = None
    with _threads:
        with suppress(OSError):  # without a cache that can be written, each does its own work
            _folder().mkdir(parents=True, exist_ok=True)
            lock = FileLock(_folder() / f'{entry.source}-{entry.name}.lock')
            lock.acquire()
        try:
            yield
        finally:
            if lock is not None:
                lock.release()


def _load_from_deepmind(entry: Published) -> dict[str, Any]:
    """A set of DeepMind's; a file that the cache holds damaged is downloaded once more."""
    base = os.environ.get('NF_PLUGINS_DEEPMIND_ENDPOINT') or DEEPMIND
    url = f'{base.rstrip("/")}/{entry.name}_haiku.npz'
    path, fresh = fetch(url)
    try:
        return _converted(entry, path)
    except CheckpointError as error:
        path.unlink(missing_ok=True)  # what cannot be read does not stay
        if fresh:
            raise
        print_log(f'{error}; the cache held it', logger='current')
    return _converted(entry, fetch(url)[0])


def _download_from_hub(entry: Published) -> Path:
    """The file of a set of timm's, in the cache of huggingface_hub."""
    try:
        hub = import_module('huggingface_hub')
        errors = import_module('huggingface_hub.errors')
    except ImportError as error:
        raise CheckpointNotFoundError(
            f'{entry.uri} needs huggingface_hub: pip install huggingface_hub; '
            f'or download a file and write timm:///path/to/file'
        ) from error
    why = 'the repository has none of ' + ', '.join(HUB_FILES)
    for name in HUB_FILES:
        try:
            return _checked(entry, hub.hf_hub_download, name)
        except errors.LocalEntryNotFoundError as error:
            why = f'{_first_line(error)}; without a network, write timm:///path/to/file'
            break
        except errors.RepositoryNotFoundError:
            why = f'there is no repository timm/{entry.name}, or it needs a token (HF_TOKEN)'
            break
        except errors.EntryNotFoundError:
            continue
        except CheckpointError:
            raise
        except Exception as error:  # of several libraries of HTTP
            why = _first_line(error)
            break
    raise CheckpointNotFoundError(f'cannot download {entry.uri}: {why}') from None


def _first_line(error: Exception) -> str:
    return ' '.join(reason(error).split())


def _checked(entry: Published, download: Any, name: str) -> Path:
    """Download a file of a repository, and compare it with the checksum that the hub tells.

    The hub names a file after its SHA-256, and huggingface_hub compares its length alone.
    """
    options = dict(
        repo_id=f'timm/{entry.name}',
        filename=name,
        library_name='nf_plugins',
        endpoint=os.environ.get('HF_ENDPOINT'),  # huggingface_hub reads it at its import alone
    )
    for again in (False, True):
        path = Path(download(**options, force_download=again))
        blob = path.resolve()
        expected = blob.name if len(blob.name) == 64 else None
        if expected is None or sha256_of(blob) == expected:
            return path
        print_log(f'{blob} is damaged: it is downloaded once more', logger='current')
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    raise CheckpointError(
        f'{entry.uri} is damaged or another file: SHA-256 is not {expected}, which the hub tells'
    )


class _Skeleton(nn.Module):
    """The names and shapes of a classifier, as a converter fills them."""

    def __init__(self, model: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = MODELS.build(model['backbone'])
        self.head = nn.Module()
        self.head.fc = nn.Linear(model['head']['in_channels'], model['head']['num_classes'])


def _converted(entry: Published, path: Path) -> dict[str, Any]:
    """The weights of a file under the names here; the cache keeps them.

    The name in the cache has the start of the source's SHA-256, and the parts of the archive have
    checksums, so neither another source nor a damaged copy is taken for it.
    """
    digest = sha256_of(path)
    kept = _folder() / f'{entry.source}-{entry.name}.{digest[:16]}.{__version__}.pth'
    if kept.is_file():
        try:
            return safe_load(kept)
        except CheckpointError as error:
            print_log(f'{error}; it is converted once more', logger='current')
    model = Config.fromfile(config_path(entry.config)).model
    with torch.device('meta'):
        skeleton = _Skeleton(model)
    try:
        if entry.source == 'timm':
            state = convert(read_and_say(path)[0], skeleton, timm_rename(skeleton))
        else:
            state = convert(haiku_weights(path)[0], skeleton, haiku_rename(skeleton))
    except CheckpointError as error:
        raise type(error)(f'{entry.uri}: {error}') from None
    except ValueError as error:
        raise CheckpointError(f'{entry.uri} is not what its name says: {error}') from None
    with suppress(OSError):  # a full disk or a cache that cannot be written
        atomic_write(kept, encode_converted(state, kept, entry.uri, sha256=digest))
    return dict(state_dict=state, meta=dict(source=entry.uri, sha256=digest))
