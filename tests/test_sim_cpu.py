"""CpuSim against plain mj_step loops over models compiled from XML, to the last digit."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from finger_model import (
    FIELDS,
    NOMINAL,
    NQ,
    NU,
    NV,
    SENSORS,
    PlainLoop,
    compile_model,
    draw_state,
    draw_values,
    write_values,
    xml,
)

from widen.envs.sim import SimConfig, make_sim


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sensors", list(SENSORS))
def test_equals_plain_loops_over_compiled_models(threads: int, sensors: str) -> None:
    n, rng = 5, np.random.default_rng(3)
    config = SimConfig(threads=threads, backend="cpu")
    model = compile_model(sensors=sensors)
    sim = make_sim(model, n, config, model_fields=FIELDS, wrench_body="box")
    truth = PlainLoop(n, sensors)
    for _ in range(200):
        if rng.random() < 0.15:
            ids = np.sort(rng.choice(n, rng.integers(1, n + 1), replace=False))
            qpos, qvel = draw_state(rng, len(ids))
            for k, env in enumerate(ids):
                values = draw_values(rng)
                write_values(sim, env, values)
                truth.reset(env, values, qpos[k], qvel[k])
            sim.commit(torch.from_numpy(ids))
            sim.reset(torch.from_numpy(ids), qpos, qvel)
        else:
            ctrl = rng.uniform(-1, 1, (n, rng.integers(1, 5), NU))
            wrench = rng.normal(size=(n, 6)) * [0.2] * 6 if rng.random() < 0.3 else None
            sim.step(torch.from_numpy(ctrl), None if wrench is None else torch.from_numpy(wrench))
            truth.step(ctrl, wrench)
            assert not sim.diverged.any()
        for name, expected in truth.now().items():
            assert (getattr(sim, name).numpy() == expected).all()
    assert truth.touched > 40  # or the sizes and frictions would not have mattered


@pytest.mark.parametrize("memory", [60_000, 700_000], ids=["error", "contact-full warning"])
def test_want_of_memory_is_divergence(memory: int) -> None:
    """40 boxes in one place overflow the arena; a rollout stops at the warning."""
    spec = mujoco.MjSpec.from_string(xml(NOMINAL))
    spec.memory = memory
    for i in range(40):
        body = spec.worldbody.add_body(pos=[1 + 0.001 * i, 1, 0.02])
        body.add_freejoint()
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.02, 0.02, 0.02])
    sim = make_sim(spec.compile(), 2, SimConfig(threads=1, backend="cpu"), sensors="none")
    sim.step(torch.zeros(2, 1, NU))
    assert sim.diverged.all()
    assert sim.qpos.isfinite().all()


def test_a_state_that_is_not_finite_is_refused() -> None:
    sim = make_sim(compile_model(), 2, SimConfig(threads=1, backend="cpu"))
    with pytest.raises(ValueError, match=r"non-finite .* \[1\]"):
        sim.reset(torch.tensor([1]), torch.full((1, NQ), torch.inf), torch.zeros(1, NV))
