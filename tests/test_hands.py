"""The shipped hands against their published figures, and the reader of users' hands."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import mujoco
import numpy as np
import pytest

from widen.envs.hand import HANDS, Hand, list_hands, load_hand
from widen.envs.scene import build_scene

DATA = Path(__file__).parent / "data"
FIGURES = {name: json.loads((DATA / f"{name}_right.json").read_text()) for name in HANDS}
# Far end of each fingertip in the frame of its last body [m].
TIPS = {
    "leap": {
        "if_tip": ("if_ds", (-0.0009, -0.0387, 0.01455)),
        "mf_tip": ("mf_ds", (-0.0009, -0.0387, 0.01455)),
        "rf_tip": ("rf_ds", (-0.0009, -0.0387, 0.01455)),
        "th_tip": ("th_ds", (-0.0009, -0.0508, -0.0145)),
    },
    "allegro": {
        "ff_tip": ("ff_tip", (0, 0, 0.029)),
        "mf_tip": ("mf_tip", (0, 0, 0.029)),
        "rf_tip": ("rf_tip", (0, 0, 0.029)),
        "th_tip": ("th_tip", (0, 0, 0.043)),
    },
}
TIMESTEP = 1 / 60


@pytest.fixture(params=sorted(HANDS))
def hand(request: pytest.FixtureRequest) -> Hand:
    return HANDS[request.param]


@pytest.fixture
def model(hand: Hand) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(str(hand.mjcf))


def rotation(quat: list[float]) -> np.ndarray:
    w, x, y, z = np.array(quat) / np.linalg.norm(quat)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def turned(axis: list[float], angles: np.ndarray) -> np.ndarray:
    """Rodrigues' formula: (K, 3, 3) rotations by (K,) angles [rad] about a unit axis."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    sines, cosines = np.sin(angles)[:, None, None], np.cos(angles)[:, None, None]
    return np.eye(3) + sines * cross + (1 - cosines) * (cross @ cross)


def chain(bodies: list[dict], poses: dict[str, np.ndarray]) -> dict[str, tuple]:
    """World (position (K, 3), rotation (K, 3, 3)) of every body; the palm lies at the origin."""
    count = len(next(iter(poses.values())))
    frames = {"world": (np.zeros((count, 3)), np.tile(np.eye(3), (count, 1, 1)))}
    for body in bodies:
        pos, rot = frames[body["parent"]]
        offset = np.zeros(3) if body["parent"] == "world" else np.array(body["pos"])
        pos, rot = pos + rot @ offset, rot @ rotation(body["quat"])
        if "joint" in body:
            rot = rot @ turned(body["joint"]["axis"], poses[body["joint"]["name"]])
        frames[body["body"]] = (pos, rot)
    return frames


def test_fingertips_are_where_the_figures_put_them(hand: Hand, model: mujoco.MjModel) -> None:
    rng = np.random.default_rng(0)
    lower, upper = np.array([model.joint(name).range for name in hand.joints]).T
    poses = rng.uniform(lower, upper, (1000, len(hand.joints)))
    bodies = FIGURES[hand.name]["bodies"]
    frames = chain(bodies, dict(zip(hand.joints, poses.T, strict=True)))
    data = mujoco.MjData(model)
    addresses = [int(model.joint(name).qposadr[0]) for name in hand.joints]
    found = np.empty((1000, len(hand.fingertips), 3))
    for row, pose in zip(found, poses, strict=True):
        data.qpos[addresses] = pose
        mujoco.mj_forward(model, data)
        row[:] = [data.sensor(f"{tip}_pos").data for tip in hand.fingertips]
    for i, tip in enumerate(hand.fingertips):
        body, offset = TIPS[hand.name][tip]
        pos, rot = frames[body]
        expected = pos + rot @ np.array(offset)
        assert np.abs(found[:, i] - expected).max() <= 1e-4, tip


