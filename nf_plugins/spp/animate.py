"""Animations of signal propagation records: one frame per record, on fixed axes."""

from __future__ import annotations

import html
import importlib.util
import io
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nf_plugins.errors import printable
from nf_plugins.utils.checks import check_choice

from .plot import COLOURS, METRICS
from .profile import SCHEMA, BlockSignal, SignalProfile

FORMATS = ('gif', 'mp4', 'html')
PACKAGES = {'gif': (), 'mp4': ('imageio', 'imageio_ffmpeg'), 'html': ('plotly',)}
"""What a format needs beyond the package's own requirements."""

# Each curve with the panel that it is drawn into.
_CURVES = (*((metric, metric) for metric in METRICS), ('expected_var', 'avg_var'))
_COLOUR = COLOURS[0]


@dataclass(frozen=True)
class Record:
    """A signal propagation profile at one moment of a training.

    Args:
        profile: The profile.
        epoch: Epoch, None where it is not known.
        iter: Iteration, None where it is not known.
        source: The file that it comes from.
        training: Name of the training; a resumed one keeps it.
    """

    profile: SignalProfile
    epoch: int | None
    iter: int | None
    source: str
    training: str | None = None

    @property
    def label(self) -> str:
        """When it was: 'epoch 3, iteration 120', and whether the signal is still finite."""
        text = f'epoch {self.epoch}, iteration {self.iter}'
        if self.epoch is None or self.iter is None:
            text = _drawn_text(Path(self.source).name)
        for block, value in zip(self.profile.blocks, self.values('avg_var')):
            if math.isnan(value):
                return f'{text}: not finite from block {block.index} on'
        return text

    def values(self, metric: str) -> list[float]:
        """A metric of every block; NaN where it is not finite or not defined."""
        values = [getattr(block, metric) for block in self.profile.blocks]
        if metric == 'expected_var':  # the stem's pooling is not in the theory
            stem = [block.kind == 'stem' for block in self.profile.blocks]
            values = [None if skip else value for skip, value in zip(stem, values)]
        return [math.nan if value is None else _drawable(value) for value in values]


def parse_record(data: Any, source: str) -> Record:
    """Make a :class:`Record` of the content of a record file.

    Args:
        data: ``spp.json`` as a dict, with an integer ``epoch`` and ``iter``.
        source: The file, for messages.

    Raises:
        ValueError: It is not a record.

    Example:
        >>> block = dict(index=0, name='stem', kind='stem', shape=[2, 8, 4, 4], avg_var=1.0)
        >>> block.update(avg_sq_mean=0.5, res_avg_var=None, expected_var=None)
        >>> data = dict(schema='nf_plugins.spp/1', mode='eval', epoch=1, iter=9, blocks=[block])
        >>> parse_record(data, 'a.json').label
        'epoch 1, iteration 9'
    """
    schema = data.get('schema') if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise ValueError(f'{source} is no record: its schema is {schema!r:.100}, not {SCHEMA!r}')
    if not all(type(data.get(key)) is int for key in ('epoch', 'iter')):
        raise ValueError(f'{source} has no integer epoch and iter, as records of a training have')
    if not all(0 <= data[key] < 2**63 for key in ('epoch', 'iter')):
        raise ValueError(f'{source} has an epoch or iter that no training reaches')
    blocks, config, inputs = data.get('blocks'), data.get('config'), data.get('input')
    if data.get('mode') not in ('train', 'eval') or not isinstance(blocks, list) or not blocks:
        raise ValueError(f"{source} is no record: it needs a mode, 'train' or 'eval', and blocks")
    if len(blocks) > MAX_BLOCKS:
        raise ValueError(f'{source} is no record: it has more than {MAX_BLOCKS} blocks')
    profile = SignalProfile(
        [_parse_block(block, f'block {i} of {source}') for i, block in enumerate(blocks)],
        mode=data['mode'],
        input=inputs if isinstance(inputs, dict) else {},
        config=config if isinstance(config, str) else None,
    )
    training = data.get('training')
    training = training if isinstance(training, str) else None
    return Record(profile, data['epoch'], data['iter'], source, training)


