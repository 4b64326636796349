"""Each image K times, together, in one process, whatever the number of processes."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner

from nf_plugins.datasets import MultiplicitySampler


def samplers(monkeypatch, world, **options):
    """The sampler of each process."""
    found = []
    for rank in range(world):
        monkeypatch.setattr(
            'mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, world)
        )
        found.append(MultiplicitySampler(**options))
    return found


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 40),
    copies=st.integers(1, 6),
    world=st.integers(1, 5),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
    round_up=st.booleans(),
)
def test_properties(images, copies, world, epoch, shuffle, round_up):
    with pytest.MonkeyPatch.context() as monkeypatch:
        each = samplers(
            monkeypatch, world, dataset=range(images), multiplicity=copies, seed=3,
            shuffle=shuffle, round_up=round_up,
        )  # fmt: skip
    for sampler in each:
        sampler.set_epoch(epoch)
    drawn = [list(sampler) for sampler in each]
    assert [len(indices) for indices in drawn] == [len(sampler) for sampler in each]
    # Copies stand together: every group of K is one image.
    groups = [
        [indices[i : i + copies] for i in range(0, len(indices), copies)] for indices in drawn
    ]
    assert all(len(set(group)) == 1 and len(group) == copies for g in groups for group in g)
    counts = Counter(index for indices in drawn for index in indices)
    assert set(counts) == set(range(images))
    if not round_up or images % world == 0:
        assert set(counts.values()) == {copies}
        # And in one process.
        assert sum(len(set(indices)) for indices in drawn) == images
    else:
        assert len({len(indices) for indices in drawn}) == 1
    # The same order of images as of mmengine's sampler.
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (0, world))
        plain = DefaultSampler(range(images), shuffle, 3, round_up)
    plain.set_epoch(epoch)
    assert drawn[0][::copies] == list(plain)


def test_together_the_processes_see_the_batches_of_one(monkeypatch):
    """A batch of 4 processes x 6 has the images of one process's batch of 24."""
    options = dict(dataset=range(48), multiplicity=3, seed=1)
    (one,) = samplers(monkeypatch, 1, **options)
    four = [list(sampler) for sampler in samplers(monkeypatch, 4, **options)]
    one = list(one)
    for step in range(48 * 3 // 24):
        together = [i for indices in four for i in indices[6 * step : 6 * step + 6]]
        assert Counter(together) == Counter(one[24 * step : 24 * step + 24])


class Numbers(torch.utils.data.Dataset):
    metainfo = {}

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return index, torch.rand(()).item()


def loader(copies=4, batch_size=8, **sampler):
    return Runner.build_dataloader(
        dict(
            dataset=Numbers(),
            batch_size=batch_size,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='nf_plugins.MultiplicitySampler', multiplicity=copies, **sampler),
        ),
        seed=5,
    )


def test_a_dataloader_augments_each_copy_on_its_own():
    for indices, augmentations in loader():
        assert sorted(Counter(indices.tolist()).values()) == [4, 4]
        assert len(set(augmentations.tolist())) == 8


def epochs(first, last):
    data = loader()
    for epoch in range(first, last):
        data.sampler.set_epoch(epoch)
        yield [indices.tolist() for indices, _ in data]


def test_resumed_at_an_epoch_it_goes_on_without_a_gap():
    whole, later = list(epochs(0, 4)), list(epochs(2, 4))
    assert later == whole[2:]
    assert whole[0] != whole[1]  # an order of its own for each epoch


def test_resumed_in_an_epoch_by_iterations_it_goes_on_without_a_gap(monkeypatch):
    """mmengine's loop of iterations passes over the batches that were seen before."""
    from mmengine.runner.loops import _InfiniteDataloaderIterator

    monkeypatch.setattr('time.sleep', lambda seconds: None)  # at the end of each epoch

    def draw(number):
        iterator = _InfiniteDataloaderIterator(loader())
        return [next(iterator)[0].tolist() for _ in range(number)]

    whole = draw(17)  # an epoch has 6
    assert draw(17)[10:] == whole[10:]
    seen = Counter(index for batch in whole[:12] for index in batch)
    assert set(seen.values()) == {2 * 4} and len(seen) == 12


@pytest.mark.parametrize('multiplicity', [0, -1, 1.5])
def test_bad_arguments(multiplicity):
    with pytest.raises(ValueError, match='multiplicity must be a positive integer'):
        MultiplicitySampler(range(3), multiplicity)


def test_both_names():
    assert DATA_SAMPLERS.get('nf_plugins.MultiplicitySampler') is MultiplicitySampler
    assert DATA_SAMPLERS.get('MultiplicitySampler') is MultiplicitySampler
