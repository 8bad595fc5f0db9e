"""From a trained policy to one ONNX file that needs nothing else.

The graph is traced from the objects that training itself uses, so that no controller has to
know a scale, a filter or an order: raw readings and the state of the last step go in, joint
targets [rad] and the next state come out.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import io
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
import yaml
from torch import Tensor, nn

from widen.envs.actions import ActionPipeline
from widen.envs.encoder import ObservationEncoder
from widen.envs.layout import OBJECT_POS, Reading
from widen.envs.objects import ObjectChoice
from widen.envs.scene import Scene
from widen.envs.task import task_class, with_settings

from .compare import difference, episode, initial_state, input_names, replay, sample_readings
from .contract import (
    CONTRACT_KEY,
    GOLDEN_KEY,
    JOINT_TARGET,
    TOLERANCE,
    Contract,
    Golden,
    MaxAge,
    Reach,
    StateTensor,
)
from .contract_schema import ages
from .source import source_sha256

SEQUENCES = 256  # compared with ONNX Runtime before a file is written
_CODE_SHA256 = source_sha256()  # as loaded: files may be edited while a training runs
_PACKAGES = ("widen", "mujoco", "torch", "numpy", "onnx", "onnxruntime")


class Policy(Protocol):
    """What an exportable policy offers; `train.policy.HandPolicy` does."""

    @property
    def state_widths(self) -> Mapping[str, int]:
        """Names and widths of what it carries from step to step; zeros in the beginning."""
        ...

    def advance(
        self, actor_obs: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Actor observation (N, n) and state -> action (N, nu) and the next state.

        A pure function of tensors.
        """
        ...


class PolicyGraph(nn.Module):
    """Encoder, deterministic policy and action pipeline as one module, on copies on the CPU."""

    def __init__(
        self,
        layout: tuple[Reading, ...],
        encoder: ObservationEncoder,
        actions: ActionPipeline,
        policy: Policy,
    ) -> None:
        """layout: the task's readings, in the order of the graph's inputs."""
        super().__init__()
        self.layout = layout
        self.encoder: ObservationEncoder = _frozen(encoder)
        self.actions: ActionPipeline = _frozen(actions)
        self.policy: Any = _frozen(policy)

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The state tensors, in the order of the graph's inputs."""
        home = self.actions.home.tolist()
        nu, past = len(home), self.encoder.history_width
        target = StateTensor(
            JOINT_TARGET, f"state_{JOINT_TARGET}", JOINT_TARGET, (nu,), tuple(home)
        )
        tensors = [target, _carried("last_action", nu, 0.0)]
        if past:  # a policy of one frame remembers none
            tensors += [_carried("past", past, 0.0), _carried("fresh", 1, 1.0)]
        tensors += [_carried(name, n, 0.0) for name, n in self.policy.state_widths.items()]
        return tuple(tensors)

    def forward(self, readings: list[Tensor], state: list[Tensor]) -> list[Tensor]:
        """One control step of N hands: the outputs of `state`, the joint target first.

        Args:
            readings: (N, ...) each, in the order of the layout.
            state: (N, ...) each, in the order of `state`.
        """
        named = {reading.name: value for reading, value in zip(self.layout, readings, strict=True)}
        target, last_action, *carried = state
        cut = 2 if self.encoder.history_width else 0
        frames, memory = carried[:cut], tuple(carried[cut:])
        past, fresh = frames or (target[:, :0], target[:, :1])
        observation, past = self.encoder(named, target, last_action, past, fresh)
        mean, memory = self.policy.advance(observation, memory)
        action = mean.clamp(-1.0, 1.0)
        if frames:
            frames = [past, torch.zeros_like(fresh)]
        new = self.actions(action, target, named["joint_pos"])
        return [new, action, *frames, *memory]


@dataclass(frozen=True)
class ExportReport:
    """What an export did: largest difference [rad] to ONNX Runtime, file size, seconds."""

    path: Path
    max_error: float
    size_bytes: int
    seconds: float


