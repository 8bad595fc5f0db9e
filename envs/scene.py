"""A compiled scene: one hand, perhaps one object, and where to find their numbers."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import mujoco
import numpy as np

from .hand import Hand
from .objects import OBJECTS, ObjectChoice, ObjectSpec, common_symmetries, read_objects

__all__ = ["OBJECTS", "ObjectSpec", "Scene", "build_scene", "gravity_of"]

GRAVITY = 9.81
# Bits: 1 hand links, 2 fingertips, 4 object; see the head of assets/leap_right.xml.
OBJECT_CONTYPE = 4
OBJECT_CONAFFINITY = 7
_NEAREST = 1  # of the ways in which a contact sensor chooses among contacts: by their distance

FACE_COLOURS = (
    (226, 74, 51),
    (240, 150, 40),
    (250, 250, 245),
    (245, 210, 60),
    (70, 150, 90),
    (50, 110, 190),
)


@dataclass(frozen=True)
class Scene:
    """A model and the addresses a task needs.

    Attributes:
        model: compiled MjModel; its world frame is the hand base. Where there are several objects,
            of the first.
        hand: the hand in it.
        joint_qpos: (nu,) addresses in qpos of the hand's joints, actuator order.
        joint_dof: (nu,) addresses in qvel.
        lower, upper: (nu,) joint limits [rad].
        object_body: body name of the object, or None.
        object_qpos: address in qpos of the object's free joint (3 position, 4 quaternion).
        object_dof: address in qvel (3 linear world, 3 angular body).
        hand_geoms, object_geoms: geom ids.
        object_symmetries: (S, 4) unit quaternions (w, x, y, z) that map the object onto itself, or
            every one of several, the identity first; without an object the identity alone.
        variants: a model for each of several objects, alike but for the object: environment i is
            one of variants[i % K]. Empty where all environments are of `model`.
    """

    model: mujoco.MjModel
    hand: Hand
    joint_qpos: np.ndarray
    joint_dof: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    object_body: str | None
    object_qpos: int
    object_dof: int
    hand_geoms: np.ndarray
    object_geoms: np.ndarray
    object_symmetries: np.ndarray = field(default_factory=lambda: np.eye(1, 4, dtype=np.float32))
    variants: tuple[mujoco.MjModel, ...] = ()

    def sensor(self, name: str) -> slice:
        """Where the named sensor's numbers lie in sensordata."""
        sensor = self.model.sensor(name)
        start = int(sensor.adr[0])
        return slice(start, start + int(sensor.dim[0]))

    def nominal(self, field: str, num_envs: int) -> np.ndarray:
        """Values of an MjModel field ("opt.gravity" for options) before any randomization.

        Returns:
            (N, ...), or (1, ...) where all environments share them.
        """
        read = operator.attrgetter(field)
        values = np.array([read(model) for model in self.variants or (self.model,)])
        return values[np.arange(num_envs) % len(values)] if self.variants else values


def gravity_of(tilt: float, roll: float = 0.0) -> np.ndarray:
    """Gravity (3,) [m/s^2] in the base frame of a hand that is held as `Hand` says of tilt and roll.

    The base frame is the world frame of the simulation, so that positions in qpos are readings in
    the hand's own frame; a tilted hand is a turned gravity.
    """
    across, down = np.cos(tilt) * np.sin(roll), np.cos(tilt) * np.cos(roll)
    return GRAVITY * np.array([np.sin(tilt), -across, -down])


def build_scene(
    hand: Hand,
    object_name: ObjectChoice,
    *,
    timestep: float,
    iterations: int = 20,
    contact_dims: int = 3,
    movable_centre: bool = False,
) -> Scene:
    """Compose and compile a scene.

    Args:
        hand: from `load_hand`.
        object_name: what the hand holds, as a config says it; see `envs.objects`. None for the
            bare hand.
        timestep: seconds of one simulation step.
        iterations: solver iterations.
        contact_dims: condim of the object: 3 slides, 4 also spins, 6 also rolls.
        movable_centre: whether the object's centre of mass may be moved later, which costs a little
            speed.

    Raises:
        ValueError: unknown object, or a hand file that uses one of the scene's own names.
    """
    objects = read_objects(object_name)
    compiled = [
        _compile(hand, what, timestep, iterations, contact_dims, movable_centre)
        for what in objects or (None,)
    ]
    return _addresses(compiled, hand, objects)


