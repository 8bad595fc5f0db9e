"""Which keys a policy contract has: its JSON Schema, and contracts of earlier schemas.

docs/policy-contract.md explains every key. A new schema number means that an older reader would
misread the file; what an older file lacks is filled in here when it is read.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import fastjsonschema

FAMILY = "widen.policy"
NEWEST = 2
SCHEMA = f"{FAMILY}/{NEWEST}"
HOLD_PERIODS = 2  # control periods after which a reading is too old to decide upon
FAULT_PERIODS = 5  # and after which the motors are switched off

_KINDS = {"object": "an object", "array": "a list", "null": "null"}
_KINDS |= {"string": "a string", "number": "a number", "integer": "a whole number"}
_LEAST = {"minLength": "a string that is not empty", "minItems": "at least {} items"}
_LEAST |= {"maxItems": "at most {} items", "minimum": "at least {}"}
_LEAST |= {"exclusiveMinimum": "more than {}", "uniqueItems": "a list without repetitions"}
_LEAST |= {"pattern": "a string that matches {}", "const": "{}"}


def load_schema() -> dict[str, Any]:
    """The JSON Schema (draft 7) that comes with the package."""
    file = resources.files("widen.deploy").joinpath("policy-contract.schema.json")
    return json.loads(file.read_text(encoding="utf-8"))


def validate(data: dict[str, Any]) -> None:
    """Compare a contract in plain values with the JSON Schema.

    Raises:
        ValueError: it does not fit; the message names the first key that is wrong.
    """
    try:
        _validator()(data)
    except fastjsonschema.JsonSchemaValueException as error:
        raise ValueError(_in_a_line(error)) from None


def upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """The same contract in the newest schema; `data` itself stays as it is.

    Schema 1 had no ages: they become the usual 2 and 5 control periods. Outputs get names and
    limits of the joints. Where an object would be dropped it did not say: `reach` is null.

    Raises:
        ValueError: not a contract of widen, or of a newer schema than this version knows.
    """
    schema = data.get("schema")
    family, _, text = str(schema).partition("/")
    number = int(text) if family == FAMILY and text.isdecimal() else 0
    if number > NEWEST:
        advice = "made by a newer widen, update widen"
    else:
        advice = "not a policy of widen"
    if not 1 <= number <= NEWEST:
        raise ValueError(f"contract schema is {schema!r}, expected {SCHEMA!r}: {advice}")
    return _from_1(data) if number == 1 else data


def ages(period: float) -> dict[str, float]:
    """`max_age` of a measured reading [s], from the control period [s]."""
    return {"hold": HOLD_PERIODS * period, "fault": FAULT_PERIODS * period}


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """What is malformed stays so: `validate` names it."""
    new = {"reach": None, **data, "schema": SCHEMA}
    period, limits = data.get("control_period"), ("joints", "lower", "upper")
    if isinstance(period, (int, float)) and "readings" in data:
        new["readings"] = _each(
            data["readings"],
            lambda r: {**r, "max_age": None if r.get("source") == "goal" else ages(period)},
        )
    if "outputs" in data and all(key in data for key in limits):
        of_joints = {key: data[key] for key in limits}
        new["outputs"] = _each(data["outputs"], lambda output: {**output, **of_joints})
    return new


def _each(items: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    if not isinstance(items, list):
        return items
    return [change(item) if isinstance(item, dict) else item for item in items]


@functools.cache
def _validator() -> Callable[[Any], Any]:
    return fastjsonschema.compile(load_schema(), use_default=False)  # pyright: ignore


def _in_a_line(error: Any) -> str:
    """What is wrong with a contract: where, what was expected, and what was found."""
    rule, wanted, value = error.rule, error.rule_definition, error.value
    where = str(error.name).removeprefix("data").removeprefix(".")
    if rule == "required":
        lacking = next(key for key in wanted if key not in value)
        return f"contract{_at(where)} lacks {lacking!r}"
    if rule == "additionalProperties":
        known = error.definition["properties"]
        odd = next(key for key in value if key not in known)
        return f"contract{_at(where)}: unknown key {odd!r}, expected {', '.join(known)}"
    if rule == "type":
        kinds = [wanted] if isinstance(wanted, str) else wanted
        expected = " or ".join(_KINDS[kind] for kind in kinds)
    elif rule == "enum":
        expected = f"one of {', '.join(map(str, wanted))}"
    else:
        expected = _LEAST.get(rule, f"{rule} {{}}").format(wanted)
    found = json.dumps(value, default=str)
    short = found if len(found) <= 40 else f"{found[:37]}..."
    return f"contract{_at(where)}: expected {expected}, got {short}"


def _at(where: str) -> str:
    return f": {where}" if where else ""