def describe(
    scene: Scene,
    task: str,
    graph: PolicyGraph,
    *,
    hand: str,
    object_name: ObjectChoice,
    control_period: float,
    settings: Mapping[str, float] | None = None,
    **of_training: Any,
) -> Contract:
    """The contract of a policy.

    Args:
        scene: in which it was trained, for names, limits and gains.
        task: name of the task.
        graph: what will be exported.
        hand: as in the config, so that `load_hand` finds it again.
        object_name: as in the config or the task's own.
        control_period: [s].
        settings: of the task that differ from its own.
        of_training: the contract's fields randomization, npd, exam and training.
    """
    kind, joints, model = task_class(task), tuple(scene.hand.joints), scene.model
    lower, upper = _floats(scene.lower), _floats(scene.upper)
    chosen, age = with_settings(kind, settings), MaxAge(**ages(control_period))
    target = {"name": JOINT_TARGET, "shape": [len(joints)], "unit": "rad", "frame": "joint"}
    return Contract(
        task=task,
        hand=hand,
        object=object_name or kind.object,
        joints=joints,
        lower=lower,
        upper=upper,
        home=_floats(scene.hand.home),
        kp=_floats(model.actuator_gainprm[:, 0]),
        kv=_floats(-model.actuator_biasprm[:, 2]),
        force_limit=_floats(_force_limits(scene)),
        max_target_speed=graph.actions.largest_move / control_period,
        control_period=control_period,
        readings=graph.layout,
        max_age={r.name: age for r in graph.layout if r.source != "goal"},
        outputs=({**target, "joints": joints, "lower": lower, "upper": upper},),
        state=graph.state,
        goal=kind.goal_rule(scene, chosen),
        reach=_reach(scene, graph.layout, chosen),
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
        **of_training,
    )


def export_policy(
    graph: PolicyGraph, contract: Contract, path: str | Path, seed: int = 0
) -> ExportReport:
    """Write one self-contained ONNX file, or nothing.

    The file appears under its name only when ONNX Runtime has answered SEQUENCES random
    sequences and the golden vectors as torch does; an earlier file stays until then. Neither
    torch's random state nor the modules that the graph was made of are touched.

    Args:
        graph: what to write.
        contract: of this graph.
        path: file to write.
        seed: of the readings that are compared.

    Raises:
        ValueError: ONNX Runtime differs by more than TOLERANCE, the contract does not fit its
            JSON Schema or itself, or the path cannot be written.
    """
    began, path = time.perf_counter(), Path(path)
    rng, text = np.random.default_rng(seed), contract.to_json()
    contract = Contract.from_metadata({CONTRACT_KEY: text})  # as a robot will read it
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        readings = sample_readings(contract, rng, SEQUENCES)
        first = {name: values[:, :1] for name, values in sample_readings(contract, rng, 1).items()}
        golden = Golden(first, _answers(graph, contract, first))
        model = _to_onnx(graph, contract)
        for key, value in ((CONTRACT_KEY, text), (GOLDEN_KEY, golden.to_json())):
            model.metadata_props.add(key=key, value=value)
        content = model.SerializeToString()
        error = max(
            difference(replay(content, contract, inputs), outputs)
            for inputs, outputs in (
                (readings, _answers(graph, contract, readings)),
                (golden.readings, golden.outputs),
            )
        )
    if not error <= TOLERANCE:
        raise ValueError(
            f"{path}: not written: ONNX Runtime and torch differ by {error:.2g} rad,"
            f" expected at most {TOLERANCE:g}"
        )
    _write(path, content)
    return ExportReport(path, error, len(content), time.perf_counter() - began)