def test_masses_and_inertias_are_the_figures(hand: Hand, model: mujoco.MjModel) -> None:
    bodies = FIGURES[hand.name]["bodies"]
    assert model.nbody == len(bodies) + 2  # and the world and the base
    for figures in bodies:
        body = model.body(figures["body"])
        assert model.body(int(body.parentid[0])).name == figures["parent"].replace("world", "base")
        assert body.mass[0] == pytest.approx(figures["mass"], rel=1e-7)
        np.testing.assert_allclose(body.ipos, figures["com"], atol=1e-9)
        ours, theirs = rotation(body.iquat), rotation(figures["inertia_quat"])
        inertia = ours @ np.diag(body.inertia) @ ours.T
        expected = theirs @ np.diag(figures["inertia_diag"]) @ theirs.T * 1e-6
        np.testing.assert_allclose(inertia, expected, rtol=0, atol=1e-6 * expected.max())


def test_joints_and_motors_are_the_figures(hand: Hand, model: mujoco.MjModel) -> None:
    driven = [body for body in FIGURES[hand.name]["bodies"] if "joint" in body]
    assert hand.joints == tuple(body["joint"]["name"] for body in driven)
    assert hand.actuators == tuple(body["actuator"]["name"] for body in driven)
    assert [model.actuator(i).name for i in range(model.nu)] == list(hand.actuators)
    for i, body in enumerate(driven):
        joint, actuator = model.joint(body["joint"]["name"]), model.actuator(i)
        assert int(actuator.trnid[0]) == joint.id
        np.testing.assert_allclose(joint.axis, body["joint"]["axis"], atol=1e-12)
        np.testing.assert_allclose(joint.range, body["joint"]["range"], atol=1e-12)
        np.testing.assert_allclose(actuator.ctrlrange, joint.range, atol=1e-9)
        assert actuator.gainprm[0] == body["actuator"]["kp"]
        assert actuator.forcerange[1] == -actuator.forcerange[0] > 0


def test_home_is_within_limits(hand: Hand, model: mujoco.MjModel) -> None:
    lower, upper = np.array([model.joint(name).range for name in hand.joints]).T
    assert (lower < hand.home).all()
    assert (hand.home < upper).all()


def test_holds_home_quietly(hand: Hand) -> None:
    scene = build_scene(hand, None, timestep=TIMESTEP)
    data = mujoco.MjData(scene.model)
    data.qpos[scene.joint_qpos] = data.ctrl[:] = hand.home
    mujoco.mj_step(scene.model, data, 120)
    assert np.abs(data.qvel).max() < 1e-3
    assert np.abs(data.qpos[scene.joint_qpos] - hand.home).max() < 0.1  # sag under its own weight


@pytest.mark.parametrize("seed", range(4))
def test_stays_stable_under_random_targets(hand: Hand, seed: int) -> None:
    scene = build_scene(hand, None, timestep=TIMESTEP)
    data = mujoco.MjData(scene.model)
    rng = np.random.default_rng(seed)
    data.qpos[scene.joint_qpos] = hand.home
    fastest = 0.0
    for step in range(300):
        if step % 15 == 0:
            data.ctrl[:] = rng.uniform(scene.lower, scene.upper)
        mujoco.mj_step(scene.model, data)
        fastest = max(fastest, float(np.abs(data.qvel).max()))
        joints = data.qpos[scene.joint_qpos]
        assert (joints > scene.lower - 0.2).all()
        assert (joints < scene.upper + 0.2).all()
    assert fastest < 20.0  # the motors' own speed limit is about 10 rad/s
    data.ctrl[:] = hand.home
    mujoco.mj_step(scene.model, data, 120)
    assert np.abs(data.qvel).max() < 1e-2


