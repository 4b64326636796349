"""Signal propagation plots of a configured backbone.

    python tools/spp_analysis.py configs/nf_resnet/nf-resnet_digits.py --out-dir work_dirs/spp

measures the backbone at initialisation; a checkpoint as second argument measures
that one. Prints a table and what is wrong, and writes ``spp.json`` and the other formats.

    python tools/spp_analysis.py CONFIG --sweep model.backbone.base_channels=8,16,32,64

measures it at each value, says which metric is flat against the values, and writes ``sweep.json``
and a figure.
"""

from __future__ import annotations

import argparse
import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nf_plugins.cli.arguments import (
    ArgumentParser,
    add_measuring_arguments,
    measuring_options,
    output_folder,
    with_weights_key,
)
from nf_plugins.cli.command_line import command_line, quiet
from nf_plugins.config import load_config
from nf_plugins.errors import UsageError, as_usage_error, say
from nf_plugins.spp import (
    RULES,
    SignalProfile,
    headline,
    plot_html,
    plot_profiles,
    profiles_to_csv,
)
from nf_plugins.spp.from_config import measure_config
from nf_plugins.spp.inputs import INPUTS
from nf_plugins.spp.report.sweep_figure import plot_sweep
from nf_plugins.spp.rules import list_rules, names_of, resolve_thresholds
from nf_plugins.spp.sweep import Sweep, measure_sweep, parse_sweep
from nf_plugins.utils.files import atomic_write_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ('png', 'svg', 'pdf', 'json', 'csv', 'html')


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description='Measure and plot how the signal propagates through a configured backbone.'
    )
    parser.add_argument('config', help='config file; or published weights, such as deepmind://F0')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='checkpoint, or published weights by name; without it, at initialisation',
    )
    parser.add_argument(
        '--input',
        default='gaussian',
        metavar='{gaussian,train,val,test,FILE_OR_FOLDER}',
        help="unit Gaussian noise, the config's own data, or images (default: gaussian)",
    )
    add_measuring_arguments(parser)
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
    parser.add_argument(
        '--sweep',
        metavar='OPTION=VALUE,VALUE,...',
        help='measure at each value of a setting of the config, or of batch_size, input_size or '
        'seed, and say what is flat against it',
    )
    parser.add_argument('--label', nargs='+', help='names for the legend, one per network')
    parser.add_argument(
        '--backward',
        action='store_true',
        help='measure the gradient, too, that flows back from noise at the output',
    )
    parser.add_argument(
        '--unit-gain',
        action='store_true',
        help='measure with gains that are zero (SkipInit, zero_init_residual) at one',
    )
    parser.add_argument(
        '--fail-on',
        nargs='+',
        default=[],
        metavar='RULE',
        help=f'exit with status 1 if one of these fires: {", ".join(RULES)}, or one of your own '
        '(custom_imports in the config)',
    )
    parser.add_argument(
        '--threshold',
        nargs='+',
        default=[],
        metavar='RULE=VALUE',
        help='other thresholds of the rules, such as explosion=50; see --list-rules',
    )
    parser.add_argument(
        '--list-rules',
        action=_ListRules,
        nargs=0,
        help='print the rules with their severities and thresholds, and stop',
    )
    args = parser.parse_args(arguments)
    check_rules(args)
    if args.weights_key is not None:
        if args.checkpoint is None:
            parser.error('--weights-key needs a checkpoint')
        args.checkpoint = with_weights_key(args.checkpoint, args.weights_key)
    if args.input not in INPUTS and not (args.input and Path(args.input).exists()):
        parser.error(f'--input takes {", ".join(INPUTS)}, a file or a folder, got {args.input!r}')
    if args.label and len(args.label) != 1 + len(args.compare):
        parser.error(f'--label takes {1 + len(args.compare)} names, got {len(args.label)}')
    if args.sweep is not None:
        args.sweep = parse_sweep(args.sweep)
        if args.compare or 'html' in args.format:
            parser.error('--sweep does not go with --compare or --format html')
    return args


class _ListRules(argparse.Action):
    """Print the rules, as ``--version`` prints a version."""

    def __call__(self, parser, *args, **kwargs):
        print(list_rules())
        parser.exit()


def check_rules(args: argparse.Namespace) -> None:
    """Raise a ValueError for a rule that there is not; the config may import some."""
    values = dict(text.partition('=')[::2] for text in args.threshold)
    names = [*args.fail_on, *(key.partition('.')[0] for key in values)]
    if not set(names) <= set(RULES):
        load_config(args.config, args.cfg_options)
    for name in args.fail_on:
        if name not in RULES:
            raise ValueError(
                f'--fail-on: invalid choice: {name!r} (choose from {", ".join(RULES)})'
            )
    try:
        args.threshold = {key: float(value) for key, value in values.items()}
    except ValueError:
        raise ValueError(f'--threshold takes RULE=NUMBER, got {args.threshold}') from None
    resolve_thresholds(args.threshold)


