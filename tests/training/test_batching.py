"""Stateless batching and learning-rate schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detris_peft.training import TrainingArguments
from detris_peft.training.batching import GlobalBatches
from detris_peft.training.schedule import scheduled_rate

counts = st.integers(1, 9)


@given(st.integers(1, 60), counts, counts, counts, st.booleans())
def test_each_sample_is_visited_once_for_any_number_of_ranks(
    num_samples, batch_size, num_processes, accumulation, drop_last
):
    def create(rank):
        return GlobalBatches(num_samples, batch_size, num_processes, rank, accumulation, drop_last)

    if num_samples < (num_processes * batch_size if drop_last else num_processes):
        problem = f"the {num_samples} rows" if drop_last else f"got {num_samples} rows for {num_processes} processes"
        with pytest.raises(ValueError, match=problem):
            create(0)
        return
    ranks = [create(rank) for rank in range(num_processes)]
    batches = [list(part) for part in ranks]
    # Every rank has the same number of batches, none is empty, and together they hold all samples in order.
    assert len({len(part) for part in batches}) == 1
    merged = [sample for parts in zip(*batches, strict=True) for part in parts for sample in part]
    dropped = num_samples % (batch_size * num_processes) if drop_last else 0
    assert merged == list(range(num_samples - dropped))
    if drop_last:
        assert {len(part) for parts in batches for part in parts} == {batch_size}
    assert all(part for parts in batches for part in parts)
    for number in range(len(ranks[0])):
        sizes = [len(part[number]) for part in batches]
        assert max(sizes) - min(sizes) <= 1
        assert sum(one.fraction(number) for one in ranks) == pytest.approx(1)
    # A step takes the mean over its samples: gradients are averaged over ranks and divided by `accumulation`.
    for first in range(0, len(ranks[0]), accumulation):
        group = range(first, min(first + accumulation, len(ranks[0])))
        total = sum(len(part[number]) for part in batches for number in group)
        for one, part in zip(ranks, batches, strict=True):
            for number in group:
                per_sample = one.loss_scale(number) / len(part[number]) / num_processes / accumulation
                assert per_sample == pytest.approx(1 / total)


@pytest.mark.parametrize(("drop_last", "number"), [(True, 6), (False, 7)])
def test_an_epoch_can_start_at_any_batch(drop_last, number):
    batches = GlobalBatches(20, 3, drop_last=drop_last)
    epoch = list(batches)
    assert list(batches.start_at(batches, 4)) == epoch[4:]
    assert len(batches) == number - 4
    assert batches.per_epoch == number


def test_a_dataset_smaller_than_a_batch_is_refused_with_the_options_that_help():
    message = "at most the 7 rows .* got 4 for each of 2 processes.*smaller --batch_size, or .*--drop_last false"
    with pytest.raises(ValueError, match=message):
        GlobalBatches(7, 4, 2)
    assert list(GlobalBatches(7, 4, 2, drop_last=False)) == [[0, 1, 2]]


def test_learning_rate_warm_up_and_milestones():
    arguments = TrainingArguments(warmup_steps=3, milestones=[4, 2], gamma=0.1)
    assert [scheduled_rate(1.0, arguments, 1, step) for step in range(1, 6)] == [0.25, 0.5, 0.75, 1, 1]
    # Decays after 2 and after 4 epochs, as MultiStepLR does.
    assert [scheduled_rate(1.0, arguments, epoch, 99) for epoch in range(1, 6)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
