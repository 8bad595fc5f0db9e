"""A run or an exported policy, ready to be tried; and the robot for one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from widen.deploy.contract import Contract
    from widen.deploy.runtime import OnnxPolicy
    from widen.deploy.sim_robot import SimRobot
    from widen.envs.batched import BatchedEnv
    from widen.envs.objects import ObjectChoice
    from widen.envs.perturbation import Perturbation
    from widen.envs.scene import Scene
    from widen.envs.sim import SimConfig

    from .candidate import Candidate
    from .config import RunConfig
    from .evaluate import Step, Trial


def open_trial(path: Path, episodes: int, randomization: str, backend: str | None = None) -> Trial:
    """The environments for a policy's evaluation, and its control step in them.

    Both kinds of policy meet the same episodes.

    Args:
        path: a run folder, or an exported policy.
        episodes: that will be counted; there are not more environments.
        randomization: "none", "current", the ranges that the policy was last trained on, or
            "exam", the held-out world of `widen exam`.
        backend: what simulates; None for the run's own, or what there is.

    Raises:
        ValueError: as `open_candidate`.
    """
    from .evaluate import MOST_ENVS

    candidate, num_envs = open_candidate(path, backend), min(episodes, MOST_ENVS)
    tell_of_missing(candidate.object, num_envs)
    return candidate.open(_perturbation(candidate, randomization), num_envs)


def tell_of_missing(choice: ObjectChoice, num_envs: int) -> None:
    """A line for the user if so few environments do not hold every object of a policy."""
    if isinstance(choice, list) and len(choice) > num_envs:
        met = f"the first {num_envs} are" if num_envs > 1 else "the first is"
        print(f"of the policy's {len(choice)} objects only {met} here", file=sys.stderr)


def _perturbation(candidate: Candidate, randomization: str) -> Perturbation | None:
    from widen.randomization.manual import held_out
    from widen.randomization.randomizer import Randomizer
    from widen.randomization.scripted import Scripted

    from .evaluate import SEED, ranges_config

    if randomization == "exam":
        return Scripted([held_out(candidate.has_object)], SEED)
    if randomization == "current" and candidate.ranges:
        return Randomizer(ranges_config(candidate.ranges), SEED)
    return None


def open_candidate(path: Path, backend: str | None = None, name: str | None = None) -> Candidate:
    """The policy of a run, its newest, or of a file.

    Args:
        path: a run folder, or an exported policy.
        backend: what simulates; None for the run's own, or what there is.
        name: what results call it; None for its path.

    Raises:
        ValueError: there is no run or policy at `path`, or it is damaged; the backend is not to
            be had.
    """
    import torch

    torch.set_num_threads(1)  # networks of this size lose more than they win by a second one
    if path.is_file() or path.suffix == ".onnx":
        from widen.deploy.runtime import OnnxPolicy

        return _of_file(OnnxPolicy(path), backend, name or str(path))
    from .candidate import of_run
    from .run_folder import RunFolder
    from .trained import Trained

    trained = Trained.restore(RunFolder.open(path))
    return of_run(trained, name or str(path), _trial_sim(trained.config.sim, backend))


def _trial_sim(sim: SimConfig, backend: str | None) -> SimConfig:
    """The run's settings on this machine, which need not be the one that trained it.

    Raises:
        ValueError: the backend that is asked for does not exist or is not installed.
    """
    import torch

    if backend is not None:
        if backend not in ("auto", "cpu", "warp"):
            raise ValueError(f"--backend {backend}: expected auto, cpu or warp")
        return sim.model_copy(update={"backend": backend})
    if sim.backend == "warp" and not torch.cuda.is_available():
        print("trained on warp; there is no GPU here, so cpu simulates", file=sys.stderr)
        return sim.model_copy(update={"backend": "cpu"})
    return sim


def _of_file(policy: OnnxPolicy, backend: str | None, name: str) -> Candidate:
    from .candidate import Candidate

    contract, config = policy.contract, _training_config(policy)
    return Candidate(
        name,
        _digest(policy),
        contract.task,
        contract.hand,
        contract.object,
        config.trial_env.model_copy(update={"control_hz": 1.0 / contract.control_period}),
        _trial_sim(config.sim, backend),
        contract.randomization,
        lambda env: _onnx_step(policy, env),
    )


def _onnx_step(policy: OnnxPolicy, env: BatchedEnv) -> Step:
    """The control step of a policy that sees what a robot would measure.

    Raises:
        ValueError: the hand has other joints than the policy was made for.
    """
    import torch
    from torch import Tensor

    from widen.envs.batched import Obs, StepResult

    if env.scene.hand.joints != policy.contract.joints:
        hand = policy.contract.hand
        raise ValueError(f"{policy.path}: made for other joints than hand {hand!r} has")
    policy.reset(env.num_envs)

    def step(obs: Obs, fresh: Tensor) -> StepResult:
        policy.restart(fresh.nonzero()[:, 0].cpu().numpy())
        target = policy({name: value.cpu().numpy() for name, value in env.last_readings.items()})
        action = policy.state["last_action"]
        return env.step_target(*(torch.from_numpy(a).to(env.device) for a in (target, action)))

    return step


def _digest(policy: OnnxPolicy) -> str:
    """Of graph and contract, without what an exam has written there."""
    import hashlib
    import json

    import onnx

    graph = onnx.load(policy.path).graph.SerializeToString(deterministic=True)
    about = {key: value for key, value in policy.contract.as_dict().items() if key != "exam"}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode() + graph).hexdigest()


def _training_config(policy: OnnxPolicy) -> RunConfig:
    """What the policy was trained with; defaults where the contract does not say."""
    import yaml

    from .config import RunConfig, parse_config

    text = policy.contract.training.get("config")
    if text is None:
        return RunConfig()
    return parse_config(yaml.safe_load(text), f"{policy.path}: contract: training.config")


def make_sim_robot(contract: Contract, timestep: float | None = None) -> SimRobot:
    """The hand and the object of a policy's training, simulated, as a robot.

    Args:
        contract: of the policy.
        timestep: of the physics [s]; None for the one of the training.
    """
    from widen.deploy.sim_robot import DROPPED, SimRobot

    reach = contract.reach.radius if contract.reach is not None else DROPPED
    return SimRobot.from_scene(contract_scene(contract, timestep), dropped=reach)


def contract_scene(contract: Contract, timestep: float | None = None) -> Scene:
    """The scene that a policy was trained in; arguments as of `make_sim_robot`."""
    import yaml

    from widen.envs.hand import load_hand
    from widen.envs.scene import build_scene
    from widen.envs.task import task_class

    trained = yaml.safe_load(contract.training.get("config") or "{}").get("sim", {})
    tell_of_missing(contract.object, 1)
    return build_scene(
        load_hand(contract.hand).posed(task_class(contract.task).pose),
        contract.object,
        timestep=timestep or contract.control_period / trained.get("substeps", 3),
        iterations=trained.get("iterations", 20),
    )


def check_output(path: Path) -> None:
    """Refuse to write a policy where something else is.

    Raises:
        ValueError: a folder, a folder that does not exist, or a file that is no policy of widen.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected the name of an .onnx file to write")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: expected an existing folder, got {path.parent}")
    if not path.exists():
        return
    from widen.deploy.runtime import OnnxPolicy

    try:
        OnnxPolicy(path)
    except ValueError:
        raise ValueError(f"{path} exists and is no policy of widen: expected a new name") from None
