"""The known faults of published randomisation, one test each: none of them is here.

What is listed is what others' code does, found by reading it: arXiv 2210.13702 (DeXtreme), where
not said otherwise. The names of other tests go deeper into the same matters.
"""

from __future__ import annotations

import io
import json
import math
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from curriculum_loop import FIXED, LATENCY, MASS, POINT, adr

from widen.envs.hand import load_hand
from widen.envs.scene import Scene, build_scene
from widen.envs.sim import BatchSim, SimConfig, make_sim
from widen.randomization.config import RandomizationConfig
from widen.randomization.parameters import CATALOGUE
from widen.randomization.randomizer import Randomizer

ALL = np.arange(6)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return build_scene(load_hand("leap"), "cube", timestep=1 / 60)


def make(
    scene: Scene, num_envs: int, seed: int = 0, curriculum: str = "uniform", **entries: Any
) -> tuple[Randomizer, BatchSim]:
    """A randomizer; entries are (low, high) that it draws from, or None."""
    config = RandomizationConfig.model_validate(
        {
            "curriculum": curriculum,
            "adr": {"buffer": 3, "evaluation_share": 0.6},
            "parameters": {name: {"range": entry} for name, entry in entries.items()},
        }
    )
    made = Randomizer(config, seed)
    sim = make_sim(
        scene.model,
        num_envs,
        SimConfig(backend="cpu", threads=1),
        model_fields=made.model_fields,
        wrench_body=scene.object_body,
    )
    made.attach(sim, scene, 0.05)
    return made, sim


def _object(scene: Scene) -> int:
    return int(scene.model.body(scene.object_body).id)


def train(made: Randomizer, seed: int, steps: int) -> list[Any]:
    """Random episodes of random scores; returns everything that was drawn and moved."""
    rng, said = np.random.default_rng(seed), []
    for _ in range(steps):
        made.act(torch.zeros(8, 16), 3)
        which = torch.from_numpy(np.flatnonzero(rng.random(8) < 0.4))
        scores = torch.from_numpy(rng.choice([0.0, 25.0, 50.0], len(which))).float()
        made.end(which, scores, torch.ones(len(which), dtype=torch.bool))
        made.begin(which)
        said += [made.values.tolist(), [vars(move) for move in made.drain_moves()]]
    return said


def test_fault_1_resume_restarts_the_curriculum_or_restores_its_ranges_only(scene: Scene) -> None:
    """Ranges, waiting results, which environment evaluates what, and random state all return."""
    entries = {"object_mass": None, "gravity": None, "action_noise": None}
    whole, _ = make(scene, 8, 1, "adr", **entries)
    whole.begin(torch.arange(8))
    train(whole, 2, 90)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert whole.curriculum.num_moves > 0
    assert whole.curriculum.counts.sum() > 0
    assert (state["draws"]["assigned"] >= 0).any()
    resumed, _ = make(scene, 8, 99, "adr", **entries)
    resumed.load_state_dict(state)
    assert (resumed.curriculum.bounds == whole.curriculum.bounds).all()
    assert (resumed.curriculum.counts == whole.curriculum.counts).all()
    assert torch.equal(
        resumed.state_dict()["draws"]["assigned"], whole.state_dict()["draws"]["assigned"]
    )
    whole.drain_moves()
    continued = train(whole, 3, 90)
    assert any(continued[1::2])  # bounds go on moving, and they are the same
    assert continued == train(resumed, 3, 90)
    # the curriculum's part is plain values, which JSON gives back unchanged
    plain = whole.curriculum.state_dict()
    assert json.dumps(json.loads(json.dumps(plain))) == json.dumps(plain)


def test_fault_2_the_share_of_evaluators_is_inverted() -> None:
    for share in (0.4, 0.1):
        curriculum = adr(MASS, evaluation_share=share, num_envs=20_000)
        curriculum.bounds[:] = [[0.5, 1.25]]
        values = curriculum.draw(np.arange(20_000))
        assert np.isin(values, [0.5, 1.25]).mean() == pytest.approx(share, abs=0.015)


def test_fault_3_episodes_that_fail_early_are_judged_first() -> None:
    """Six episodes begin at a bound; three fail at once, and three end with 40 goals, late."""
    moves = {}
    for rule in ("tickets", "rolling"):
        curriculum = adr(LATENCY, num_envs=6, buffer=3, rule=rule)
        curriculum.curriculum.bounds[0, 1] = 0.6
        curriculum.draw(ALL)
        yes = np.ones(3, dtype=bool)
        moved = curriculum.result(np.array([1, 2, 4]), np.zeros(3), yes)
        moves[rule] = moved + curriculum.result(np.array([0, 3, 5]), np.full(3, 40.0), yes)
    # in the order of their beginning: 40, 0, 0 leaves it, and 40, 0, 40 widens it
    assert [(move.old, move.mean) for move in moves["tickets"]] == [(0.6, pytest.approx(80 / 3))]
    # judged first come first served the zeros narrow it
    assert (moves["rolling"][0].new, moves["rolling"][0].mean) == (pytest.approx(0.4), 0.0)


