"""Films of the records of a training: one frame per record, on axes that stay as they are."""

from __future__ import annotations

import html
import importlib.util
import io
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nf_plugins.utils.checks import check_choice

from ..rules import headline
from .axes import (
    COLOURS,
    EXPECTED,
    MANY_BLOCKS,
    METRICS,
    curve,
    drawable_text,
    expected_label,
    new_figure,
    scale_of,
    set_up_panel,
)
from .html import add_legend_entry, hover, page, panels, position, traces, values_of
from .records import Record, check_comparable

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.lines import Line2D

FORMATS = ('gif', 'mp4', 'html')
PACKAGES = {'gif': (), 'mp4': ('imageio', 'imageio_ffmpeg'), 'html': ('plotly',)}
"""What a format needs beyond the package's own requirements."""
MEASURED = 'the network'
_COLOUR = COLOURS[0]


def missing_packages(form: str) -> list[str]:
    """Return the packages that a format needs and that are not installed."""
    names = [name for name in PACKAGES[form] if importlib.util.find_spec(name) is None]
    return [name.replace('_', '-') for name in names]


def _no_bar() -> None:
    pass


def render(
    records: Sequence[Record],
    form: str,
    fps: float = 4.0,
    title: str = '',
    advance: Callable[[], None] = _no_bar,
) -> bytes:
    """Return the film as the content of a file.

    Args:
        records: The records in order; each becomes one frame.
        form: 'gif', 'mp4' or 'html'.
        fps: Frames per second.
        title: Title of the film.
        advance: Called after each frame.

    Raises:
        ValueError: Unknown format, or records that do not belong together.
    """
    check_choice('the format', form, FORMATS)
    check_comparable(records)
    if form == 'html':
        return film_page(records, fps, title, advance).encode()
    painter = Painter(records, title)
    encode = _gif if form == 'gif' else _mp4
    content, count = encode(painter.frames(advance), fps)
    if count != len(records):
        raise RuntimeError(f'the encoder made {count} frames of {len(records)} records')
    return content


def _has_theory(records: Sequence[Record]) -> bool:
    return any(
        not math.isnan(value)
        for record in records
        for field in EXPECTED.values()
        for value in curve(record.profile, field)[1]
    )


class Painter:
    """Draws records into one figure whose axes stay as they are.

    Args:
        records: The records.
        title: First line above the panels.
    """

    def __init__(self, records: Sequence[Record], title: str = '') -> None:
        self.records, self.title = records, drawable_text(title)
        # Even numbers of pixels, which H.264 needs.
        self.figure = new_figure(1, 4, dpi=120)
        self.canvas = cast('FigureCanvasAgg', self.figure.canvas)  # which new_figure has made
        self.panels = dict(zip(METRICS, self.figure.axes))
        self.lines: dict[str, Line2D] = {}
        profiles = [record.profile for record in records]
        for metric, ax in self.panels.items():
            set_up_panel(ax, profiles, metric, scale_of(profiles, metric))
            self._add_lines(ax, metric)
        if _has_theory(records):
            self.lines['expected_var'].set_label(expected_label(profiles))
        self.lines['avg_var'].set_label(MEASURED)
        handles, labels = self.panels['avg_var'].get_legend_handles_labels()
        self.figure.legend(
            handles, labels, loc='outside lower center', ncols=2, frameon=False, fontsize=9
        )
        # Names of files and networks may hold dollar signs, which are not for TeX here.
        self.heading = self.figure.suptitle('', fontsize=11, parse_math=False)
        # No two frames are the same, so that no encoder can merge them.
        self.counter = self.figure.text(0.995, 0.99, '', ha='right', va='top', fontsize=8)
        self.show(0)
        self.canvas.draw()
        self.figure.set_layout_engine('none')  # nothing moves from here on

    def _add_lines(self, ax: Any, metric: str) -> None:
        """Add the curve of a panel, and the dashed one of what theory expects."""
        dense = len(self.records[0].profile.blocks) > MANY_BLOCKS
        look = dict(marker=None if dense else 'o', markersize=4, linewidth=1.4)
        fixed = dict(color=_COLOUR, scalex=False, scaley=False)
        (self.lines[metric],) = ax.plot([], [], **fixed, **look)
        if metric in EXPECTED:
            look = dict(linestyle='--', linewidth=1, alpha=0.7)
            (self.lines[EXPECTED[metric]],) = ax.plot([], [], **fixed, **look)

    def show(self, number: int) -> None:
        """Put a record into the figure."""
        record = self.records[number]
        for field, line in self.lines.items():
            line.set_data(*curve(record.profile, field))
        moment = f'{record.label} ({record.profile.mode} mode)'
        said = drawable_text(headline(record.profile.verdicts()), 110)
        self.heading.set_text('\n'.join(filter(None, [self.title, moment, said])))
        self.counter.set_text(f'{number + 1} / {len(self.records)}')

    def frame(self, number: int) -> np.ndarray:
        """Return a record as an image: ``(height, width, 3)``, uint8."""
        self.show(number)
        self.canvas.draw()
        return np.array(np.asarray(self.canvas.buffer_rgba())[..., :3])

    def frames(self, advance: Callable[[], None]) -> Iterator[np.ndarray]:
        """Yield all records as images; ``advance`` is called after each."""
        for number in range(len(self.records)):
            yield self.frame(number)
            advance()


