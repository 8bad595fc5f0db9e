"""The policy contract: all that a robot must know of a policy, kept inside the policy's file.

No torch and no mujoco. An ONNX file carries two metadata entries, both JSON: `widen.contract`,
written and read by `Contract`, and `widen.golden`, by `Golden`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from widen.envs.layout import Reading

from .contract_schema import SCHEMA, upgraded, validate

CONTRACT_KEY = "widen.contract"
GOLDEN_KEY = "widen.golden"
JOINT_TARGET = "joint_target"
TOLERANCE = 1e-5
"""largest difference [rad] between an exported policy and its origin that is accepted"""

LIMIT_SLACK = 1e-3
"""a robot's own limits may be narrower than the policy's by this [rad]"""

_PER_JOINT = ("lower", "upper", "home", "kp", "kv", "force_limit")


@dataclass(frozen=True)
class StateTensor:
    """What the policy carries from one control step to the next.

    Attributes:
        name: as in training: "joint_target", "last_action", "past" or "fresh", and of a policy
            that remembers "lstm_hidden" and "lstm_cell".
        input: the graph's input for it.
        output: the graph's output that is the next step's input.
        shape: without the batch axis.
        initial: value at the start of an episode, one number for each of `shape`, flat.
    """

    name: str
    input: str
    output: str
    shape: tuple[int, ...]
    initial: tuple[float, ...]


@dataclass(frozen=True)
class MaxAge:
    """How old a reading may be: beyond `hold` [s] the last command holds, beyond `fault` [s] the
    motors are switched off."""

    hold: float
    fault: float


@dataclass(frozen=True)
class Reach:
    """Where an object is within the hand's reach, so that a controller sees that it was dropped.

    Attributes:
        reading: the reading that tells the object's position.
        center: (x, y, z) [m] in the reading's frame: the hand's nest.
        radius: [m]; farther away an episode of the training ended.
    """

    reading: str
    center: tuple[float, float, float]
    radius: float

    def contains(self, position: np.ndarray) -> bool:
        """Whether (3,) [m] is within the radius; a position that is not finite is not."""
        return math.dist(position, self.center) <= self.radius


@dataclass(frozen=True)
class Contract:
    """What a policy expects and promises. Tuples of joints are in actuator order."""

    task: str
    hand: str
    object: str | dict[str, Any] | list[str | dict[str, Any]] | None
    """as in the config: a name, a mapping with size [m] and mass [kg], or a list of these, one of
    which each episode of the training had"""
    joints: tuple[str, ...]
    lower: tuple[float, ...]
    """joint limits [rad]"""
    upper: tuple[float, ...]
    home: tuple[float, ...]
    """pose in which episodes begin [rad]"""
    kp: tuple[float, ...]
    """gains of the position servos it was trained with [N m/rad]"""
    kv: tuple[float, ...]
    """[N m s/rad]"""
    force_limit: tuple[float, ...]
    """largest joint torque [N m]; null for none"""
    max_target_speed: float
    """no healthy policy moves a joint target faster than this [rad/s]"""
    control_period: float
    """[s]"""
    readings: tuple[Reading, ...]
    """inputs of the graph beside the state, each with a leading batch axis"""
    max_age: dict[str, MaxAge]
    """of every reading that is measured, by name; goals do not age"""
    outputs: tuple[dict[str, Any], ...]
    """name, shape, unit, frame, joints, lower, upper; the first is the joint target"""
    state: tuple[StateTensor, ...]
    goal: dict[str, Any]
    """how goals follow one another; see `deploy.goals`"""
    reach: Reach | None = None
    """None for a task without object, and in files of schema 1"""
    randomization: list[dict[str, Any]] = field(default_factory=list)
    """ranges at the end of training, as in adr.jsonl"""
    npd: float | None = None
    exam: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    """steps, seed, config (YAML text), config_sha256 and code_sha256"""
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """All of it at full precision; numbers that are not finite become null."""
        data: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        allowed = data.pop("max_age")
        data["readings"] = [
            {**r.to_json(), "max_age": asdict(allowed[r.name]) if r.name in allowed else None}
            for r in self.readings
        ]
        data["state"] = [vars(tensor) for tensor in self.state]
        data["reach"] = self.reach and asdict(self.reach)
        return json.dumps(_plain({"schema": SCHEMA, **data}), allow_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `widen verify --json`."""
        return json.loads(self.to_json())

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> Contract:
        """Read the contract from an ONNX file's metadata.

        Raises:
            ValueError: there is none, it is of a newer schema, or something in it is missing or
                does not fit together.
        """
        if CONTRACT_KEY not in metadata:
            raise ValueError("no widen contract in the file; expected one written by widen export")
        data = upgraded(_parse(metadata[CONTRACT_KEY], "contract"))
        validate(data)
        contract = _build(data)
        _check(contract)
        return contract

    def check_joints(self, names: Sequence[str]) -> None:
        """Compare the joints of a robot, in any order, with the policy's.

        Raises:
            ValueError: the robot lacks one, has one that the policy does not know, or names one
                twice.
        """
        lists = (
            ("the robot lacks", [n for n in self.joints if n not in names]),
            ("the policy does not know", [n for n in names if n not in self.joints]),
            ("named twice", sorted({n for n in names if list(names).count(n) > 1})),
        )
        if wrong := [f"{what} {', '.join(odd)}" for what, odd in lists if odd]:
            raise ValueError(f"joints of robot and policy differ: {'; '.join(wrong)}")

    def check_limits(
        self, names: Sequence[str], lower: Sequence[float], upper: Sequence[float]
    ) -> None:
        """Compare a robot's own joint limits with those that the policy was trained within.

        Args:
            names: joints in the robot's own order.
            lower, upper: [rad], one for each of them.

        Raises:
            ValueError: the joints are others, or the robot's limits are narrower than the policy's
                by more than LIMIT_SLACK.
        """
        self.check_joints(names)
        robot = dict(zip(names, zip(lower, upper, strict=True), strict=True))
        own = zip(self.joints, self.lower, self.upper, strict=True)
        narrow = [
            f"{name} {robot[name][0]:g}...{robot[name][1]:g}, needed {low:g}...{high:g}"
            for name, low, high in own
            if not (robot[name][0] <= low + LIMIT_SLACK and robot[name][1] >= high - LIMIT_SLACK)
        ]
        if narrow:
            raise ValueError(
                f"the robot's joint limits [rad] are narrower than the policy's: {'; '.join(narrow)}"
            )


