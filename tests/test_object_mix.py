"""Several objects spread over the environments of one run."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from command_line import SMALL, answer_of, widen
from dragged_box import randomizer

from widen.deploy.contract import CONTRACT_KEY, Contract
from widen.deploy.runtime import OnnxPolicy
from widen.envs import sim as sim_module
from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.hand import load_hand
from widen.envs.objects import OBJECTS
from widen.envs.scene import build_scene
from widen.envs.sim import SimConfig, make_sim
from widen.randomization.adversary import object_mass
from widen.randomization.events import WrenchPulse
from widen.randomization.parameter import Parts, Plant
from widen.randomization.scripted import Script, Scripted
from widen.train.cli_policy import make_sim_robot
from widen.train.config import load_config

MIX: list[Any] = ["cube", "cylinder", {"name": "egg", "mass": 0.1}, "pen"]
CPU = SimConfig(backend="cpu", threads=1)


def test_each_environment_is_bit_equal_to_a_loop_over_its_own_object() -> None:
    n, rng = 9, np.random.default_rng(0)
    scene = build_scene(load_hand("leap"), MIX, timestep=1 / 60)
    sim = make_sim(
        scene.model, n, CPU, wrench_body="object", sensors="none", variants=scene.variants
    )
    start = np.tile(scene.model.qpos0, (n, 1))
    start[:, scene.joint_qpos] = scene.hand.home
    place = slice(scene.object_qpos, scene.object_qpos + 3)
    start[:, place] = scene.hand.nest + rng.normal(0, 0.004, (n, 3)) + (0, 0, 0.01)
    sim.reset(torch.arange(n), torch.from_numpy(start), torch.zeros(n, scene.model.nv))
    models = [build_scene(load_hand("leap"), MIX[i % 4], timestep=1 / 60).model for i in range(n)]
    worlds = [mujoco.MjData(model) for model in models]
    for data, qpos in zip(worlds, start, strict=True):
        data.qpos[:] = qpos
    body, touched = scene.model.body("object").id, np.zeros(n, int)
    for t in range(80):
        ctrl = scene.hand.home + 0.7 * np.sin(0.1 * t + rng.normal(size=(n, 2, 16)))
        wrench = rng.normal(0, 0.05, (n, 6)) * (1, 1, 1, 0.01, 0.01, 0.01)
        sim.step(torch.from_numpy(ctrl), torch.from_numpy(wrench))
        for i, (model, data) in enumerate(zip(models, worlds, strict=True)):
            data.xfrc_applied[body] = wrench[i]
            for row in ctrl[i]:
                data.ctrl[:] = row
                mujoco.mj_step(model, data)
            touched[i] += any(scene.object_geoms[0] in contact.geom for contact in data.contact)
        np.testing.assert_array_equal(sim.qpos, [data.qpos for data in worlds])
        np.testing.assert_array_equal(sim.qvel, [data.qvel for data in worlds])
    assert touched.min() > 5


def env_of(choice: Any, num_envs: int = 6, perturbation: Any = None) -> BatchedEnv:
    config = EnvConfig(num_envs=num_envs)
    return BatchedEnv(
        "cube_rotate", object_name=choice, config=config, sim=CPU, **perturbation or {}
    )


def test_an_environment_goes_on_as_among_its_own_kind() -> None:
    """The task draws the same for all; only who has which object differs."""
    kinds = ["cube", "cylinder", "egg"]
    envs = [env_of(kinds), *(env_of(kind) for kind in kinds)]
    generator = torch.Generator().manual_seed(0)
    for env in envs:
        env.reset()
    for _ in range(6):
        action = torch.rand(6, 16, generator=generator) * 2 - 1
        results = [env.step(action) for env in envs]
        for i in range(6):
            own = 1 + i % 3
            assert torch.equal(envs[0].sim.qpos[i], envs[own].sim.qpos[i])
            assert results[0].reward[i] == results[own].reward[i]
    assert not torch.equal(envs[0].sim.qpos, envs[1].sim.qpos)


def test_a_mix_is_continued_exactly() -> None:
    values = {"object_mass": 1.5, "object_size": 1.1}
    first, second = (
        env_of(["cube", "pen"], 4, {"perturbation": randomizer(values), "seed": seed})
        for seed in (0, 1)
    )
    for env in (first, second):
        env.reset()
    first.step(torch.zeros(4, 16))
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        results = [env.step(torch.full((4, 16), 0.3)) for env in (first, second)]
        assert torch.equal(first.sim.qpos, second.sim.qpos)
        assert torch.equal(results[0].obs["critic"], results[1].obs["critic"])


def test_pushes_and_scripts_know_each_environments_object() -> None:
    scene = build_scene(load_hand("leap"), MIX, timestep=1 / 60)
    expected = np.array([OBJECTS["cube"].mass, OBJECTS["cylinder"].mass, 0.1, OBJECTS["pen"].mass])
    scripts = [Script.held(object_mass=2.0, object_size=1.2), Script()]
    perturbation = Scripted(scripts)
    sim = make_sim(
        scene.model, 8, CPU, model_fields=perturbation.model_fields, variants=scene.variants
    )
    perturbation.attach(sim, scene, 0.05)
    perturbation.begin(torch.arange(8))
    body, geom = scene.model.body("object").id, int(scene.object_geoms[0])
    sizes = np.array([model.geom_size[geom] for model in scene.variants])
    live = sim.per_env("body_mass")[:, body], sim.per_env("geom_size")[:, geom]
    np.testing.assert_allclose(live[0], np.tile(2 * expected, 2))
    np.testing.assert_allclose(live[1], np.tile(1.2 * sizes, (2, 1)))
    perturbation.play(scripts[1], 0)  # the nominal world again, each environment's own
    np.testing.assert_array_equal(live[0], np.tile(expected, 2))
    np.testing.assert_array_equal(live[1], np.tile(sizes, (2, 1)))
    bare = make_sim(scene.model, 8, CPU, variants=scene.variants)
    parts, generator = Parts.of(scene, bare.device), torch.Generator()
    plant = Plant(bare, scene, parts, 0.05, generator)
    np.testing.assert_allclose(object_mass(plant)[:, 0], np.tile(expected, 2), rtol=1e-6)
    push = WrenchPulse(plant, 0, 1, 3.0)
    for which in (torch.arange(8), torch.tensor([1, 2])):
        push.begin(which)
        newtons = push._force[:, :3].norm(dim=1)
        np.testing.assert_allclose(newtons, 3 * np.tile(expected, 2), rtol=1e-5)


def test_warp_refuses_a_mix_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_module, "resolve_backend", lambda config: "warp")
    scene = build_scene(load_hand("leap"), MIX, timestep=1 / 60)
    with pytest.raises(
        ValueError, match=r"^object: several objects in one run need sim.backend cpu"
    ):
        make_sim(scene.model, 4, SimConfig(), variants=scene.variants)


def test_gymnasium_takes_a_mix_where_there_is_room() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few = {"sim": {"backend": "cpu", "threads": 1}, "object_name": ["cube", "egg"]}
        vector = gymnasium.make_vec("widen/CubeRotate-v0", num_envs=3, **few)
        vector.reset(seed=0)
        vector.step(np.zeros((3, 16), np.float32))
        with pytest.raises(ValueError, match="2 objects need as many environments, got 1"):
            gymnasium.make("widen/CubeRotate-v0", object_name=["cube", "egg"])
        with pytest.raises(
            ValueError, match=r"2 objects need as many environments, got env\.num_envs 1"
        ):
            load_config("cube_rotate", ["object=[cube, egg]", "env.num_envs=1"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a cube and a heavy egg, just begun, and its policy."""
    import yaml

    folder = tmp_path_factory.mktemp("mix")
    config = {
        **SMALL,
        "task": "cube_rotate",
        "object": ["cube", {"name": "egg", "mass": 0.1}],
        "env": {"num_envs": 4, "episode_seconds": 1},
        "sim": {"backend": "cpu", "threads": 1},
        "ppo": {"steps": 4, "iterations": 1, "threads": 1, "minibatches": 1},
        "randomization": {"curriculum": "uniform", "parameters": {"object_size": {}}},
    }
    (folder / "mix.yaml").write_text(yaml.safe_dump(config))
    done = widen("train", folder / "mix.yaml", "--run-dir", folder / "run")
    assert done.code == 0, done.err
    done = widen("export", folder / "run")
    assert done.code == 0, done.err
    return folder / "run"


