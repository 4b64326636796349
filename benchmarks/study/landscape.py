"""The loss around the weights of a network: while it trains, and after its training."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nf_plugins.functional.loss_landscape import (
    Direction,
    gradient_direction,
    loss_along,
    random_direction,
)

from .data import Images
from .results import short

DECREASES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Steps along minus the gradient: the decrease that it predicts, relative to the loss."""
JUDGED = 0.1
"""The step at which predicted and actual decrease are compared."""
IMAGES, DIRECTIONS = 256, 3
RADIUS, POINTS, PLANE_POINTS = 1.0, 21, 13
RISE = 0.5
"""Rise of the loss at which the width of a valley is measured."""


def sides(points: int) -> list[float]:
    """Return the coordinates along a random direction."""
    return torch.linspace(-RADIUS, RADIUS, points).tolist()


class _Around:
    """The loss of a copy of a network along directions. It is that of the training: with batch
    norm, the statistics are those of the images."""

    def __init__(self, model: nn.Module, images: Images) -> None:
        self.model, self.images = copy.deepcopy(model).train(), images

    def loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.images.images), self.images.labels)

    def along(self, directions: Sequence[Direction], coordinates: Sequence[list[float]]) -> list:
        losses = loss_along(self.model, self.loss, directions, coordinates)
        return _rounded(losses.tolist())


def _rounded(values: Any) -> Any:
    return [_rounded(v) for v in values] if isinstance(values, list) else short(values)


def descent(model: nn.Module, images: Images) -> dict[str, Any]:
    """Measure the loss along minus its gradient.

    The steps are chosen so that the gradient predicts the decreases :data:`DECREASES`. So they do
    not depend on the scale of the weights, which is free where weights are standardized.

    Args:
        model: The network; it stays as it is.
        images: The batch whose loss and gradient it is.

    Returns:
        The loss, the squared norm of its gradient, and the losses after the steps.
    """
    around = _Around(model, images)
    direction = gradient_direction(around.model, around.loss)
    squared = sum(float(d.double().square().sum()) for d in direction.values())
    with torch.no_grad():
        loss = float(around.loss())
    steps = [share * loss / max(squared, 1e-30) for share in DECREASES]
    losses = around.along([direction], [steps])
    return dict(loss=short(loss), squared_gradient=short(squared), losses=losses)


def valley(model: nn.Module, images: Images, plane: bool) -> dict[str, Any]:
    """Measure the loss along random directions that are normalised by filter.

    Args:
        model: The trained network; it stays as it is.
        images: Training images, of which the first 256 are taken.
        plane: Whether to measure it in a plane, too.

    Returns:
        ``lines``, with a list of losses for each direction; ``plane``; and, for a network with
        batch norm, ``running``: the lines with running statistics.
    """
    around = _Around(model, Images(*(x[:IMAGES] for x in images)))
    directions = [random_direction(model, seed) for seed in range(DIRECTIONS)]

    def lines() -> list[list[float]]:
        return [around.along([direction], [sides(POINTS)]) for direction in directions]

    found = dict(lines=lines())
    if plane:
        found['plane'] = around.along(directions[:2], [sides(PLANE_POINTS)] * 2)
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        around.model.eval()
        found['running'] = lines()
    return found


def width(line: Sequence[float | None], rise: float = RISE) -> float:
    """Return the width of a valley: how far apart the two points are where the loss has risen.

    Between the points of the line, the loss is interpolated. A side on which the loss does not
    rise enough counts up to the end of the line.

    Example:
        >>> width([4, 1, 0, 1, 4], rise=0.5)
        0.5
    """
    middle = len(line) // 2
    step = RADIUS / middle
    values = [float('inf') if x is None else x for x in line]
    return sum(
        _distance([x - values[middle] for x in side], rise) * step
        for side in (values[middle:], values[middle::-1])
    )


def _distance(rises: Sequence[float], rise: float) -> float:
    for number, (low, high) in enumerate(pairwise(rises)):
        if high >= rise:
            return number + (rise - low) / (high - low)
    return len(rises) - 1.0


def row_width(row: dict, lines: str = 'lines') -> float:
    """Return the mean width over the directions of a row."""
    return statistics.fmean(width(line) for line in row['valley'][lines])


def predicted_shares(row: dict) -> dict[int, float]:
    """Return, for each moment of a training, actual : predicted decrease at :data:`JUDGED`."""
    place = DECREASES.index(JUDGED)
    found = {}
    for moment in row['descent']:
        after = moment['losses'][place]
        actual = float('-inf') if after is None else 1 - after / moment['losses'][0]
        found[moment['step']] = actual / JUDGED
    return found
