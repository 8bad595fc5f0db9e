"""Every physics parameter against a model that was compiled with its value."""

from __future__ import annotations

import numpy as np
import pytest
from dragged_box import (
    DRAWN,
    MODEL_PARAMETERS,
    VALUES,
    WORLDS,
    as_drawn,
    compare,
    finger,
    finger_ctrl,
    finger_scene,
    randomized,
    reference,
)


@pytest.mark.parametrize("name", MODEL_PARAMETERS)
def test_a_finger_and_a_box(name: str) -> None:
    """Also published fault 8, values of the last episode scaled again: the third one counts."""
    world = WORLDS.get(name, {})
    nominal, value = finger({}, **world), VALUES[name]
    start, ctrl = nominal.qpos0.copy(), finger_ctrl()
    found, untouched, row = randomized(finger_scene(nominal), {name: value}, start, ctrl)
    if name in DRAWN:
        compiled = finger({}, **world | as_drawn(name, row))
    else:
        compiled = finger({name: value}, **world)
    expected, ordinary = reference(compiled, start, ctrl), reference(nominal, start, ctrl)
    assert np.abs(expected - ordinary).max() > 0.1  # the parameter matters here
    np.testing.assert_array_equal(untouched, ordinary)
    compare(name, found, expected)


def test_force_limits_of_joints_are_scaled_as_well() -> None:
    nominal, values = finger({}, limit_on="joint"), {"force_limit": 0.5}
    start, ctrl = nominal.qpos0.copy(), finger_ctrl()
    found, untouched, _ = randomized(finger_scene(nominal), values, start, ctrl)
    compiled = finger(values, limit_on="joint")
    np.testing.assert_array_equal(untouched, reference(nominal, start, ctrl))
    np.testing.assert_array_equal(found, reference(compiled, start, ctrl))
    assert np.abs(found - untouched).max() > 0.1


def test_parameters_that_share_fields_combine() -> None:
    nominal = finger({}, dims=6)
    start, ctrl = nominal.qpos0.copy(), finger_ctrl()
    values = {name: value for name, value in VALUES.items() if name not in DRAWN}
    found, _, _ = randomized(finger_scene(nominal), values, start, ctrl)
    expected = reference(finger(values, dims=6), start, ctrl)  # rounded as ROUNDED says
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
