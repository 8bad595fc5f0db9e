"""Which results judge a bound: those of the earliest tickets since it moved, once all have ended."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from curriculum_loop import LATENCY, MASS, adr
from hypothesis import given, settings
from hypothesis import strategies as st

from widen.randomization.adr import ADR, AdrConfig
from widen.randomization.curriculum import NEVER, Move, Range, Records
from widen.randomization.draws import Draws

ONE = np.ones(1, dtype=bool)


@pytest.mark.parametrize("masked", [False, True])
def test_early_failures_do_not_come_first(masked: bool) -> None:
    """Ten episodes at one bound begin together, five fail at once and five end with 30 goals."""
    curriculum = adr(LATENCY, num_envs=10, buffer=5, masked=masked)
    curriculum.draw(np.arange(10))
    failed, survived = np.array([0, 2, 4, 6, 8]), np.array([1, 3, 5, 7, 9])
    yes = np.ones(5, dtype=bool)
    assert curriculum.result(failed, np.zeros(5), yes) == []
    moves = curriculum.result(survived, np.full(5, 30.0), yes)
    # in order of beginning: 0 30 0 30 0, mean 12, and 30 0 30 0 30, mean 18: neither moves it,
    # whereas in order of ending five zeros would have come before five thirties
    assert moves == []
    assert curriculum.scores[0, 1] == pytest.approx(18.0)
    assert curriculum.num_moves == 0


@pytest.mark.parametrize("masked", [False, True])
def test_a_running_episode_that_does_not_count_lets_later_ones_pass(masked: bool) -> None:
    curriculum = adr(LATENCY, num_envs=3, masked=masked)
    curriculum.draw(np.arange(3))
    yes = np.ones(2, dtype=bool)
    assert curriculum.result(np.array([1, 2]), np.array([30.0, 30.0]), yes) == []
    moves = curriculum.result(np.array([0]), np.array([0.0]), np.array([False]))
    assert [move.new for move in moves] == [0.2]


@pytest.mark.parametrize("masked", [False, True])
def test_what_began_before_the_bound_moved_is_forgotten(masked: bool) -> None:
    curriculum = adr(LATENCY, num_envs=4, buffer=1, masked=masked)
    curriculum.draw(np.arange(4))
    curriculum.draws.clock += 1
    (move,) = curriculum.result(np.array([0]), np.array([30.0]), ONE)
    assert move.new == pytest.approx(0.2)
    # the next begins at the new bound, in the same step, and is judged though older ones run
    curriculum.draws.begin(curriculum.which(np.array([0])))
    (move,) = curriculum.result(np.array([0]), np.array([30.0]), ONE)
    assert move.new == pytest.approx(0.4)
    assert curriculum.result(np.array([1, 2, 3]), np.zeros(3), np.ones(3, dtype=bool)) == []
    assert curriculum.counts.sum() == 0


@pytest.mark.parametrize("masked", [False, True])
def test_a_decision_between_steps_comes_after_what_began_in_the_last(masked: bool) -> None:
    """As after a rollout: episodes of the present step began at the old bound."""
    curriculum = adr(LATENCY, num_envs=2, buffer=1, masked=masked)
    draws = curriculum.draws
    curriculum.draw(np.array([0, 1]))
    draws.clock += 1
    draws.end(curriculum.which(np.array([0])), *_given(curriculum, [30.0]))
    draws.begin(curriculum.which(np.array([0])))
    (move,) = curriculum.decide([draws.drain()])
    assert move.new == pytest.approx(0.2)
    for _ in range(2):  # the one that began before, and then one that counts
        moves = curriculum.result(np.array([0]), np.array([0.0]), ONE)
        curriculum.draw(np.array([0]))
    assert [move.new for move in moves] == [0.0]


def _given(curriculum: Any, scores: list[float]) -> list[torch.Tensor]:
    """Scores of the first environments as `Draws.end` takes them, and that they count."""
    rows = torch.zeros(curriculum.num_envs if curriculum.masked else len(scores))
    rows[: len(scores)] = torch.tensor(scores)
    return [rows, torch.ones(len(rows), dtype=torch.bool)]


def test_a_bound_that_stays_is_judged_by_the_next_tickets() -> None:
    curriculum = adr(LATENCY, num_envs=4, buffer=2)
    curriculum.draw(np.arange(4))
    yes = np.ones(4, dtype=bool)
    (move,) = curriculum.result(np.arange(4), np.array([12.0, 18.0, 25.0, 25.0]), yes)
    assert (move.mean, move.count) == (25.0, 2)


EPISODES = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0.0, 5.0, 12.0, 18.0, 30.0, 50.0])),
    min_size=1,
    max_size=120,
)


@settings(max_examples=80, deadline=None)
@given(
    episodes=EPISODES,
    buffer=st.integers(1, 25),
    decision=st.sampled_from(["published", "sequential"]),
    before=st.integers(0, 120),
    seed=st.integers(0, 2**32),
)
def test_any_interleaving_of_results_gives_the_same_bounds(
    episodes: list[tuple[int, float]], buffer: int, decision: Any, before: int, seed: int
) -> None:
    """Order of arrival, chunks between decisions and ranks; `before` tickets end a first part."""
    rng = np.random.default_rng(seed)
    config = AdrConfig(evaluation_share=1.0, buffer=buffer, decision=decision)
    parts = [range(min(before, len(episodes))), range(min(before, len(episodes)), len(episodes))]
    at_once, piecemeal = (ADR((MASS, Range("size", 1.0, 0.1, 0.5, 2.0)), config) for _ in "ab")
    for part in parts:
        tickets = np.array(part, dtype=np.int64)
        at_once.decide([_records(episodes, tickets, set(), part.stop)])
        missing = set(part)
        order = rng.permutation(tickets)
        for chunk in np.split(order, np.sort(rng.integers(0, len(order) + 1, 4))):
            missing -= set(chunk.tolist())
            owner = rng.integers(0, 3, len(chunk))
            pieces = [_records(episodes, chunk[owner == r], missing, part.stop) for r in range(3)]
            piecemeal.decide([pieces[r] for r in rng.permutation(3)])
    assert _plain(at_once) == _plain(piecemeal)


def _records(
    episodes: list[tuple[int, float]], tickets: np.ndarray, missing: set[int], after: int
) -> Records:
    bounds = np.array([episodes[t][0] for t in tickets], dtype=np.int64)
    scores = np.array([episodes[t][1] for t in tickets], dtype=np.float32)
    oldest = [min((t for t in missing if episodes[t][0] == b), default=NEVER) for b in range(4)]
    return Records(bounds, tickets, scores, np.array(oldest), after)


def _plain(curriculum: ADR) -> str:
    return json.dumps(curriculum.state_dict())


def test_two_processes_decide_as_one_in_any_order_of_ranks() -> None:
    """Two sets of draws of 8 environments, decided every few steps, as in a training."""
    config = AdrConfig(evaluation_share=1.0, buffer=3)
    runs = []
    for order in ((0, 1), (1, 0)):
        curriculum, rng = ADR((MASS, LATENCY), config), np.random.default_rng(0)
        ranks = [
            Draws(curriculum, 8, rank, torch.Generator().manual_seed(rank)) for rank in range(2)
        ]
        moves: list[Move] = []
        for step in range(120):
            for draws in ranks:
                which = torch.from_numpy(np.flatnonzero(rng.random(8) < 0.5))
                draws.clock = step
                scores = torch.from_numpy(rng.uniform(0, 40, len(which)))
                draws.end(which, scores, torch.ones(len(which), dtype=torch.bool))
                draws.begin(which)
            if step % 4 == 3:
                records = [draws.drain() for draws in ranks]
                tickets = np.concatenate([one.tickets for one in records])
                assert len(np.unique(tickets)) == len(tickets)
                assert records[0].next > tickets.max()
                moves += curriculum.decide([records[rank] for rank in order])
                for draws in ranks:
                    draws.refresh()
        runs.append((moves, _plain(curriculum)))
    assert len(runs[0][0]) > 5
    assert runs[0] == runs[1]


def test_many_steps_between_two_decisions() -> None:
    """By masks the live arrays are handed in, and have changed when the records are taken."""
    ids, masks = (adr(LATENCY, num_envs=6, masked=masked).draws for masked in (False, True))
    rng, live = np.random.default_rng(0), torch.zeros(6)
    expected = []  # (ticket, score) of what counts
    began: dict[int, int] = {}
    for clock in range(40):
        mask = torch.from_numpy(rng.random(6) < 0.4)
        which = mask.nonzero()[:, 0]
        live += torch.from_numpy(rng.integers(0, 3, 6)).float()
        counted = torch.from_numpy(rng.random(6) < 0.8)
        for draws, chosen in ((ids, which), (masks, mask)):
            draws.clock = clock
            rows = chosen if chosen is which else slice(None)
            draws.end(chosen, live[rows], counted[rows])
            draws.begin(chosen)
        for env in which.tolist():
            if env in began and counted[env]:
                expected.append((began[env], float(live[env])))
            began[env] = clock * (1 << 32) + env
        live[mask] = 0.0
    for draws in (ids, masks):
        records = draws.drain()
        found = list(zip(records.tickets.tolist(), records.scores.tolist(), strict=True))
        assert sorted(found) == sorted(expected)
        assert records.oldest[1] == min(began.values())
        assert len(draws.drain().tickets) == 0


@pytest.mark.parametrize("buffer", [3, 9])
def test_episodes_given_up_let_the_evaluation_start_over(buffer: int) -> None:
    """Of six that begin together two fail at once; of the other four one process is dropped."""
    curriculum = adr(LATENCY, num_envs=6, buffer=buffer)
    yes = np.ones(6, dtype=bool)
    curriculum.draw(np.arange(6))
    curriculum.result(np.array([4, 5]), np.zeros(2), yes[:2])
    assert curriculum.counts[0, 1] == 2
    draws = curriculum.draws
    curriculum.abandon(draws.abandoned(draws.state_dict()), draws.first_ticket(draws.clock + 1))
    assert curriculum.counts[0, 1] == 0
    # survivors of the same beginning, in a process that goes on, would count alone
    assert curriculum.result(np.arange(4), np.full(4, 50.0), yes[:4]) == []
    assert curriculum.counts[0, 1] == 0
    curriculum.draw(np.arange(6))
    curriculum.result(np.arange(6), np.full(6, 15.0), yes)
    assert curriculum.counts[0, 1] == 6 % buffer
