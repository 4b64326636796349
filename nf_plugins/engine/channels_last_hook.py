"""Hook that runs a model in the channels-last memory format."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook

from nf_plugins.registry import HOOKS


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Hook that stores the weights of convolutions with the channels last (NHWC).

    The outputs of such convolutions have the same format. The values stay the same, up to the
    order of sums. Convolutions are often faster so: on a CPU for small images, and on a GPU with
    mixed precision.

    Source: PyTorch, "Channels Last Memory Format in PyTorch".

    Example:
        >>> custom_hooks = [dict(type='nf_plugins.ChannelsLastHook')]
    """

    def before_run(self, runner: Any) -> None:
        runner.model.to(memory_format=torch.channels_last)
