import numpy as np
import torch

from lcot_plugin.rollout.readers import Holding, find_readers, read_plan

PROMPT = [Holding([0, 1], [0, 1], 0, 6)]
COMPLETIONS = [Holding([0, 2], [0], 6, 11), Holding([1], [1], 6, 7)]
CPU = torch.device("cpu")


def test_the_example_of_the_module():
    readers = find_readers(PROMPT, 2, 4)
    assert readers.rows.tolist() == [[0, 1], [0, 1]]
    assert readers.starts.tolist() == [0, 4] and readers.ends.tolist() == [4, 6]
    readers = find_readers(COMPLETIONS, 2, 4)
    assert readers.rows.tolist() == [[0], [1], [0]] and readers.blocks is None
    assert readers.starts.tolist() == [6, 6, 10] and readers.ends.tolist() == [10, 7, 11]


def seen(plan):
    """[blocks][readers] the columns that are seen."""
    return [[row.nonzero()[:, 0].tolist() for row in block] for block in plan.bias == 0]


def test_a_row_sees_its_tokens_up_to_itself():
    queries = np.array([10, 6, -1])
    assert seen(read_plan(find_readers(PROMPT, 2, 4), queries, None, 4, CPU)) == [[[0, 1, 2, 3]] * 2, [[0, 1]] * 2]
    plan = read_plan(find_readers(COMPLETIONS, 2, 4), queries, None, 4, CPU)
    assert seen(plan) == [[[0, 1, 2, 3]], [[0]], [[0]]]
    assert plan.targets.tolist() == [0, 1, 0]


def test_a_window_counts_along_the_path():
    """The row at position 10 sees 8, 9, 10; the one at 6 sees 4, 5 of the prompt and itself."""
    queries = np.array([10, 6, -1])
    plan = read_plan(find_readers(COMPLETIONS, 2, 4), queries, 3, 4, CPU)
    assert seen(plan) == [[[2, 3]], [[0]], [[0]]]
    plan = read_plan(find_readers(PROMPT, 2, 4), queries, 3, 4, CPU)
    assert plan.blocks.tolist() == [1] and seen(plan) == [[[], [0, 1]]]


def test_nobody_reads_free_blocks():
    readers = find_readers([Holding([3], [0], 0, 2), Holding([0], [1], 0, 4)], 2, 4)
    plan = read_plan(readers, np.array([1, 3, -1]), None, 4, CPU)
    assert plan.blocks is None and plan.targets.tolist() == [1, 2, 2, 0]
    assert seen(plan) == [[[0, 1, 2, 3]], [[]], [[]], [[0, 1]]]


def test_few_blocks_far_apart_are_picked_out():
    readers = find_readers([Holding([9], [0], 0, 2), Holding([1, 4], [1], 0, 8)], 2, 4)
    assert readers.blocks.tolist() == [9, 1, 4] and readers.rows.tolist() == [[0], [1], [1]]


def test_a_window_may_leave_nothing_of_a_store():
    readers = find_readers(PROMPT, 2, 4)
    plan = read_plan(readers, np.array([90, 95, -1]), 8, 4, CPU)
    assert plan.bias.shape == (0, 2, 4) and plan.targets.shape == (0,)
