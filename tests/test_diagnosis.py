"""Diagnosis of synthetic curricula whose truth is known."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from curriculum_loop import adr, play
from rich.console import Console
from run_logs import make

from widen.randomization.curriculum import Range, Uniform
from widen.randomization.diagnosis import LEAST, ROOM, Diagnosis, limiting
from widen.randomization.episodes import LEAST_ROOM, Episodes
from widen.train.monitor import render, snapshot

RANGES = [Range(name, 0.0, 0.1, -1.0, 1.0) for name in ("mass", "latency", "noise", "gravity")]


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """Values of episodes (count, 4): half of them evaluate a bound."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(-1, 1, (count, 4))
    at = rng.integers(0, 8, count)
    evaluates = np.flatnonzero(rng.random(count) < 0.5)
    values[evaluates, at[evaluates] // 2] = 2 * (at[evaluates] % 2) - 1
    return values


def diagnosed(values: np.ndarray, means: np.ndarray, seed: int = 1) -> dict[str, Any]:
    """The report on episodes whose scores are Poisson about these means."""
    diagnosis = Diagnosis(Uniform(RANGES, np.array([[-1.0, 1.0]] * 4)))
    scores = np.random.default_rng(seed).poisson(np.maximum(means, 0.0))
    rows = np.column_stack((values, scores)).astype(np.float32)
    for part in np.array_split(rows, 7):
        diagnosis.take(np.array_split(part, 2))  # two processes
    return diagnosis.report()


def test_the_bound_that_success_falls_towards_comes_first() -> None:
    values = drawn(6000)
    found = diagnosed(
        values, 20 - 10 * np.maximum(values[:, 1], 0) - 3 * np.maximum(-values[:, 2], 0)
    )
    first, second, *rest = found["drops"]
    assert (first["name"], first["side"]) == ("latency", "high")
    assert (second["name"], second["side"]) == ("noise", "low")
    # inner half: 10 v is 2.5 on the average;
    # outer quarter: of 16 episodes one is at the bound, of the others one in 8 is drawn in it
    share_inside = (15 / 16) / 8
    outer = (10 * 1 / 16 + 8.75 * share_inside) / (1 / 16 + share_inside)
    assert first["drop"] == pytest.approx(outer - 2.5, abs=3 * first["error"])
    assert 0 < first["error"] < 0.5
    assert all(abs(one["drop"]) < 3.5 * one["error"] for one in rest)
    assert found["pairs"] == []
    assert found["episodes"] == 6000


def test_a_planted_pair_is_found_and_no_other() -> None:
    values = drawn(8000)
    both = (values[:, 0] > 0.7) & (values[:, 3] < -0.7)
    (pair,) = diagnosed(values, 20 - 4 * np.abs(values[:, 1]) - 15 * both)["pairs"]
    assert (pair["names"], pair["sides"]) == (["mass", "gravity"], ["high", "low"])
    assert pair["mean"] == pytest.approx(3, abs=1.0)
    assert pair["expected"] > 10
    assert pair["episodes"] >= LEAST


def test_a_pair_fails_where_each_alone_passes() -> None:
    curriculum = adr(*RANGES, widen_at=14, narrow_at=7).curriculum
    curriculum.bounds[:] = [[-1.0, 1.0]] * 4
    values = drawn(8000)
    both = (values[:, 0] > 0.7) & (values[:, 3] < -0.7)
    for loss, fails in ((15, True), (8, False)):
        diagnosis = Diagnosis(curriculum)
        scores = np.random.default_rng(0).poisson(18 - loss * both)
        diagnosis.take([np.column_stack((values, scores)).astype(np.float32)])
        (pair,) = diagnosis.report()["pairs"]
        assert pair["fails"] is fails


def test_effects_that_multiply_are_no_pair() -> None:
    """Each halves the score; together they leave a quarter, more than the sum of both losses."""
    values = drawn(8000)
    halves = np.where(values > 0.7, 0.5, 1.0)
    found = diagnosed(values, 24 * halves[:, 0] * halves[:, 1])
    assert found["pairs"] == []
    assert {(one["name"], one["side"]) for one in found["drops"][:2]} == {
        ("mass", "high"),
        ("latency", "high"),
    }


def test_chance_names_a_pair_rarely() -> None:
    """24 pairs in each of 20 worlds without any: 5 % of the worlds may name one."""
    named = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values, survives = drawn(2000, seed), rng.random(2000) < 0.5
        named += len(diagnosed(values, np.where(survives, 30.0, 1.0), seed)["pairs"]) > 0
    assert named <= 3


def test_progress_is_not_mistaken_for_an_effect() -> None:
    """Ranges and scores grow together; nothing falls towards a bound."""
    values = drawn(ROOM)
    when = np.linspace(0.0, 1.0, ROOM)
    values *= np.maximum(when, 0.1)[:, None]
    found = diagnosed(values, 5 + 25 * when)
    assert all(abs(one["drop"]) < 2.0 for one in found["drops"])
    naive = (np.abs(values[:, 0]) <= 0.5, values[:, 0] >= 0.75)
    means = [(5 + 25 * when)[rows].mean() for rows in naive]
    assert means[0] < means[1] - 5  # what a comparison of all episodes would have said
    assert found["pairs"] == []


def test_bounds_that_are_nominal_or_hardly_met_are_left_out() -> None:
    curriculum = Uniform(RANGES, np.array([[-1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [-1.0, 0.0]]))
    diagnosis = Diagnosis(curriculum)
    assert diagnosis.report()["drops"] == []
    values = drawn(400)
    values[:, 2] = 0.0
    diagnosis.take([np.column_stack((values, np.ones(400))).astype(np.float32)])
    found = {(one["name"], one["side"]) for one in diagnosis.report()["drops"]}
    assert found == {("mass", "low"), ("mass", "high"), ("latency", "high"), ("gravity", "low")}


def test_the_limiting_bound_fails_most_of_late() -> None:
    curriculum = adr(Range("easy", 0.0, 0.1, 0.0, 9.0), Range("hard", 0.0, 0.1, 0.0, 9.0), seed=3)
    assert limiting(curriculum.curriculum) == []
    for _ in range(200):  # only `hard` at its bound fails
        values = curriculum.draw(np.array([0]))[0]
        at_hard = curriculum.draws._assigned[0] == 3
        score = 5.0 if at_hard and values[1] > 0.25 else 25.0
        curriculum.result(np.array([0]), np.array([score]), np.array([True]))
    first, second = limiting(curriculum.curriculum)
    assert (first["name"], first["side"], first["limiting"]) == ("hard", "high", True)
    assert (second["name"], second["failed"], second["limiting"]) == ("easy", 0, False)
    decisions = first["decisions"] + second["decisions"]
    assert 2 * decisions + curriculum.counts.sum() == 200
    assert first["recent_decisions"] + second["recent_decisions"] == 20
    assert 0 < first["recent_failed"] <= first["failed"] < first["decisions"]
    again = adr(*curriculum.ranges)
    again.load_state_dict(curriculum.state_dict())
    assert limiting(again.curriculum) == limiting(curriculum.curriculum)


def test_a_diagnosis_continues_from_its_state() -> None:
    curriculum = Uniform(RANGES, np.array([[-1.0, 1.0]] * 4))
    first, second = Diagnosis(curriculum), Diagnosis(curriculum)
    rows = np.column_stack((drawn(ROOM + 50), np.arange(ROOM + 50))).astype(np.float32)
    first.take([rows[:3000]])
    second.load_state_dict(first.state_dict())
    for one in (first, second):
        one.take([rows[3000:]])
    assert first.report() == second.report()
    assert first.report()["episodes"] == ROOM
    assert torch.equal(second.state_dict()["episodes"], torch.from_numpy(rows[-ROOM:]))


@pytest.mark.parametrize("masked", [False, True])
def test_ended_episodes_are_kept_in_order_until_drained(masked: bool) -> None:
    rng = np.random.default_rng(0)
    ring, expected = Episodes(6, 2, torch.device("cpu")), []
    for step in range(400):
        ended, counted = rng.random(6) < 0.5, rng.random(6) < 0.7
        values, scores = rng.random((6, 2)).astype(np.float32), np.arange(6) + 10.0 * step
        expected += [(*values[i], scores[i]) for i in np.flatnonzero(ended & counted)]
        which = torch.from_numpy(ended if masked else np.flatnonzero(ended))
        rows = slice(None) if masked else ended
        given = [torch.from_numpy(x[rows]) for x in (values, scores, counted)]
        ring.add(which, *given)
        if step == 100:  # what is not drained yet is in the state
            fresh = Episodes(6, 2, torch.device("cpu"))
            fresh.load_state_dict(ring.state_dict())
            ring = fresh
        if step == 250:
            np.testing.assert_allclose(ring.drain(), expected)
            expected = []
    np.testing.assert_allclose(ring.drain(), expected)
    assert len(ring.drain()) == 0


def test_of_too_many_episodes_the_last_are_kept() -> None:
    ring = Episodes(2, 0, torch.device("cpu"))
    yes, both = torch.ones(2, dtype=torch.bool), torch.arange(2)
    for step in range(LEAST_ROOM):
        ring.add(both, torch.zeros(2, 0), torch.tensor([2.0 * step, 2.0 * step + 1]), yes)
    assert ring.drain()[:, 0].tolist() == list(range(LEAST_ROOM, 2 * LEAST_ROOM))


def test_play_is_told_what_failed() -> None:
    curriculum = adr(RANGES[0], buffer=1)
    play(curriculum, [50.0] * 3 + [15.0] * 4 + [0.0] * 2)
    rows = limiting(curriculum.curriculum)
    assert sum(one["decisions"] for one in rows) == 9
    assert sum(one["failed"] for one in rows) == 6


def test_the_monitor_shows_the_last_diagnosis(tmp_path: Path) -> None:
    run = make(tmp_path / "run", total=10)
    assert snapshot(run)["diagnosis"] is None
    curriculum = adr(*RANGES).curriculum
    curriculum.bounds[:] = [[-1.0, 1.0]] * 4
    values = drawn(8000)
    both = (values[:, 0] > 0.7) & (values[:, 3] < -0.7)
    means = 24 - 9 * np.maximum(values[:, 1], 0) - 19 * both
    scores = np.random.default_rng(0).poisson(np.maximum(means, 0))
    diagnosis = Diagnosis(curriculum)
    diagnosis.take([np.column_stack((values, scores)).astype(np.float32)])
    about = {"kind": "diagnosis", "iteration": 3, "steps": 3000}
    run.append(about | Diagnosis(curriculum).report(), about | diagnosis.report())
    state = json.loads(json.dumps(snapshot(run)))
    assert state["diagnosis"] == {"iteration": 3, "steps": 3000, **diagnosis.report()}
    console = Console(file=io.StringIO(), width=120)
    console.print(render(state))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "success falls towards  latency high (2" in said
    assert "worse together than apart  mass high and gravity low (" in said
    assert "is expected, fails)" in said
    assert "limited by" not in said  # nothing was evaluated
