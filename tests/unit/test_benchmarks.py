"""How benchmarks are reckoned: ratios of turns, bounds, and what is said of the last table."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import changes, table
from benchmarks.measure import Row, in_turns, rows
from benchmarks.peer import step_seconds
from benchmarks.whole import union


def test_ratios_are_those_of_the_same_turn() -> None:
    # A machine that is twice as slow in the second turn: the ratio is 1.5 in each.
    found = rows("b", {"bare": [1.0, 2.0, 1.0], "method": [1.5, 3.0, 1.5]}, "bare", {"method": "<= 1.5"}, amount=10)
    assert [row.ratio for row in found] == [None, 1.5]
    assert found[1].value == pytest.approx(150) and found[1].kept is True and found[0].kept is None


def test_rates_are_more_where_times_are_less() -> None:
    found = rows("d", {"theirs": [2.0, 2.0], "ours": [1.0, 1.0]}, "theirs", {"ours": ">= 2.5"}, amount=100, unit="samples/s")
    assert (found[1].value, found[1].ratio, found[1].kept) == (100.0, 2.0, False)


def test_every_turn_meets_all_actions_and_the_first_is_left_out() -> None:
    order: list[str] = []
    found = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, turns=2)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in found.items()} == {"a": 2, "b": 2}


def test_a_table_is_compared_with_the_last_of_the_same_machine() -> None:
    row = Row("b", "KD", 100.0, 90.0, 110.0, "ms", 1.30, "bare student", "<= 1.15")
    before = {"machine": "here", "rows": [{**row.as_json(), "ratio": 1.1}]}
    assert "KD: 1.10 before, now 1.30" in changes([row], before, "here")
    assert "No ratio moved" in changes([row], {**before, "rows": [row.as_json()]}, "here")
    assert changes([row], before, "elsewhere") == ""
    assert "| KD | 1.30 | bare student | <= 1.15 (no) | 100 | 90 to 110 | ms |" in table([row])


def test_the_peers_log_gives_the_mean_of_the_steps_since_the_line_before() -> None:
    line = "2026-01-01 | INFO | Train Epoch: {} [{}/384 (33%)] Data (t): 0.001 Batch (t): {}, 100.0/s, 100.0/s/gpu LR: 0.1"
    log = "\n".join(line.format(*values) for values in ((0, " 128", "0.500"), (0, " 384", "0.250"), (1, " 128", "0.125")))
    assert step_seconds(log, 128) == [0.5, 0.25, 0.25, 0.125]


def test_time_in_which_something_ran_has_no_pauses_and_counts_nothing_twice() -> None:
    assert union([(10.0, 20.0), (0.0, 4.0), (12.0, 15.0), (18.0, 25.0)]) == 19.0