def measure(args: argparse.Namespace) -> list[SignalProfile]:
    """Measure the network of the arguments, and those to compare it with."""
    options = measuring_options(args)
    profiles = [measure_config(args.config, args.checkpoint, options, args.cfg_options)]
    for source in args.compare:
        config, _, checkpoint = source.partition('=')
        profiles.append(measure_config(config, checkpoint or None, options))
    for profile, label in zip(profiles, args.label or ()):
        profile.label = label
    return profiles


def render(profiles: list[SignalProfile], form: str) -> bytes | str:
    """Return the content of one output file."""
    if form == 'json':
        data = profiles[0].to_dict()
        if len(profiles) > 1:
            data['compared'] = [profile.to_dict() for profile in profiles[1:]]
        return json.dumps(data, indent=1, allow_nan=False) + '\n'
    if form == 'csv':
        return profiles_to_csv(profiles)
    if form == 'html':
        return plot_html(profiles)
    return drawn(plot_profiles(profiles), form)


def drawn(figure: Figure, form: str) -> bytes:
    """Return a figure as the content of a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form)
    return buffer.getvalue()


def render_sweep(sweep: Sweep, form: str) -> bytes | str:
    """Return the content of one output file of a sweep."""
    if form == 'json':
        return json.dumps(sweep.to_dict(), indent=1, allow_nan=False) + '\n'
    if form == 'csv':
        return profiles_to_csv(sweep.profiles)
    return drawn(plot_sweep(sweep), form)


def run_one(args: argparse.Namespace, out_dir: Path) -> int:
    """Measure, say what is wrong and write; return whether a rule of ``--fail-on`` fires."""
    profiles = measure(args)
    fired = False
    for profile in profiles:
        source = f'{profile.input["kind"]} input of {"x".join(map(str, profile.input["shape"]))}'
        say(f'{profile.label}: {profile.mode} mode, {source}')
        verdicts = profile.verdicts(args.threshold)
        print(textwrap.fill(headline(verdicts), 100, subsequent_indent='    '))
        print(profile.table())
        for verdict in verdicts:
            text = f'{verdict["severity"]}: {verdict["rule"]}: {verdict["message"]}'
            print(textwrap.fill(text, 100, subsequent_indent='    '))
        fired |= fires(verdicts, args)
        print()
    write('spp', {form: render(profiles, form) for form in forms(args)}, out_dir)
    return int(fired)


def run_sweep(args: argparse.Namespace, out_dir: Path) -> int:
    """Measure at each value, say what is flat, and write; as :func:`run_one`."""
    fired = []

    def done(value: str, profile: SignalProfile) -> None:
        verdicts = profile.verdicts(args.threshold)
        fired.append(fires(verdicts, args))
        say(f'{profile.label}: {headline(verdicts)}')

    option, values = args.sweep
    options = measuring_options(args)
    sweep = measure_sweep(
        args.config, option, values, args.checkpoint, options, args.cfg_options, done
    )
    sweep.label = args.label[0] if args.label else Path(args.config).stem
    for text in sweep.words().values():
        print(textwrap.fill(text, 100, subsequent_indent='    '))
    write('sweep', {form: render_sweep(sweep, form) for form in forms(args)}, out_dir)
    if sweep.failed:
        wrong = '; '.join(f'{value}: {text}' for value, text in sweep.failed.items())
        raise UsageError(f'these values of {option} cannot be measured: {wrong}')
    return int(any(fired))


def fires(verdicts: list[dict], args: argparse.Namespace) -> bool:
    """Return whether a rule of ``--fail-on`` is among the verdicts."""
    return any(not names_of(verdict).isdisjoint(args.fail_on) for verdict in verdicts)


def forms(args: argparse.Namespace) -> list[str]:
    """Return the formats to write; JSON is always one of them."""
    return list(dict.fromkeys([*args.format, 'json']))


def write(name: str, files: dict[str, bytes | str], out_dir: Path) -> None:
    """Write the files of one name, and remove old ones of other formats."""
    with as_usage_error(f'cannot write into {out_dir}'):
        atomic_write_all({out_dir / f'{name}.{form}': files.get(form) for form in FORMATS})
    say('written:', *(str(out_dir / f'{name}.{form}') for form in files))


@command_line
def main() -> int:
    with as_usage_error('bad arguments'):
        args = parse_args()
    quiet()
    out_dir = output_folder(args.out_dir, 'spp', args.config)
    return (run_sweep if args.sweep else run_one)(args, out_dir)


if __name__ == '__main__':
    main()
