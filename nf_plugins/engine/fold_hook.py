"""Test with a folded network."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from nf_plugins.layers import fold
from nf_plugins.registry import HOOKS


@HOOKS.register_module()
class FoldHook(Hook):
    """Run the tests on a folded copy of the model, see :func:`nf_plugins.fold`.

    The metrics are the same, and no weight is standardized once per batch. The model of the
    runner comes back after the tests, so hooks that hold it (EMA) see no difference. A model
    that cannot be folded is tested as it is.

    Example:
        >>> custom_hooks = [dict(type='nf_plugins.FoldHook')]
    """

    priority = 'LOWEST'  # after the swap of EMA's hook

    def before_test_epoch(self, runner: Any) -> None:
        self.model = runner.model
        inner = self.model.module if is_model_wrapper(self.model) else self.model
        try:
            runner.model = fold(copy.deepcopy(inner))
        except ValueError as error:
            runner.logger.info(f'tested without folding: {error}')

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        runner.model = self.model
