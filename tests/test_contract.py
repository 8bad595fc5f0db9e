"""The policy contract: what is written is read again, and what does not fit is named."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastjsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widen.deploy import source
from widen.deploy.contract import CONTRACT_KEY, LIMIT_SLACK, Contract, MaxAge, Reach
from widen.deploy.contract_schema import SCHEMA, load_schema

# as widen export wrote it with schema 1, with less of the exam and no config
OLD = json.loads((Path(__file__).parent / "data" / "contract-1.json").read_text(encoding="utf-8"))


def read(data: dict[str, Any]) -> Contract:
    return Contract.from_metadata({CONTRACT_KEY: json.dumps(data)})


def new() -> dict[str, Any]:
    """A contract of the newest schema in plain values, everything in it that may be null set."""
    data = read(OLD).as_dict()
    data["reach"] = {"reading": "object_pos", "center": [0.0, 0.03, 0.066], "radius": 0.1}
    data["training"]["code_sha256"] = "0" * 64
    return data


# schema 1


def test_a_file_of_schema_1_is_read_with_the_obvious_defaults() -> None:
    before = copy.deepcopy(OLD)
    assert before["schema"] == "widen.policy/1"
    contract = read(OLD)
    assert before == OLD
    assert set(contract.max_age) == {"joint_pos", "object_pos", "object_quat"}
    assert all(age == MaxAge(0.1, 0.25) for age in contract.max_age.values())  # of 50 ms
    assert contract.reach is None
    told = contract.as_dict()
    assert read(told) == contract
    assert told["schema"] == SCHEMA == "widen.policy/2"
    assert told["readings"][0]["max_age"] == {"hold": 0.1, "fault": 0.25}
    assert told["readings"][3]["max_age"] is None  # the goal's
    output = told["outputs"][0]
    for key in ("joints", "lower", "upper"):
        assert output.pop(key) == OLD[key]
    assert told["outputs"] == OLD["outputs"]
    for key in OLD.keys() - {"schema", "readings", "outputs"}:
        assert told[key] == OLD[key], key


@pytest.mark.parametrize("schema", ["widen.policy/3", "widen.policy/99"])
def test_a_newer_schema_is_refused_with_advice(schema: str) -> None:
    with pytest.raises(ValueError, match="made by a newer widen, update widen"):
        read({**new(), "schema": schema})


@pytest.mark.parametrize(
    "schema", [None, 2, "widen.policy", "widen.policy/0", "widen.policy/x", "other/1"]
)
def test_what_is_no_schema_of_widen_is_refused(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"expected 'widen.policy/2': not a policy of widen"):
        read({**new(), "schema": schema})


# precision

numbers = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    lists=st.lists(st.tuples(numbers, numbers, numbers), min_size=16, max_size=16),
    others=st.lists(numbers.map(abs), min_size=16, max_size=16),
    period=st.floats(1e-300, 1e300),
)
def test_every_float_comes_back_bit_for_bit(
    lists: list[tuple[float, float, float]], others: list[float], period: float
) -> None:
    lower, home, upper = zip(*map(sorted, lists), strict=True)
    contract = read(new())
    contract = dataclasses.replace(
        contract,
        lower=lower,
        home=home,
        upper=upper,
        kp=tuple(others),
        force_limit=(*others[1:], math.inf),
        control_period=period,
        max_age={"joint_pos": MaxAge(period, math.nextafter(period, math.inf))},
        outputs=({**contract.outputs[0], "lower": list(lower), "upper": list(upper)},),
    )
    again = Contract.from_metadata({CONTRACT_KEY: contract.to_json()})
    assert again == contract
    assert np.array(again.lower).tobytes() == np.array(lower).tobytes()  # the sign of 0 as well


# what does not fit


def parts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values in it, of a list only to its first."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and value:
        items = [(0, value[0])]
    return [path, *(p for key, item in items for p in parts(item, (*path, key)))]


def without(path: tuple[Any, ...], *value: Any) -> dict[str, Any]:
    """A contract with another value in a place, or without this place."""
    data = new()
    item = data
    for key in path[:-1]:
        item = item[key]
    if value:
        item[path[-1]] = value[0]
    else:
        del item[path[-1]]
    return data


FREE = {("versions",)}  # any package's
PLACES = [p for p in parts(new()) if p and p[:-1] not in FREE]
OPTIONAL = {"score_low", "score_high", "steps", "seed", "config_sha256", "code_sha256", "config"}


def in_text(path: tuple[Any, ...]) -> str:
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path).lstrip(".")


@pytest.mark.parametrize("path", PLACES, ids=in_text)
def test_a_value_of_another_kind_is_named(path: tuple[Any, ...]) -> None:
    if path == ("schema",):
        return  # has its own message
    with pytest.raises(ValueError) as error:
        read(without(path, True))
    assert str(error.value).startswith(f"contract: {in_text(path)}: expected ")
    assert str(error.value).endswith(", got true")


@pytest.mark.parametrize("path", PLACES, ids=in_text)
def test_a_key_that_is_missing_is_named(path: tuple[Any, ...]) -> None:
    if path == ("schema",) or path[-1] == 0:
        return
    if path[-1] in OPTIONAL:
        read(without(path))
        return
    with pytest.raises(ValueError) as error:
        read(without(path))
    where = in_text(path[:-1])
    assert str(error.value) == f"contract{f': {where}' * bool(where)} lacks {path[-1]!r}"


@pytest.mark.parametrize("path", [p for p in parts(new()) if p == () or p[-1] == 0])
def test_a_key_too_much_is_named(path: tuple[Any, ...]) -> None:
    data = new()
    item: Any = data
    for key in path:
        item = item[key]
    if not isinstance(item, dict):
        return
    item["kpp"] = 1
    with pytest.raises(ValueError, match=r"unknown key 'kpp', expected [a-z]+, [a-z]+"):
        read(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("control_period",), 0, "control_period: expected more than 0, got 0"),
        (("max_target_speed",), -1.5, "max_target_speed: expected more than 0, got -1.5"),
        (("kp", 3), -1, "kp[3]: expected at least 0, got -1"),
        (("joints",), [], "joints: expected at least 1 items, got []"),
        (("joints", 0), "", 'joints[0]: expected a string that is not empty, got ""'),
        (("joints", 1), "if_mcp", "joints: expected a list without repetitions"),
        (("readings", 0, "unit"), "deg", "readings[0].unit: expected one of 1, rad, rad/s, m"),
        (("readings", 0, "frame"), "camera", "frame: expected one of joint, hand_base, got"),
        (("readings", 0, "source"), "vicon", "source: expected one of robot, object, goal, got"),
        (("readings", 0, "shape"), [0], "readings[0].shape[0]: expected at least 1, got 0"),
        (("readings", 1, "name"), "joint_pos", "readings: two have the same name"),
        (
            ("readings", 0, "max_age"),
            {"hold": 0.3, "fault": 0.2},
            "reading joint_pos: max_age: expected hold <= fault, got 0.3 and 0.2",
        ),
        (("outputs", 0, "name"), "torque", "the first output is not 'joint_target'"),
        (("outputs", 0, "lower", 0), -9.0, "outputs[0].lower differs from lower"),
        (("home",), [0.0], "home has 1 numbers, expected 16, one for each joint"),
        (("home", 0), 9.0, "joint if_mcp: home 9.0 is not in -0.314...2.23"),
        (("goal", "axis"), [0, 1], "goal.axis: expected at least 3 items, got [0, 1]"),
        (("goal", "kind"), "points", "goal lacks 'values'"),
        (("reach", "radius"), 0.0, "reach.radius: expected more than 0, got 0.0"),
        (("reach", "reading"), "cube_pos", "reach.reading: expected a reading of shape (3,) in m"),
        (("reach", "reading"), "object_quat", "expected a reading of shape (3,) in m"),
        (
            ("training", "code_sha256"),
            "abc",
            "training.code_sha256: expected a string that matches",
        ),
        (("state", 0, "name"), "target", "the first state tensor is not 'joint_target'"),
        (("state", 0, "initial"), [0.0], "state joint_target: initial does not have its shape"),
    ],
)
def test_values_that_cannot_be(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read(without(path, value))
    assert message in str(error.value)
    assert str(error.value).startswith("contract: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_json_does_not_know_is_no_number(number: str) -> None:
    text = json.dumps(new()).replace('"control_period": 0.05', f'"control_period": {number}')
    with pytest.raises(ValueError, match=rf"contract: not JSON: {number} is no number of JSON"):
        Contract.from_metadata({CONTRACT_KEY: text})


def test_a_goal_rule_of_a_users_own_task_may_say_anything() -> None:
    rule = {"kind": "mine", "reading": "goal_quat", "how": [1, {"two": 3}]}
    assert read({**new(), "goal": rule}).goal == rule


def test_the_schema_uses_no_keyword_that_a_validator_would_pass_by() -> None:
    known = {"type", "properties", "required", "additionalProperties", "items", "enum", "const"}
    known |= {"minimum", "exclusiveMinimum", "minItems", "maxItems", "uniqueItems", "minLength"}
    known |= {"pattern", "allOf", "if", "then", "description", "title", "$schema"}

    def look(schema: Any) -> None:
        assert schema.keys() <= known
        for key in ("items", "if", "then"):
            if key in schema:
                look(schema[key])
        for item in (*schema.get("properties", {}).values(), *schema.get("allOf", ())):
            look(item)

    look(load_schema())


# against a robot


def test_a_robots_joints_are_compared_by_name_in_any_order() -> None:
    contract = read(new())
    names = list(contract.joints)
    contract.check_joints(names[::-1])
    other = [*names[1:], "wrist", "elbow"]
    with pytest.raises(ValueError) as error:
        contract.check_joints(other)
    assert str(error.value) == (
        "joints of robot and policy differ: the robot lacks if_mcp;"
        " the policy does not know wrist, elbow"
    )
    with pytest.raises(ValueError, match=r"differ: named twice if_rot$"):
        contract.check_joints([*names, "if_rot"])


def test_a_robots_limits_may_be_wider_but_not_narrower() -> None:
    contract = read(new())
    names, lower, upper = (list(x)[::-1] for x in (contract.joints, contract.lower, contract.upper))
    contract.check_limits(names, lower, upper)
    wide = [x - 1 for x in lower], [x + 1 for x in upper]
    contract.check_limits(names, *wide)
    slack = 0.9 * LIMIT_SLACK
    contract.check_limits(names, [x + slack for x in lower], [x - slack for x in upper])
    i, j = names.index("th_ipl"), names.index("if_mcp")
    lower[i], upper[j] = -1.34 + 0.002, 2.2
    with pytest.raises(ValueError) as error:
        contract.check_limits(names, lower, upper)
    assert str(error.value) == (
        "the robot's joint limits [rad] are narrower than the policy's:"
        " if_mcp -0.314...2.2, needed -0.314...2.23; th_ipl -1.338...1.88, needed -1.34...1.88"
    )
    with pytest.raises(ValueError, match="th_ipl nan"):
        contract.check_limits(names, [math.nan if k == i else -9.0 for k in range(16)], wide[1])
    with pytest.raises(ValueError, match="the robot lacks if_mcp"):
        contract.check_limits(names[:-1], lower[:-1], upper[:-1])


def test_reach_is_a_ball() -> None:
    reach = Reach("object_pos", (0.0, 0.03, 0.06), 0.05)
    assert reach.contains(np.array([0.03, 0.03, 0.0999], np.float32))  # 3, 4, 5
    assert not reach.contains(np.array([0.03, 0.03, 0.1001], np.float32))
    assert not reach.contains(np.array([np.nan, 0.03, 0.06]))


# the source's hash


def test_the_source_hash_is_of_names_and_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in source.SOURCES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"# {name}\n")
        (tmp_path / name / "notes.txt").write_text("of no matter")
    (tmp_path / "envs" / "assets").mkdir()
    (tmp_path / "deploy" / "examples").mkdir()  # not in the package
    (tmp_path / "deploy" / "examples" / "run.py").write_text("of no matter")
    (tmp_path / "envs" / "assets" / "hand.xml").write_text("<mujoco/>\n")

    def find(name: str) -> Any:
        return SimpleNamespace(origin=str(tmp_path / name.removeprefix("widen.") / "__init__.py"))

    monkeypatch.setattr(source, "find_spec", find)
    whole = (
        b"envs/__init__.py\n# envs\nenvs/assets/hand.xml\n<mujoco/>\n"
        b"randomization/__init__.py\n# randomization\ntrain/__init__.py\n# train\n"
        b"deploy/__init__.py\n# deploy\n"
    )
    assert source.source_sha256() == hashlib.sha256(whole).hexdigest()
    (tmp_path / "train" / "__init__.py").write_text("# another\n")
    assert source.source_sha256() != hashlib.sha256(whole).hexdigest()


# the page that explains it

PAGE = Path(__file__).parents[1] / "docs" / "policy-contract.md"


def keys_of(schema: dict[str, Any], at: str = "") -> dict[str, dict[str, Any]]:
    """Path of every key -> its schema; of an object of the training only the whole."""
    found: dict[str, dict[str, Any]] = {}
    for kind in schema.get("allOf", ()):
        found |= keys_of(kind["then"], at)
    for key, inner in schema.get("properties", {}).items():
        path = f"{at}.{key}".lstrip(".")
        found[path] = inner
        if path != "object":
            found |= keys_of(inner, path) | keys_of(inner.get("items", {}), f"{path}[]")
    return found


@pytest.mark.skipif(not PAGE.is_file(), reason="tests an installed package")
def test_the_page_has_every_key_and_its_examples_are_right() -> None:
    text = PAGE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    table = {row[0].strip("`"): row[1:] for row in rows if len(row) == 5}
    keys = keys_of(load_schema())
    assert table.keys() == keys.keys()
    for key, (meaning, unit, _, example) in table.items():
        stated = re.findall(r"\[(.+?)\]", keys[key]["description"])
        if len(stated) == 1 and key != "goal.reached":  # whose unit depends on the kind
            assert unit == stated[0], key
        assert meaning, key
        if example:
            fastjsonschema.compile(keys[key])(json.loads(example.strip("`")))  # pyright: ignore
        else:
            assert keys[key].get("type") not in ("string", "number", "integer"), key
