"""DeXtreme's queues: the last results in finishing order, evaluated with each."""

from __future__ import annotations

import json

import pytest
from curriculum_loop import LATENCY, MASS, adr, play


def test_the_last_results_decide_with_each_new_one() -> None:
    curriculum = adr(LATENCY, buffer=3, rule="rolling")
    assert play(curriculum, [0.0, 15.0, 30.0]) == []  # mean 15
    assert curriculum.counts.tolist() == [[0, 3]]
    (move,) = play(curriculum, [15.0])  # 15, 30, 15: mean 20
    assert (move.new, move.mean, move.count) == (pytest.approx(0.2), 20.0, 3)
    assert curriculum.counts.sum() == 0  # cleared, because it moved
    assert play(curriculum, [50.0, 50.0]) == []
    (move,) = play(curriculum, [50.0])
    assert move.new == pytest.approx(0.4)


def test_a_queue_is_cleared_by_its_own_bound_only() -> None:
    curriculum = adr(MASS, buffer=4, rule="rolling", seed=1)
    moves = play(curriculum, [50.0] * 60)
    held = curriculum.counts
    assert 0 <= held.min() <= held.max() <= 4
    assert len({move.side for move in moves}) == 2


def test_a_bound_at_its_limit_keeps_its_queue() -> None:
    curriculum = adr(LATENCY, buffer=2, rule="rolling")
    moves = play(curriculum, [50.0] * 30)
    assert [move.new for move in moves] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert curriculum.counts.tolist() == [[0, 2]]


def test_queues_continue_from_plain_values() -> None:
    first, second = (adr(LATENCY, MASS, buffer=3, rule="rolling", seed=s) for s in (0, 7))
    play(first, [0.0, 30.0, 40.0, 25.0, 12.0] * 5)
    second.load_state_dict(first.state_dict())
    second.curriculum.load_state_dict(json.loads(json.dumps(first.curriculum.state_dict())))
    scores = [28.0, 3.0, 45.0, 17.0] * 10
    moves = play(first, scores)
    assert moves == play(second, scores) != []
