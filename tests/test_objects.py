"""Objects: shapes, their inertia and symmetries, sizes and masses, how a config names them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from command_line import widen
from dragged_box import randomized, randomizer, reference

from widen.envs.hand import load_hand
from widen.envs.objects import OBJECTS, ObjectSpec, common_symmetries, read_objects
from widen.envs.rotations import cube_symmetries
from widen.envs.scene import Scene, build_scene
from widen.envs.sim import SimConfig, make_sim
from widen.envs.sim_cpu import CpuSim
from widen.train.config import dump_config, load_config, parse_config

NAMES = list(OBJECTS)
UNEQUAL = {
    "cuboid": {"name": "cube", "size": [0.07, 0.05, 0.05]},
    "brick": {"name": "cube", "size": [0.07, 0.05, 0.04]},
    "disc": {"name": "cylinder", "size": [0.07, 0.07, 0.02]},
    "pebble": {"name": "egg", "size": [0.06, 0.05, 0.04]},
    "disc_egg": {"name": "egg", "size": [0.03, 0.06, 0.06]},
    "ball": {"name": "egg", "size": [0.06, 0.06, 0.06]},
    "stub": {"name": "pen", "size": [0.05, 0.03, 0.03]},
}
EVERY: dict[str, Any] = {name: name for name in NAMES} | UNEQUAL


def spec_of(choice: Any) -> ObjectSpec:
    (spec,) = read_objects(choice)
    return spec


def alone(what: ObjectSpec, quat: np.ndarray | None = None) -> mujoco.MjModel:
    """The shape as MuJoCo compiles it from its mass, in a body turned by `quat`."""
    spec = mujoco.MjSpec()
    body = spec.worldbody.add_body(quat=[1.0, 0.0, 0.0, 0.0] if quat is None else quat)
    size, turn = what.geom_size, what.geom_quat
    body.add_geom(type=what.geom_type, size=size, quat=turn, mass=what.mass)
    return spec.compile()


def matrix(quat: np.ndarray) -> np.ndarray:
    found = np.empty(9)
    mujoco.mju_quat2Mat(found, np.asarray(quat, np.float64))
    return found.reshape(3, 3)


def outline(what: ObjectSpec, quat: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """How far the turned shape reaches from its centre in these directions (n, 3) [m]."""
    model = alone(what, quat.astype(np.float64))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    hit = np.zeros(1, np.int32)
    far = 1.0
    return np.array(
        [far - mujoco.mj_ray(model, data, far * d, -d, None, 1, -1, hit, None) for d in directions]
    )


@pytest.mark.parametrize("name", EVERY)
def test_inertia_is_what_mujoco_makes_of_the_shape(name: str) -> None:
    what = spec_of(EVERY[name])
    model = alone(what)
    axes = matrix(model.body_iquat[1])
    expected = axes @ np.diag(model.body_inertia[1]) @ axes.T
    np.testing.assert_allclose(np.diag(what.inertia), expected, atol=1e-9 * what.inertia.max())
    built = build_scene(load_hand("leap"), EVERY[name], timestep=1 / 60).model
    np.testing.assert_array_equal(built.body("object").inertia, what.inertia)
    assert built.body("object").mass == what.mass


@pytest.mark.parametrize("name", EVERY)
def test_sizes_are_the_lengths_along_its_axes(name: str) -> None:
    what = spec_of(EVERY[name])
    reach = outline(what, np.array([1.0, 0.0, 0.0, 0.0]), np.eye(3))
    np.testing.assert_allclose(reach, what.half_size, atol=1e-9)
    if name in UNEQUAL:
        np.testing.assert_allclose(2 * reach, UNEQUAL[name]["size"], atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_symmetries_leave_the_shape_as_it_is(name: str) -> None:
    what, rng = spec_of(EVERY[name]), np.random.default_rng(0)
    directions = rng.normal(size=(40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    still = outline(what, np.array([1.0, 0.0, 0.0, 0.0]), directions)
    symmetries = what.symmetries

    def same(quat: np.ndarray) -> bool:
        return bool(np.abs(outline(what, quat, directions) - still).max() < 1e-6)

    assert symmetries.dtype == np.float32
    np.testing.assert_array_equal(symmetries[0], [1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(np.linalg.norm(symmetries, axis=1), 1.0, atol=1e-6)
    assert all(same(quat) for quat in symmetries)
    closeness = np.abs(symmetries @ symmetries.T) - np.eye(len(symmetries))
    assert closeness.max() < 0.999  # no turn twice
    products = [product(p, q) for p in symmetries for q in symmetries]
    assert np.abs(np.array(products) @ symmetries.T).max(1).min() > 1 - 1e-6  # a group
    # of the turns of a cube, none that leaves the shape is missing
    mine = np.abs(cube_symmetries().numpy() @ symmetries.T).max(1) > 1 - 1e-6
    np.testing.assert_array_equal(mine, [same(quat) for quat in cube_symmetries().numpy()])


def product(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    found = np.empty(4)
    mujoco.mju_mulQuat(found, p.astype(np.float64), q.astype(np.float64))
    return found


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["cube"], 24),
        (["cuboid"], 8),
        (["brick"], 4),
        (["pebble"], 4),
        (["egg"], 24),
        (["ball"], 24),
        (["cube", "cube_small"], 24),
        (["cube", "cylinder"], 8),  # quarter turns about z, and half turns across it
        (["cylinder", "egg"], 24),
        (["cylinder", "pen"], 4),  # axes across each other
        (NAMES, 4),
        ([*NAMES, "brick", "pebble"], 4),
    ],
)
def test_symmetries_of_a_mix_are_those_that_all_have(names: list[str], count: int) -> None:
    specs = [spec_of(EVERY[name]) for name in names]
    common = common_symmetries(specs)
    assert common.shape == (count, 4)
    np.testing.assert_array_equal(common[0], [1.0, 0.0, 0.0, 0.0])
    for spec in specs:
        assert np.abs(common @ spec.symmetries.T).max(1).min() > 1 - 1e-6
    scene = build_scene(load_hand("leap"), [EVERY[name] for name in names], timestep=1 / 60)
    np.testing.assert_array_equal(scene.object_symmetries, common)


def test_a_bare_hand_has_the_identity_alone() -> None:
    scene = build_scene(load_hand("leap"), None, timestep=1 / 60)
    np.testing.assert_array_equal(scene.object_symmetries, [[1.0, 0.0, 0.0, 0.0]])
    assert scene.variants == ()


def test_one_length_scales_the_others_and_the_rest_stays() -> None:
    egg, small = OBJECTS["egg"], spec_of({"name": "egg", "size": 0.05, "mass": 0.02})
    np.testing.assert_allclose(small.half_size, np.array(egg.half_size) * (0.05 / 0.075))
    assert small == dataclasses.replace(egg, half_size=small.half_size, mass=0.02)
    assert spec_of({"name": "cube", "size": "6e-2"}).half_size == (0.03,) * 3  # YAML's 6e-2
    block = OBJECTS["cube_small"]
    assert (block.half_size, block.mass) == ((0.0275,) * 3, 0.078)


def closing(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """A start with the object on the palm, and fingers that close on it."""
    start = scene.model.qpos0.copy()
    start[scene.joint_qpos] = scene.hand.home
    lowest = OBJECTS["cube"].half_size[2]  # of what rests at the nest
    start[scene.object_qpos : scene.object_qpos + 3] = scene.hand.nest
    if scene.model.geom("object").type == mujoco.mjtGeom.mjGEOM_CAPSULE:
        start[scene.object_qpos + 2] -= lowest - OBJECTS["pen"].half_size[2]
    t = np.linspace(0, 1, 60)[:, None]
    wave = np.sin(7 * t + np.arange(len(scene.hand.home)))
    return start, np.array(scene.hand.home) + 0.8 * t + 0.3 * t * wave


def changed(name: str, parameter: str, value: float) -> dict[str, Any]:
    """The object as a config says it with this mass or size."""
    what = OBJECTS[name]
    if parameter == "object_mass":
        return {"name": name, "mass": what.mass * value}
    return {"name": name, "size": [2 * half * value for half in what.half_size]}


VALUES = {"object_mass": 2.0, "object_size": 1.15}


@pytest.mark.parametrize("name", ["cylinder", "egg", "pen"])
def test_a_mass_does_what_a_compiled_object_does(name: str) -> None:
    hand, value = load_hand("leap"), VALUES["object_mass"]
    scene = build_scene(hand, name, timestep=1 / 60)
    start, ctrl = closing(scene)
    found, untouched, _ = randomized(scene, {"object_mass": value}, start, ctrl)
    ordinary = reference(scene.model, start, ctrl)
    compiled = build_scene(hand, changed(name, "object_mass", value), timestep=1 / 60)
    expected = reference(compiled.model, start, ctrl)
    assert np.abs(expected - ordinary).max() > 1e-2
    np.testing.assert_array_equal(untouched, ordinary)
    np.testing.assert_array_equal(found, expected)


def arrays(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    fields = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    return {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}


def same_models(found: mujoco.MjModel, expected: mujoco.MjModel) -> None:
    """Every array alike: what rounding leaves apart, contacts would amplify in a trajectory."""
    for name, values in arrays(expected).items():
        mine, scale = getattr(found, name), np.abs(values).max(initial=1e-12)
        np.testing.assert_allclose(mine, values, rtol=1e-11, atol=1e-11 * scale, err_msg=name)


@pytest.mark.parametrize("parameter", VALUES)
@pytest.mark.parametrize("choice", [[name] for name in NAMES] + [NAMES])
def test_mass_and_size_make_the_model_of_a_compiled_object(
    choice: list[str], parameter: str
) -> None:
    """Of one object or of several in one run, whose episodes begin again and again."""
    hand, value, n = load_hand("leap"), VALUES[parameter], 2 * len(choice) + 1
    scene = build_scene(hand, choice, timestep=1 / 60)
    perturbation = randomizer({parameter: value})
    fields, few = perturbation.model_fields, SimConfig(backend="cpu", threads=1)
    sim = make_sim(scene.model, n, few, model_fields=fields, variants=scene.variants)
    assert isinstance(sim, CpuSim)
    perturbation.attach(sim, scene, 0.05)
    begun = torch.arange(n - 1)
    for which in (begun, begun[1:], begun[:1]):
        perturbation.begin(which)
    for env in range(n):
        name = choice[env % len(choice)]
        expected = changed(name, parameter, value) if env in begun else name
        compiled = build_scene(hand, expected, timestep=1 / 60).model
        same_models(sim._batch.get_model(env), compiled)


BAD = [
    ("cub", "object: unknown object 'cub'; expected one of cube, cube_small"),
    ("", "object: unknown object ''"),
    (3, "object: expected a name, a mapping with a name, or a list of these, got 3"),
    ([], "object: expected a name, a mapping with a name, or a list of these, got []"),
    (["cube", 3], "object.1: expected a name or a mapping with a name, got 3"),
    (["cube", "eg"], "object.1: unknown object 'eg'; expected one of egg"),
    ([["cube"]], "object.0: expected a name or a mapping"),
    ({}, "object.name: missing; expected one of cube,"),
    ({"size": 0.05}, "object.name: missing"),
    ({"name": 3}, "object.name: expected a valid string, got 3"),
    ({"name": "egg", "mas": 1}, "object.mas: unknown key; expected mass"),
    ({"name": "egg", "mass": "heavy"}, "object.mass: expected a valid number"),
    ({"name": "egg", "mass": 65}, "object.mass: expected less than or equal to 5, got 65"),
    ({"name": "egg", "mass": 0}, "object.mass: expected greater than or equal to 0.001, got 0"),
    ({"name": "egg", "mass": float("nan")}, "object.mass: expected a finite number, got nan"),
    ({"name": "egg", "mass": True}, "object.mass: expected a number, got True"),
    ({"name": "egg", "size": True}, "object.size: expected a number, got True"),
    ({"name": "egg", "size": 5.5}, "object.size: expected a length of 0.005 to 0.5 m, got 5.5"),
    ({"name": "pen", "size": 0.03}, "object.size: expected no length below 0.005 m, got a pen of"),
    ({"name": "egg", "size": "big"}, "object.size: expected a length of 0.005 to 0.5 m, got 'big'"),
    ({"name": "egg", "size": [0.05, 0.05]}, "object.size: expected a length or three of them"),
    ({"name": "egg", "size": [0.05, 0.05, -1]}, "object.size: expected a length of 0.005"),
    ({"name": "cylinder", "size": [0.05, 0.06, 0.05]}, "object.size: expected the same x and y"),
    ({"name": "pen", "size": [0.05, 0.01, 0.02]}, "object.size: expected x longer than y, and z"),
    ({"name": "pen", "size": [0.02, 0.02, 0.02]}, "object.size: expected x longer than y, and z"),
    (["cube", {"name": "egg", "friction": -1}], "object.1.friction: expected greater than"),
]


@pytest.mark.parametrize(("choice", "message"), BAD)
def test_a_wrong_object_is_told_in_one_line(choice: Any, message: str) -> None:
    with pytest.raises(ValueError) as told:
        read_objects(choice)
    assert str(told.value).startswith(message)
    with pytest.raises(ValueError) as told:
        parse_config({"object": choice}, "my.yaml")
    assert str(told.value).startswith(f"my.yaml: {message}")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text", ["egg", "{name: egg, size: 6e-2, mass: .07}", "[cube, {name: pen, size: .1}]", "null"]
)
def test_a_config_keeps_its_object(text: str) -> None:
    config = load_config("cube_rotate", [f"object={text}"])
    again = parse_config(json.loads(json.dumps(dump_config(config))), "again")
    assert again == config
    assert read_objects(again.object) == read_objects(config.object)
    if text.startswith("{"):
        assert config.object == {"name": "egg", "size": 0.06, "mass": 0.07}


def test_list_objects() -> None:
    done = widen("list", "objects", "--json")
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert list(rows) == NAMES
    assert rows["cube_small"]["size"] == [0.055, 0.055, 0.055]
    assert rows["pen"]["mass"] == OBJECTS["pen"].mass
    assert all(row["summary"] for row in rows.values())
    assert "0.14, 0.02, 0.02" in widen("list", "objects").out


def test_every_object_comes_to_rest_in_the_palm() -> None:
    for name in NAMES:
        scene = build_scene(load_hand("leap"), name, timestep=1 / 60)
        data = mujoco.MjData(scene.model)
        data.qpos[scene.joint_qpos] = scene.hand.home
        start = slice(scene.object_qpos, scene.object_qpos + 3)
        data.qpos[start] = np.add(scene.hand.nest, (-0.008, 0.0, 0.014))
        data.ctrl[:] = scene.hand.home
        mujoco.mj_step(scene.model, data, 240)
        away = np.linalg.norm(data.qpos[start] - scene.hand.nest)
        speed = np.linalg.norm(data.qvel[scene.object_dof : scene.object_dof + 3])
        assert away < 0.08, (name, away)
        assert speed < 0.2, (name, speed)  # an egg rolls to and fro