def _compile(
    hand: Hand,
    what: ObjectSpec | None,
    timestep: float,
    iterations: int,
    contact_dims: int,
    movable_centre: bool,
) -> mujoco.MjModel:
    spec = mujoco.MjSpec.from_file(str(hand.mjcf))
    option = spec.option
    option.timestep = timestep
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
    option.iterations = iterations
    option.ls_iterations = 8
    option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_EULERDAMP)
    option.gravity = gravity_of(hand.tilt, hand.roll)
    try:
        if what is not None:
            _add_object(spec, what, hand.nest, contact_dims, movable_centre)
            _add_touch(spec, hand)
            _add_depth(spec)
        _add_view(spec, hand)
        return spec.compile()
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"hand: {hand.name!r} does not fit into a scene: {reason}") from None


def _add_object(
    spec: mujoco.MjSpec,
    what: ObjectSpec,
    pos: tuple[float, float, float],
    contact_dims: int,
    movable_centre: bool,
) -> None:
    face = np.ones((6, 64, 64, 3), np.uint8) * np.array(FACE_COLOURS, np.uint8)[:, None, None, :]
    face[:, :3], face[:, -3:], face[:, :, :3], face[:, :, -3:] = 40, 40, 40, 40
    texture = spec.add_texture(
        name="object_faces", type=mujoco.mjtTexture.mjTEXTURE_CUBE, width=64, height=384, nchannel=3
    )
    texture.data = face.tobytes()
    material = spec.add_material(name="object_faces", specular=0.2, shininess=0.3)
    material.textures[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = "object_faces"
    body = spec.worldbody.add_body(name="object", pos=pos)
    body.add_freejoint(name="object")
    body.mass, body.inertia, body.explicitinertial = what.mass, what.inertia, True
    # left alone, an explicit inertial frame sits at the origin of the world, not of the body
    body.ipos, body.iquat = [0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    # a simple body's centre is its frame's origin for ever
    body.simple = 0 if movable_centre else 1
    body.add_geom(
        name="object",
        type=what.geom_type,
        size=what.geom_size,
        quat=what.geom_quat,
        friction=[what.friction, 0.005, 0.0001],
        condim=contact_dims,
        solref=[0.02, 1.0],
        solimp=[0.9, 0.95, 0.001, 0.5, 2.0],
        contype=OBJECT_CONTYPE,
        conaffinity=OBJECT_CONAFFINITY,
        material="object_faces",
    )


def _add_touch(spec: mujoco.MjSpec, hand: Hand) -> None:
    """A sensor for each fingertip, "<site>_touch": contacts with the object.

    Those of a finger's last link, and of any link of the thumb, which holds with its side as well.
    """
    chains = [_links(spec, tip) for tip in hand.fingertips]
    for tip, chain in zip(hand.fingertips, chains, strict=True):
        link, what = chain[-1], mujoco.mjtObj.mjOBJ_BODY
        # a thumb's links are those that no other finger hangs on
        own = [link for link in chain if not any(link in other for other in chains[:-1])]
        if tip == hand.fingertips[-1] and len(chains) > 1 and own:
            link, what = own[0], mujoco.mjtObj.mjOBJ_XBODY
        sensor = spec.add_sensor(name=f"{tip}_touch", type=mujoco.mjtSensor.mjSENS_CONTACT)
        sensor.objtype, sensor.objname = what, link
        sensor.reftype, sensor.refname = mujoco.mjtObj.mjOBJ_BODY, "object"
        # what is reported, in what order, of how many contacts
        sensor.intprm[:3] = [1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND), 0, 1]


def _add_depth(spec: mujoco.MjSpec) -> None:
    """A sensor "object_depth": [m] from the surface to the deepest point of contact, below zero.

    As MuJoCo has it: the smallest distance among the object's contacts, and 0 without any.
    """
    sensor = spec.add_sensor(name="object_depth", type=mujoco.mjtSensor.mjSENS_CONTACT)
    sensor.objtype, sensor.objname = mujoco.mjtObj.mjOBJ_BODY, "object"
    sensor.intprm[:3] = [1 << int(mujoco.mjtConDataField.mjCONDATA_DIST), _NEAREST, 1]


def _links(spec: mujoco.MjSpec, tip: str) -> list[str]:
    """Bodies from the root to a fingertip; those without a name get one."""
    body, chain = spec.site(tip).parent, list[str]()
    while body.name != "world":
        if not body.name:
            body.name = f"{tip}_link_{len(chain)}"
        chain.insert(0, body.name)
        body = body.parent
    return chain or ["world"]


def _add_view(spec: mujoco.MjSpec, hand: Hand) -> None:
    """A camera that sees the hand with gravity pointing down, lights, and a plain backdrop."""
    up = -gravity_of(hand.tilt, hand.roll) / GRAVITY
    look = np.array([hand.nest[0] + 0.014, hand.nest[1] - 0.02, hand.nest[2] + 0.004])
    eye = look + np.array([0.12, -0.21, 0.28])
    back = (eye - look) / np.linalg.norm(eye - look)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    frame = np.stack((right, np.cross(back, right), back), axis=1)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, frame.ravel())
    spec.worldbody.add_camera(name="view", pos=eye, quat=quat, fovy=40)
    # the key light throws the shadows, the other one fills them from the camera's left
    spec.worldbody.add_light(
        pos=look + np.array([0.15, 0.1, 0.7]),
        dir=(-0.15, -0.1, -0.7),
        diffuse=(0.6, 0.6, 0.58),
        castshadow=True,
    )
    spec.worldbody.add_light(
        pos=look + np.array([-0.3, -0.5, 0.4]), dir=(0.3, 0.5, -0.4), diffuse=(0.25, 0.27, 0.32)
    )
    visual = spec.visual
    visual.headlight.ambient, visual.headlight.diffuse = [0.32] * 3, [0.28] * 3
    visual.headlight.specular = [0.1] * 3
    visual.quality.shadowsize = 2048
    spec.add_texture(
        name="backdrop",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.97, 0.98, 0.99],
        rgb2=[0.72, 0.77, 0.83],
        width=64,
        height=384,
    )