@pytest.mark.parametrize("yaw", [-0.7, 0.0, 0.4, 1.2])
def test_cube_rests_in_the_nest(hand: Hand, yaw: float) -> None:
    scene = build_scene(hand, "cube", timestep=TIMESTEP)
    data = mujoco.MjData(scene.model)
    data.qpos[scene.joint_qpos] = data.ctrl[:] = hand.home
    cube = scene.object_qpos
    data.qpos[cube : cube + 3] = np.add(hand.nest, (0, 0, 0.012))
    data.qpos[cube + 3 : cube + 7] = np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
    for _ in range(180):
        mujoco.mj_step(scene.model, data)
        assert np.linalg.norm(data.qpos[cube : cube + 3] - hand.nest) < 0.02
    flat = np.abs(data.body("object").xmat.reshape(3, 3)[2]).max()
    assert flat > 0.98
    # flat on the palm, or on a finger's guard 3 mm above it, as its yaw will have it
    height = data.qpos[cube + 2] - hand.nest[2]
    assert min(abs(height), abs(height - 0.003)) < 0.0015
    assert np.abs(data.qvel[scene.object_dof : scene.object_dof + 3]).max() < 0.02


def test_a_held_hand_is_a_turned_gravity() -> None:
    """By rotation matrices: the base rolled about its x axis, then tilted about the level y axis."""
    for hand in [load_hand("leap").posed(name) for name in (None, "cradle", "cup")]:
        (st, ct), (sr, cr) = [(np.sin(x), np.cos(x)) for x in (hand.tilt, hand.roll)]
        tilted = np.array([[ct, 0, st], [0, 1, 0], [-st, 0, ct]])
        rolled = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
        base = tilted @ rolled  # its axes in a level frame
        scene = build_scene(hand, "cube", timestep=TIMESTEP)
        np.testing.assert_allclose(scene.model.opt.gravity, base.T @ [0, 0, -9.81], atol=1e-12)
        assert base[2, 0] < 0.0  # the fingers point down
    assert base[2, 1] > 0.0  # the side of -y, and with it the thumb, is the lower one


def test_contact_pairs(hand: Hand) -> None:
    """Objects touch everything, tips touch tips and the palm, links touch no other link."""
    model = build_scene(hand, "cube", timestep=TIMESTEP).model

    def touch(a: str, b: str) -> bool:
        pairs = (
            (i, j)
            for i in range(model.ngeom)
            for j in range(model.ngeom)
            if kinds[i] == a and kinds[j] == b and i != j
        )
        found = {
            bool(
                model.geom_contype[i] & model.geom_conaffinity[j]
                or model.geom_contype[j] & model.geom_conaffinity[i]
            )
            for i, j in pairs
        }
        assert len(found) == 1
        return found.pop()

    def kind(i: int) -> str:
        name = model.geom(i).name
        body = model.body(int(model.geom_bodyid[i])).name
        if name.endswith("_tip"):
            return "tip"
        return body if body in ("palm", "object") else "link"

    kinds = [kind(i) for i in range(model.ngeom)]
    assert all(touch("object", other) for other in ("palm", "link", "tip"))
    assert touch("tip", "tip")
    assert touch("tip", "palm")
    assert not touch("link", "link")
    assert not touch("link", "palm")
    assert not touch("link", "tip")


USER_HAND = """
<mujoco>
  <worldbody>
    <body name="palm">
      <geom type="box" size=".05 .05 .01"/>
      <site name="nest" pos="0 0 .04"/>
      <body name="finger" pos=".05 0 0">
        <joint name="knuckle" axis="0 -1 0" range="0 90" damping=".1"/>
        <geom type="capsule" size=".01" fromto="0 0 0 .05 0 0"/>
        <site name="finger_tip" pos=".06 0 0"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="motor" joint="knuckle" kp="1" inheritrange="1"/>
  </actuator>
  <sensor>
    <framepos name="finger_tip_pos" objtype="site" objname="finger_tip"/>
  </sensor>
  <keyframe>
    <key name="home" qpos=".3"/>
  </keyframe>
</mujoco>
"""


def write_hand(folder: Path, *changes: tuple[str, str]) -> str:
    text = USER_HAND
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "mine.xml"
    path.write_text(text)
    return str(path)