def _parse_block(data: Any, what: str) -> BlockSignal:
    data = data if isinstance(data, dict) else {}
    for key, kind in dict(index=int, name=str, kind=str, shape=list).items():
        if type(data.get(key)) is not kind:
            raise ValueError(f'{what} has no {key} of type {kind.__name__}')
    if not 0 <= data['index'] < MAX_BLOCKS:
        raise ValueError(f'{what} has an index below 0, or beyond {MAX_BLOCKS}')
    if not all(type(size) is int for size in data['shape']):
        raise ValueError(f'{what} has a shape that is no list of integers')
    numbers = {key: data.get(key) for key in (*METRICS, 'expected_var')}
    for key, value in numbers.items():
        if key not in data or type(value) not in (int, float, type(None)):
            raise ValueError(f'{what}: {key} must be a number or null')
        numbers[key] = math.nan if value is None else _drawable(value)
    return BlockSignal(
        index=data['index'],
        name=data['name'],
        kind=data['kind'],
        shape=tuple(data['shape']),
        **numbers,
    )


def _drawn_text(text: str) -> str:
    """What fits into a figure's heading: no control characters, no halves of characters."""
    text = printable(text)
    return text if len(text) <= 100 else f'{text[:97]}...'


def _drawable(value: float) -> float:
    """NaN for what is beyond the axes, 0 for what is too small for a logarithm."""
    if not abs(value) < 1e150:
        return math.nan
    return float(value) if abs(value) > 1e-150 else 0.0


def read_record(path: str | Path) -> Record:
    """Read a record file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not valid JSON, or no record.
    """
    return parse_record(read_json(path), str(path))


MAX_BYTES = 16 * 2**20
"""Records are some kilobytes."""
MAX_BLOCKS = 10_000
"""Far more than any network has."""


def read_json(path: str | Path) -> Any:
    """Read a JSON file that anybody may have put there.

    Raises:
        OSError: It cannot be read, or is no regular file: a pipe would be waited for.
        ValueError: It is not valid JSON, or far too large for a record.
    """
    # Not to wait for a pipe to be written to.
    with open(path, 'rb', opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f'{path} is no regular file')
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f'{path} is no record: it has more than {MAX_BYTES >> 20} MiB')
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not valid JSON: {error}') from None


def find_records(folder: str | Path) -> list[Path]:
    """The record files of a work dir, of one of its timestamp folders or of an spp folder.

    Args:
        folder: The folder.

    Returns:
        The files, those of the newest timestamp last.

    Raises:
        ValueError: There are none.
    """

    def age(path: Path) -> tuple:
        run = path.parent.parent.name
        return re.fullmatch(r'\d{8}_\d{6}', run) is not None, run, path.name

    for pattern in ('*/spp/*.json', 'spp/*.json', '*.json'):
        found = [p for p in Path(folder).glob(pattern) if not p.name.startswith('.')]
        if found:
            return sorted(found, key=age)
    raise ValueError(f'{folder} holds no records: they are WORK_DIR/TIMESTAMP/spp/*.json')


def newest_training(records: Iterable[Record]) -> list[Record]:
    """Of several trainings in one work dir, the records of that which the last one is of."""
    records = list(records)
    return [record for record in records if record.training == records[-1].training]


def merge_records(records: Iterable[Record]) -> list[Record]:
    """Sort records by iteration; of those of the same moment the last one counts.

    Args:
        records: Records of one training, in the order in which they were made.

    Raises:
        ValueError: They do not belong together, or there are none.
    """
    records = list(records)
    check_comparable(records)
    latest = {(record.epoch, record.iter): record for record in records}
    return sorted(latest.values(), key=lambda record: (record.iter, record.epoch))


def check_comparable(records: Sequence[Record]) -> None:
    """Raise a ValueError unless all records are of one network, mode and kind of input."""
    if not records:
        raise ValueError('there are no records')
    first = records[0]

    def network(record: Record) -> list[tuple[int, str]]:
        return [(block.index, block.name) for block in record.profile.blocks]

    for other in records[1:]:
        pair = f'{first.source} and {other.source}'
        modes = first.profile.mode, other.profile.mode
        kinds = first.profile.input.get('kind'), other.profile.input.get('kind')
        if modes[0] != modes[1]:
            raise ValueError(f'{pair} are of different modes, {modes[0]} and {modes[1]}')
        if network(first) != network(other):
            raise ValueError(f'{pair} are of different networks: their blocks differ')
        if kinds[0] != kinds[1]:
            raise ValueError(f'{pair} are of different inputs, {kinds[0]} and {kinds[1]}')