def _addresses(
    compiled: list[mujoco.MjModel], hand: Hand, objects: tuple[ObjectSpec, ...]
) -> Scene:
    model, object_body = compiled[0], "object" if objects else None
    joints = [model.joint(name) for name in hand.joints]
    object_joint = model.joint("object") if object_body else None
    object_geoms = (
        np.flatnonzero(model.geom_bodyid == model.body(object_body).id)
        if object_body
        else np.zeros(0, int)
    )
    colliding = np.flatnonzero((model.geom_contype != 0) | (model.geom_conaffinity != 0))
    return Scene(
        model=model,
        hand=hand,
        joint_qpos=np.array([int(j.qposadr[0]) for j in joints]),
        joint_dof=np.array([int(j.dofadr[0]) for j in joints]),
        lower=np.array([j.range[0] for j in joints]),
        upper=np.array([j.range[1] for j in joints]),
        object_body=object_body,
        object_qpos=int(object_joint.qposadr[0]) if object_joint is not None else -1,
        object_dof=int(object_joint.dofadr[0]) if object_joint is not None else -1,
        hand_geoms=np.setdiff1d(colliding, object_geoms),
        object_geoms=object_geoms,
        object_symmetries=common_symmetries(objects) if objects else np.eye(1, 4, dtype=np.float32),
        variants=tuple(compiled) if len(compiled) > 1 else (),
    )
