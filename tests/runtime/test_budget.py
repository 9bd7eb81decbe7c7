# SPDX-License-Identifier: Apache-2.0
"""What the budget learns and selects."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from nightlab_core.runtime.budget import REMEMBERED, RETRY_AFTER, LearnedCosts, RegionBudget


def new_budget() -> RegionBudget:
    """Return a budget that knows no cost."""
    return RegionBudget([LearnedCosts(10)], 10)


def learned(cost_ms: Callable[[int], float], merge_ms: float = 0.0) -> RegionBudget:
    """Return a budget that has seen the costs of every number of regions."""
    budget = new_budget()
    for number in range(1, 11):
        budget.reading[0].record(number, cost_ms(number))
        budget.merging.record(number, merge_ms * number)
    return budget


def test_costs_are_medians_so_that_slow_calls_change_nothing() -> None:
    costs = LearnedCosts(10)
    for ms in (20.0, 21.0, 900.0, 22.0, 700.0, 21.0, 20.0):
        costs.record(1, ms)
    assert costs.estimate_ms(1) == 21.0
    for _ in range(REMEMBERED // 2 + 1):
        costs.record(1, 40.0)  # the machine became slower
    assert costs.estimate_ms(1) == 40.0


def test_merging_is_expected_to_be_slow_so_that_no_mask_is_late_for_it() -> None:
    merging = new_budget().merging
    for ms in (2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 5.0, 90.0):
        merging.record(1, ms)
    assert merging.estimate_ms(1) == 5.0  # one slow call changes nothing


def test_numbers_that_were_not_measured_lie_between_their_neighbours() -> None:
    costs = LearnedCosts(10)
    assert costs.estimate_ms(3) == 0.0
    costs.record(4, 40.0)
    assert [costs.estimate_ms(n) for n in (0, 1, 4, 10)] == [0.0, 10.0, 40.0, 100.0]
    costs.record(2, 30.0)
    assert [costs.estimate_ms(n) for n in (1, 2, 3, 4, 8)] == [15.0, 30.0, 35.0, 40.0, 80.0]


def test_without_a_deadline_all_regions_are_read_at_once() -> None:
    for budget in (new_budget(), learned(lambda number: 1000.0 * number)):
        assert budget.select([0.9, 0.5, 0.0], math.inf) == 3
        assert budget.select([], math.inf) == 0
        assert budget.num_mergeable(3, math.inf) == 3


@pytest.mark.parametrize(
    ("cost_ms", "gains", "left_ms", "expected"),
    [
        (lambda n: 20.0 * n, [0.9, 0.8, 0.7], 100.0, 1),  # a batch saves nothing
        (lambda n: 20.0 + n, [0.9, 0.8, 0.7], 100.0, 3),  # a batch costs hardly more than one region
        (lambda n: 20.0 + n, [0.9, 0.8, 0.7], 22.0, 2),  # but only two are in time
        (lambda n: 10.0 + 5.0 * n, [0.9, 0.8, 0.1, 0.1], 100.0, 2),  # 0.06, 0.085, 0.072, 0.063 per ms
        (lambda n: 20.0 * n, [0.9, 0.8], 19.0, 0),
        (lambda n: 20.0 * n, [0.0, 0.0], 100.0, 1),
        (lambda n: 20.0 * n, [], 100.0, 0),
    ],
)
def test_the_batch_with_the_largest_gain_per_millisecond_is_selected(
    cost_ms: Callable[[int], float], gains: list[float], left_ms: float, expected: int
) -> None:
    assert learned(cost_ms).select(gains, left_ms) == expected


def test_time_to_merge_what_was_read_is_kept_free() -> None:
    budget = learned(lambda number: 20.0 * number, merge_ms=2.0)
    assert budget.select([0.9], 22.0) == 1
    assert budget.select([0.9], 22.0, num_read=1) == 0
    assert budget.select([0.9], 24.0, num_read=1) == 1
    assert [budget.num_mergeable(3, left_ms) for left_ms in (6.0, 5.9, 2.0, 1.9, 0.0, -1.0)] == [3, 2, 1, 0, 0, 0]


def test_one_region_is_read_while_no_cost_is_known() -> None:
    assert new_budget().select([0.9, 0.8], 1.0) == 1
    assert new_budget().select([0.9, 0.8], -1.0) == 0
    assert new_budget().num_mergeable(2, 1.0) == 2
    assert new_budget().num_mergeable(2, -1.0) == 0


def test_a_cost_that_was_once_too_high_is_measured_again() -> None:
    budget = learned(lambda number: 1000.0 * number)
    assert [budget.select([0.9, 0.8], 50.0) for _ in range(RETRY_AFTER)] == [0] * RETRY_AFTER
    assert budget.select([0.9, 0.8], -1.0) == 0  # not when the time is over
    assert [budget.select([0.9, 0.8], 50.0) for _ in range(2)] == [1, 0]
