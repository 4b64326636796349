"""Measure signal propagation while a network trains."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from nf_plugins.errors import UsageError, as_usage_error
from nf_plugins.registry import HOOKS
from nf_plugins.spp import RULES, SignalProfile, analyze, unwrap
from nf_plugins.spp.analyze import first_non_finite
from nf_plugins.spp.from_config import gaussian_inputs
from nf_plugins.spp.profile import MODES
from nf_plugins.spp.report.axes import METRICS
from nf_plugins.spp.report.records import read_json
from nf_plugins.spp.rules import SEVERITIES, names_of
from nf_plugins.utils.checks import check_choice, check_integer, check_pair, check_type
from nf_plugins.utils.files import atomic_write

from .update_statistics import UpdateStatistics, pointwise_factors


class TrainingStopped(RuntimeError):
    """A training was ended by ``stop_on``; the message is the verdict."""


class SPPHookError(UsageError, ValueError):
    """The hook does not fit the training; command line tools print it as one line."""


@HOOKS.register_module()
class SPPHook(Hook):
    """Measures signal propagation at the start and every ``interval`` of a training.

    Training is the same to the bit with and without it. Each record is a file
    ``<work_dir>/<timestamp>/spp/iter_<iteration>.json`` in the schema of ``spp.json``,
    with the integers ``epoch`` and ``iter`` (completed ones) and ``training``, which a
    resumed training keeps. The curves go to the visualizer as
    ``spp/<metric>/<block>``, and with them, per block, ``largest`` (absolute value),
    ``grad_norm`` (of the gradient that the optimizer gets), ``weight_norm`` and
    ``update_ratio`` (norm of the last update by that of the weights); a record has these under
    ``update``. The factors ``a`` of DyT and Derf are ``pointwise_factor`` there, and
    ``pointwise_factors`` in a record. ``tools/spp_video.py WORK_DIR`` makes the curves move. A
    second hook of this class in the same training has ``spp_2`` instead of ``spp``, and so on.

    A record is written before the checkpoint of the same moment. A resumed training moves
    the records that are later than its checkpoint to ``spp/superseded``, so that each
    interval has exactly one record.

    Args:
        interval: Epochs or iterations between records.
        by_epoch: Count epochs, else iterations.
        input: 'gaussian', the same seeded batch each time, or 'batch', what the network
            was last trained on (of all ranks; then there is no record at the start). It
            needs a data preprocessor that makes one tensor of images, as ``inputs`` in a
            dict.
        mode: 'train', 'eval', or 'asis' (with frozen norms), the mode of the network while it
            is measured.
        batch_size: Images of the Gaussian batch.
        input_size: Their side, or height and width; None for the config's.
        seed: Seed of the Gaussian batch.
        backward: Record the gradient's curves, too.
        stop_on: Verdicts that end the training, e.g. ``['non_finite', 'explosion']``.
            The training then ends with :class:`TrainingStopped`, and writes no further
            checkpoint. 'non_finite' also looks at each loss, before the weights are
            updated with it, and names the module that made the first such value.
        warn_on: Verdicts that are logged as warnings, each once; ``['error', 'warning']``
            (severities) means all of them.

    Raises:
        ValueError: An unknown input, mode or verdict, an interval that is not positive; when
            the training starts, ``by_epoch`` without epochs, or ``input='batch'`` with
            batches that are not one tensor of images (:class:`SPPHookError`).

    Source: Brock et al. 2021a for the plots; plots over the epochs are an idea of the
    project yuhodots/SPPs.

    Example:
        >>> hook = SPPHook(interval=50, by_epoch=False, stop_on=['non_finite'])
        >>> SPPHook(input='images')
        Traceback (most recent call last):
        ...
        ValueError: input must be one of gaussian, batch, got 'images'
    """

    priority = 'LOW'  # before the checkpoint is written

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        input: str = 'gaussian',
        mode: str = 'train',
        batch_size: int = 8,
        input_size: int | Sequence[int] | None = None,
        seed: int = 0,
        backward: bool = False,
        stop_on: Sequence[str] = (),
        warn_on: Sequence[str] = (),
    ) -> None:
        self.interval = check_integer('interval', interval)
        self.by_epoch = by_epoch
        self.input = check_choice('input', input, ('gaussian', 'batch'))
        self.mode = check_choice('mode', mode, MODES)
        self.batch_size = check_integer('batch_size', batch_size)
        self.input_size = None if input_size is None else check_pair('input_size', input_size)
        self.seed = check_integer('seed', seed, -(2**63), 2**64 - 1)  # what torch takes
        self.backward = backward
        self.stop_on = _rules('stop_on', stop_on, tuple(RULES))
        self.warn_on = _rules('warn_on', warn_on, (*RULES, *SEVERITIES))
        self._warned: set[tuple[str, str]] = set()
        self._update = UpdateStatistics()
        self._data: Any = None
        self._checked = False  # whether the batches can be measured
        self._folder = 'spp'
        self._watch: torch.utils.hooks.RemovableHandle | None = None

    # ------------------------------------------------------------ when
    def before_train(self, runner: Runner) -> None:
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise SPPHookError('an iteration-based training has no epochs: SPPHook(by_epoch=False)')
        self.after_train(runner)  # what is left of an earlier training
        mine = [hook for hook in runner.hooks if isinstance(hook, SPPHook)]
        number = next((i for i, hook in enumerate(mine, 1) if hook is self), 1)
        self._folder = 'spp' if number == 1 else f'spp_{number}'
        hub = runner.message_hub
        # This comes from a checkpoint, so it may be anything.
        training = hub.runtime_info.get('spp_training')
        named = isinstance(training, str) and re.fullmatch(r'[\w.-]{1,100}', training)
        if not named or (runner.iter == 0 and number == 1):
            hub.update_info('spp_training', runner.timestamp)
        broadcast_object_list(recorded := [self._set_aside(runner)])  # all ranks do the same
        done = runner.epoch if self.by_epoch else runner.iter
        if (
            self.input == 'gaussian'
            and done % self.interval == 0
            and runner.iter not in recorded[0]
        ):
            self.record(runner, runner.epoch, runner.iter)
        if 'non_finite' in self.stop_on:
            self._watch = runner.model.register_forward_hook(
                lambda model, args, losses: self._check_losses(runner, losses)
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._data = data_batch
        if self._will_record(runner, batch_idx):
            self._update.watch(unwrap(runner.model), runner.optim_wrapper)
        if self.input == 'batch' and not self._checked:
            self._batch(runner)
            self._checked = True

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self.record(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self.record(runner, runner.epoch + 1, runner.iter)

    def after_train(self, runner: Runner) -> None:
        self._data = None
        self._update.forget()
        self._stop_watching()

    def _will_record(self, runner: Runner, batch_idx: int) -> bool:
        """Whether there is a record after this iteration."""
        if not self.by_epoch:
            return (runner.iter + 1) % self.interval == 0
        last = batch_idx + 1 == len(runner.train_loop.dataloader)
        return last and (runner.epoch + 1) % self.interval == 0

    # ------------------------------------------------------------ what
    def record(self, runner: Runner, epoch: int, iteration: int) -> SignalProfile:
        """Measure now, and write it down.

        Raises:
            TrainingStopped: A verdict of ``stop_on`` fired.
        """
        inputs, info = self._inputs(runner)
        profile = analyze(
            runner.model,
            inputs,
            mode=self.mode,
            seed=self.seed,
            backward=self.backward,
            sync=self.input == 'batch',
            input_info=info,
            state='trained' if iteration > 0 else None,
        )
        profile.config = runner.cfg.filename
        training = runner.message_hub.get_info('spp_training')
        record = {**profile.to_dict(), 'epoch': epoch, 'iter': iteration, 'training': training}
        update = self._update.of_blocks([block.name for block in profile.blocks])
        if update:
            record['update'] = {
                name: {k: v if math.isfinite(v) else None for k, v in values.items()}
                for name, values in update.items()
            }
        factors = pointwise_factors(unwrap(runner.model))
        if factors:
            finite = {name: a if math.isfinite(a) else None for name, a in factors.items()}
            record['pointwise_factors'] = finite
        if is_main_process():
            folder = Path(runner.log_dir) / self._folder
            text = json.dumps(record, indent=1, allow_nan=False) + '\n'
            atomic_write(folder / f'iter_{iteration:08d}.json', text)
        scalars = {
            f'{self._folder}/{metric}/{block.index:03d}_{block.name}': getattr(block, metric)
            for metric in (*METRICS, 'largest')
            for block in profile.blocks
        }
        scalars |= {f'{self._folder}/pointwise_factor/{name}': a for name, a in factors.items()}
        for name, values in update.items():
            scalars |= {f'{self._folder}/{key}/{name}': value for key, value in values.items()}
        finite = {k: v for k, v in scalars.items() if v is not None and math.isfinite(v)}
        runner.visualizer.add_scalars(finite, step=iteration)

        self._warn(runner, iteration, record['verdicts'])
        fired = [
            verdict
            for verdict in record['verdicts']
            if not names_of(verdict).isdisjoint(self.stop_on)
        ]
        broadcast_object_list(decision := [fired])
        if decision[0]:
            verdict = decision[0][0]
            self._stop(runner, f'iteration {iteration}: {verdict["rule"]}: {verdict["message"]}')
        return profile

    def _inputs(self, runner: Runner) -> tuple[Tensor, dict[str, Any]]:
        backbone = unwrap(runner.model)
        device = next(backbone.parameters()).device
        if self.input == 'gaussian':
            batch = gaussian_inputs(
                runner.cfg, backbone, self.batch_size, self.input_size, self.seed
            )
            return batch.to(device), dict(kind='gaussian')
        return self._batch(runner), dict(kind='batch')

    def _preprocessed(self, runner: Runner) -> Any:
        """What the model's forward method gets: a dict or a sequence of arguments."""
        preprocessor = getattr(_whole(runner.model), 'data_preprocessor', None)
        if preprocessor is None:
            return self._data
        # Not in training mode: batch augmentations would draw random numbers.
        return preprocessor(self._data, training=False)

    def _batch(self, runner: Runner) -> Tensor:
        """The images that the network is trained on, as one tensor."""
        data = self._preprocessed(runner)
        inputs = data.get('inputs') if isinstance(data, dict) else None
        if isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.dim() > 1:
            return inputs
        raise SPPHookError(
            "SPPHook(input='batch') needs batches that are one tensor of images after the data "
            f'preprocessor, as dict(inputs=images, ...), got {_describe(data)}: use '
            "input='gaussian'"
        )

    def _set_aside(self, runner: Runner) -> set[int]:
        """Move away records after the iteration to resume from; return the iterations kept."""
        recorded: set[int] = set()
        training = runner.message_hub.get_info('spp_training')
        for path in sorted(Path(runner.work_dir).glob(f'*/{self._folder}/*.json')):
            try:
                record = read_json(path)
            except (OSError, ValueError) as error:
                runner.logger.warning(ascii(f'passed over: {error}')[1:-1])
                continue
            if not isinstance(record, dict) or record.get('training') != training:
                continue  # another training's, or not ours
            iteration = record.get('iter')
            if type(iteration) is not int:
                runner.logger.warning(ascii(f'passed over: {path} has no integer iter')[1:-1])
            elif iteration > runner.iter:
                if is_main_process():
                    aside = path.parent / 'superseded'
                    with as_usage_error(f'cannot move {path} to {aside}'):
                        aside.mkdir(exist_ok=True)
                        path.replace(aside / path.name)
            else:
                recorded.add(iteration)
        return recorded

    # ------------------------------------------------------------ whether to go on
    def _warn(self, runner: Runner, iteration: int, verdicts: list[dict]) -> None:
        """Log the verdicts of ``warn_on`` that are new."""
        for verdict in verdicts:
            named = {verdict['severity'], *names_of(verdict)}
            key = verdict['rule'], verdict['name']
            if not named.isdisjoint(self.warn_on) and key not in self._warned:
                self._warned.add(key)
                text = f'{verdict["rule"]}: {verdict["message"]}'
                runner.logger.warning(f'SPPHook at iteration {iteration}: {text}')

    def _check_losses(self, runner: Runner, losses: Any) -> None:
        if not isinstance(losses, dict) or not runner.model.training:
            return
        leaves = tree_iter(losses)  # detectors have lists, of a loss per level
        values = [v for v in leaves if isinstance(v, Tensor) and v.is_floating_point()]
        finite = all(bool(torch.isfinite(v).all()) for v in values)
        if finite:
            return
        self._stop_watching()  # the model is called once more
        where = self._culprit(runner)
        self._stop(
            runner, f'iteration {runner.iter + 1}: non_finite: the loss is not finite; {where}'
        )

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def _culprit(self, runner: Runner) -> str:
        model = _whole(runner.model)
        try:
            module = self._first_non_finite(runner, model)
        except Exception as error:  # whatever it is, the training has to stop with a message
            text = ' '.join(str(error).split())[:200]
            return f'which module made it is not known: {type(error).__name__}: {text}'
        if module is None:
            return 'every module still gives finite values: it is the loss itself'
        text = f'the first to make such a value is {module}'
        parameters = dict(model.named_parameters())
        broken = [n for n, p in parameters.items() if not bool(torch.isfinite(p).all())]
        if broken:
            text += (
                f'; {len(broken)} of {len(parameters)} parameters are not finite themselves, '
                f'the first {broken[0]}: the update before made them so'
            )
        return text

    def _first_non_finite(self, runner: Runner, model: nn.Module) -> str | None:
        data = self._preprocessed(runner)
        try:
            return first_non_finite(model, data, functools.partial(_call, mode='tensor'))
        except Exception:  # not all models have this mode
            return first_non_finite(model, data, functools.partial(_call, mode='loss'))

    def _stop(self, runner: Runner, message: str) -> None:
        self.after_train(runner)
        runner.logger.error(f'SPPHook stops the training at {message}')
        raise TrainingStopped(message)


