"""A policy from its ONNX file alone: numpy and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from .contract import JOINT_TARGET, Contract, Golden


class OnnxPolicy:
    """Raw readings in, joint targets [rad] out; the state from step to step is kept here.

    Attributes:
        contract: from the file.
        golden: from the file.
        state: name of a state tensor -> (N, ...) float32, as the next call will use it;
            "last_action" is what the policy did last, before scales and limits.
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
        self._initial = {
            s.name: np.array(s.initial, np.float32).reshape(1, *s.shape)
            for s in self.contract.state
        }
        self.state: dict[str, np.ndarray] = {}
        self.reset()

    def reset(self, n: int = 1) -> None:
        """Begin new episodes for n robots: the hand at home, no past, no last action."""
        self.state = {name: np.repeat(first, n, 0) for name, first in self._initial.items()}

    def restart(self, rows: np.ndarray) -> None:
        """Begin a new episode for some robots only; rows (K,) are their numbers."""
        for name, first in self._initial.items():
            # what a call returned may still be in the caller's hands: write to a copy
            self.state[name] = self.state[name].copy()
            self.state[name][rows] = first

    def overrule(self, joint_target: np.ndarray) -> None:
        """Tell the policy that (N, nu) [rad] was commanded instead of its own last answer."""
        self.state[JOINT_TARGET] = np.array(joint_target, np.float32)

    def __call__(self, readings: dict[str, np.ndarray]) -> np.ndarray:
        """One control step.

        Args:
            readings: name -> (N, ...) float32 or float64, the readings of the contract.

        Returns:
            Joint targets (N, nu) [rad], float32, in the contract's order of joints.

        Raises:
            ValueError: a reading is missing, unknown, or of the wrong shape or kind.
        """
        feeds = self._check_readings(readings)
        for tensor in self.contract.state:
            feeds[tensor.input] = self.state[tensor.name]
        answers = map(np.asarray, self._session.run(self._outputs, feeds))
        values = dict(zip(self._outputs, answers, strict=True))
        for tensor in self.contract.state:
            self.state[tensor.name] = values[tensor.output]
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
            self.state = kept
        return worst

    def _check_readings(self, readings: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The readings as float32 arrays, or a ValueError that names the first wrong one."""
        expected = [reading.name for reading in self.contract.readings]
        if missing := [name for name in expected if name not in readings]:
            raise ValueError(f"reading {missing[0]!r} is missing; got {', '.join(readings) or '-'}")
        if unknown := [name for name in readings if name not in expected]:
            raise ValueError(f"reading {unknown[0]!r} is unknown; expected {', '.join(expected)}")
        count = len(self.state[JOINT_TARGET])
        feeds: dict[str, np.ndarray] = {}
        for reading in self.contract.readings:
            value = np.asarray(readings[reading.name])
            shape = (count, *reading.shape)
            if value.shape != shape:
                raise ValueError(f"reading {reading.name!r}: expected {shape}, got {value.shape}")
            if value.dtype.kind != "f":
                raise ValueError(
                    f"reading {reading.name!r}: expected float32 in {reading.unit},"
                    f" got {value.dtype}"
                )
            feeds[reading.name] = np.ascontiguousarray(value, np.float32)
        return feeds

    def _check_graph(self) -> None:
        """The contract must speak of this graph, and the golden vectors of this contract."""
        inputs = {node.name for node in self._session.get_inputs()}
        outputs = {node.name for node in self._session.get_outputs()}
        described = {r.name for r in self.contract.readings} | {
            s.input for s in self.contract.state
        }
        if described != inputs:
            odd = sorted(described ^ inputs)
            raise ValueError(f"contract and graph disagree about the inputs {', '.join(odd)}")
        if lacking := [o for o in _output_names(self.contract) if o not in outputs]:
            raise ValueError(f"the graph has no output {lacking[0]!r}, which the contract names")
        if JOINT_TARGET not in {s.name for s in self.contract.state}:
            raise ValueError(f"contract: no state tensor {JOINT_TARGET!r}")
        shapes = {r.name: r.shape for r in self.contract.readings}
        shapes |= {s.output: s.shape for s in self.contract.state}
        golden = {**self.golden.readings, **self.golden.outputs}
        steps = len(golden.get(JOINT_TARGET, ()))
        if not steps or {n: a.shape for n, a in golden.items()} != {
            name: (steps, 1, *shape) for name, shape in shapes.items()
        }:
            raise ValueError("golden vectors are not of this contract's readings and outputs")


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