def _gif(frames: Iterator[np.ndarray], fps: float) -> tuple[bytes, int]:
    """Return a GIF, and its number of frames."""
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
    """Return an H.264 video that every player knows, and its number of frames."""
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
                writer.append_data(frame)  # type: ignore[attr-defined]  # its base class is named
        count, _ = imageio_ffmpeg.count_frames_and_secs(path)
        return path.read_bytes(), count


def film_page(
    records: Sequence[Record], fps: float, title: str, advance: Callable[[], None]
) -> str:
    """Return an interactive page with a slider over the records."""
    profiles = [record.profile for record in records]
    figure, scales = panels(profiles, list(METRICS))
    fields = []  # of the curves, in the order in which they are added
    for panel, metric in enumerate(METRICS):
        for trace in traces(profiles[0], metric, scales[metric]):
            fields.append((metric if trace.line.dash != 'dash' else EXPECTED[metric], metric))
            if fields[-1][0] == 'avg_sq_mean':
                trace.update(name=MEASURED, showlegend=True)
            figure.add_trace(trace, **position(panel))
    figure.frames = list(_frames(records, fields, scales, advance))
    if _has_theory(records):
        add_legend_entry(figure, expected_label(profiles))
    _add_controls(figure, records, fps)
    mode = profiles[0].mode
    return page(figure, f'{title} ({mode} mode)' if title else f'{mode} mode')


def _frames(
    records: Sequence[Record], fields: list[tuple[str, str]], scales: dict, advance: Callable
) -> Iterator[Any]:
    """Yield what changes from record to record: the values, and the names where they differ."""
    import plotly.graph_objects as go

    names = {field: [hover(record.profile, field) for record in records] for field, _ in fields}
    differ = {field for field, found in names.items() if any(n != found[0] for n in found)}
    for number, record in enumerate(records):
        data = []
        for field, metric in fields:
            values = values_of(record.profile, field, scales[metric])
            if field in differ:
                values.update(x=curve(record.profile, field)[0], text=names[field][number])
            data.append(go.Scatter(**values))
        yield go.Frame(name=str(number), data=data, traces=list(range(len(fields))))
        advance()


def _add_controls(figure: Any, records: Sequence[Record], fps: float) -> None:
    """Add play, pause and a slider with the moment of each record."""
    still = dict(duration=0)
    at_once = dict(mode='immediate', frame=dict(duration=0, redraw=False), transition=still)
    play = dict(frame=dict(duration=1000 / fps, redraw=False), fromcurrent=True, transition=still)
    steps = [
        dict(
            method='animate',
            label=html.escape(record.label, quote=False),
            args=[[str(number)], at_once],
        )
        for number, record in enumerate(records)
    ]
    buttons = [
        dict(label='Play', method='animate', args=[None, play]),
        dict(label='Pause', method='animate', args=[[None], at_once]),
    ]
    # In pixels below the panels, whatever the height of the page is.
    below = dict(y=0, yanchor='top')
    figure.update_layout(
        margin=dict(b=150),
        updatemenus=[
            dict(type='buttons', direction='left', showactive=False, buttons=buttons, x=0,
                 xanchor='left', pad=dict(t=80), **below)
        ],
        sliders=[
            dict(active=0, steps=steps, x=0.16, len=0.84, ticklen=0, minorticklen=0,
                 font=dict(color='rgba(0,0,0,0)'), currentvalue=dict(font=dict(color='#222')),
                 pad=dict(t=60), **below)
        ],
    )  # fmt: skip