@dataclass(frozen=True)
class Axis:
    """A vertical axis.

    Args:
        scale: 'linear', 'log' or 'symlog' (logarithmic, but linear up to ``threshold``).
        limits: Lowest and highest value in sight.
        threshold: For 'symlog'.
    """

    scale: str
    limits: tuple[float, float]
    threshold: float = 1.0

    def apply(self, ax: Any) -> None:
        """Set up an axis of matplotlib."""
        ax.set_yscale(
            self.scale, **(dict(linthresh=self.threshold) if self.scale == 'symlog' else {})
        )
        ax.set_ylim(*self.limits)

    def _symlog(self) -> Any:
        from matplotlib.scale import SymmetricalLogTransform

        return SymmetricalLogTransform(base=10, linthresh=self.threshold, linscale=1)

    def place(self, values: Sequence[float]) -> list[float]:
        """Where plotly, which has no such scale, has to draw values."""
        if self.scale != 'symlog':
            return list(values)
        return self._symlog().transform(np.asarray(values, dtype=float)).tolist()

    def plotly(self) -> dict[str, Any]:
        """Settings of an axis of plotly."""
        if self.scale == 'log':
            limits = [math.log10(value) for value in self.limits]
            return dict(type='log', range=limits, autorange=False, exponentformat='power')
        settings = dict(type='linear', range=self.place(self.limits), autorange=False)
        if self.scale == 'symlog':
            from matplotlib.ticker import SymmetricalLogLocator

            ticks = SymmetricalLogLocator(self._symlog()).tick_values(*self.limits)
            ticks = [t for t in ticks.tolist() if self.limits[0] <= t <= self.limits[1]]
            settings.update(tickvals=self.place(ticks), ticktext=list(map(_power, ticks)))
        return settings


def fixed_axis(values: Iterable[float]) -> Axis:
    """The axis that shows all values: logarithmic if they span more than a factor 30.

    Args:
        values: Values; those that are not finite do not count.

    Example:
        >>> [fixed_axis(values).scale for values in ([1, 2], [1, 99], [0, 1, 99])]
        ['linear', 'log', 'symlog']
    """
    finite = [value for value in values if math.isfinite(value)]
    positive = [value for value in finite if value > 0]
    lowest, highest = min(finite, default=0.0), max(finite, default=1.0)
    if not positive or highest <= 30 * min(positive):
        bottom, top = min(lowest, 0.0), max(highest, 0.0)
        margin = 0.05 * ((top - bottom) or 1.0)
        return Axis('linear', (bottom - margin, top + margin))
    if lowest > 0:
        margin = (highest / lowest) ** 0.05
        return Axis('log', (lowest / margin, highest * margin))
    # Zeros (a zero-initialised branch) stay in sight, a decade below the smallest value.
    threshold = 10.0 ** math.floor(math.log10(max(min(positive), highest * 1e-12)))
    margin = (highest / threshold) ** 0.05
    bottom = -0.3 * threshold if lowest == 0 else lowest * margin - threshold
    return Axis('symlog', (bottom, highest * margin), threshold)


def _power(value: float) -> str:
    """A power of ten, or 0, as plotly's other axes write it."""
    if not value:
        return '0'
    sign = '-' if value < 0 else ''
    return f'{sign}10<sup>{round(math.log10(abs(value)))}</sup>'


def fixed_axes(records: Sequence[Record]) -> dict[str, Axis]:
    """For each panel the axis that fits all records."""
    values: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for record in records:
        for metric, panel in _CURVES:
            values[panel] += record.values(metric)
    return {panel: fixed_axis(numbers) for panel, numbers in values.items()}


def _has_theory(records: Sequence[Record]) -> bool:
    return not all(math.isnan(v) for record in records for v in record.values('expected_var'))


