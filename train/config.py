"""The config of a run: YAML files that inherit, overrides from the command line, one-line errors."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from widen.envs.batched import EnvConfig
from widen.envs.objects import ObjectChoice, check_objects
from widen.envs.sim import SimConfig
from widen.randomization.config import RandomizationConfig

from .policy import PolicyConfig
from .ppo import PPOConfig


class CheckpointConfig(BaseModel):
    """When the run is saved."""

    model_config = ConfigDict(extra="forbid")

    every: int = Field(default=50, ge=1)
    """iterations between checkpoints; the last iteration is always saved"""
    keep: int = Field(default=3, ge=1)
    """newest checkpoints that stay on disk"""


class EvaluationConfig(BaseModel):
    """The test of the deterministic policy that ends a run."""

    model_config = ConfigDict(extra="forbid")

    episodes: int = Field(default=128, ge=1)
    """episodes in the nominal world"""
    episode_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """length of episodes here and in `widen eval` and `widen exam`; null: as in training"""
    task: dict[str, float] = {}
    """settings of the task that differ from those in training, here and wherever a policy is tried"""


class RunConfig(BaseModel):
    """Everything that decides what a run does."""

    model_config = ConfigDict(extra="forbid")

    task: str = "cube_rotate"
    """name of a task; `widen list tasks`"""
    hand: str = "leap"
    """name of a hand, menagerie:NAME, or the path of an MJCF file; `widen list hands`"""
    object: Annotated[ObjectChoice, BeforeValidator(check_objects)] = None
    """name of an object, `widen list objects`; a mapping {name, size, mass, friction}; or a list of
    these, which go round the environments; null: the task's own"""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    """of everything random"""
    init_from: str | None = None
    """a run folder, .onnx file (from the present folder) or shipped policy whose networks and normaliser
    the run begins with, of the same task, hand, env.history and policy; null: new ones. Ranges begin
    anew. See also ppo.critic_warmup"""
    env: EnvConfig = EnvConfig()
    sim: SimConfig = SimConfig()
    randomization: RandomizationConfig = RandomizationConfig()
    policy: PolicyConfig = PolicyConfig()
    ppo: PPOConfig = PPOConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def trial_env(self) -> EnvConfig:
        """The environment in which policies are tried: training's, but for what `evaluation` says."""
        changed: dict[str, Any] = {"task": {**self.env.task, **self.evaluation.task}}
        if self.evaluation.episode_seconds is not None:
            changed["episode_seconds"] = self.evaluation.episode_seconds
        return self.env.model_copy(update=changed)

    @model_validator(mode="after")
    def _room_for_objects(self) -> RunConfig:
        count = len(self.object) if isinstance(self.object, list) else 1
        if count > self.env.num_envs:
            raise ValueError(
                f"object: {count} objects need as many environments, got env.num_envs"
                f" {self.env.num_envs}"
            )
        return self


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML forbids and PyYAML swallows."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {line}: expected a word as key")
            if key.value in seen:
                raise yaml.YAMLError(f"line {line}: key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def shipped_configs() -> dict[str, str]:
    """Names of the configs in the package, with the first comment line of each."""
    found = {}
    for entry in resources.files("widen.configs").iterdir():
        if entry.name.endswith(".yaml"):
            first = entry.read_text(encoding="utf-8").splitlines()[0]
            found[entry.name.removesuffix(".yaml")] = first.lstrip("# ").rstrip()
    return dict(sorted(found.items()))


def load_config(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a file or a shipped name, with `key=value` overrides.

    Args:
        name: path of a YAML file, or the name of a shipped config.
        overrides: for example "ppo.iterations=3"; values are YAML.

    Raises:
        ValueError: one line that names the file or key and says what was expected.
    """
    data = _read(name, None, ())
    for text in overrides:
        _override(data, text)
    _anchor_hand(data, Path.cwd())
    return parse_config(data, name)


def parse_config(data: dict[str, Any], origin: str) -> RunConfig:
    """Validate a plain dict; `origin` is named in errors. Raises ValueError in one line."""
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{origin}: {describe(error)}") from None
    if (wrong := _flag_as_number(data, dump_config(config))) is not None:
        raise ValueError(f"{origin}: {wrong[0]}: expected a number, got {wrong[1]!r}")
    return config


def _flag_as_number(given: Any, taken: Any, key: str = "") -> tuple[str, bool] | None:
    """The first key whose true or false, in YAML also yes or no, pydantic took for 1 or 0."""
    if isinstance(given, bool) and not isinstance(taken, bool):
        return key, given
    if isinstance(given, dict) and isinstance(taken, dict):
        pairs = [(str(name), value, taken.get(name)) for name, value in given.items()]
    elif isinstance(given, list) and isinstance(taken, list):
        pairs = [(str(i), *both) for i, both in enumerate(zip(given, taken, strict=True))]
    else:
        return None
    found = (_flag_as_number(a, b, f"{key}.{name}" if key else name) for name, a, b in pairs)
    return next((one for one in found if one is not None), None)


def describe(error: ValidationError) -> str:
    """The first problem of a pydantic error in one line, with the nearest right keys."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        names = _keys_at(RunConfig, path[:-1])
        near = difflib.get_close_matches(path[-1], names, 3, 0.5) or sorted(names)
        return f"{key}: unknown key; expected {_one_of(near)}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if key and message.startswith((f"{key}:", f"{key}.")):
        return message  # it names its key in full
    if first["type"] in ("value_error", "missing"):
        # a model's own check begins with the key inside it, and perhaps with the model's
        message = message.removeprefix(f"{path[-1]}.") if path else message
        inside = message.split(":")[0].split(".")[0].split(" ")[0] in _keys_at(RunConfig, path)
        return f"{key}{'.' if inside else ': '}{message}" if key else message
    return f"{key}: {message}, got {first['input']!r}"


def _one_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else "one of " + ", ".join(names)


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Field names of the nested model that a path of keys leads to."""
    for part in path:
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is not None:
            model = inner  # a key of a dict of models stays at the model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in X, X | None or dict[str, X]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (dict, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            if (found := _model_in(argument)) is not None:
                return found
    return None


def _read(name: str, folder: Path | None, chain: tuple[str, ...]) -> dict[str, Any]:
    """The plain dict of a config, its bases merged beneath it."""
    text, where, here = _find(name, folder)
    if here in chain:
        raise ValueError(f"{where}: base: goes in a circle: {' -> '.join((*chain, here))}")
    try:
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {_yaml_problem(error)}") from None
    if data is None:
        raise ValueError(f"{where}: empty; expected keys and values")
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ValueError(f"{where}: expected keys and values, got {type(data).__name__}")
    _anchor_hand(data, Path(where).parent)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ValueError(f"{where}: base: expected the name of a config, got {base!r}")
    return _merge(_read(base, Path(where).parent, (*chain, here)), data)


def _anchor_hand(data: dict[str, Any], folder: Path) -> None:
    """Make the path of a hand's file absolute: the run and its policy outlive this directory."""
    hand = data.get("hand")
    if isinstance(hand, str) and hand.endswith(".xml") and not hand.startswith("menagerie:"):
        data["hand"] = str((folder / hand).resolve())


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def _find(name: str, folder: Path | None) -> tuple[str, str, str]:
    """Text, display name and identity of a config: a path, or the name of a shipped one."""
    if not name.endswith((".yaml", ".yml")) and "/" not in name:
        shipped = shipped_configs()
        if name in shipped:
            text = (resources.files("widen.configs") / f"{name}.yaml").read_text(encoding="utf-8")
            return text, name, name
        near = difflib.get_close_matches(name, shipped, 3, 0.4) or list(shipped)
        raise ValueError(
            f"{name}: no such config; expected a .yaml file or a shipped one, {_one_of(near)}"
        )
    path = Path(name) if folder is None or Path(name).is_absolute() else folder / name
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a YAML config")
    try:
        return path.read_text(encoding="utf-8"), str(path), str(path.resolve())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ValueError(f"{text}: expected key=value, for example ppo.iterations=100")
    try:
        parsed = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise ValueError(f"{text}: the value is not YAML") from None
    for part in parts[:-1]:
        inner = data.get(part)
        if inner is None:
            inner = data[part] = {}
        if not isinstance(inner, dict):
            raise ValueError(f"{text}: {part} is not a group of keys")
        data = inner
    data[parts[-1]] = parsed


def dump_config(config: RunConfig) -> dict[str, Any]:
    """Plain values of a config, complete, for config.yaml."""
    return config.model_dump(mode="json")
