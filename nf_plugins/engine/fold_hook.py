"""Hook that tests a folded network."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from nf_plugins.layers import fold
from nf_plugins.registry import HOOKS


@HOOKS.register_module()
class FoldHook(Hook):
    """Hook that runs the tests on a folded copy of the model, see :func:`nf_plugins.fold`.

    The metrics stay the same, and the weights are not standardized in each batch. After the tests
    the runner has its own model, so hooks that keep a reference to it (EMA) still work. A model
    that cannot be folded is tested without the fold.

    Example:
        >>> custom_hooks = [dict(type='nf_plugins.FoldHook')]
    """

    priority = 'LOWEST'  # after EMAHook has swapped the weights

    def before_test_epoch(self, runner: Any) -> None:
        self.model = runner.model
        inner = self.model.module if is_model_wrapper(self.model) else self.model
        try:
            runner.model = fold(copy.deepcopy(inner))
        except ValueError as error:
            runner.logger.info(f'tested without folding: {error}')

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        runner.model = self.model