def export_runner(
    runner: Any, path: str | Path, exam: dict[str, Any] | None = None
) -> ExportReport:
    """Export what a `train.runner.Runner` or a `train.trained.Trained` holds in memory.

    A training may go on afterwards.

    Args:
        runner: what to export.
        path: file to write.
        exam: what an examination of this very policy found.

    Raises:
        ValueError: as `export_policy`.
    """
    env, config = runner.env, runner.config
    layout = task_class(config.task).layout(env.scene)
    graph = PolicyGraph(layout, env.encoder, env.actions, runner.policy)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    contract = describe(
        env.scene,
        config.task,
        graph,
        hand=config.hand,
        object_name=config.object,
        control_period=env.control_dt,
        settings=config.trial_env.task,
        randomization=runner.randomizer.table(),
        npd=runner.randomizer.npd(),
        exam=exam,
        training={
            "steps": runner.steps,
            "seed": config.seed,
            "config": text,
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "code_sha256": _CODE_SHA256,
        },
    )
    return export_policy(graph, contract, path)


def _reach(
    scene: Scene, layout: tuple[Reading, ...], settings: Mapping[str, float]
) -> Reach | None:
    """As the tasks with an object judge a drop: by its distance from the nest."""
    radius = settings.get("drop_distance")
    if radius is None or OBJECT_POS not in layout:
        return None
    x, y, z = map(float, scene.hand.nest)
    return Reach(OBJECT_POS.name, (x, y, z), float(radius))


def _carried(name: str, width: int, value: float) -> StateTensor:
    return StateTensor(name, f"state_{name}", f"next_{name}", (width,), (value,) * width)


def _frozen(module: Any) -> Any:
    """A copy on the CPU that needs no gradients, so that nothing done to it reaches training."""
    return copy.deepcopy(module).cpu().eval().requires_grad_(False)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(np.asarray(values, np.float64).tolist())


def _force_limits(scene: Scene) -> np.ndarray:
    """Largest torque (nu,) [N m] that model and actuator allow a joint; inf without a limit."""
    model = scene.model
    joints = model.dof_jntid[scene.joint_dof]
    limits = np.full(model.nu, np.inf)
    for limited, ranges in (
        (model.actuator_forcelimited, model.actuator_forcerange),
        (model.jnt_actfrclimited[joints], model.jnt_actfrcrange[joints]),
    ):
        limits = np.where(limited, np.minimum(limits, np.abs(ranges).min(1)), limits)
    return limits


def _answers(
    graph: PolicyGraph, contract: Contract, readings: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`episode` by torch."""

    def step(inputs: list[np.ndarray], state: list[np.ndarray]) -> list[np.ndarray]:
        outputs = graph([torch.from_numpy(x) for x in inputs], [torch.from_numpy(x) for x in state])
        return [tensor.numpy() for tensor in outputs]

    return episode(step, contract, readings)


def _to_onnx(graph: PolicyGraph, contract: Contract) -> onnx.ModelProto:
    # two rows, because a batch of one would be taken for a constant
    readings = [torch.zeros(2, *r.shape) for r in contract.readings]
    state = [torch.from_numpy(a) for a in initial_state(contract, 2)]
    batch = torch.export.Dim("N", min=1)
    rows = ([{0: batch} for _ in readings], [{0: batch} for _ in state])
    with _silence():
        program = torch.onnx.export(
            graph,
            (readings, state),
            input_names=input_names(contract),
            output_names=[s.output for s in contract.state],
            dynamic_shapes=rows,
            dynamo=True,
        )
    assert program is not None  # it is None only for the old exporter
    model = program.model_proto
    # the exporter notes the source lines of every node, with paths of this machine
    for item in (*model.graph.node, *model.graph.value_info, model.graph):
        item.ClearField("metadata_props")
    model.producer_name, model.producer_version = "widen", importlib.metadata.version("widen")
    return model


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's progress lines and its warnings about other people's libraries."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _write(path: Path, content: bytes) -> None:
    """Put the file in place whole, or leave what was there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from None