def _rules(name: str, given: Sequence[str], known: tuple[str, ...]) -> list[str]:
    """Return names of rules as a list; an unknown one is a ValueError."""
    given = [given] if isinstance(given, str) else check_type(name, given, Sequence)
    return [check_choice(name, rule, known) for rule in given]


def _whole(model: nn.Module) -> nn.Module:
    """The model with its preprocessor, without wrappers."""
    while not hasattr(model, 'data_preprocessor'):
        inner = getattr(model, 'module', getattr(model, '_orig_mod', None))
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def _call(model: nn.Module, data: Any, mode: str) -> Any:
    """Call a model as mmengine does: a dict is named arguments, a sequence is arguments."""
    if isinstance(data, dict):
        return model(**data, mode=mode)
    if isinstance(data, (list, tuple)):
        return model(*data, mode=mode)
    return model(data, mode=mode)


def _describe(data: Any) -> str:
    """What a batch is, in a few words."""
    if isinstance(data, Tensor):
        return f'a tensor of {str(data.dtype).removeprefix("torch.")} {tuple(data.shape)}'
    if isinstance(data, dict):
        pairs = [f'{key}={_describe(value)}' for key, value in [*data.items()][:4]]
        return f'dict({", ".join(pairs)})'
    if isinstance(data, (list, tuple)):
        items = ', '.join(_describe(value) for value in data[:2])
        return f'a {type(data).__name__} of {len(data)} ({items}{", ..." * (len(data) > 2)})'
    return type(data).__name__
