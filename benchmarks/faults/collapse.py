"""Look for the collapse of the PWS paper in the gradient of a real training.

    python -m benchmarks.faults.collapse

A PWS-ResNet-18 is trained on digits with SGD, with PWS and with plain convolutions, without norms.
Along the way the gradient is measured at each block: the largest ratio of its squared mean to its
variance, which `gradient_mean_shift` looks at, and the share of the gradient of the weights that
moves the mean of a filter, which PWS takes away.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import quiet
from nf_plugins.models import PWSResNet

from .trainings import Classifier, digits


def block_ratios(net: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Loss, largest mean^2 / variance of the gradient at a block, and share in filter means."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, out: Tensor) -> None:
        out.retain_grad()
        outputs.append(out)

    blocks = [m for n, m in net.named_modules() if n.count('.') == 2 and n.startswith('backbone.l')]
    hooks = [block.register_forward_hook(keep) for block in blocks]
    net.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    for hook in hooks:
        hook.remove()
    ratios = []
    for out in outputs:
        var, mean = torch.var_mean(out.grad, dim=(0, 2, 3), correction=0)
        ratios.append((mean.square().mean() / var.mean()).item())
    shares = []
    for m in net.backbone.modules():
        if isinstance(m, nn.Conv2d) and m.weight.grad is not None and bool(m.weight.grad.any()):
            g = m.weight.grad.flatten(1)
            shares.append((g.mean(1).square().sum() * g.shape[1] / g.square().sum()).item())
    net.zero_grad()
    return loss.item(), max(ratios, default=math.nan), sum(shares) / max(1, len(shares))


def watch(
    kind: str, lr: float, steps: int, every: int = 20
) -> list[tuple[int, float, float, float]]:
    """Train, and measure every few steps: step, loss, ratio, share."""
    torch.manual_seed(0)
    options = {} if kind == 'PWS' else dict(conv_cfg=dict(type='Conv2d'))
    net = Classifier(PWSResNet(18, in_channels=1, base_channels=16, **options), 128)
    x, y = digits()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for step in range(steps + 1):
        if step % every == 0:
            rows.append((step, *block_ratios(net, x[:128], y[:128])))
        index = torch.randint(len(x), (64,), generator=generator)
        loss = F.cross_entropy(net(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rows


@quiet()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--lr', type=float, default=0.1)
    parser.add_argument('--steps', type=int, default=160)
    args = parser.parse_args()
    for kind in ('PWS', 'plain'):
        print(f'{kind}: step, loss, mean^2 / variance of the gradient, share in filter means')
        for step, loss, ratio, share in watch(kind, args.lr, args.steps):
            print(f'{step:6d} {loss:8.3f} {ratio:8.3f} {share:8.3f}')


if __name__ == '__main__':
    main()