def test_user_hand(tmp_path: Path) -> None:
    hand = load_hand(write_hand(tmp_path))
    assert hand.joints == ("knuckle",)
    assert hand.actuators == ("motor",)
    assert hand.fingertips == ("finger_tip",)
    assert hand.home == pytest.approx((0.3,))
    assert hand.nest == pytest.approx((0, 0, 0.04))
    scene = build_scene(hand, "cube", timestep=TIMESTEP)
    data = mujoco.MjData(scene.model)
    data.ctrl[:] = 0.3
    mujoco.mj_step(scene.model, data, 6)
    assert data.ncon >= 4  # a palm with MuJoCo's default bits carries the object


def test_user_hand_without_a_home_keyframe_starts_in_mid_range(tmp_path: Path) -> None:
    hand = load_hand(write_hand(tmp_path, ('name="home"', 'name="other"')))
    assert hand.home == pytest.approx((np.pi / 4,))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('site name="nest"', 'site name="nets"', "'nest'"),
        ('site name="finger_tip"', 'site name="fingertop"', "does not compile"),
        ('<framepos name="finger_tip_pos"', '<framepos name="tip"', "finger_tip_pos"),
        ('<position name="motor" joint="knuckle" kp="1" inheritrange="1"/>', "", "no actuators"),
        ('position name="motor" joint="knuckle" kp="1" inheritrange="1"',
         'motor name="motor" joint="knuckle"', "'motor' is not a position actuator"),
        ('kp="1" inheritrange="1"', 'kp="1" gear="2"', "gear 1"),
        ('axis="0 -1 0" range="0 90"', 'axis="0 -1 0" type="slide" range="0 1"', "no hinge"),
        ('qpos=".3"', 'qpos="3"', "'knuckle'"),
        ("</mujoco>", "<mujoco>", "does not compile"),
    ],
)  # fmt: skip
def test_a_users_faulty_hand_is_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    path = write_hand(tmp_path, (old, new))
    with pytest.raises(ValueError) as caught:
        load_hand(path)
    message = str(caught.value)
    assert expected in message
    assert "mine.xml" in message
    assert "\n" not in message


def test_a_hand_that_takes_the_objects_name_is_told_so(tmp_path: Path) -> None:
    change = ('body name="finger"', 'body name="object"')
    hand = load_hand(write_hand(tmp_path, change))
    with pytest.raises(ValueError, match=r"mine\.xml.*repeated name 'object'") as caught:
        build_scene(hand, "cube", timestep=TIMESTEP)
    assert "\n" not in str(caught.value)


def test_user_hand_without_fingertips(tmp_path: Path) -> None:
    sensor = '<framepos name="finger_tip_pos" objtype="site" objname="finger_tip"/>'
    with pytest.raises(ValueError, match="'_tip'"):
        load_hand(write_hand(tmp_path, (sensor, ""), ('"finger_tip"', '"fingertop"')))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("leep", "leap"), ("alegro", "allegro"), ("no/such.xml", "no such file"), ("", "leap")],
)
def test_bad_names(name: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        load_hand(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_menagerie_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_menagerie", None)
    with pytest.raises(ValueError, match=r"widen\[menagerie\]"):
        load_hand("menagerie:leap_hand")


def test_menagerie_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the package's interface: get(robot), xml(entry), default_model."""

    class MenagerieError(Exception):
        pass

    class Robot:
        default_model = "mine"

        def xml(self, entry: str) -> Path:
            return tmp_path / f"{entry}.xml"

    def get(name: str) -> Robot:
        if name != "my_hand":
            raise MenagerieError(f"Unknown robot {name!r}.")
        return Robot()

    package = types.SimpleNamespace(get=get, MenagerieError=MenagerieError)
    monkeypatch.setitem(sys.modules, "mujoco_menagerie", package)
    write_hand(tmp_path)
    assert load_hand("menagerie:my_hand").joints == ("knuckle",)
    assert load_hand("menagerie:my_hand/mine").name == "menagerie:my_hand/mine"
    with pytest.raises(ValueError, match="Unknown robot 'my_hnd'"):
        load_hand("menagerie:my_hnd")


def test_list_hands_is_what_load_hand_knows() -> None:
    assert [load_hand(hand.name) for hand in list_hands()] == list_hands()
    assert {hand.name for hand in list_hands()} == {"leap", "allegro"}
