"""What holds for all parameters: they combine, start anew, say what they are, and fit the scene."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from dragged_box import MODEL_PARAMETERS, VALUES, finger, finger_scene, randomizer

from widen.envs.hand import load_hand
from widen.envs.scene import build_scene
from widen.envs.sim import BatchSim, SimConfig, make_sim
from widen.envs.sim_cpu import CpuSim
from widen.randomization.config import RandomizationConfig
from widen.randomization.parameter import Parts, nominal_field
from widen.randomization.parameters import CATALOGUE, check_scene
from widen.randomization.randomizer import Randomizer


def test_every_parameter_says_what_it_is() -> None:
    for name, what in CATALOGUE.items():
        low, high = what.limits
        assert what.name == name
        assert what.summary
        assert what.source
        assert low <= what.nominal <= high
        assert (what.nominal < high) != what.ascends
        assert 30 <= (high - low) / what.step <= 200
        assert (what.write is not None) == (what.kind == "model")
        assert what.fields or what.kind != "model"


# Parameters that write the same fields: fields that several write, and who does.
SHARED = {
    field: [name for name in MODEL_PARAMETERS if field in CATALOGUE[name].fields]
    for field in (
        *("body_mass", "body_inertia", "geom_friction", "geom_solref", "geom_solimp"),
        *("dof_damping", "dof_armature", "actuator_biasprm", "actuator_forcerange"),
    )
}


@pytest.mark.parametrize("field", SHARED)
def test_parameters_of_one_field_combine_in_any_order(field: str) -> None:
    scene = build_scene(load_hand("leap"), "cube", timestep=1 / 60)
    parts, generator = Parts.of(scene, torch.device("cpu")), torch.Generator().manual_seed(0)
    normal = {n: torch.randn(2, 16, generator=generator).double() for n in SHARED[field]}
    assert len(SHARED[field]) >= 2
    results = []
    for names in (SHARED[field], SHARED[field][::-1]):
        fields = {key for name in names for key in CATALOGUE[name].fields}
        rows = {
            key: nominal_field(scene.model, key).expand(2, *np.shape(getattr(scene.model, key)))
            for key in fields
        }
        rows = {key: values.clone() for key, values in rows.items()}
        for name in names:
            what = CATALOGUE[name]
            assert what.write is not None
            samples = (normal[name],) if what.normals == "joints" else ()
            what.write(rows, parts, torch.tensor([VALUES[name], what.nominal]).double(), *samples)
        results.append(rows[field])
    torch.testing.assert_close(*results, rtol=1e-14, atol=0)
    nominal = nominal_field(scene.model, field)
    assert (results[0][0] != nominal).any()
    assert torch.equal(results[0][1], nominal)  # nominal values leave the very same model


def test_fault_7_mass_moves_with_inertia_and_what_follows_from_them() -> None:
    """Published: "scale mass" that changed the inertia only, and constants of the old mass."""
    derived = ("body_subtreemass", "body_invweight0", "dof_invweight0")
    for name in ("object_mass", "hand_mass"):
        nominal, compiled = finger({}), finger({name: 2.0})
        perturbation = randomizer({name: 2.0})
        fields = (*perturbation.model_fields, *derived)
        sim = make_sim(nominal, 2, SimConfig(threads=1), model_fields=fields)
        perturbation.attach(sim, finger_scene(nominal), 0.05)
        perturbation.begin(torch.tensor([1]))
        for field in ("body_mass", "body_inertia", *derived):
            expected = getattr(compiled, field)
            np.testing.assert_allclose(sim.per_env(field)[1], expected, rtol=1e-12, err_msg=field)
            assert np.abs(expected - getattr(nominal, field)).max() > 0
            np.testing.assert_array_equal(sim.per_env(field)[0], getattr(nominal, field))


def test_fault_7_every_episode_draws_anew() -> None:
    """Published: one draw at start-up."""
    names = {name: {"limits": CATALOGUE[name].limits} for name in MODEL_PARAMETERS}
    config = {"curriculum": "uniform", "parameters": names}
    perturbation = Randomizer(RandomizationConfig.model_validate(config))
    nominal = finger({}, dims=6)
    sim = make_sim(nominal, 2, SimConfig(threads=1), model_fields=perturbation.model_fields)
    perturbation.attach(sim, finger_scene(nominal), 0.05)
    drawn = []
    for _ in range(2):
        perturbation.begin(torch.arange(2))
        fields = (sim.per_env(name) for name in perturbation.model_fields)
        drawn += torch.cat([values.reshape(2, -1) for values in fields], 1).clone()
    moved = (drawn[0] != nominal_row(sim)).numpy()
    assert moved.sum() > 60
    for a, b in itertools.combinations(drawn, 2):
        assert ((a != b).numpy()[moved]).all()


def nominal_row(sim: BatchSim) -> torch.Tensor:
    assert isinstance(sim, CpuSim)
    return torch.cat([nominal_field(sim.model, name).flatten() for name in sim._fields])


@pytest.mark.parametrize("name", ["object_mass", "hand_mass", "joint_frictionloss", "time_step"])
def test_fault_8_episodes_do_not_compound(name: str) -> None:
    """Published: the last episode's value is scaled again."""
    nominal, perturbation = finger({}), randomizer({name: VALUES[name]})
    sim = make_sim(nominal, 1, SimConfig(threads=1), model_fields=perturbation.model_fields)
    perturbation.attach(sim, finger_scene(nominal), 0.05)
    seen = []
    for _ in range(20):
        perturbation.begin(torch.tensor([0]))
        seen.append({key: sim.per_env(key).clone() for key in perturbation.model_fields})
    for later in seen[1:]:
        assert all(torch.equal(later[key], seen[0][key]) for key in later)


