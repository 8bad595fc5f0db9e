"""What lies between policy and hand, against plain lists of the past and textbook statistics."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from whole_catalogue import parameters_of

from widen.envs.hand import load_hand
from widen.envs.rotations import quat_mul_conj
from widen.envs.scene import Scene, build_scene
from widen.envs.sim import BatchSim, SimConfig, make_sim
from widen.randomization.config import RandomizationConfig
from widen.randomization.parameters import CATALOGUE
from widen.randomization.randomizer import Randomizer

IDENTITY = torch.tensor([1.0, 0.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def scene() -> Scene:
    """With all that any parameter asks of a scene."""
    return build_scene(
        load_hand("leap"), "cube", timestep=1 / 60, contact_dims=6, movable_centre=True
    )


def make(
    scene: Scene, num_envs: int, seed: int = 0, curriculum: str = "uniform", **ranges: Any
) -> tuple[Randomizer, BatchSim]:
    """A randomizer of these parameters, each a value, a (low, high) or None for its limits."""
    entries = {
        name: {"range": (value, value) if isinstance(value, float | int) else value}
        for name, value in ranges.items()
    }
    config = RandomizationConfig.model_validate(
        {"curriculum": curriculum, "parameters": entries, "adr": {"buffer": 2}}
    )
    made = Randomizer(config, seed)
    sim = make_sim(scene.model, num_envs, SimConfig(threads=1), model_fields=made.model_fields)
    made.attach(sim, scene, 0.05)
    return made, sim


def readings(count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    quats = torch.randn(count, 4, generator=generator)
    return {
        "joint_pos": torch.randn(count, 16, generator=generator),
        "object_pos": torch.randn(count, 3, generator=generator),
        "object_quat": quats / quats.norm(dim=-1, keepdim=True),
        "goal_quat": IDENTITY.repeat(count, 1),
    }


def start(made: Randomizer, num_envs: int, pose: dict[str, Tensor] | None = None) -> None:
    everyone = torch.arange(num_envs)
    made.begin(everyone)
    made.observe_reset(readings(num_envs) if pose is None else pose, everyone)


def test_a_reset_fills_the_queues_of_its_environments_only(scene: Scene) -> None:
    made, sim = make(scene, 3, action_latency=2.0, object_delay=2.0)
    start(made, 3)
    targets, poses = torch.randn(6, 3, 16), [readings(3) for _ in range(6)]
    for step in range(3):
        made.act(targets[step], 1)
        made.observe(poses[step])
    ids = torch.tensor([1])
    made.begin(ids)
    fresh = readings(1)
    reported = made.observe_reset(fresh, ids)
    for name, value in fresh.items():
        torch.testing.assert_close(reported[name], value)
    ctrl, _ = made.act(targets[3], 1)
    seen = made.observe(poses[3])
    held = sim.qpos[1, torch.as_tensor(scene.joint_qpos)].float()
    torch.testing.assert_close(ctrl[1, 0], held)
    torch.testing.assert_close(ctrl[[0, 2], 0], targets[1, [0, 2]])
    torch.testing.assert_close(seen["object_pos"][1], fresh["object_pos"][0])
    torch.testing.assert_close(seen["object_quat"][1], fresh["object_quat"][0])
    torch.testing.assert_close(seen["object_pos"][[0, 2]], poses[1]["object_pos"][[0, 2]])


def test_noise_has_the_stated_spread(scene: Scene) -> None:
    n = 400
    stds = {"joint_noise": 0.05, "object_pos_noise": 0.01, "action_noise": 0.02}
    made, _ = make(scene, n, object_rot_noise=0.1, **stds)
    true = readings(n)
    start(made, n, true)
    errors: dict[str, list[Tensor]] = {name: [] for name in (*stds, "rotation")}
    for _ in range(40):
        seen = made.observe(true)
        errors["joint_noise"].append(seen["joint_pos"] - true["joint_pos"])
        errors["object_pos_noise"].append(seen["object_pos"] - true["object_pos"])
        errors["action_noise"].append(
            made.act(true["joint_pos"], 3)[0] - true["joint_pos"][:, None]
        )
        errors["rotation"].append(rotvec(seen["object_quat"], true["object_quat"]))
        norm = seen["object_quat"].norm(dim=-1)
        torch.testing.assert_close(norm, torch.ones(n), rtol=0, atol=1e-6)
        assert seen["goal_quat"] is true["goal_quat"]
    for name, samples in errors.items():
        every = torch.stack(samples)  # (steps, N, ...)
        std = stds.get(name, 0.1)
        assert every.mean().abs() < 0.02 * std
        assert every.std() == pytest.approx(std, rel=0.02)
        assert every[0].mean().abs() < 0.2 * std  # new for every environment
        assert every[:, 0].std() > 0.7 * std  # and in every step
    substeps = torch.stack(errors["action_noise"])
    assert (substeps[:, :, 0] == substeps[:, :, 2]).all()  # one target is one command


def rotvec(seen: Tensor, true: Tensor) -> Tensor:
    """Rotation vector (N, 3) [rad] of a small rotation that takes true to seen."""
    error = quat_mul_conj(seen, true)
    error = error * error[:, :1].sign()
    sine = error[:, 1:].norm(dim=-1, keepdim=True)
    return 2 * torch.atan2(sine, error[:, :1]) * error[:, 1:] / sine


def test_offsets_last_an_episode(scene: Scene) -> None:
    n = 2000
    stds = {"joint_bias": 0.05, "object_pos_bias": 0.01, "action_bias": 0.02}
    made, _ = make(scene, n, object_rot_bias=0.1, **stds)
    true = readings(n)
    start(made, n, true)

    def errors() -> dict[str, Tensor]:
        seen = made.observe(true)
        return {
            "joint_bias": seen["joint_pos"] - true["joint_pos"],
            "object_pos_bias": seen["object_pos"] - true["object_pos"],
            "action_bias": made.act(true["joint_pos"], 2)[0][:, 1] - true["joint_pos"],
            "object_rot_bias": rotvec(seen["object_quat"], true["object_quat"]),
        }

    first, again = errors(), errors()
    ids = torch.arange(0, n, 2)
    made.begin(ids)
    renewed = errors()
    for name, error in first.items():
        assert error.std() == pytest.approx(stds.get(name, 0.1), rel=0.04)
        assert torch.equal(error, again[name])
        assert torch.equal(error[1::2], renewed[name][1::2])
        assert (error[::2] != renewed[name][::2]).any(-1).all()


def test_what_is_not_listed_costs_and_changes_nothing(scene: Scene) -> None:
    made, _ = make(scene, 2)
    assert made.model_fields == ()
    start(made, 2)
    true, target = readings(2), torch.randn(2, 16)
    seen = made.observe(true)
    assert all(seen[name] is true[name] for name in true)
    ctrl, _ = made.act(target, 3)
    assert ctrl.data_ptr() == target.data_ptr()
    assert made.privileged().shape == (2, 0)
    assert made.npd() == pytest.approx(math.log(1e-3))


def test_curriculum_none_is_the_nominal_world_with_the_same_width(scene: Scene) -> None:
    names = dict.fromkeys(CATALOGUE)
    made, _ = make(scene, 3, curriculum="none", **names)
    assert made.model_fields == ()
    start(made, 3)
    true = readings(3)
    assert all(value is true[name] for name, value in made.observe(true).items())
    assert made.privileged().shape == (3, len(CATALOGUE))
    assert not made.privileged().any()


def test_privileged_is_the_drawn_value_in_units_of_the_catalogues_reach(scene: Scene) -> None:
    made, _ = make(scene, 500, **dict.fromkeys(CATALOGUE))
    assert made.num_privileged == len(CATALOGUE)
    assert not made.privileged().any()
    made.begin(torch.arange(500))
    seen = made.privileged()
    assert seen.shape == (500, len(CATALOGUE))
    assert seen.dtype == torch.float32
    assert (seen.abs() <= 1).all()
    drawn = [
        not what.ascends for what in made.parameters
    ]  # a difficulty is at its top, the nominal
    assert (seen[:, drawn].abs().amax(0) > 0.95).all()
    mass = [what.name for what in made.parameters].index("object_mass")
    torch.testing.assert_close(seen[:, mass], ((made.values[:, mass] - 1) / 3).float())


def drive(made: Randomizer, sim: BatchSim, steps: int, seed: int) -> list[Any]:
    """All that a randomizer gives in random use."""
    generator = torch.Generator().manual_seed(seed)
    given: list[Any] = []
    for _ in range(steps):
        ctrl, _ = made.act(torch.randn(8, 16, generator=generator), 3)
        given.append(ctrl)
        given += made.observe(readings(8, generator)).values()
        ids = (torch.rand(8, generator=generator) < 0.3).nonzero()[:, 0]
        if len(ids):
            scores = 40 * torch.rand(len(ids), generator=generator)
            made.end(ids, scores, torch.rand(len(ids), generator=generator) < 0.9)
            made.begin(ids)
            given += made.observe_reset(readings(len(ids), generator), ids).values()
        given += [made.privileged().clone(), torch.tensor(made.npd())]
        given += [sim.per_env(field).clone() for field in made.model_fields]
    return given


def test_a_saved_state_continues_to_the_last_bit(scene: Scene) -> None:
    entries: dict[str, Any] = dict.fromkeys(CATALOGUE)
    first, sim = make(scene, 8, seed=1, curriculum="adr", **entries)
    start(first, 8, readings(8, torch.Generator().manual_seed(0)))
    drive(first, sim, 150, seed=2)
    assert len(first.drain_moves()) > 5
    file = io.BytesIO()
    torch.save({"r": first.state_dict(), "s": sim.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    second, other = make(scene, 8, seed=77, curriculum="adr", **entries)
    other.load_state_dict(state["s"])
    second.load_state_dict(state["r"])
    expected, found = drive(first, sim, 60, seed=3), drive(second, other, 60, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    moves = first.drain_moves()
    assert moves == second.drain_moves() != []
    assert first.drain_moves() == []
    assert first.table() == second.table()


def test_a_state_of_other_parameters_is_refused(scene: Scene) -> None:
    one, _ = make(scene, 2, gravity=None, object_mass=None)
    two, _ = make(scene, 2, gravity=None, joint_noise=None)
    with pytest.raises(ValueError, match="lacks joint_noise and has object_mass besides"):
        two.load_state_dict(one.state_dict())


def test_scores_at_a_bound_move_it_and_the_table_tells(scene: Scene) -> None:
    made, _ = make(scene, 4, curriculum="adr", gravity=None, action_noise=None)
    ids, yes = torch.arange(4), torch.ones(4, dtype=torch.bool)
    for _ in range(60):
        made.begin(ids)
        made.end(ids, torch.full((4,), 30.0), yes)
    moves = made.drain_moves()
    assert {(move.name, move.side) for move in moves} == {
        ("gravity", "low"),
        ("gravity", "high"),
        ("action_noise", "high"),
    }
    table = json.loads(json.dumps(made.table(), allow_nan=False))
    assert [row["name"] for row in table] == ["gravity", "action_noise"]
    for row, bounds in zip(table, np.asarray(made.curriculum.bounds), strict=True):
        assert [row["low"], row["high"]] == bounds.tolist()
        assert row["limit_low"] <= row["low"] <= row["nominal"] < row["high"] <= row["limit_high"]
        assert row["score_high"] == 30.0
    assert table[1]["score_low"] is None
    assert made.npd() > math.log(1e-3)


def test_a_task_without_an_object(scene: Scene) -> None:
    bare = build_scene(load_hand("leap"), None, timestep=1 / 60)
    made, _ = make(bare, 2, **dict.fromkeys(parameters_of("fingertip_reach")))
    start(made, 2, {"joint_pos": torch.zeros(2, 16)})
    assert set(made.observe({"joint_pos": torch.zeros(2, 16)})) == {"joint_pos"}
    with pytest.raises(ValueError, match="object_refresh: this task has no object"):
        make(bare, 2, object_refresh=None, gravity=None)
