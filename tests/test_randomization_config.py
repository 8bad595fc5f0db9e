"""What a user may say about randomization, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from curriculum_loop import Loop
from pydantic import ValidationError

from widen.randomization.adr import AdrConfig
from widen.randomization.config import RandomizationConfig


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"evaluation_share": 1.2}, "less than or equal to 1"),
        ({"evaluation_share": -0.1}, "greater than or equal to 0"),
        ({"buffer": 0}, "greater than or equal to 1"),
        ({"narrow_at": 20}, "adr.narrow_at: 20 must be below adr.widen_at 20"),
        ({"widen": 20}, "Extra inputs"),
        ({"widen_at": float("nan")}, "finite"),
    ],
)
def test_bad_constants_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdrConfig(**config)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"object_mas": {}}, "unknown parameter 'object_mas'; expected object_mass"),
        ({"object_mass": {"limits": [2, 0.5]}}, r"object_mass.limits: \[2, 0.5\] is upside down"),
        ({"object_mass": {"limits": [1.5, 2]}}, r"limits: \[1.5, 2\] excludes the nominal 1"),
        ({"object_mass": {"limits": [0, 2]}}, r"limits: \[0, 2\] goes beyond \[0.2, 4\]"),
        ({"action_latency": {"limits": [0, 60]}}, r"limits: \[0, 60\] goes beyond \[0, 3\]"),
        ({"object_mass": {"range": [2, 1]}}, r"object_mass.range: \[2, 1\] is upside down"),
        (
            {"object_mass": {"limits": [0.5, 2], "range": [1, 3]}},
            r"range: \[1, 3\] goes beyond the limits \[0.5, 2\]",
        ),
        ({"object_mass": {"step": -1}}, "greater than or equal to 0"),
        ({"object_mass": {"stepp": 1}}, "Extra inputs"),
        ("all", "valid dictionary"),
    ],
)
def test_bad_parameters_are_refused(parameters: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RandomizationConfig(curriculum="adr", parameters=parameters)


def test_an_empty_entry_means_the_catalogues_defaults() -> None:
    config = RandomizationConfig.model_validate(
        {"curriculum": "adr", "parameters": {"gravity": None, "object_mass": {"step": 0.5}}}
    )
    mass, gravity = config.ranges()  # catalogue order
    assert (mass.name, mass.step, mass.limit_high) == ("object_mass", 0.5, 4.0)
    assert (gravity.name, gravity.step, gravity.limit_high) == ("gravity", 0.01, 1.5)
    nominal = RandomizationConfig.model_validate({"parameters": {"gravity": {}}})
    assert Loop(nominal.make_curriculum(), 2).draw(np.arange(2)).tolist() == [[1.0], [1.0]]
