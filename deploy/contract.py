"""The policy contract: all that a robot must know of a policy, kept inside the policy's file.

numpy and the standard library only. An ONNX file carries two metadata entries, both JSON:
`widen.contract`, written and read by `Contract`, and `widen.golden`, by `Golden`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from widen.envs.layout import Reading

SCHEMA = "widen.policy/1"
CONTRACT_KEY = "widen.contract"
GOLDEN_KEY = "widen.golden"
JOINT_TARGET = "joint_target"
TOLERANCE = 1e-5
"""largest difference [rad] between an exported policy and its origin that is accepted"""

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
    outputs: tuple[dict[str, Any], ...]
    """name, shape, unit, frame; the first is the joint target"""
    state: tuple[StateTensor, ...]
    goal: dict[str, Any]
    """how goals follow one another; see `deploy.goals`"""
    randomization: list[dict[str, Any]] = field(default_factory=list)
    """ranges at the end of training, as in adr.jsonl"""
    npd: float | None = None
    exam: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    """steps, seed, config (YAML text) and config_sha256"""
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """All of it at full precision; numbers that are not finite become null."""
        data: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        data["readings"] = [reading.to_json() for reading in self.readings]
        data["state"] = [vars(tensor) for tensor in self.state]
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
        data = _parse(metadata[CONTRACT_KEY], "contract")
        schema = data.pop("schema", None)
        if schema != SCHEMA:
            raise ValueError(
                f"contract schema is {schema!r}, expected {SCHEMA!r}: {_advice(schema)}"
            )
        for key in (f.name for f in fields(cls)):
            if key not in data:
                raise ValueError(f"contract lacks {key!r}")
        try:
            contract = _build({f.name: data[f.name] for f in fields(cls)})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"contract is malformed: {' '.join(str(error).split())}") from None
        _check(contract)
        return contract


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
    tuples = {key: tuple(map(_number, data[key])) for key in _PER_JOINT}
    state = tuple(
        StateTensor(
            **{**item, "shape": tuple(item["shape"]), "initial": tuple(map(float, item["initial"]))}
        )
        for item in data["state"]
    )
    return Contract(
        **{
            **data,
            **tuples,
            "joints": tuple(map(str, data["joints"])),
            "max_target_speed": float(data["max_target_speed"]),
            "control_period": float(data["control_period"]),
            "readings": tuple(map(Reading.from_json, data["readings"])),
            "outputs": tuple(map(dict, data["outputs"])),
            "state": state,
            "goal": dict(data["goal"]),
        }
    )


def _check(contract: Contract) -> None:
    """What a robot relies upon without looking again."""
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
    if not (contract.control_period > 0 and contract.max_target_speed > 0):
        raise ValueError("contract: control_period and max_target_speed must be above 0")
    if not contract.outputs or contract.outputs[0].get("name") != JOINT_TARGET:
        raise ValueError(f"contract: the first output is not {JOINT_TARGET!r}")
    for tensor in contract.state:
        if len(tensor.initial) != math.prod(tensor.shape):
            raise ValueError(f"contract: state {tensor.name}: initial does not have its shape")


def _parse(text: str, what: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{what}: expected a JSON object, got {type(data).__name__}")
    return data


def _advice(schema: Any) -> str:
    family, _, number = str(schema).partition("/")
    own, _, newest = SCHEMA.partition("/")
    newer = family == own and number.isdecimal() and int(number) > int(newest)
    return "made by a newer widen, update widen" if newer else "not a policy of widen"


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
