"""Digits from the weights of Fashion-MNIST, and from scratch."""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import quiet

from .data import Images, load_digits
from .fitting import accuracy, build, fit
from .runs import Run

DIGITS = (100, 300)
"""Numbers of training images."""
STEPS = 60


def transfer(run: Run, model: nn.Module) -> list[dict[str, Any]]:
    """Train on a few digits, with the weights of a network and from scratch.

    Both trainings have the same images, steps and learning rate. The weights go through a
    checkpoint and ``init_cfg=dict(type='Pretrained', prefix='backbone.')``, as for a user.

    Args:
        run: The run that has trained the network.
        model: The network.

    Returns:
        For each number of training images, the accuracies on the test images of the digits.
    """
    train, test = load_digits()
    torch.manual_seed(run.seed)
    order = torch.randperm(len(train.labels))
    short_run = replace(run, steps=STEPS)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / 'fashion_mnist.pth')
        torch.save(dict(state_dict=model.state_dict(), meta={}), path)
        pretrained = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
        for number in DIGITS:
            few = Images(*(x[order[:number]] for x in train))
            row: dict[str, Any] = dict(images=number)
            for start, options in (('scratch', {}), ('weights', dict(init_cfg=pretrained))):
                torch.manual_seed(run.seed)
                # mmengine prints a line for each checkpoint that it loads.
                with quiet(), redirect_stdout(io.StringIO()):
                    net, optimizer = build(short_run, **options)
                torch.manual_seed(run.seed)
                fit(short_run, net, optimizer, few)
                right = accuracy(net.eval(), test, len(test.labels))
                row[start] = 10.0 if right is None else right  # as in `outcome`
            found.append(row)
    return found
