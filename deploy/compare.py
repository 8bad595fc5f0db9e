"""Random episodes of readings, and what ONNX Runtime makes of them: the judge of an export."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort

from .contract import JOINT_TARGET, Contract

STEPS = 8  # control steps of an episode
Step = Callable[[list[np.ndarray], list[np.ndarray]], list[np.ndarray]]
"""One control step: readings and state (N, ...) in the contract's order -> the next state."""


def sample_readings(
    contract: Contract, rng: np.random.Generator, count: int
) -> dict[str, np.ndarray]:
    """Readings (STEPS, count, ...) float32 such as a robot may give, which drift from step to step.

    Joints wander about home, positions about the palm, rotations turn about its axis; a goal
    with listed values is one of them.
    """
    listed = {contract.goal.get("reading"): contract.goal.get("values")}
    drawn: dict[str, np.ndarray] = {}
    for reading in contract.readings:
        start = rng.standard_normal((1, count, *reading.shape))
        drift = 0.05 * rng.standard_normal((STEPS, count, *reading.shape)).cumsum(0)
        if (values := listed.get(reading.name)) is not None:
            value = np.array(values)[rng.integers(len(values), size=(STEPS, count))]
        elif reading.frame == "joint" and reading.unit == "rad":
            wander = contract.home + 0.2 * start + drift
            value = np.clip(wander, contract.lower, contract.upper)
        elif reading.shape == (4,) and reading.unit == "1":
            # any turn about the palm's axis, tilted a little; normalised
            value = (start + drift) * (1.0, 0.1, 0.1, 1.0)
            value /= np.linalg.norm(value, axis=-1, keepdims=True)
        else:
            value = 0.05 * (start + drift)
        drawn[reading.name] = value.astype(np.float32)
    return drawn


def initial_state(contract: Contract, count: int) -> list[np.ndarray]:
    """The state at the beginning of `count` episodes."""
    first = [np.array(s.initial, np.float32).reshape(1, *s.shape) for s in contract.state]
    return [values.repeat(count, 0) for values in first]


def replay(
    content: bytes, contract: Contract, readings: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`episode` by ONNX Runtime, from the bytes alone: external data would be missing here."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    inputs, outputs = input_names(contract), [s.output for s in contract.state]

    def step(values: list[np.ndarray], state: list[np.ndarray]) -> list[np.ndarray]:
        answers = session.run(outputs, dict(zip(inputs, values + state, strict=True)))
        return [np.asarray(answer) for answer in answers]

    return episode(step, contract, readings)


def episode(
    step: Step, contract: Contract, readings: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Readings (T, N, ...) -> every output (T, N, ...) by name, the state carried from step to step."""
    steps, count = next(iter(readings.values())).shape[:2]
    state, outputs = initial_state(contract, count), []
    for t in range(steps):
        state = step([readings[r.name][t] for r in contract.readings], state)
        outputs.append(state)
    names = [s.output for s in contract.state]
    return {name: np.stack([row[i] for row in outputs]) for i, name in enumerate(names)}


def input_names(contract: Contract) -> list[str]:
    """The graph's inputs in order: readings, then state."""
    return [r.name for r in contract.readings] + [s.input for s in contract.state]


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest difference of joint targets [rad]; infinite where a number is not finite.

    A wrong state shows in the targets of later steps, in the unit that matters.
    """
    worst = float(np.abs(found[JOINT_TARGET] - expected[JOINT_TARGET]).max())
    return worst if np.isfinite(worst) else np.inf