@dataclass(frozen=True)
class Golden:
    """A short episode of one robot: what the policy read, and what it must answer.

    Attributes:
        readings: name -> (T, 1, ...) float32.
        outputs: output name -> (T, 1, ...) float32, the joint target and every state output;
            the state goes from step to step, beginning with the contract's initial values.
    """

    readings: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    def to_json(self) -> str:
        """float32 at full precision: the shortest decimals that round to the same number."""
        groups = {"readings": self.readings, "outputs": self.outputs}
        return json.dumps(
            {
                group: {
                    name: {"shape": list(a.shape), "values": [float(str(x)) for x in a.ravel()]}
                    for name, a in arrays.items()
                }
                for group, arrays in groups.items()
            },
            allow_nan=False,
        )

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> Golden:
        """Raises ValueError when the golden vectors are missing or malformed."""
        if GOLDEN_KEY not in metadata:
            raise ValueError("no golden vectors in the file; expected one written by widen export")
        data = _parse(metadata[GOLDEN_KEY], "golden vectors")
        try:
            groups = {
                group: {
                    name: np.array(item["values"], np.float32).reshape(item["shape"])
                    for name, item in data[group].items()
                }
                for group in ("readings", "outputs")
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"golden vectors are malformed: {error!r}") from None
        return cls(**groups)


def _build(data: dict[str, Any]) -> Contract:
    """From plain values that the JSON Schema has passed."""
    allowed = {r["name"]: r["max_age"] for r in data["readings"]}
    readings = [{k: v for k, v in r.items() if k != "max_age"} for r in data["readings"]]
    state = [{**s, "shape": tuple(s["shape"])} for s in data["state"]]
    reach = data["reach"]
    return Contract(
        **{
            **{key: value for key, value in data.items() if key != "schema"},
            **{key: tuple(map(_number, data[key])) for key in _PER_JOINT},
            "joints": tuple(data["joints"]),
            "max_target_speed": float(data["max_target_speed"]),
            "control_period": float(data["control_period"]),
            "readings": tuple(map(Reading.from_json, readings)),
            "max_age": {name: MaxAge(**age) for name, age in allowed.items() if age},
            "outputs": tuple(data["outputs"]),
            "state": tuple(
                StateTensor(**{**s, "initial": tuple(map(float, s["initial"]))}) for s in state
            ),
            "reach": reach and Reach(**{**reach, "center": tuple(map(float, reach["center"]))}),
        }
    )


def _check(contract: Contract) -> None:
    """What a robot relies upon without looking again, and no JSON Schema can say."""
    count = len(contract.joints)
    for key in _PER_JOINT:
        if len(getattr(contract, key)) != count:
            raise ValueError(
                f"contract: {key} has {len(getattr(contract, key))} numbers, expected {count},"
                " one for each joint"
            )
    for name, low, high, home in zip(
        contract.joints, contract.lower, contract.upper, contract.home, strict=True
    ):
        if not (math.isfinite(low) and math.isfinite(high) and low <= home <= high):
            raise ValueError(f"contract: joint {name}: home {home} is not in {low}...{high}")
    _check_outputs(contract)
    if (first := contract.state[0]).name != JOINT_TARGET or first.output != JOINT_TARGET:
        raise ValueError(
            f"contract: the first state tensor is not {JOINT_TARGET!r} with its output"
        )
    for tensor in contract.state:
        if len(tensor.initial) != math.prod(tensor.shape):
            raise ValueError(f"contract: state {tensor.name}: initial does not have its shape")
    for name, age in contract.max_age.items():
        if age.hold > age.fault:
            raise ValueError(
                f"contract: reading {name}: max_age: expected hold <= fault,"
                f" got {age.hold} and {age.fault}"
            )
    readings = {reading.name: reading for reading in contract.readings}
    if len(readings) != len(contract.readings):
        raise ValueError("contract: readings: two have the same name")
    if (reach := contract.reach) is not None:
        of = readings.get(reach.reading)
        if of is None or of.shape != (3,) or of.unit != "m":
            raise ValueError(
                f"contract: reach.reading: expected a reading of shape (3,) in m,"
                f" got {reach.reading!r}"
            )


def _check_outputs(contract: Contract) -> None:
    first = contract.outputs[0]
    if first["name"] != JOINT_TARGET:
        raise ValueError(f"contract: the first output is not {JOINT_TARGET!r}")
    for key in ("joints", "lower", "upper"):
        if tuple(first[key]) != getattr(contract, key):
            raise ValueError(f"contract: outputs[0].{key} differs from {key}")


def _parse(text: str, what: str) -> dict[str, Any]:
    try:
        data = json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise ValueError(f"{what}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{what}: expected a JSON object, got {type(data).__name__}")
    return data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _number(value: Any) -> float:
    return math.inf if value is None else float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
