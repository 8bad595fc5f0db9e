"""What the sensors report, against plain lists of the past, rotations by hand and statistics."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from sensors import (
    JOINTS,
    LIMITS,
    WHOLE,
    begin,
    blend,
    make,
    plant,
    readings,
    rotation_matrices,
)
from torch import Tensor

from widen.envs.hand import load_hand
from widen.envs.rotations import quat_angle
from widen.envs.scene import build_scene
from widen.envs.sim import SimConfig, make_sim
from widen.envs.task import task_class
from widen.randomization.config import RandomizationConfig
from widen.randomization.observation import OBSERVATION, Observation
from widen.randomization.randomizer import Randomizer

DELAYS = [0.0, 0.25, 0.5, 1.0, 1.75, 2.0]


def test_joint_delay_against_a_list_of_past_readings() -> None:
    n = len(DELAYS)
    made = make(n, joint_delay=DELAYS)
    for _ in range(2):  # the second episode finds the first one's past in the queue
        true = readings(n)
        past = [true["joint_pos"]]
        made.observe_reset(true, torch.arange(n))
        for _ in range(7):
            true = readings(n)
            past.append(true["joint_pos"])
            seen = made.observe(true)
            for env, delay in enumerate(DELAYS):
                torch.testing.assert_close(seen["joint_pos"][env], blend(past, env, delay))
            assert torch.equal(seen["object_pos"], true["object_pos"])
            assert torch.equal(seen["object_quat"], true["object_quat"])


def test_object_delay_against_a_list_of_past_poses() -> None:
    delays = [*DELAYS, 3.0]
    n = len(delays)
    made = make(n, object_delay=delays)
    past = [readings(n)]
    made.observe_reset(past[0], torch.arange(n))
    for _ in range(12):
        past.append(readings(n))
        seen = made.observe(past[-1])
        assert torch.equal(seen["joint_pos"], past[-1]["joint_pos"])
        for env, delay in enumerate(delays):
            pos = blend([true["object_pos"] for true in past], env, delay)
            quat = blend([true["object_quat"] for true in past], env, delay)
            torch.testing.assert_close(seen["object_pos"][env], pos)
            assert quat_angle(seen["object_quat"][env], quat / quat.norm()) < 1e-5


@pytest.mark.parametrize("masked", [False, True])
def test_a_reset_overwrites_the_past_of_its_environments_only(masked: bool) -> None:
    made = make(3, joint_delay=1.0, object_delay=2.0, object_refresh=2.0)
    made.observe_reset(readings(3), torch.arange(3))
    past = [readings(3) for _ in range(6)]
    for true in past[:4]:
        made.observe(true)
    fresh, which = readings(3), torch.tensor([False, True, False])
    given = fresh
    if not masked:
        which = torch.tensor([1])
        given = {name: value[1:2] for name, value in fresh.items()}
    begin(made, which, joint_delay=1.0, object_delay=2.0, object_refresh=2.0)
    reported = made.observe_reset(given, which)
    for name, value in given.items():
        assert torch.equal(reported[name], value)
    # the others' next frame is due in control step 6, environment 1's two steps after its reset
    for step, frame in ((4, 1), (5, 3)):
        seen = made.observe(past[step])
        assert torch.equal(seen["joint_pos"][[0, 2]], past[step - 1]["joint_pos"][[0, 2]])
        assert torch.equal(seen["object_pos"][[0, 2]], past[frame]["object_pos"][[0, 2]])
        joints = fresh if step == 4 else past[4]
        assert torch.equal(seen["joint_pos"][1], joints["joint_pos"][1])
        assert torch.equal(seen["object_pos"][1], fresh["object_pos"][1])


def maxwell(x: np.ndarray) -> np.ndarray:
    """Distribution function of the length of a vector of three standard normal components."""
    erf = np.array([math.erf(v / math.sqrt(2)) for v in x])
    return erf - math.sqrt(2 / math.pi) * x * np.exp(-x * x / 2)


@pytest.mark.parametrize(
    "stds", [{"object_rot_noise": 0.4}, {"object_rot_bias": 0.1}, {"both": 0.3}], ids=str
)
def test_published_fault_5_rotation_errors_are_rotations(stds: dict[str, float]) -> None:
    """Noise added to a quaternion without renormalising is no rotation; here it is one."""
    n = 20_000
    std = next(iter(stds.values()))
    if "both" in stds:  # components of both add: 3, 4, 5
        stds, std = {"object_rot_noise": 0.3, "object_rot_bias": 0.4}, 0.5
    made = make(n, **stds)
    true = readings(n)
    for seen in (made.observe_reset(true, torch.arange(n)), made.observe(true)):
        quat = seen["object_quat"].double()
        assert (quat.norm(dim=-1) - 1).abs().max() < 1e-6
        angles = np.sort(quat_angle(quat, true["object_quat"].double()).numpy()) / std
        # Kolmogorov and Smirnov: exceeded by chance once in 10,000
        assert np.abs(maxwell(angles) - (np.arange(n) + 0.5) / n).max() < 2.23 / math.sqrt(n)
        # about every axis of the hand alike: R^T of the true rotation undone on the right
        error = rotation_matrices(quat.numpy()) @ rotation_matrices(
            true["object_quat"].double().numpy()
        ).transpose(0, 2, 1)
        skew = np.stack([error[:, i, j] - error[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))], 1)
        axis = skew / np.linalg.norm(skew, axis=1, keepdims=True)
        assert np.abs(axis.mean(0)).max() < 5 / math.sqrt(3 * n)
        assert np.abs(axis.T @ axis / n - np.eye(3) / 3).max() < 5 * 0.3 / math.sqrt(n)


@pytest.mark.parametrize("task", ["cube_rotate", "fingertip_reach"])
def test_everything_that_a_task_measures_can_have_bias_and_noise(task: str) -> None:
    kind = task_class(task)
    layout = kind.layout(build_scene(load_hand("leap"), kind.object, timestep=1 / 60))
    free = kind.object is None
    names = [what.name for what in OBSERVATION if not (free and what.needs_object)]
    true = {reading.name: torch.ones(4, *reading.shape) for reading in layout}
    if "object_quat" in true:
        true["object_quat"] = torch.tensor([0.6, 0.0, 0.8, 0.0]).repeat(4, 1)
    for ending in ("bias", "noise"):
        made = make(4, **{name: 0.1 for name in names if name.endswith(ending)})
        first, again = made.observe_reset(true, torch.arange(4)), made.observe(true)
        assert first.keys() == again.keys() == true.keys()
        for reading in layout:
            before, after, exact = (r[reading.name] for r in (first, again, true))
            if reading.source == "goal":
                assert before is after is exact
            else:
                assert ((before - exact).abs() > 1e-5).flatten(1).any(1).all()
                assert torch.equal(before, after) == (ending == "bias")


def test_one_draw_a_step_and_none_of_what_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []

    def randn(*shape: int, **kwargs: Any) -> Tensor:
        drawn.append(shape)
        return torch.zeros(*shape)

    whole = make(4, **WHOLE)
    bare = make(4, **{name: 0.1 for name in WHOLE if not name.startswith("object_")})
    offsets = make(4, **{name: 0.1 for name in WHOLE if name.endswith("bias")})
    true = readings(4)
    nothing = make(4)
    monkeypatch.setattr(torch, "randn", randn)
    whole.observe_reset(true, torch.arange(4))
    assert drawn == [(4, JOINTS + 6)]
    drawn.clear()
    whole.observe(true)
    assert drawn == [(4, JOINTS + 6 + 2)]
    drawn.clear()
    seen = bare.observe(true)
    assert drawn == [(4, JOINTS)]
    assert all(seen[name] is true[name] for name in ("object_pos", "object_quat"))
    drawn.clear()
    offsets.observe(true)
    assert drawn == []
    assert nothing.observe(true) is true
    assert nothing.observe_reset(true, torch.arange(4)) is true


def test_reported_readings_do_not_change_afterwards() -> None:
    made = make(4, **WHOLE)
    given = [made.observe_reset(readings(4), torch.arange(4))]
    copies: list[dict[str, Tensor]] = []
    for step in range(30):
        copies.append({name: value.clone() for name, value in given[-1].items()})
        if step % 3 == 2:
            which = torch.tensor([1, 3]) if step % 2 else torch.tensor([True, False, False, True])
            given.append(made.observe_reset(readings(len(which)), which))
        else:
            given.append(made.observe(readings(4)))
    for seen, copy in zip(given, copies, strict=False):
        assert all(torch.equal(seen[name], copy[name]) for name in copy)


def test_encoders_that_are_off_and_late_are_off_and_late_once() -> None:
    """What is delayed is what the encoder reads: the true angle with the episode's offset."""
    scene = build_scene(load_hand("leap"), None, timestep=1 / 60)
    ranges = {"encoder_offset": {"range": (0.1, 0.1)}, "joint_delay": {"range": (1.0, 1.0)}}
    made = Randomizer(RandomizationConfig(curriculum="uniform", parameters=ranges))
    sim = make_sim(scene.model, 3, SimConfig(threads=1), model_fields=made.model_fields)
    made.attach(sim, scene, 0.05)
    offsets = []
    for _ in range(2):
        made.begin(torch.arange(3))
        past = [torch.rand(3, JOINTS)]
        seen = made.observe_reset({"joint_pos": past[0]}, torch.arange(3))
        offsets.append(seen["joint_pos"] - past[0])
        for _ in range(3):
            past.append(torch.rand(3, JOINTS))
            seen = made.observe({"joint_pos": past[-1]})
            torch.testing.assert_close(seen["joint_pos"], past[-2] + offsets[-1])
    assert ((offsets[0] - offsets[1]).abs() > 1e-4).any(1).all()
    assert torch.stack(offsets).std() == pytest.approx(0.1, rel=0.3)


def drive(made: Observation, steps: int, seed: int) -> list[Tensor]:
    """All that is reported in random use."""
    generator = torch.Generator().manual_seed(seed)
    given: list[Tensor] = []
    for step in range(steps):
        given += made.observe(readings(8, generator)).values()
        if step % 7 == 3:
            ids = (torch.rand(8, generator=generator) < 0.3).nonzero()[:, 0]
            begin(made, ids, **WHOLE)
            given += made.observe_reset(readings(len(ids), generator), ids).values()
    return given


@pytest.mark.parametrize("steps", [1, 6, 33])
def test_a_saved_state_continues_to_the_last_bit(steps: int) -> None:
    first, second = plant(8, seed=5), plant(8, seed=6)
    one, two = Observation(LIMITS, first), Observation(LIMITS, second)
    begin(one, torch.arange(8), **WHOLE)
    one.observe_reset(readings(8), torch.arange(8))
    drive(one, steps, seed=1)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two.load_state_dict(torch.load(file, weights_only=True))
    second.generator.set_state(first.generator.get_state())
    expected, found = drive(one, 40, seed=2), drive(two, 40, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
