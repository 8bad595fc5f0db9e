"""A policy from its ONNX file alone: numpy and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from .contract import JOINT_TARGET, Contract, Golden


class OnnxPolicy:
    """Raw readings in, joint targets [rad] out; the state from step to step is kept here.

    One robot's arrays are allocated once and bound to the graph; many robots' are new in each
    call. What a call returned, and what `state` gave, is the caller's either way.

    Attributes:
        contract: from the file.
        golden: from the file.
    """

    def __init__(self, path: str | Path) -> None:
        """Load a file and make it ready for one robot.

        Raises:
            ValueError: no such file, not an ONNX file, or not one that `widen export` wrote.
        """
        self.path = Path(path)
        self._session = _open(self.path)
        metadata = self._session.get_modelmeta().custom_metadata_map
        try:
            self.contract = Contract.from_metadata(metadata)
            self.golden = Golden.from_metadata(metadata)
            self._check_graph()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        self._outputs = _output_names(self.contract)
        self._names = {reading.name for reading in self.contract.readings}
        self._initial = {
            s.name: np.array(s.initial, np.float32).reshape(1, *s.shape)
            for s in self.contract.state
        }
        self._one = _OneRobot(self._session, self.contract)
        self._many: dict[str, np.ndarray] | None = None  # None while there is one robot
        self.reset()

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Name of a state tensor -> (N, ...) float32, as the next call will use it.

        "last_action" is what the policy did last, before scales and limits. Later calls leave the
        arrays as they are; do not write to them.
        """
        if self._many is not None:
            return dict(self._many)
        return {name: values.copy() for name, values in self._one.state.items()}

    def reset(self, n: int = 1) -> None:
        """Begin new episodes for n robots: the hand at home, no past, no last action."""
        self._put({name: np.repeat(first, n, 0) for name, first in self._initial.items()})

    def restart(self, rows: np.ndarray) -> None:
        """Begin a new episode for some robots only; rows (K,) are their numbers."""
        state = {name: values.copy() for name, values in self.state.items()}
        for name, first in self._initial.items():
            state[name][rows] = first
        self._put(state)

    def overrule(self, joint_target: np.ndarray) -> None:
        """Tell the policy that (N, nu) [rad] was commanded instead of its own last answer.

        Raises:
            ValueError: the target has another shape.
        """
        target = np.array(joint_target, np.float32)
        state = self._one.state if self._many is None else self._many
        if target.shape != state[JOINT_TARGET].shape:
            raise ValueError(
                f"joint target: expected {state[JOINT_TARGET].shape}, got {target.shape}"
            )
        if self._many is None:
            self._one.state[JOINT_TARGET][...] = target
        else:
            self._many[JOINT_TARGET] = target

    def __call__(self, readings: dict[str, np.ndarray]) -> np.ndarray:
        """One control step.

        Args:
            readings: name -> (N, ...) float32 or float64, the readings of the contract.

        Returns:
            Joint targets (N, nu) [rad], float32, in the contract's order of joints.

        Raises:
            ValueError: a reading is missing, unknown, or of the wrong shape or kind.
        """
        if readings.keys() != self._names:
            self._refuse_names(readings)
        if self._many is None:
            return self._one.step(self._checked(readings, 1))
        count = len(self._many[JOINT_TARGET])
        feeds = {
            name: np.ascontiguousarray(value, np.float32)
            for name, value in self._checked(readings, count).items()
        }
        for tensor in self.contract.state:
            feeds[tensor.input] = self._many[tensor.name]
        answers = map(np.asarray, self._session.run(self._outputs, feeds))
        values = dict(zip(self._outputs, answers, strict=True))
        self._many = {s.name: values[s.output] for s in self.contract.state}
        return values[JOINT_TARGET]

    def verify(self) -> float:
        """Replay the golden vectors: the largest difference of joint targets [rad].

        The state is carried along, so that an error in it shows in the targets. Infinite where a
        number is not finite. The policy's own state is as before afterwards.
        """
        kept, worst = self.state, 0.0
        self.reset()
        try:
            for t, expected in enumerate(self.golden.outputs[JOINT_TARGET]):
                target = self({name: values[t] for name, values in self.golden.readings.items()})
                error = float(np.abs(target - expected).max())
                worst = max(worst, error if np.isfinite(error) else np.inf)
        finally:
            self._put(kept)
        return worst

    def _put(self, state: dict[str, np.ndarray]) -> None:
        """Go on from this state, which nobody else writes to."""
        if len(state[JOINT_TARGET]) == 1:
            self._many = None
            for name, values in self._one.state.items():
                values[...] = state[name]
        else:
            self._many = state

    def _refuse_names(self, readings: dict[str, np.ndarray]) -> None:
        expected = [reading.name for reading in self.contract.readings]
        if missing := [name for name in expected if name not in readings]:
            raise ValueError(f"reading {missing[0]!r} is missing; got {', '.join(readings) or '-'}")
        unknown = [name for name in readings if name not in expected]
        raise ValueError(f"reading {unknown[0]!r} is unknown; expected {', '.join(expected)}")

    def _checked(self, readings: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        """The readings as arrays, or a ValueError that names the first wrong one."""
        arrays: dict[str, np.ndarray] = {}
        for reading in self.contract.readings:
            value = np.asarray(readings[reading.name])
            if value.shape != (count, *reading.shape):
                raise ValueError(
                    f"reading {reading.name!r}: expected {(count, *reading.shape)},"
                    f" got {value.shape}"
                )
            if value.dtype.kind != "f":
                raise ValueError(
                    f"reading {reading.name!r}: expected float32 in {reading.unit},"
                    f" got {value.dtype}"
                )
            arrays[reading.name] = value
        return arrays

    def _check_graph(self) -> None:
        """The contract must speak of this graph, and the golden vectors of this contract."""
        inputs = {node.name: node for node in self._session.get_inputs()}
        outputs = {node.name: node for node in self._session.get_outputs()}
        readings = {r.name: r.shape for r in self.contract.readings}
        into = readings | {s.input: s.shape for s in self.contract.state}
        out = {s.output: s.shape for s in self.contract.state}
        if into.keys() != inputs.keys():
            odd = sorted(into.keys() ^ inputs.keys())
            raise ValueError(f"contract and graph disagree about the inputs {', '.join(odd)}")
        if lacking := [o for o in _output_names(self.contract) if o not in outputs]:
            raise ValueError(f"the graph has no output {lacking[0]!r}, which the contract names")
        for nodes, shapes in ((inputs, into), (outputs, out)):
            for name, shape in shapes.items():
                if nodes[name].type != "tensor(float)":
                    raise ValueError(f"the graph's {name} is not float32: {nodes[name].type}")
                if tuple(nodes[name].shape[1:]) != shape:
                    raise ValueError(
                        f"contract and graph disagree about the shape of {name}: {shape} and"
                        f" {tuple(nodes[name].shape[1:])}"
                    )
        shapes = readings | out
        golden = {**self.golden.readings, **self.golden.outputs}
        steps = len(golden.get(JOINT_TARGET, ()))
        if not steps or {n: a.shape for n, a in golden.items()} != {
            name: (steps, 1, *shape) for name, shape in shapes.items()
        }:
            raise ValueError("golden vectors are not of this contract's readings and outputs")


class _OneRobot:
    """The graph bound to arrays of one robot, so that a step allocates next to nothing.

    There are two sets of state arrays, and two bindings between which the steps alternate: one
    reads the first set and writes the second, the other the reverse.
    """

    def __init__(self, session: ort.InferenceSession, contract: Contract) -> None:
        self._session, self._turn = session, 0
        self._readings = {r.name: np.zeros((1, *r.shape), np.float32) for r in contract.readings}
        self._states = [
            {s.name: np.zeros((1, *s.shape), np.float32) for s in contract.state} for _ in range(2)
        ]
        self._bindings = [
            self._bind(contract, *self._states),
            self._bind(contract, *self._states[::-1]),
        ]

    @property
    def state(self) -> dict[str, np.ndarray]:
        """The arrays that the next step reads; they change with every step."""
        return self._states[self._turn]

    def step(self, readings: dict[str, np.ndarray]) -> np.ndarray:
        """Joint targets (1, nu) [rad], a new array, from readings (1, ...) of any float."""
        for name, values in self._readings.items():
            values[...] = readings[name]
        self._session.run_with_iobinding(self._bindings[self._turn])
        self._turn = 1 - self._turn
        return self.state[JOINT_TARGET].copy()

    def _bind(
        self, contract: Contract, now: dict[str, np.ndarray], then: dict[str, np.ndarray]
    ) -> ort.IOBinding:
        binding = self._session.io_binding()
        inputs = self._readings | {s.input: now[s.name] for s in contract.state}
        outputs = {s.output: then[s.name] for s in contract.state}
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, values in arrays.items():
                # by address: the arrays belong to this object, which outlives the binding
                bind(name, "cpu", 0, np.float32, values.shape, values.ctypes.data)
        return binding


def _open(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # one robot's network is far too small to share; a second thread only brings late cycles
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        # from memory: a file that keeps its weights elsewhere is refused
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"{path}: cannot be read: {reason}; expected a policy .onnx") from None
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common public base
        raise ValueError(
            f"{path}: not a self-contained ONNX file: {' '.join(str(error).split())[:200]}"
        ) from None


def _output_names(contract: Contract) -> list[str]:
    """The graph's outputs, each once: the joint target is also a state."""
    names = [output["name"] for output in contract.outputs] + [s.output for s in contract.state]
    return list(dict.fromkeys(names))
