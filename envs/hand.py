"""A hand is data: an MJCF file and a record of what the model alone does not say."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import mujoco
import numpy as np

ASSETS = Path(__file__).resolve().parent / "assets"
TILT = 0.25  # [rad]; an object lies against the fingers and does not roll off the wrist


class Pose(NamedTuple):
    """A way to hold a hand; see `Hand`."""

    home: tuple[float, ...]
    tilt: float
    nest: tuple[float, float, float]
    roll: float = 0.0


@dataclass(frozen=True)
class Hand:
    """Names and poses of one hand model. All tuples of joints are in actuator order.

    Attributes:
        name: as typed in a config, for example "leap".
        summary: one line for `widen list hands`.
        mjcf: path of the model file.
        joints: joint names in actuator order.
        actuators: actuator names, same order.
        fingertips: site names, thumb last.
        home: joint positions [rad] of the pose in which tasks begin.
        tilt: rotation [rad] of the hand base about its y axis, fingers lower. The simulation's
            world frame is the hand base; the tilt turns gravity.
        roll: rotation [rad] about the fingers' direction before that, the side of -y lower, where the
            thumb of a right hand is.
        nest: (x, y, z) [m], hand base: where an object's centre rests in the palm at home.
        poses: other homes, with their tilts, rolls and nests, for tasks that need them.
    """

    name: str
    summary: str
    mjcf: Path
    joints: tuple[str, ...]
    actuators: tuple[str, ...]
    fingertips: tuple[str, ...]
    home: tuple[float, ...]
    tilt: float
    nest: tuple[float, float, float]
    roll: float = 0.0
    poses: Mapping[str, Pose] = field(default_factory=dict)

    def posed(self, name: str | None) -> Hand:
        """This hand held in another way, or as it is where it knows no pose of that name."""
        pose = self.poses.get(name) if name is not None else None
        return self if pose is None else replace(self, **pose._asdict())


_LEAP_FINGERS = ("mcp", "rot", "pip", "dip")
_LEAP_JOINTS = tuple(
    [f"{finger}_{joint}" for finger in ("if", "mf", "rf") for joint in _LEAP_FINGERS]
    + [f"th_{joint}" for joint in ("cmc", "axl", "mcp", "ipl")]
)
_ALLEGRO_JOINTS = tuple(f"{finger}j{i}" for finger in ("ff", "mf", "rf", "th") for i in range(4))

# The nests are means over 40 drops of a 6.5 cm cube of 80 g, 5 s after each.
HANDS = {
    hand.name: hand
    for hand in (
        Hand(
            name="leap",
            summary="LEAP right hand: 16 Dynamixel motors, 3 fingers and a thumb",
            mjcf=ASSETS / "leap_right.xml",
            joints=_LEAP_JOINTS,
            actuators=tuple(f"{joint}_act" for joint in _LEAP_JOINTS),
            fingertips=("if_tip", "mf_tip", "rf_tip", "th_tip"),
            home=(0.6, 0.0, 0.8, 0.7) * 3 + (0.7, 0.8, 0.5, 0.2),
            tilt=TILT,
            nest=(-0.027, 0.030, 0.066),
            poses={
                "cradle": Pose(
                    home=(0.85, 0.0, 0.9, 0.7) * 3 + (0.95, 0.8, 0.5, 0.35),
                    tilt=0.45,
                    nest=(-0.033, 0.029, 0.070),
                ),
                "cup": Pose(
                    home=(0.8, 0.0, 1.0, 0.8) * 3 + (1.3, 0.6, 0.3, 0.6),
                    tilt=0.65,
                    roll=0.35,
                    nest=(-0.037, 0.034, 0.077),
                ),
            },
        ),
        Hand(
            name="allegro",
            summary="Allegro right hand: 16 motors, 3 fingers and a thumb",
            mjcf=ASSETS / "allegro_right.xml",
            joints=_ALLEGRO_JOINTS,
            actuators=tuple(joint.replace("j", "a") for joint in _ALLEGRO_JOINTS),
            fingertips=("ff_tip", "mf_tip", "rf_tip", "th_tip"),
            home=(0.0, 0.6, 0.8, 0.7) * 3 + (0.5, 0.4, 0.4, 0.4),
            tilt=TILT,
            nest=(-0.021, 0.011, 0.044),
        ),
    )
}


def list_hands() -> list[Hand]:
    """The shipped hands."""
    return list(HANDS.values())


def load_hand(name_or_path: str) -> Hand:
    """The hand that a config names.

    Args:
        name_or_path: a shipped hand ("leap"), a path that ends in ".xml" (see `read_hand`), or
            "menagerie:<robot>" or "menagerie:<robot>/<model>" for a file of the package
            mujoco-menagerie, downloaded on first use and read by the same rules.

    Raises:
        ValueError: no such hand, or its file lacks what a hand needs.
    """
    if name_or_path in HANDS:
        return HANDS[name_or_path]
    if name_or_path.startswith("menagerie:"):
        return read_hand(_menagerie_file(name_or_path), name_or_path)
    if name_or_path.endswith(".xml"):
        return read_hand(Path(name_or_path).expanduser().resolve(), name_or_path)
    near = difflib.get_close_matches(name_or_path, HANDS, 3, 0.3) or sorted(HANDS)
    raise ValueError(
        f"hand: unknown hand {name_or_path!r}; expected {' or '.join(near)}, "
        "menagerie:<robot>, or the path of an .xml file"
    )


def read_hand(mjcf: Path, name: str) -> Hand:
    """Make the record of any hand from its MJCF.

    The world frame must be the hand base: x along the fingers, z out of the palm. Every actuator
    is a position actuator on a limited hinge, and its control is the joint's angle in rad.
    Fingertips are the sites whose names end in "_tip", thumb last, each with a framepos sensor
    "<site>_pos". The nest is the site "nest". Home is the keyframe "home", or else the middle of
    the joint limits. The tilt is that of the shipped hands.

    Args:
        mjcf: the model file.
        name: what the user typed; becomes the hand's name and opens error messages.

    Raises:
        ValueError: the file is missing, does not compile, or lacks one of the above.
    """
    if not mjcf.is_file():
        raise ValueError(f"hand: {name!r}: no such file")
    try:
        model = mujoco.MjModel.from_xml_path(str(mjcf))
    except ValueError as error:
        raise ValueError(
            f"hand: {name!r} does not compile: {' '.join(str(error).split())}"
        ) from None
    joints = _driven_joints(model, name)
    tips = _fingertips(model, name)
    home, nest = _home_and_nest(model, joints, name)
    return Hand(
        name=name,
        summary=f"{model.nu} joints, {len(tips)} fingertips",
        mjcf=mjcf,
        joints=tuple(model.joint(j).name for j in joints),
        actuators=tuple(model.actuator(i).name for i in range(model.nu)),
        fingertips=tips,
        home=home,
        tilt=TILT,
        nest=nest,
    )


def _driven_joints(model: mujoco.MjModel, name: str) -> list[int]:
    """Joint ids in actuator order."""
    if model.nu == 0:
        raise ValueError(f"hand: {name!r} has no actuators; expected one per joint")
    joints: list[int] = []
    for i in range(model.nu):
        actuator = f"hand: {name!r}: actuator {model.actuator(i).name or i!r}"
        gain, bias = float(model.actuator_gainprm[i, 0]), float(model.actuator_biasprm[i, 1])
        on_joint = int(model.actuator_trntype[i]) == int(mujoco.mjtTrn.mjTRN_JOINT)
        if not on_joint or gain <= 0.0 or bias != -gain or model.actuator_gear[i, 0] != 1.0:
            raise ValueError(f"{actuator} is not a position actuator on a joint with gear 1")
        joint = int(model.actuator_trnid[i, 0])
        hinge = int(model.jnt_type[joint]) == int(mujoco.mjtJoint.mjJNT_HINGE)
        if not hinge or not model.jnt_limited[joint]:
            raise ValueError(f"{actuator} drives no hinge with limits; give its joint a range")
        if not model.actuator(i).name or not model.joint(joint).name:
            raise ValueError(f"{actuator} or its joint has no name")
        if joint in joints:
            raise ValueError(f"{actuator} drives a joint that another actuator drives too")
        joints.append(joint)
    return joints


def _fingertips(model: mujoco.MjModel, name: str) -> tuple[str, ...]:
    sites = [model.site(i).name for i in range(model.nsite)]
    tips = tuple(site for site in sites if site.endswith("_tip"))
    if not tips:
        raise ValueError(
            f"hand: {name!r} has no site whose name ends in '_tip'; add one at each fingertip"
        )
    sensors = {model.sensor(i).name for i in range(model.nsensor)}
    for tip in tips:
        if f"{tip}_pos" not in sensors:
            raise ValueError(
                f"hand: {name!r} has no sensor '{tip}_pos'; add "
                f"<framepos name='{tip}_pos' objtype='site' objname='{tip}'/>"
            )
    return tips


def _home_and_nest(
    model: mujoco.MjModel, joints: list[int], name: str
) -> tuple[tuple[float, ...], tuple[float, float, float]]:
    data = mujoco.MjData(model)
    addresses = model.jnt_qposadr[joints]
    lower, upper = model.jnt_range[joints].T
    if "home" in [model.key(i).name for i in range(model.nkey)]:
        data.qpos[:] = model.key("home").qpos
    else:
        data.qpos[addresses] = 0.5 * (lower + upper)
    home = data.qpos[addresses]
    outside = np.flatnonzero((home < lower) | (home > upper))
    if len(outside):
        joint = model.joint(joints[outside[0]]).name
        raise ValueError(f"hand: {name!r}: keyframe 'home' is outside the limits of {joint!r}")
    if "nest" not in [model.site(i).name for i in range(model.nsite)]:
        raise ValueError(
            f"hand: {name!r} has no site 'nest'; add one where an object's centre rests in the palm"
        )
    mujoco.mj_forward(model, data)
    x, y, z = data.site("nest").xpos.tolist()
    return tuple(home.tolist()), (x, y, z)


def _menagerie_file(name: str) -> Path:
    """The MJCF behind "menagerie:<robot>[/<model>]"."""
    try:
        menagerie = importlib.import_module("mujoco_menagerie")
    except ImportError:
        raise ValueError(
            f"hand: {name!r} needs the package mujoco-menagerie: pip install 'widen[menagerie]'"
        ) from None
    robot, _, entry = name.removeprefix("menagerie:").partition("/")
    try:
        found = menagerie.get(robot)
        return Path(found.xml(entry or found.default_model))
    except menagerie.MenagerieError as error:
        raise ValueError(f"hand: {name!r}: {' '.join(str(error).split())}") from None
