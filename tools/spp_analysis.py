"""Signal propagation plots of a configured backbone.

    python tools/spp_analysis.py configs/nf_resnet/nf-resnet_digits.py --out-dir work_dirs/spp

measures the backbone at initialisation; a checkpoint as second argument measures
that one. Prints a table and writes ``spp.json`` and the other formats.
"""

from __future__ import annotations

import argparse
import io
import json
import os.path as osp
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import MODELS

from nf_plugins.checkpoint import check_match, safe_load, state_dict_of
from nf_plugins.spp import SignalProfile, analyze, profiles_to_csv
from nf_plugins.spp.inputs import (
    INPUTS,
    config_input_size,
    dataset_batch,
    gaussian_batch,
    image_channels,
)
from nf_plugins.spp.plot import plot_profiles
from nf_plugins.utils import (
    ArgumentParser,
    UsageError,
    atomic_write,
    check_writable_dir,
    command_line,
    complaint,
)
from nf_plugins.utils.runner import load_config

FORMATS = ('png', 'svg', 'json', 'csv')


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(
        description='Measure and plot how the signal propagates through a configured backbone.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint; without it, at initialisation')
    parser.add_argument(
        '--input',
        default='gaussian',
        choices=INPUTS,
        help="unit Gaussian noise or the config's own data (default: gaussian)",
    )
    parser.add_argument('--batch-size', type=positive, default=8, help='default: 8')
    parser.add_argument(
        '--input-size',
        type=positive,
        nargs='+',
        help='side, or height and width, of the noise (default: as the config trains)',
    )
    parser.add_argument(
        '--mode',
        default='train',
        choices=('train', 'eval'),
        help='mode of the network: in train mode batch norm uses the batch (default: train)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of weights and noise (default: 0)')
    parser.add_argument('--device', default='cpu', help='default: cpu')
    parser.add_argument('--out-dir', help='default: work_dirs/spp/CONFIG')
    parser.add_argument(
        '--format', nargs='+', default=['png', 'json'], choices=FORMATS, help='default: png json'
    )
    parser.add_argument(
        '--compare',
        nargs='+',
        default=[],
        metavar='CONFIG[=CHECKPOINT]',
        help='more networks to draw into the same figure, on the same input',
    )
    parser.add_argument('--label', nargs='+', help='names for the legend, one per network')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of CONFIG: key=value',
    )
    args = parser.parse_args()
    if args.input_size and len(args.input_size) > 2:
        parser.error('--input-size takes a side, or a height and a width')
    if args.label and len(args.label) != 1 + len(args.compare):
        parser.error(f'--label takes {1 + len(args.compare)} names, got {len(args.label)}')
    return args


def build_backbone(cfg: Config, path: str, checkpoint: str | None, seed: int) -> torch.nn.Module:
    if 'backbone' not in cfg.model:
        raise UsageError(f'{path} has no backbone: a config needs model.backbone')
    with complaint(f'cannot build the backbone of {path}'), torch.random.fork_rng([]):
        torch.manual_seed(seed)
        backbone = MODELS.build(cfg.model.backbone)
        if hasattr(backbone, 'init_weights'):
            backbone.init_weights()
    if checkpoint is not None:
        with complaint(f'cannot load the checkpoint {checkpoint}'):
            state = state_dict_of(safe_load(checkpoint), checkpoint)
            prefixed = any(key.startswith('backbone.') for key in state)
            if prefixed:
                state = {
                    key.removeprefix('backbone.'): value
                    for key, value in state.items()
                    if key.startswith('backbone.')
                }
            check_match(state, backbone, checkpoint)
            backbone.load_state_dict(state)
    return backbone


def measure(
    args: argparse.Namespace, config: str, checkpoint: str | None, options: dict | None = None
) -> SignalProfile:
    cfg = load_config(config, options)
    backbone = build_backbone(cfg, config, checkpoint, args.seed)
    if args.input == 'gaussian':
        size = args.input_size or config_input_size(cfg)
        shape = (args.batch_size, image_channels(backbone), size[0], size[-1])
        with complaint(f'cannot make noise of shape {shape}'):
            inputs = gaussian_batch(shape, args.seed)
    else:
        with complaint(f'cannot read the {args.input} data of {config}'):
            inputs = dataset_batch(cfg, args.input, args.batch_size, args.seed)
    with complaint(f'cannot run the backbone of {config} on {args.device}'):
        profile = analyze(
            backbone.to(args.device),
            inputs.to(args.device),
            mode=args.mode,
            seed=args.seed,
            input_info=dict(kind=args.input),
        )
    profile.config, profile.checkpoint = config, checkpoint
    profile.label = Path(config).stem
    if checkpoint is not None:
        profile.label += f' ({Path(checkpoint).stem})'
    return profile


def render(profiles: list[SignalProfile], form: str) -> bytes | str:
    """The content of one output file."""
    if form == 'json':
        record = profiles[0].to_dict()
        if len(profiles) > 1:
            record['compared'] = [profile.to_dict() for profile in profiles[1:]]
        return json.dumps(record, indent=1, allow_nan=False) + '\n'
    if form == 'csv':
        return profiles_to_csv(profiles)
    buffer = io.BytesIO()
    plot_profiles(profiles).savefig(buffer, format=form)
    return buffer.getvalue()


@command_line
def main() -> None:
    with complaint('bad arguments'):
        args = parse_args()
    MMLogger.get_instance('mmengine').setLevel('ERROR')  # no line per initialised parameter
    out_dir = Path(args.out_dir or osp.join('work_dirs', 'spp', Path(args.config).stem))
    with complaint(f'cannot write into {out_dir}'):
        check_writable_dir(out_dir)
    with complaint(f'cannot use the device {args.device}'):
        torch.empty(0, device=args.device)

    profiles = [measure(args, args.config, args.checkpoint, args.cfg_options)]
    for source in args.compare:
        config, _, checkpoint = source.partition('=')
        profiles.append(measure(args, config, checkpoint or None))
    for number, profile in enumerate(profiles):
        if args.label:
            profile.label = args.label[number]
        print(f'{profile.label}: {profile.mode} mode, {args.input} input {profile.input["shape"]}')
        print(profile.table())
        for verdict in profile.verdicts():
            print(f'{verdict["severity"]}: {verdict["message"]}')
        print()

    files = {form: render(profiles, form) for form in dict.fromkeys([*args.format, 'json'])}
    with complaint(f'cannot write into {out_dir}'):
        out_dir.mkdir(parents=True, exist_ok=True)
        for form, content in files.items():
            atomic_write(out_dir / f'spp.{form}', content)
    print('written:', *(str(out_dir / f'spp.{form}') for form in files))


if __name__ == '__main__':
    main()