def test_fault_4_latency_is_widened_past_what_its_buffer_holds(scene: Scene) -> None:
    most = CATALOGUE["action_latency"].limits[1]
    made, _ = make(scene, 1, action_latency=(most, most))
    made.begin(torch.arange(1))
    made.observe_reset(
        {"joint_pos": torch.zeros(1, 16), "object_pos": torch.zeros(1, 3)}, torch.arange(1)
    )
    told = [made.act(torch.full((1, 16), float(step)), 1)[0][0, -1, 0] for step in range(1, 40)]
    assert told[-1] == pytest.approx(39 - most, abs=1e-4)


def test_fault_5_noise_is_added_to_a_quaternion_without_renormalising(scene: Scene) -> None:
    made, _ = make(scene, 50, object_rot_noise=(0.3, 0.3), object_rot_bias=(0.2, 0.2))
    made.begin(torch.arange(50))
    true = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(50, 1)
    given = {"joint_pos": torch.zeros(50, 16), "object_pos": torch.zeros(50, 3)}
    made.observe_reset({**given, "object_quat": true}, torch.arange(50))
    quat = made.observe({**given, "object_quat": true})["object_quat"]
    assert torch.allclose(quat.norm(dim=1), torch.ones(50), atol=1e-6)
    assert (2 * quat[:, 0].abs().clamp(max=1).acos()).mean() > 0.2  # it is turned


def test_fault_6_npd_is_divided_by_parameters_that_are_switched_off() -> None:
    alone, among = adr(MASS), adr(MASS, FIXED, POINT)
    for curriculum in (alone, among):
        curriculum.curriculum.bounds[0] = [0.7, 1.2]
        assert curriculum.npd() == pytest.approx(math.log(0.5))


def test_fault_7_a_scaled_mass_keeps_its_weight_and_is_drawn_once(scene: Scene) -> None:
    """In arXiv 2502.08844's leap_hand a "mass" changes the inertia only, once at the start."""
    made, sim = make(scene, 6, object_mass=(0.5, 2.0))
    body = _object(scene)
    everyone = torch.arange(6)
    seen = []
    for _ in range(3):
        made.begin(everyone)
        mass, inertia = sim.per_env("body_mass")[:, body], sim.per_env("body_inertia")[:, body]
        scale = made.values[:, 0]
        assert torch.allclose(mass / scene.model.body_mass[body], scale)
        nominal = torch.tensor(scene.model.body_inertia[body])
        assert torch.allclose(inertia / nominal, scale[:, None].expand(-1, 3))
        seen += scale.tolist()
    assert len(set(seen)) == 18  # another in every environment and episode


def test_fault_8_resets_compound(scene: Scene) -> None:
    made, sim = make(scene, 2, object_mass=(1.5, 1.5), gravity=(0.8, 0.8))
    for _ in range(30):
        made.begin(torch.arange(2))
    mass = sim.per_env("body_mass")[:, _object(scene)]
    assert torch.allclose(mass, mass.new_tensor(1.5 * scene.model.body_mass[_object(scene)]))
    down = sim.per_env("opt.gravity")[:, 2]
    assert torch.allclose(down, down.new_tensor(0.8 * scene.model.opt.gravity[2]))


def test_fault_9_all_environments_share_an_adversary_redrawn_by_a_clock(scene: Scene) -> None:
    made, sim = make(scene, 3, adversary_action=(0.5, 0.5))
    data = mujoco.MjData(scene.model)
    qpos = torch.from_numpy(data.qpos).repeat(3, 1)
    everyone = torch.arange(3)
    joints = torch.as_tensor(scene.joint_qpos)

    def begin(which: torch.Tensor) -> None:
        made.begin(which)
        sim.reset(which, qpos[which], torch.zeros(len(which), scene.model.nv))
        position = qpos[which][:, joints].float()
        made.observe_reset({"joint_pos": position}, which)

    def moves() -> torch.Tensor:
        return made.act(qpos[:, joints].float(), 1)[0][:, 0].clone()

    begin(everyone)
    first = moves()
    assert not torch.allclose(first[0], first[1], atol=1e-3)
    # an episode of one environment ends; only its adversary is another one
    begin(torch.tensor([1]))
    state = made.state_dict()["effects"]["adversary"]
    begin(torch.tensor([1]))
    again = made.state_dict()["effects"]["adversary"]
    weights = [(state[key], again[key]) for key in state if key.startswith("weight")]
    assert weights
    for before, after in weights:
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert not torch.equal(before[1], after[1])
