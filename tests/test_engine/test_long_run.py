"""A long training with many analyses leaves nothing behind.

``NF_PLUGINS_LONG_RUN=2000`` sets its iterations (``make long-run``).
"""

import gc
import os
import statistics
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..conftest import ROOT

ITERATIONS = int(os.environ.get('NF_PLUGINS_LONG_RUN', 92))
INTERVAL = 10


def resident_memory():
    """MiB."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def hooks(model):
    kinds = [name for name in vars(torch.nn.Module()) if name.endswith('_hooks')]
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds) + len(
        torch.nn.modules.module._global_forward_hooks
    )


class Watch(Hook):
    priority = 'VERY_LOW'

    def __init__(self):
        self.memory, self.handles, self.hooks, self.tensors = [], [], [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if (runner.iter + 1) % INTERVAL:
            return
        gc.collect()
        self.memory.append(resident_memory())
        self.handles.append(len(os.listdir('/proc/self/fd')))
        self.hooks.append(hooks(runner.model))
        self.tensors.append(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()))


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='needs /proc')
def test_a_long_run(tmp_path):
    cfg = Config.fromfile(ROOT / 'configs/nf_resnet/nf-resnet_digits.py')
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = 'long_run'
    cfg.log_level = 'ERROR'
    cfg.custom_hooks = [dict(type='SPPHook', by_epoch=False, interval=INTERVAL)]
    cfg.default_hooks.checkpoint.max_keep_ckpts = 2
    for name in ('train_dataloader', 'val_dataloader'):
        cfg[name].update(num_workers=0, persistent_workers=False)
    if ITERATIONS < 1000:
        cfg.model.backbone.base_channels = 4
        cfg.model.neck.in_channels = cfg.model.head.in_channels = 128
    cfg.train_cfg = dict(by_epoch=True, max_epochs=-(-ITERATIONS // 23), val_interval=1)
    runner = Runner.from_cfg(cfg)
    watch = Watch()
    runner.register_hook(watch)
    before = hooks(runner.model)
    runner.train()

    assert len(list(tmp_path.glob('*/spp/*.json'))) == runner.iter // INTERVAL + 1
    assert hooks(runner.model) == before
    part = len(watch.memory) // 3  # the first third may fill caches
    first, last = watch.memory[part : 2 * part], watch.memory[-part:]
    growth = statistics.median(last) - statistics.median(first)
    print(
        f'{runner.iter} iterations: memory {statistics.median(first):.1f} -> '
        f'{statistics.median(last):.1f} MiB, handles {set(watch.handles[part:])}, '
        f'hooks {set(watch.hooks)}, tensors {set(watch.tensors[part:])}'
    )
    assert growth < 16, watch.memory
    assert len(set(watch.hooks[part:])) == 1, watch.hooks
    # More or fewer for a moment (a file is open, gradients are gone), but they do not grow.
    for counts in (watch.handles, watch.tensors):
        assert max(counts[-part:]) <= max(counts[part : 2 * part]), counts
