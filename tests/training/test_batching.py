"""Batches and learning rates from the position alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detris_peft.training import TrainingArguments
from detris_peft.training.batching import GlobalBatches
from detris_peft.training.schedule import learning_rate

counts = st.integers(1, 9)


@given(st.integers(1, 60), counts, counts, counts)
def test_each_sample_is_visited_once_whatever_the_processes(samples, batch_size, processes, accumulation):
    if samples < processes:
        with pytest.raises(ValueError, match=f"{samples} rows cannot be shared by {processes} processes"):
            GlobalBatches(samples, batch_size, processes, 0, accumulation)
        return
    every = [GlobalBatches(samples, batch_size, processes, index, accumulation) for index in range(processes)]
    batches = [list(part) for part in every]
    # As many batches in each process, none empty, together all samples in order.
    assert len({len(part) for part in batches}) == 1
    merged = [sample for parts in zip(*batches, strict=True) for part in parts for sample in part]
    assert merged == list(range(samples))
    assert all(part for parts in batches for part in parts)
    for number in range(len(every[0])):
        sizes = [len(part[number]) for part in batches]
        assert max(sizes) - min(sizes) <= 1
        assert sum(one.weight(number) for one in every) == pytest.approx(1)
    # A step takes the mean over its samples: gradients are averaged over processes and divided by the accumulation.
    for first in range(0, len(every[0]), accumulation):
        group = range(first, min(first + accumulation, len(every[0])))
        total = sum(len(part[number]) for part in batches for number in group)
        for one, part in zip(every, batches, strict=True):
            for number in group:
                per_sample = one.share(number) / len(part[number]) / processes / accumulation
                assert per_sample == pytest.approx(1 / total)


def test_an_epoch_can_be_entered_in_the_middle():
    batches = GlobalBatches(20, 3)
    whole = list(batches)
    assert list(batches.begin(batches, 4)) == whole[4:]
    assert len(batches) == 3
    assert batches.total == 7


def test_the_learning_rate_rises_and_falls_at_milestones():
    arguments = TrainingArguments(learning_rate=1.0, warmup_steps=3, milestones=[4, 2], gamma=0.1)
    assert [learning_rate(arguments, 1, step) for step in range(1, 6)] == [0.25, 0.5, 0.75, 1, 1]
    # After 2 and after 4 epochs, as MultiStepLR has it.
    assert [learning_rate(arguments, epoch, 99) for epoch in range(1, 6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
