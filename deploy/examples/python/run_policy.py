"""Run a policy of widen with numpy and onnxruntime alone: python run_policy.py POLICY.onnx

Replays the file's golden vectors, prints the largest error and shows one control step. Exit code 1
when the error is above 1e-5 rad. docs/policy-contract.md explains what is read here.
"""

import json
import sys

import numpy as np
import onnxruntime as ort

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1  # more only bring late cycles
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
contract, golden = (json.loads(metadata[f"widen.{key}"]) for key in ("contract", "golden"))
assert contract["schema"] == "widen.policy/2", f"not made for {contract['schema']}"


def array(values, shape):
    return np.array(values, np.float32).reshape(shape)


def begin():
    """The state at the start of an episode, by the graph's inputs; the first axis is the batch."""
    return {s["input"]: array(s["initial"], (1, *s["shape"])) for s in contract["state"]}


def step(readings, state):
    """One control period: readings (1, ...) and state -> joint targets (nu,) [rad], next state."""
    outputs = [s["output"] for s in contract["state"]]
    values = dict(zip(outputs, session.run(outputs, {**readings, **state}), strict=True))
    return values["joint_target"][0], dict(zip(state, values.values(), strict=True))


recorded = {name: array(a["values"], a["shape"]) for name, a in golden["readings"].items()}
expected = golden["outputs"]["joint_target"]
state, errors = begin(), []
for t, answer in enumerate(array(expected["values"], expected["shape"])):
    target, state = step({name: values[t] for name, values in recorded.items()}, state)
    errors.append(np.abs(target - answer[0]).max())
print(f"largest error over {len(errors)} golden steps: {np.max(errors):.2g} rad")

# One control step, as a controller takes it every contract["control_period"] seconds. Its readings
# are measured, in the contract's order of joints; here they are the first of the golden ones.
target, state = step({name: values[0] for name, values in recorded.items()}, begin())
for name, low, high, angle in zip(
    contract["joints"], contract["lower"], contract["upper"], target, strict=True
):
    print(f"{name:10s} target {np.clip(angle, low, high):+.4f} rad")  # never beyond the limits
sys.exit(not np.max(errors) <= 1e-5)
