"""Which fingers touch the object, how deep, and what that is worth."""

from __future__ import annotations

import copy
import dataclasses

import mujoco
import numpy as np
import pytest
import torch

from widen.envs import scene as scene_module
from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.cube import TOUCH_SHARE
from widen.envs.hand import load_hand
from widen.envs.sim import SimConfig

N = 6


def make(task: str = "cube_rotate", backend: str = "cpu", **about) -> BatchedEnv:
    sim = SimConfig.model_validate({"threads": 1, "backend": backend})
    return BatchedEnv(task, config=EnvConfig(num_envs=N, **about), sim=sim, seed=3)


def test_touching_is_what_mujoco_finds() -> None:
    """Contacts of a plain loop, by the bodies of their geoms, over some hundred control steps."""
    env = make()
    model, scene = env.scene.model, env.scene
    links = [{int(model.site_bodyid[model.site(tip).id])} for tip in scene.hand.fingertips]
    links[-1] = {model.body(name).id for name in ("th_mp", "th_bs", "th_px", "th_ds")}
    assert links[-1] == {i for i in range(model.nbody) if model.body(i).name.startswith("th")}
    cube = model.body("object").id
    data, spec = mujoco.MjData(model), int(mujoco.mjtState.mjSTATE_INTEGRATION)
    generator = torch.Generator().manual_seed(0)
    env.reset()
    seen, deepest = np.zeros(4), 0.0
    for _ in range(120):
        before = copy.deepcopy(env.sim.state)
        counts = env.task.touched.clone()
        result = env.step(torch.rand(N, 16, generator=generator) * 2 - 1)
        ended = result.terminated | result.truncated
        for i in range(N):
            if ended[i] or env.task.since[i] == 0:  # counts begin anew
                continue
            mujoco.mj_setState(model, data, before[i], spec)
            for ctrl in env.sim.last_ctrl[i]:
                data.ctrl[:] = ctrl
                mujoco.mj_step(model, data)
            pairs = model.geom_bodyid[data.contact.geom[: data.ncon]].reshape(-1, 2)
            truth = [
                any(cube in pair and link & set(pair) for pair in pairs.tolist()) for link in links
            ]
            assert (env.task.touched[i] - counts[i]).tolist() == [float(t) for t in truth]
            seen += truth
            gaps = data.contact.dist[: data.ncon][(pairs == cube).any(1)]
            depth = -gaps.min(initial=0.0)
            assert env.task.depth()[i] == pytest.approx(depth, rel=1e-6)
            deepest = max(deepest, depth)
    assert seen.min() > 3  # or nothing was tested of some finger
    assert 1e-3 < deepest < 2e-2


@pytest.mark.parametrize(
    ("bodies", "watched"),
    [
        ("<body>SITE</body><body name='base'><body>THUMB</body></body>", (2, "base")),
        ("<body>SITE<body name='two'>THUMB</body></body>", (2, "two")),
        ("<body name='one'>SITE THUMB</body>", (1, "one")),  # nothing is the thumb's own
        ("SITE<body name='base'>THUMB</body>", (2, "base")),
    ],
)
def test_what_a_thumb_is_of_any_hand(bodies: str, watched: tuple[int, str]) -> None:
    sites = {"SITE": "<site name='a_tip'/>", "THUMB": "<site name='th_tip'/>"}
    for word, site in sites.items():
        bodies = bodies.replace(word, site)
    bodies = bodies.replace("</body>", "<geom size='.01' mass='.1'/></body>")
    spec = mujoco.MjSpec.from_string(f"<mujoco><worldbody>{bodies}</worldbody></mujoco>")
    spec.worldbody.add_body(name="object").add_geom(size=[0.01, 0, 0], mass=0.1)
    hand = dataclasses.replace(load_hand("leap"), fingertips=("a_tip", "th_tip"))
    scene_module._add_touch(spec, hand)
    model = spec.compile()
    sensor = model.sensor("th_tip_touch").id
    found = int(model.sensor_objtype[sensor]), model.body(int(model.sensor_objid[sensor])).name
    assert found == watched


def test_goals_reached_with_thumb_and_two_fingers_are_worth_more() -> None:
    env = make(rewards={"thumb": 15.0, "fingers": 10.0})
    env.reset()
    task = env.task
    task.since[:] = 9.0
    task.touched[:] = torch.tensor(
        [
            [0.0, 0, 0, 0],
            [9, 9, 9, 0],
            [0, 0, 0, 9],
            [1.5, 0, 0.75, 0.3],
            [0, 6, 0, 6],
            [9, 9, 9, 9],
        ]
    )
    task.goal[:5] = task.object_pose()[1][:5]  # reached; the last one's is a quarter turn away
    task.sim.sensordata.zero_()
    outcome = task.evaluate(torch.zeros(N, 16))  # the tenth step, without a touch
    assert outcome.success.tolist() == [True] * 5 + [False]
    few = 0.1 / TOUCH_SHARE
    fingers = [0, 1, 0, (0.15 + 0.075) / 2 / TOUCH_SHARE, 0.5, 0]
    np.testing.assert_allclose(outcome.terms["thumb"], [0, 0, 1, 0.3 * few, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(outcome.terms["fingers"], fingers, rtol=1e-6)
    assert task.since.tolist() == [0] * 5 + [10]
    assert not task.touched[:5].any()
    assert task.touched[5].tolist() == [9.0] * 4


def test_a_new_episode_begins_untouched() -> None:
    env = make(episode_seconds=0.5)
    env.reset()
    for step in range(1, 31):
        env.task.touched += 1.0
        result = env.step(torch.zeros(N, 16))
        assert result.truncated.all() == (step % 10 == 0)
        if result.truncated.all():
            assert not env.task.touched.any()
            assert not env.task.since.any()


def test_pressing_costs_what_its_weight_says() -> None:
    env = make(rewards={"depth": -100.0})
    env.reset()
    pressed = False
    for _ in range(20):
        terms = env.step(torch.zeros(N, 16)).terms
        assert float(terms["depth"]) == pytest.approx(
            -100.0 * float(env.task.depth().mean()), rel=1e-5
        )
        pressed |= bool(terms["depth"] < -0.01)
    assert pressed


@pytest.mark.warp
def test_both_backends_feel_the_same() -> None:
    cpu, warp = make(backend="cpu"), make(backend="warp")
    felt = []
    for env in (cpu, warp):
        env.reset()
        generator = torch.Generator().manual_seed(5)
        for _ in range(12):
            env.step(torch.rand(N, 16, generator=generator) * 2 - 1)
        felt.append((env.task.touched.cpu(), env.task.depth().cpu()))
    # a single step may differ where a finger just touches
    assert (felt[0][0] - felt[1][0]).abs().max() <= 2
    assert felt[0][0].sum() > 10
    np.testing.assert_allclose(felt[0][1], felt[1][1], atol=2e-4)
    assert felt[0][1].max() > 1e-4