def test_a_run_of_a_mix_is_evaluated_exported_and_run(trained: Path) -> None:
    policy = trained / "policy.onnx"
    for subject in (trained, policy):
        assert answer_of("eval", subject, "--episodes", "4")["episodes"] == 4
    contract = answer_of("verify", policy)["contract"]
    assert contract["object"] == ["cube", {"name": "egg", "mass": 0.1}]
    assert "cube, egg (mass 0.1)" in widen("verify", policy).out
    played = widen("play", policy, "--seconds", "0.5")
    assert played.code == 0
    assert "of the policy's 2 objects only the first is here" in played.err


def test_the_simulated_robot_holds_the_first_object(trained: Path) -> None:
    robot: Any = make_sim_robot(OnnxPolicy(trained / "policy.onnx").contract)
    geom = robot._model.geom("object")
    assert geom.type[0] == mujoco.mjtGeom.mjGEOM_BOX


def test_a_contract_keeps_an_object_of_another_mass(trained: Path) -> None:
    contract = OnnxPolicy(trained / "policy.onnx").contract
    choice = {"name": "egg", "size": 0.07, "mass": 0.1}
    text = dataclasses.replace(contract, object=choice).to_json()
    assert Contract.from_metadata({CONTRACT_KEY: text}).object == choice
