"""Configs: inheritance, overrides, round trips, and the shipped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from widen.train.checkpoint import FREE_KEYS, check_same_config
from widen.train.config import (
    RunConfig,
    dump_config,
    load_config,
    parse_config,
    shipped_configs,
)


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_defaults_are_what_the_design_says() -> None:
    config = RunConfig()
    assert (config.task, config.hand, config.object, config.seed) == (
        "cube_rotate",
        "leap",
        None,
        0,
    )
    assert (config.env.num_envs, config.env.control_hz, config.env.history) == (512, 20.0, 3)
    assert (config.sim.backend, config.sim.threads, config.sim.substeps) == ("auto", 0, 3)
    adr = config.randomization.adr
    assert (adr.evaluation_share, adr.buffer, adr.widen_at, adr.narrow_at) == (0.5, 240, 20, 10)
    assert (config.policy.type, config.policy.hidden) == ("mlp", [128, 128])
    assert (config.ppo.iterations, config.ppo.steps, config.ppo.learning_rate) == (400, 16, 1e-3)
    assert config.checkpoint.every == 50


def test_a_child_changes_only_what_it_says(tmp_path: Path) -> None:
    write(
        tmp_path,
        "grandparent.yaml",
        "seed: 1\nenv: {num_envs: 4, history: 2}\n"
        "randomization: {parameters: {gravity: {step: 0.5}, object_mass: {step: 0.1}}}\n",
    )
    write(tmp_path, "parent.yaml", "base: grandparent.yaml\nenv: {history: 5}\n")
    child = write(
        tmp_path,
        "child.yaml",
        "base: parent.yaml\nseed: 3\n"
        "randomization: {parameters: {gravity: {limits: [0.9, 1.1]}}}\npolicy: {hidden: [7]}\n",
    )
    config = load_config(child)
    assert (config.seed, config.env.num_envs, config.env.history) == (3, 4, 5)
    gravity = config.randomization.parameters["gravity"]
    assert (gravity.step, gravity.limits) == (0.5, (0.9, 1.1))
    assert config.randomization.names() == ["object_mass", "gravity"]
    # a list is a value, not a group: it replaces
    assert config.policy.hidden == [7]


def test_a_base_is_looked_for_beside_its_child(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "seed: 1\n")
    write(tmp_path / "deep", "base.yaml", "seed: 2\n")
    assert load_config(write(tmp_path / "deep", "child.yaml", "base: base.yaml\n")).seed == 2
    assert load_config(write(tmp_path / "deep", "up.yaml", "base: ../base.yaml\n")).seed == 1


def test_a_base_may_be_a_shipped_config(tmp_path: Path) -> None:
    child = load_config(write(tmp_path, "child.yaml", "base: quickstart\nseed: 9\n"))
    assert child == load_config("quickstart", ["seed=9"])


def test_the_base_of_two_children_is_no_circle(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "seed: 1\n")
    for name in ("one.yaml", "two.yaml"):
        assert load_config(write(tmp_path, name, "base: base.yaml\n")).seed == 1


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=4", ("seed",), 4),
        ("task=fingertip_reach", ("task",), "fingertip_reach"),
        ("object=null", ("object",), None),
        ("ppo.learning_rate=1e-3", ("ppo", "learning_rate"), 1e-3),
        ("ppo.target_kl=null", ("ppo", "target_kl"), None),
        ("policy.hidden=[32, 16]", ("policy", "hidden"), [32, 16]),
        ("env.rewards.goal=2.5", ("env", "rewards", "goal"), 2.5),
        ("env={num_envs: 3}", ("env", "num_envs"), 3),
        (
            "randomization.parameters.gravity.limits=[0.8, 1.2]",
            ("randomization", "parameters", "gravity", "limits"),
            [0.8, 1.2],
        ),
        ("hand=/a=b.xml", ("hand",), "/a=b.xml"),
    ],
)
def test_overrides(override: str, path: tuple[str, ...], value: Any) -> None:
    found: Any = dump_config(load_config("cube_rotate", [override]))
    for key in path:
        found = found[key]
    assert found == value


def test_the_last_override_counts(tmp_path: Path) -> None:
    name = write(tmp_path, "a.yaml", "env: {num_envs: 4}\n")
    config = load_config(name, ["env.num_envs=5", "env.history=1", "env.num_envs=6"])
    assert (config.env.num_envs, config.env.history) == (6, 1)
    assert load_config(name).env.num_envs == 4


def test_an_override_opens_an_empty_group(tmp_path: Path) -> None:
    name = write(tmp_path, "a.yaml", "task: cube_rotate\nenv:\n")
    assert load_config(name, ["env.num_envs=5"]).env.num_envs == 5


def test_a_parameter_may_stand_without_settings(tmp_path: Path) -> None:
    name = write(tmp_path, "a.yaml", "randomization:\n  parameters:\n    gravity:\n")
    assert load_config(name).randomization.names() == ["gravity"]


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    text = yaml.safe_dump(dump_config(config), sort_keys=False)
    assert parse_config(yaml.safe_load(text), name) == config
    # config.yaml of a run is a config like any other
    assert load_config(write(tmp_path, "config.yaml", text)) == config


def test_shipped_configs_introduce_themselves() -> None:
    shipped = shipped_configs()
    assert {"quickstart", "cube_rotate", "fingertip_reach"} <= shipped.keys()
    assert all(len(summary) > 20 for summary in shipped.values())


def changed(key: str, value: Any) -> dict[str, Any]:
    data = dump_config(RunConfig())
    *groups, last = key.split(".")
    inner: Any = data
    for group in groups:
        inner = inner[group]
    inner[last] = value
    return data


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ppo.iterations", 9),
        ("sim.threads", 1),
        ("checkpoint.every", 3),
        ("evaluation.episodes", 4),
    ],
)
def test_what_a_continuation_may_change(key: str, value: Any, tmp_path: Path) -> None:
    assert key in FREE_KEYS or key.split(".")[0] in FREE_KEYS
    check_same_config(changed(key, value), dump_config(RunConfig()), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 1), ("ppo.gamma", 0.5), ("sim.substeps", 4), ("env.rewards", {"goal": 1.0})],
)
def test_what_a_continuation_may_not_change(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=key):
        check_same_config(changed(key, value), dump_config(RunConfig()), tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.num_envs=yes", "env.num_envs: expected a number, got True"),
        ("seed=false", "seed: expected a number, got False"),
        ("policy.hidden=[64, true]", "policy.hidden.1: expected a number, got True"),
        ("env.rewards.goal=on", "env.rewards.goal: expected a number, got True"),
        ("env.episode_seconds=.inf", "env.episode_seconds: expected a finite number"),
        ("env.episode_seconds=1e300", "env.episode_seconds: expected less than or equal"),
        ("env.rewards.goal=.nan", "env.rewards.goal: expected a finite number"),
        ("ppo.value_coef=.inf", "ppo.value_coef: expected a finite number"),
        ("ppo.reward_scale=.inf", "ppo.reward_scale: expected a finite number"),
    ],
)
def test_flags_and_infinities_are_no_numbers(override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config("cube_rotate", [override])
    assert message in str(error.value)
    config = load_config("cube_rotate", ["ppo.normalize_advantage=no"])
    assert config.ppo.normalize_advantage is False


def test_a_hands_file_is_found_beside_the_config_that_names_it(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "base.yaml").write_text("hand: hands/my.xml\n")
    (tmp_path / "mine.yaml").write_text("base: lab/base.yaml\nseed: 4\n")
    monkeypatch.chdir(tmp_path / "lab")
    beside = tmp_path / "lab" / "hands" / "my.xml"
    assert load_config(str(tmp_path / "mine.yaml")).hand == str(beside)
    # on the command line a path is relative to where one stands
    assert load_config("quickstart", ["hand=other.xml"]).hand == str(tmp_path / "lab" / "other.xml")
    assert load_config("quickstart", ["hand=allegro"]).hand == "allegro"
