"""benchmarks/gait.py: who touches the object, and how deep, on states built by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig


@pytest.fixture
def gait(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("gait")


def rest(num_envs: int = 2) -> BatchedEnv:
    env = BatchedEnv(
        "cube_rotate",
        config=EnvConfig(num_envs=num_envs, episode_seconds=600),
        sim=SimConfig(threads=1),
    )
    env.reset()
    return env


def test_a_cube_pressed_against_one_tip(gait: Any) -> None:
    scene = rest().scene
    parts = gait.parts_of(scene)
    tips = {name for name in parts.values() if name.endswith("_tip")}
    assert tips == set(scene.hand.fingertips)
    data = mujoco.MjData(scene.model)
    data.qpos[scene.joint_qpos] = scene.hand.home
    data.qpos[scene.joint_qpos[-4:]] = 0.0  # the thumb is out of the way
    mujoco.mj_kinematics(scene.model, data)
    # a cube that stands on its face beyond the fingertip, 3 mm deep in the ball at its end
    geom = next(g for g, name in parts.items() if name == "if_tip")
    half, radius, length = 0.0325, *scene.model.geom_size[geom, :2]
    axis = data.geom_xmat[geom].reshape(3, 3)[:, 2]
    away = axis if axis @ (data.site("if_tip").xpos - data.geom_xpos[geom]) > 0 else -axis
    place = data.geom_xpos[geom] + away * (length + radius + half - 0.003)
    quat, z = np.empty(4), np.array([0.0, 0.0, 1.0])
    mujoco.mju_quatZ2Vec(quat, away)
    start = scene.object_qpos
    data.qpos[start : start + 3], data.qpos[start + 3 : start + 7] = place, quat
    mujoco.mj_fwdPosition(scene.model, data)
    names, depth = gait.touched(scene.model, data, set(scene.object_geoms.tolist()), parts)
    assert "if_tip" in names
    assert "th_tip" not in names
    assert depth >= 0.003 - 1e-4
    data.qpos[start : start + 3] = place + 0.2 * z
    mujoco.mj_fwdPosition(scene.model, data)
    assert gait.touched(scene.model, data, set(scene.object_geoms.tolist()), parts) == (set(), 0.0)


def test_a_cube_at_rest_lies_on_the_palm(gait: Any) -> None:
    env = rest()
    hold = torch.zeros(env.num_envs, 16)
    for _ in range(40):
        env.step(hold)
    found = gait.measure(env, lambda obs, fresh: env.step(hold), 1.0)
    assert found["moments"] == 20 * env.num_envs
    assert found["touching"]["palm"] > 0.9
    assert found["fingertips"]["th_tip"] == 0.0
    assert 0.0 < found["depth_mean_mm"] < 1.0
    for tip, whole in found["fingers"].items():
        assert found["fingertips"][tip] <= found["last_links"][tip] <= whole


def test_a_thumb_is_its_four_links_and_its_tip(gait: Any) -> None:
    last, whole = gait.fingers_of(rest().scene)["th_tip"]
    assert last == {"th_tip", "th_ds"}
    assert whole == {"th_tip", "th_ds", "th_px", "th_bs", "th_mp"}
