"""What the object's tracker reports: slow, lost and frozen frames, and where its marker is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sensors import LIMITS, begin, blend, make, readings, rotation_matrices
from torch import Tensor

from widen.randomization.observation import Observation


def steps_apart(count: int, step: int) -> dict[str, Tensor]:
    """Readings that tell when they were true: the object is at x = step."""
    true = readings(count)
    true["object_pos"] = torch.tensor([float(step), 0.0, 0.0]).repeat(count, 1)
    return true


def frames(made: Observation, num_envs: int, steps: int) -> np.ndarray:
    """(steps, N) the control step whose frame is reported in each control step 1, 2, ..."""
    made.observe_reset(steps_apart(num_envs, 0), torch.arange(num_envs))
    seen = [made.observe(steps_apart(num_envs, step + 1))["object_pos"] for step in range(steps)]
    return torch.stack(seen)[..., 0].round().long().numpy()


PERIODS = [1.0, 1.5, 2.0, 2.5, 3.0, 6.0]


def test_refresh_against_a_clock() -> None:
    n = len(PERIODS)
    made = make(n, object_refresh=PERIODS)
    for _ in range(2):  # the second episode begins between two frames
        seen = frames(made, n, 23)
        for step in range(1, 24):
            # frames are due at multiples of the period and captured at the next step
            expected = [math.ceil(math.floor(step / t) * t) for t in PERIODS]
            assert seen[step - 1].tolist() == expected


def test_a_frame_is_delayed_and_disturbed_once_and_then_repeated() -> None:
    made = make(1, object_refresh=3.0, object_delay=1.0, object_pos_noise=0.01)
    past = [readings(1)]
    made.observe_reset(past[0], torch.arange(1))
    seen = []
    for _ in range(9):
        past.append(readings(1))
        seen.append(made.observe(past[-1])["object_pos"])
    for frame in (2, 5, 8):  # control steps 3, 6, 9
        error = seen[frame] - past[frame]["object_pos"]  # a step ago
        assert 0 < error.abs().max() < 0.06
    for held, frame in ((3, 2), (4, 2), (6, 5), (7, 5)):
        assert torch.equal(seen[held], seen[frame])


def lost_frames(seen: np.ndarray) -> np.ndarray:
    """(steps, N) bool: the last frame is repeated; any other must be the new one."""
    steps = np.arange(1, len(seen) + 1)[:, None]
    before = np.concatenate((np.zeros_like(seen[:1]), seen[:-1]))
    assert ((seen == steps) | (seen == before)).all()
    return seen != steps


def within(found: float, expected: float, samples: float) -> bool:
    """A share of this many independent samples is within five standard errors."""
    return abs(found - expected) < 5 * math.sqrt(expected * (1 - expected) / samples)


def test_dropout_loses_frames_independently_with_its_probability() -> None:
    n, steps, probabilities = 3000, 60, [0.0, 0.1, 0.5, 0.9]
    made = make(n, object_dropout=[p for p in probabilities for _ in range(n // 4)])
    lost = lost_frames(frames(made, n, steps)).reshape(steps, 4, n // 4)
    assert not lost[:, 0].any()
    for k, p in enumerate(probabilities[1:], 1):
        samples = steps * n / 4
        assert within(lost[:, k].mean(), p, samples)
        # whether one frame is lost tells nothing of the next, nor of another environment's
        assert within((lost[1:, k] & lost[:-1, k]).mean(), p * p, samples / 3)
        assert within((lost[:, k, 1:] & lost[:, k, :-1]).mean(), p * p, samples / 3)


def test_a_lost_frame_is_not_made_up_for_between_two_that_are_due() -> None:
    n, steps, p = 2000, 60, 0.4
    seen = frames(make(n, object_dropout=p, object_refresh=3.0), n, steps)
    new = seen == np.arange(1, steps + 1)[:, None]
    due = np.arange(1, steps + 1) % 3 == 0
    assert not new[~due].any()
    assert within(1 - new[due].mean(), p, new[due].size)
    assert (seen % 3 == 0).all()


@pytest.mark.parametrize("control_dt", [0.05, 0.1])
def test_freezes_begin_at_their_rate_and_last_a_second(control_dt: float) -> None:
    n, steps, rate, second = 3000, 200, 0.5, round(1 / control_dt)
    lost = lost_frames(frames(make(n, control_dt, object_freeze=rate), n, steps))
    onset = lost[1:] & ~lost[:-1]
    assert within(onset.sum() / (~lost[:-1]).sum(), -math.expm1(-rate * control_dt), 2e5)
    lengths = []
    for env in range(n):
        edges = np.flatnonzero(np.diff(lost[:, env].astype(int)))
        starts = edges[lost[edges + 1, env]]
        for start in starts[starts < steps - 2 * second - 2]:
            end = edges[edges > start]
            lengths.append(int(end[0] - start) if len(end) else steps)
    assert min(lengths) == second
    # the rest were joined by another one
    alone = np.mean(np.array(lengths) == second)
    assert within(float(alone), math.exp(-rate), len(lengths))
    settled = lost[second + 1 :: second]  # rows that have no freeze in common
    assert within(settled.mean(), -math.expm1(-rate), settled.size / 2)


def test_no_freeze_and_no_dropout_at_their_nominal_values() -> None:
    made = make(50, object_freeze=0.0, object_dropout=0.0)
    assert not lost_frames(frames(made, 50, 50)).any()


def test_an_episode_begins_with_a_running_tracker() -> None:
    """A freeze of the last episode does not reach into the next."""
    n = 400
    made = make(n, object_freeze=LIMITS["object_freeze"])
    assert lost_frames(frames(made, n, 40))[-1].mean() > 0.5
    begin(made, torch.arange(n), object_freeze=0.0)
    assert not lost_frames(frames(made, n, 5)).any()


def test_slow_late_lost_and_frozen_frames_together() -> None:
    n, steps, p, rate, delay = 1500, 120, 0.3, 0.4, 1.25
    values = {"object_delay": delay, "object_dropout": p, "object_freeze": rate}
    made = make(n, object_refresh=2.0, **values)
    made.observe_reset(steps_apart(n, 0), torch.arange(n))
    held, captured = torch.zeros(n), []
    for step in range(1, steps + 1):
        x = made.observe(steps_apart(n, step))["object_pos"][:, 0]
        # a frame that is captured shows the pose of `delay` ago; x is interpolated
        new = (x - max(step - delay, 0.0)).abs() < 1e-4
        assert torch.equal(x[~new], held[~new])
        held = x
        if step % 2 == 0:
            captured.append(new.float().mean().item())
        else:
            assert not new.any() or step == 1
    settled = np.mean(captured[10:])
    assert within(settled, (1 - p) * math.exp(-rate), n * steps / 40)


def in_object(seen: dict[str, Tensor], pos: Tensor, quat: Tensor) -> np.ndarray:
    """(N, 3) what the reported position is off by, in the frame of an object at this pose."""
    error = (seen["object_pos"] - pos).double().numpy()
    return np.einsum("nji,nj->ni", rotation_matrices(quat.double().numpy()), error)


def test_the_marker_offset_turns_with_the_object_and_lasts_an_episode() -> None:
    n, std = 3000, 0.01
    made = make(n, object_marker_offset=std)
    true = readings(n)
    seen = made.observe_reset(true, torch.arange(n))
    first = in_object(seen, true["object_pos"], true["object_quat"])
    assert first.std(0) == pytest.approx([std] * 3, rel=0.07)
    assert np.abs(first.mean(0)).max() < 5 * std / math.sqrt(n)
    assert np.abs(np.corrcoef(first.T) - np.eye(3)).max() < 5 / math.sqrt(n)
    for _ in range(3):
        true = readings(n)
        seen = made.observe(true)
        again = in_object(seen, true["object_pos"], true["object_quat"])
        np.testing.assert_allclose(again, first, atol=2e-6)
        assert torch.equal(seen["object_quat"], true["object_quat"])
    begin(made, torch.arange(0, n, 2), object_marker_offset=std)
    true = readings(n)
    renewed = in_object(made.observe(true), true["object_pos"], true["object_quat"])
    np.testing.assert_allclose(renewed[1::2], first[1::2], atol=2e-6)
    assert (np.abs(renewed[::2] - first[::2]).max(1) > 1e-4).all()


def test_the_marker_is_where_it_was_and_rotation_errors_do_not_move_it() -> None:
    n = 200
    noise = {"object_rot_noise": 0.3, "object_rot_bias": 0.3}
    made = make(n, object_marker_offset=0.02, object_delay=1.5, **noise)
    past = [readings(n)]
    seen = made.observe_reset(past[0], torch.arange(n))
    first = in_object(seen, past[0]["object_pos"], past[0]["object_quat"])
    for _ in range(4):
        past.append(readings(n))
        seen = made.observe(past[-1])
        pos, quat = (
            torch.stack([blend([true[name] for true in past], env, 1.5) for env in range(n)])
            for name in ("object_pos", "object_quat")
        )
        quat /= quat.norm(dim=-1, keepdim=True)
        np.testing.assert_allclose(in_object(seen, pos, quat), first, atol=1e-5)