def test_a_joint_without_dry_friction_is_free() -> None:
    """A constraint row for each joint that has some, none for those at zero."""
    nominal, perturbation = finger({}), randomizer({"joint_frictionloss": 0.05})
    sim = CpuSim(nominal, 2, threads=1, model_fields=perturbation.model_fields)
    perturbation.attach(sim, finger_scene(nominal), 0.05)
    perturbation.begin(torch.tensor([1]))
    lifted = torch.from_numpy(nominal.qpos0).repeat(2, 1)
    lifted[:, 4] += 0.5  # nothing touches
    sim.reset(torch.arange(2), lifted, torch.zeros(2, nominal.nv))
    sim.step(torch.zeros(2, 1, 2))
    assert sim.nefc.tolist() == [0, 2]


def test_object_parameters_need_an_object() -> None:
    scene = build_scene(load_hand("leap"), None, timestep=1 / 60)
    perturbation = randomizer({"object_mass": 1.2, "object_delay": 1.0, "gravity": 1.1})
    sim = make_sim(scene.model, 1, SimConfig(threads=1), model_fields=perturbation.model_fields)
    with pytest.raises(ValueError, match="object_mass, object_delay: this task has no object"):
        perturbation.attach(sim, scene, 0.05)


def test_a_lopsided_object_cannot_be_scaled() -> None:
    model = finger({})
    model.geom_pos[model.geom("box").id] = [0.01, 0, 0]
    perturbation = randomizer({"object_size": 1.1})
    sim = make_sim(model, 1, SimConfig(threads=1), model_fields=perturbation.model_fields)
    with pytest.raises(ValueError, match="object_size needs an object of primitive shapes"):
        perturbation.attach(sim, finger_scene(model), 0.05)


def refused(model: mujoco.MjModel, name: str, **scene: Any) -> str:
    with pytest.raises(ValueError, match=r"^randomization\.parameters: ") as caught:
        check_scene([name], dataclasses.replace(finger_scene(model), **scene))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_a_scene_lacks_is_named() -> None:
    for name in MODEL_PARAMETERS:
        check_scene([name], finger_scene(finger({})))
    free = finger({})
    free.jnt_limited[1] = 0
    assert "joint_limits: joint 'j1' has none" in refused(free, "joint_limits")
    stiff = finger({}, solref="-1000 -50")
    assert "contact_time: geom 'palm' has a solref without" in refused(stiff, "contact_time")
    assert "contact_damping: geom 'palm'" in refused(stiff, "contact_damping")
    check_scene(["contact_width"], finger_scene(stiff))
    bare = {"object_body": None, "object_geoms": np.zeros(0, int)}
    message = refused(finger({}), "hand_roll_friction", **bare)
    assert "no object; expected geoms of the hand with condim 6 or more" in message
    check_scene(["hand_spin_friction"], finger_scene(finger({}, dims=4)))
    undamped = finger({}, d0=0, d1=0)
    for name in ("joint_damping", "joint_damping_spread"):
        assert f"{name}: dof_damping: zero here, nothing to scale" in refused(undamped, name)
    assert "force_limit: " in refused(finger({}, act0="", act1=""), "force_limit")


def test_numbers_that_do_not_follow_each_other_are_written_too() -> None:
    """Parts are slices where they can be, which write through views; tensors give copies."""
    scene = build_scene(
        load_hand("leap"), "cube", timestep=0.01, contact_dims=6, movable_centre=True
    )
    one = Parts.of(scene, torch.device("cpu"))
    slices = {name: value for name, value in vars(one).items() if isinstance(value, slice)}
    assert slices.keys() >= {"dofs", "joints", "hand_bodies", "hand_geoms", "object_geoms"}
    lists = {name: torch.arange(at.start, at.stop) for name, at in slices.items()}
    other = dataclasses.replace(one, **lists)
    assert len(one.geoms) == 1
    assert len(other.geoms) == 2
    for what in (CATALOGUE[name] for name in MODEL_PARAMETERS):
        width = {"none": None, "joints": 16, "axes": 3}[what.normals]
        normal = () if width is None else (torch.randn(2, width).double(),)
        value = torch.tensor(what.limits).double()
        made = []
        for parts in (one, other):
            nominal = {name: nominal_field(scene.model, name)[None] for name in what.fields}
            rows = {name: torch.cat((values, values)) for name, values in nominal.items()}
            assert what.write is not None
            what.write(rows, parts, value, *normal)
            made.append(rows)
        for field in what.fields:
            assert torch.equal(made[0][field], made[1][field]), (what.name, field)
        assert any((made[0][f][0] != made[0][f][1]).any() for f in what.fields), what.name
