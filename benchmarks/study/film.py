"""The film of the collapse: the gradient of all networks over the steps."""

from __future__ import annotations

import io
import math
from typing import Any

from .drawing import GRADIENTS, new_figure, style
from .results import Rows
from .runs import NETWORKS

MILLISECONDS, LAST = 250, 3000
"""How long a frame is shown, and the last one."""
TOPS = (1.0, 1e6, 1e4)
"""Upper ends of the axes: a training that explodes leaves them."""


def mean_share(frame: dict) -> list[float]:
    """Return, for each block, the share of the mean in the mean square of the gradient."""
    pairs = zip(frame['grad_avg_sq_mean'], frame['grad_avg_var'])
    return [math.nan if a is None or b is None else a / max(a + b, 1e-30) for a, b in pairs]


class Film:
    """Draws the gradient of several networks at one step after another, on axes that stay.

    Dotted lines are the gradient before the first step.

    Args:
        rows: One run of each network.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows.rows
        self.steps = sorted({frame['step'] for row in self.rows for frame in row['film']})
        self.figure, axes = new_figure(1, 3, (11, 4.2))
        self.figure.set_dpi(100)
        self.share, self.variance, self.loss = axes[0]
        self._set_up_axes()
        self.lines = [self._lines(row, style(row['network'], GRADIENTS)) for row in self.rows]
        self.legend = self.figure.legend(
            [lines[0] for lines in self.lines],
            [NETWORKS[row['network']].label for row in self.rows],
            loc='outside lower center', ncols=len(self.rows), frameon=False, fontsize=10,
        )  # fmt: skip
        self.heading = self.figure.suptitle('step 0', fontsize=12)

    def _lines(self, row: dict, look: dict) -> list[Any]:
        """Add the lines of a network, and its first frame."""
        first, faint = row['film'][0], dict(look, marker='', linestyle=':', linewidth=1, alpha=0.7)
        for ax, values in ((self.share, mean_share(first)), (self.variance, _variances(first))):
            ax.plot(range(len(values)), values, **faint)
        look = dict(look, markersize=4, linewidth=1.5)
        return [ax.plot([], [], **look)[0] for ax in (self.share, self.variance, self.loss)]

    def _set_up_axes(self) -> None:
        frames = [frame for row in self.rows for frame in row['film']]
        blocks = len(frames[0]['grad_avg_var'])
        self.share.set_ylabel('Share of the mean in the squared gradient')
        self.variance.set_ylabel('Variance of the gradient')
        self.loss.set_ylabel('Training loss')
        values = (
            [share for frame in frames for share in mean_share(frame)],
            [value for frame in frames for value in frame['grad_avg_var']],
            [frame['loss'] for frame in frames],
        )
        for ax, found, top in zip((self.share, self.variance, self.loss), values, TOPS):
            ax.set_yscale('log')
            shown = [x for x in found if x is not None and 0 < x < math.inf]
            ax.set_ylim(min(shown) / 1.5, min(top, max(shown) * 1.5))
        for ax in (self.share, self.variance):
            ax.set_xlim(-0.3, blocks - 0.7)
            ax.set_xlabel('Block')
        self.loss.set_xlim(-1, self.steps[-1] + 1)
        self.loss.axhline(math.log(10), color='0.5', linewidth=0.8, linestyle=':')
        self.loss.set_xlabel('Step')

    def show(self, step: int) -> None:
        """Draw a step. A network whose loss is not finite keeps its last finite frame, faintly."""
        self.heading.set_text(f'learning rate {self.rows[0]["lr"]:g}, step {step}')
        for row, lines, text in zip(self.rows, self.lines, self.legend.get_texts()):
            share, variance, loss = lines
            frames = [frame for frame in row['film'] if frame['step'] <= step]
            finite = [frame for frame in frames if frame['loss'] is not None]
            share.set_data(range(len(finite[-1]['grad_avg_var'])), mean_share(finite[-1]))
            variance.set_data(range(len(finite[-1]['grad_avg_var'])), _variances(finite[-1]))
            loss.set_data([f['step'] for f in finite], [f['loss'] for f in finite])
            loss.set_markevery([len(finite) - 1])
            if ended := len(finite) < len(frames):
                label = NETWORKS[row['network']].label
                text.set_text(f'{label}: not finite at step {frames[-1]["step"]}')
            for line in (share, variance):
                line.set_alpha(0.35 if ended else 1)


def _variances(frame: dict) -> list[float]:
    return [math.nan if x is None else x for x in frame['grad_avg_var']]


def film(rows: Rows) -> bytes:
    """Make a film of the gradient while networks train, as GIF.

    Args:
        rows: Runs of one seed. The film has those of the largest learning rate.
    """
    from PIL import Image

    drawn = Film(rows.where(lr=max(rows.values('lr'))))
    images = []
    for step in drawn.steps:
        drawn.show(step)
        drawn.figure.canvas.draw()
        image = Image.frombuffer('RGBA', drawn.figure.canvas.get_width_height(), bytes(
            drawn.figure.canvas.buffer_rgba())).convert('RGB')  # fmt: skip
        images.append(image.quantize(128, dither=Image.Dither.NONE))
    content = io.BytesIO()
    durations = [MILLISECONDS] * (len(images) - 1) + [LAST]
    images[0].save(
        content, 'GIF', save_all=True, append_images=images[1:], duration=durations, loop=0
    )
    return content.getvalue()
