"""Memory of a device and communication per step, from the measured bytes of each block."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn

from benchmarks.cost.benchmark import kept_bytes
from nf_plugins.models.backbones.nf_block import NFBlock

GIB = 2**30
STATES = 4
"""Numbers that a device holds for each parameter: weight, gradient, momentum, average."""


def measure(arch: str | dict, size: int) -> dict[str, Any]:
    """Measure the bytes that one image keeps for the backward pass, part by part.

    The shapes come from a pass on the meta device. Then each part runs once on the CPU, in float32,
    with its own weights only.
    """
    with torch.device('meta'):
        net = MODELS.build(dict(type='nf_plugins.NFNet', arch=arch)).train()
    parameters = [p.numel() for p in net.parameters()]
    parts = _parts(net)
    shapes = _input_shapes(net, parts, size)
    rows = []
    for name, part in parts.items():
        x = torch.randn(shapes[name], requires_grad=name != 'stem')
        kept = kept_bytes(_with_memory(part), x)
        rows.append(dict(part=name, kept=kept, input=x.nbytes))
        part.to('meta')
    largest = max(sum(p.numel() for p in part.parameters()) for part in parts.values())
    return dict(parameters=sum(parameters), largest_part=largest, parts=rows)


def _parts(net: nn.Module) -> dict[str, nn.Module]:
    """Return the stem, the blocks and the last convolution."""
    blocks = {name: part for name, part in net.named_modules() if isinstance(part, NFBlock)}
    return {'stem': net.stem, **blocks, 'final_conv': net.final_conv}


def _input_shapes(net: nn.Module, parts: dict[str, nn.Module], size: int) -> dict[str, torch.Size]:
    shapes: dict[str, torch.Size] = {}
    handles = [
        part.register_forward_pre_hook(
            lambda _, args, name=name: shapes.update({name: args[0].shape})
        )
        for name, part in parts.items()
    ]
    net(torch.empty(1, 3, size, size, device='meta'))
    for handle in handles:
        handle.remove()
    return shapes


def _with_memory(part: nn.Module) -> nn.Module:
    part.to_empty(device='cpu')
    for tensor in (*part.parameters(), *part.buffers()):
        nn.init.normal_(tensor, std=0.1)
    return part


def per_device(
    found: dict[str, Any], batch: int, bytes_per_number: int, with_cp: bool, sharded: int
) -> dict[str, float]:
    """Compute the GiB of a device.

    Args:
        found: What :func:`measure` returned.
        batch: Images of a device.
        bytes_per_number: Of an activation: 4, or 2 with bfloat16.
        with_cp: Whether each part keeps its input only, and is computed again.
        sharded: Devices among which the states are spread (FSDP2); 1 for DDP.
    """
    half = bytes_per_number / 4
    parts = found['parts']
    if with_cp:
        kept = sum(row['input'] for row in parts) + max(row['kept'] for row in parts)
    else:
        kept = sum(row['kept'] for row in parts)
    states = 4 * STATES * found['parameters'] / sharded
    if sharded > 1:  # two blocks are whole at a time, with weights and gradients
        states += 2 * 2 * bytes_per_number * found['largest_part']
    else:
        states += 4 * found['parameters']  # buckets of gradients
    activations = half * kept * batch
    return dict(
        states=states / GIB, activations=activations / GIB, sum=(states + activations) / GIB
    )


def communication(found: dict[str, Any], devices: int, bytes_per_number: int) -> dict[str, float]:
    """Compute the GiB that a device sends in a step.

    A ring all-reduce sends each number twice, a gather or a scatter once. FSDP2 gathers the
    weights in the forward and in the backward pass, and scatters the gradients in float32.
    """
    share = (devices - 1) / devices * found['parameters'] / GIB
    return dict(ddp=2 * 4 * share, fsdp2=(2 * bytes_per_number + 4) * share)
