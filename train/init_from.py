"""Networks that a run begins with: those of another run, or of a policy's file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cli_subject import find_subject
from .policy import HandPolicy
from .run_folder import RunFolder
from .trained import Trained

CARRIED = 1e6
"""observations that the statistics of a file count for, of which it does not say how many it saw"""
_NORMALIZER = "features_extractor.normalizer"
_CRITIC = ("mlp_extractor.value_net", "value_net", "vf_features_extractor")


def begin_with(policy: HandPolicy, name: str, *, explore_anew: bool = False) -> dict[str, Any]:
    """Give a fresh policy the networks and the normaliser of another one.

    Of a run everything is taken that is of the same shape; the critic stays new where it sees
    something else, as with other parameters randomised. A file has the actor alone: its
    exploration is `policy.init_std`, and the critic is new, so that `ppo.critic_warmup` is due.

    Args:
        policy: changed in place.
        name: a run folder, an .onnx file or a shipped policy.
        explore_anew: keep the fresh policy's deviation of actions, also where a run has another.

    Returns:
        what it was, for the run's records: {"name", "sha256" of a file or "steps" of a run}.

    Raises:
        ValueError: there is no such policy, or its actor is another; in one line.
    """
    try:
        subject = find_subject(name)
    except ValueError as error:
        raise ValueError(f"init_from: {error}") from None
    if subject.path.suffix == ".onnx" and subject.path.is_file():
        found, about = _of_file(subject.path)
        about["name"] = subject.name
    else:
        trained = Trained.restore(RunFolder.open(subject.path))
        found = trained.policy.state_dict()
        about = {"name": subject.name, "steps": trained.steps}
    own = policy.state_dict()
    actor = {key for key in own if not key.startswith(_CRITIC)}
    critic = set(own) - actor
    for key in sorted(
        (actor - {"log_std"}) | {key for key in found if not key.startswith(_CRITIC)}
    ):
        if key not in found or key not in own:
            where = "there" if key in found else "here"
            raise ValueError(
                f"init_from: {name}: {key} is only {where}; expected the same policy.type and"
                " policy.hidden, and of policy.type=lstm the run instead of its file"
            )
        if found[key].shape != own[key].shape:
            raise ValueError(
                f"init_from: {name}: {key} is {tuple(found[key].shape)} there and"
                f" {tuple(own[key].shape)} here; expected the same task, hand, env.history and policy"
            )
    same = all(key in found and found[key].shape == own[key].shape for key in critic)
    taken = (actor | critic if same else actor) & set(found)
    if explore_anew:
        taken.discard("log_std")
    policy.load_state_dict(own | {key: found[key] for key in taken})
    return about


def _of_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Entries of the actor's state, under the names that the export keeps."""
    import onnx
    from onnx import numpy_helper

    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:
        raise ValueError(f"init_from: {path}: not an ONNX file: {error}") from None
    found = {
        tensor.name.removeprefix("policy."): torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in model.graph.initializer
        if tensor.name.startswith("policy.")
    }
    if f"pi_{_NORMALIZER}.scale" not in found:
        raise ValueError(f"init_from: {path}: no widen policy; expected one that widen exported")
    offset, scale = (found[f"pi_{_NORMALIZER}.{name}"] for name in ("offset", "scale"))
    statistics = {
        "mean": offset.double(),
        "var": scale.double() ** -2,
        "count": torch.tensor(CARRIED, dtype=torch.float64),
        "offset": offset,
        "scale": scale,
    }
    for owner in ("", "pi_"):  # stable-baselines3 gives the actor's two names
        found |= {f"{owner}{_NORMALIZER}.{name}": value for name, value in statistics.items()}
    return found, {"sha256": hashlib.sha256(content).hexdigest()}