class Painter:
    """Draws records into one figure whose axes stay as they are.

    Args:
        records: The records.
        title: First line above the panels.
    """

    def __init__(self, records: Sequence[Record], title: str = '') -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        check_comparable(records)
        self.records, self.title = records, _drawn_text(title)
        blocks = records[0].profile.blocks
        # Even numbers of pixels, which H.264 needs.
        self.figure = Figure(figsize=(10, 4), dpi=120, layout='constrained')
        self.canvas = FigureCanvasAgg(self.figure)
        self.panels = dict(zip(METRICS, self.figure.subplots(1, 3, sharex=True)))
        axes = fixed_axes(records)
        for metric, ax in self.panels.items():
            axes[metric].apply(ax)
            ax.set_xlim(blocks[0].index - 0.5, blocks[-1].index + 0.5)
            ax.xaxis.get_major_locator().set_params(integer=True)
            for block in blocks:
                if block.kind == 'transition':
                    ax.axvline(block.index - 0.5, color='0.8', linewidth=0.8, zorder=0)
            ax.set_xlabel('Block index', fontsize=9)
            ax.set_ylabel(METRICS[metric], fontsize=9)
            ax.grid(axis='y', color='0.9', linewidth=0.6)
            ax.set_axisbelow(True)

        index = [block.index for block in blocks]
        blank = [math.nan] * len(blocks)
        self.lines = {}
        for metric, panel in _CURVES:
            style = dict(marker='o', markersize=4 if len(blocks) <= 40 else 2, linewidth=1.4)
            if metric == 'expected_var':
                style = dict(linestyle='--', linewidth=1.2, alpha=0.7)
            (line,) = self.panels[panel].plot(
                index, blank, color=_COLOUR, scalex=False, scaley=False, **style
            )
            self.lines[metric] = line
        if _has_theory(records):
            self.lines['expected_var'].set_label('expected by the method')
            self.figure.legend(loc='outside lower center', frameon=False, fontsize=9)
        # Names of files and networks may hold dollar signs, which are not for TeX here.
        self.heading = self.figure.suptitle('', fontsize=11, parse_math=False)
        # No two frames are the same, so that no encoder can merge them.
        self.counter = self.figure.text(0.995, 0.99, '', ha='right', va='top', fontsize=8)
        self.show(0)
        self.canvas.draw()
        self.figure.set_layout_engine('none')  # nothing moves from here on

    def show(self, number: int) -> None:
        """Put a record into the figure."""
        record = self.records[number]
        for metric, line in self.lines.items():
            line.set_ydata(record.values(metric))
        moment = f'{record.label} ({record.profile.mode} mode)'
        self.heading.set_text('\n'.join(filter(None, [self.title, moment])))
        self.counter.set_text(f'{number + 1} / {len(self.records)}')

    def frame(self, number: int) -> np.ndarray:
        """A record as an image: ``(height, width, 3)``, uint8."""
        self.show(number)
        self.canvas.draw()
        return np.array(np.asarray(self.canvas.buffer_rgba())[..., :3])

    def frames(self, advance: Callable[[], None]) -> Iterator[np.ndarray]:
        """All records as images; ``advance`` is called after each."""
        for number in range(len(self.records)):
            yield self.frame(number)
            advance()


def _no_bar() -> None:
    pass


def missing_packages(form: str) -> list[str]:
    """Packages that a format needs and that are not installed."""
    names = [name for name in PACKAGES[form] if importlib.util.find_spec(name) is None]
    return [name.replace('_', '-') for name in names]


def render(
    records: Sequence[Record],
    form: str,
    fps: float = 4.0,
    title: str = '',
    advance: Callable[[], None] = _no_bar,
) -> bytes:
    """The animation as the content of a file.

    Args:
        records: The records in order; each becomes one frame.
        form: 'gif', 'mp4' or 'html'.
        fps: Frames per second.
        title: Title of the animation.
        advance: Called after each frame.

    Raises:
        ValueError: Unknown format, or records that do not belong together.
    """
    check_choice('the format', form, FORMATS)
    if form == 'html':
        return _html(records, fps, title, advance).encode()
    painter = Painter(records, title)
    encode = _gif if form == 'gif' else _mp4
    content, count = encode(painter.frames(advance), fps)
    if count != len(records):
        raise RuntimeError(f'the encoder made {count} frames of {len(records)} records')
    return content


def _gif(frames: Iterator[np.ndarray], fps: float) -> tuple[bytes, int]:
    """A GIF, and its number of frames."""
    from PIL import Image

    images = (Image.fromarray(frame) for frame in frames)
    # The format counts in 10 ms, and browsers slow down what is shorter than 20 ms.
    duration = max(20, 10 * round(100 / fps))
    buffer = io.BytesIO()
    # An iterator, so that Pillow holds only what changes from frame to frame.
    next(images).save(buffer, 'GIF', save_all=True, append_images=images, duration=duration, loop=0)
    with Image.open(buffer) as made:
        return buffer.getvalue(), getattr(made, 'n_frames', 1)


def _mp4(frames: Iterator[np.ndarray], fps: float) -> tuple[bytes, int]:
    """An H.264 video that every player knows, and its number of frames."""
    import imageio.v2 as imageio
    import imageio_ffmpeg

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'spp.mp4'
        with imageio.get_writer(
            path,
            format='FFMPEG',
            mode='I',
            fps=fps,
            codec='libx264',
            pixelformat='yuv420p',
            macro_block_size=2,
            quality=8,
            ffmpeg_log_level='fatal',
            output_params=['-movflags', '+faststart'],
        ) as writer:
            for frame in frames:
                writer.append_data(frame)
        count, _ = imageio_ffmpeg.count_frames_and_secs(path)
        return path.read_bytes(), count


