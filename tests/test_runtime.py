"""A policy from its file: equal to ONNX Runtime's plain interface, and nobody's array is reused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from widen.deploy.compare import sample_readings
from widen.deploy.contract import CONTRACT_KEY
from widen.deploy.runtime import OnnxPolicy
from widen.train.cli_subject import policies_folder

FILES = sorted(policies_folder().glob("*.onnx"))
CUBE = policies_folder() / "cube_rotate.onnx"
Readings = dict[str, np.ndarray]

each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def some_readings(policy: OnnxPolicy, count: int = 1, seed: int = 0) -> list[Readings]:
    drawn = sample_readings(policy.contract, np.random.default_rng(seed), count)
    return [{name: values[t] for name, values in drawn.items()} for t in range(8)]


def plain_answers(path: Path, steps: list[Readings]) -> list[dict[str, np.ndarray]]:
    """The state after each step, by `InferenceSession.run` with new arrays each time."""
    session = ort.InferenceSession(path)
    contract = json.loads(session.get_modelmeta().custom_metadata_map[CONTRACT_KEY])
    count = len(next(iter(steps[0].values())))
    state = {
        s["name"]: np.array(s["initial"] * count, np.float32).reshape(count, *s["shape"])
        for s in contract["state"]
    }
    outputs, answers = [s["output"] for s in contract["state"]], []
    for readings in steps:
        feeds = readings | {s["input"]: state[s["name"]] for s in contract["state"]}
        state = dict(zip(state, map(np.asarray, session.run(outputs, feeds)), strict=True))
        answers.append(state)
    return answers


@each
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_step_is_that_of_the_plain_interface(path: Path, count: int) -> None:
    policy = OnnxPolicy(path)
    policy.reset(count)
    steps = some_readings(policy, count)
    given, states = [], []
    for readings in steps:
        given.append(policy(readings))
        states.append(policy.state)
    # compared at the end: what was handed out has not changed since
    for answer, state, expected in zip(given, states, plain_answers(path, steps), strict=True):
        np.testing.assert_array_equal(answer, expected["joint_target"])
        assert (answer.dtype, state.keys()) == (np.float32, expected.keys())
        for name, values in expected.items():
            np.testing.assert_array_equal(state[name], values)


@each
def test_readings_are_read_and_not_kept(path: Path) -> None:
    """float64, strided and read-only arrays do, and what is done to them later is no matter."""
    policy, other = OnnxPolicy(path), OnnxPolicy(path)
    for readings in some_readings(policy):
        odd = {}
        for name, values in readings.items():
            wide = np.zeros((*values.shape, 2))
            wide[..., 0] = values
            odd[name] = wide[..., 0]
            odd[name].flags.writeable = False
        np.testing.assert_array_equal(policy(readings), other(odd))
        for values in readings.values():
            values[...] = np.nan


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_done_to_an_answer_changes_nothing(count: int) -> None:
    policy, other = OnnxPolicy(CUBE), OnnxPolicy(CUBE)
    policy.reset(count)
    other.reset(count)
    for readings in some_readings(policy, count):
        answer = policy(readings)
        np.testing.assert_array_equal(answer, other(readings))
        if count == 1:  # of many, the answer is the state of the next call
            answer[:] = np.nan
        policy.state.clear()


def test_one_robot_after_many_and_many_after_one() -> None:
    policy = OnnxPolicy(CUBE)
    alone, two = some_readings(policy, 1), some_readings(policy, 2)
    expected = [x["joint_target"] for x in plain_answers(CUBE, alone)]
    both = [x["joint_target"] for x in plain_answers(CUBE, two)]
    for _ in range(2):
        policy.reset(2)
        for readings, answer in zip(two, both, strict=True):
            np.testing.assert_array_equal(policy(readings), answer)
        policy.reset()
        for readings, answer in zip(alone, expected, strict=True):
            np.testing.assert_array_equal(policy(readings), answer)
    policy.restart(np.array([0]))
    np.testing.assert_array_equal(policy(alone[0]), expected[0])


@pytest.mark.parametrize("count", [1, 3])
def test_verify_and_overrule_leave_the_rest_of_the_state(count: int) -> None:
    policy = OnnxPolicy(CUBE)
    policy.reset(count)
    for readings in some_readings(policy, count)[:3]:
        policy(readings)
    before = policy.state
    assert policy.verify() <= 1e-5
    after = policy.state
    assert all((before[name] == values).all() for name, values in after.items())
    target = before["joint_target"] + 0.25
    policy.overrule(target.astype(np.float64))
    np.testing.assert_array_equal(policy.state.pop("joint_target"), target)
    for name, values in policy.state.items():
        assert name == "joint_target" or (values == before[name]).all()
    with pytest.raises(ValueError, match=rf"joint target: expected \({count}, 16\), got \(16,\)"):
        policy.overrule(target[0])


@pytest.mark.parametrize("count", [1, 3])
def test_a_refused_reading_leaves_the_state(count: int) -> None:
    policy = OnnxPolicy(CUBE)
    policy.reset(count)
    first, second = some_readings(policy, count)[:2]
    policy(first)
    before = policy.state
    for wrong in (
        {**second, "goal_quat": second["goal_quat"][0]},
        {**second, "joint_pos": second["joint_pos"].astype(int)},
        {**second, "wrench": second["joint_pos"]},
        {name: values for name, values in second.items() if name != "object_pos"},
    ):
        with pytest.raises(ValueError, match=r"^reading '(goal_quat|joint_pos|wrench|object_pos)'"):
            policy(wrong)
    after = policy.state
    assert all((before[name] == values).all() for name, values in after.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["readings"][3].update(shape=[3]),
            r"the shape of goal_quat: \(3,\) and \(4,\)",
        ),
        (lambda d: d["state"][1].update(shape=[8, 2]), r"the shape of state_last_action: \(8, 2\)"),
        (
            lambda d: d["state"][0].update(output="next_last_action"),
            "the first state tensor is not",
        ),
        (lambda d: d["state"][1].update(output="other"), "the graph has no output 'other'"),
    ],
)
def test_a_contract_of_another_graph_is_refused(tmp_path: Path, change, message: str) -> None:
    model = onnx.load(CUBE)
    (entry,) = (p for p in model.metadata_props if p.key == CONTRACT_KEY)
    data = json.loads(entry.value)
    change(data)
    entry.value = json.dumps(data)
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(ValueError, match=rf"bad.onnx: .*{message}"):
        OnnxPolicy(tmp_path / "bad.onnx")
