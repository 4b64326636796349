"""Several augmentations of an image in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from mmengine.dataset import DefaultSampler

from nf_plugins.registry import DATA_SAMPLERS
from nf_plugins.utils.checks import check_integer


@DATA_SAMPLERS.register_module()
class MultiplicitySampler(DefaultSampler):
    """Gives each image several times in a row, so that its copies are augmented in one batch.

    ``sampler=dict(type='nf_plugins.MultiplicitySampler', multiplicity=16)`` in a dataloader whose
    ``batch_size`` is a multiple of 16. The images are shuffled and dealt to the processes as
    mmengine's ``DefaultSampler`` does it, by seed and epoch, and all copies of an image go to the
    same process. mmpretrain's ``RepeatAugSampler`` gives them to different processes, and leaves
    images out so that an epoch keeps its length; here an epoch has ``multiplicity`` times as
    many samples.

    Args:
        dataset: The data set.
        multiplicity: Copies of each image.
        **kwargs: As ``DefaultSampler``: ``shuffle``, ``seed`` and ``round_up`` (some images come
            twice where the processes could not get equal numbers of them).

    Raises:
        ValueError, TypeError: ``multiplicity`` is no positive integer.

    Source: Fort et al. 2021 (arXiv 2105.13343).

    Example:
        >>> list(MultiplicitySampler(range(3), multiplicity=2, shuffle=False))
        [0, 0, 1, 1, 2, 2]
    """

    def __init__(self, dataset: Sized, multiplicity: int, **kwargs: Any) -> None:
        self.multiplicity = check_integer('multiplicity', multiplicity)
        super().__init__(dataset, **kwargs)

    def __iter__(self) -> Iterator[int]:
        return (index for index in super().__iter__() for _ in range(self.multiplicity))

    def __len__(self) -> int:
        """The number of samples of this process."""
        return super().__len__() * self.multiplicity