def _html(records: Sequence[Record], fps: float, title: str, advance: Callable[[], None]) -> str:
    """A page with everything in it, plotly.js too."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    check_comparable(records)
    axes, title = fixed_axes(records), _drawn_text(title)
    mode, blocks = records[0].profile.mode, records[0].profile.blocks
    index = [block.index for block in blocks]
    curves = [(m, panel) for m, panel in _CURVES if m != 'expected_var' or _has_theory(records)]
    same_shapes = all(_hover(record) == _hover(records[0]) for record in records)

    def curve(record: Record, metric: str, panel: str, whole: bool = False) -> dict[str, Any]:
        values = record.values(metric)
        data = dict(y=_nulls(axes[panel].place(values)))
        if axes[panel].scale == 'symlog':
            data['customdata'] = _nulls(values)
        if whole or not same_shapes:
            data['text'] = _hover(record)
        return data

    figure = make_subplots(1, 3, horizontal_spacing=0.08)
    for metric, panel in curves:
        value = '%{customdata:.5g}' if axes[panel].scale == 'symlog' else '%{y:.5g}'
        expected = metric == 'expected_var'
        figure.add_trace(
            go.Scatter(
                x=index,
                **curve(records[0], metric, panel, whole=True),
                name='expected by the method' if expected else METRICS[metric],
                mode='lines' if expected else 'lines+markers',
                line=dict(color=_COLOUR, width=1.5, dash='dash' if expected else 'solid'),
                opacity=0.7 if expected else 1.0,
                hovertemplate=f'block %{{x}}: %{{text}}<br>{metric} {value}<extra></extra>',
                showlegend=expected,
            ),
            row=1,
            col=1 + list(METRICS).index(panel),
        )
    frames, steps = [], []
    for number, record in enumerate(records):
        data = [go.Scatter(**curve(record, *names)) for names in curves]
        frames.append(go.Frame(name=str(number), data=data, traces=list(range(len(curves)))))
        at_once = dict(mode='immediate', frame=dict(duration=0, redraw=False))
        at_once['transition'] = dict(duration=0)
        label = html.escape(record.label, quote=False)
        steps.append(dict(method='animate', label=label, args=[[str(number)], at_once]))
        advance()
    figure.frames = frames

    for column, metric in enumerate(METRICS, 1):
        figure.update_yaxes(title=METRICS[metric], **axes[metric].plotly(), row=1, col=column)
    figure.update_xaxes(
        title='Block index', range=[index[0] - 0.5, index[-1] + 0.5], autorange=False
    )
    for block in blocks:
        if block.kind == 'transition':
            figure.add_vline(block.index - 0.5, line=dict(color='#ccc', width=1), layer='below')
    play = dict(frame=dict(duration=1000 / fps, redraw=False), fromcurrent=True)
    play['transition'] = dict(duration=0)
    stop = dict(mode='immediate', frame=dict(duration=0, redraw=False))
    heading = html.escape(f'{title} ({mode} mode)' if title else f'{mode} mode', quote=False)
    figure.update_layout(
        template='plotly_white',
        title=heading,
        height=560,
        legend=dict(x=0.5, xanchor='center', y=1.02, yanchor='bottom'),
        updatemenus=[
            dict(
                type='buttons',
                direction='left',
                showactive=False,
                x=0,
                y=-0.25,
                xanchor='left',
                yanchor='top',
                buttons=[
                    dict(label='Play', method='animate', args=[None, play]),
                    dict(label='Pause', method='animate', args=[[None], stop]),
                ],
            )
        ],
        sliders=[
            dict(active=0, steps=steps, x=0.16, len=0.84, y=-0.2, yanchor='top', pad=dict(t=10))
        ],
    )
    config = dict(
        displaylogo=False,
        showSendToCloud=False,  # a button that uploads the chart
        modeBarButtonsToRemove=['select2d', 'lasso2d', 'autoScale2d'],
    )
    page = figure.to_html(include_plotlyjs=True, auto_play=False, config=config)
    return page.replace('<head>', f'<head>\n    <title>{heading}</title>', 1)


def _hover(record: Record) -> list[str]:
    """What is said about each block; plotly would take tags in it for markup."""
    return [
        html.escape(_drawn_text(f'{b.name}, {b.kind}, {"x".join(map(str, b.shape))}'), quote=False)
        for b in record.profile.blocks
    ]


def _nulls(values: Iterable[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]
