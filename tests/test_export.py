"""The exported file: equal to torch, complete in itself, and refused when it is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from gymnasium import spaces

from widen.deploy.compare import sample_readings
from widen.deploy.contract import CONTRACT_KEY, TOLERANCE, Contract
from widen.deploy.export import ExportReport, PolicyGraph, describe, export_policy
from widen.deploy.runtime import OnnxPolicy
from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.envs.task import task_class
from widen.train.policy import HandPolicy, PolicyConfig

NUM_ENVS = 8


def make_env(task: str, history: int = 3, lead: float | None = None) -> BatchedEnv:
    config = EnvConfig(num_envs=NUM_ENVS, history=history, target_lead=lead)
    return BatchedEnv(task, config=config, sim=SimConfig(threads=1), seed=3)


def random_policy(env: BatchedEnv) -> HandPolicy:
    """A policy with normaliser statistics whose actions reach beyond -1..1."""
    torch.manual_seed(5)
    width, nu = env.num_actor_obs, env.num_actions
    policy = HandPolicy(
        spaces.Dict({"actor": spaces.Box(-9, 9, (width,)), "critic": spaces.Box(-9, 9, (7,))}),
        spaces.Box(-1, 1, (nu,)),
        lambda _: 1e-3,
        PolicyConfig(),
    )
    policy.update_normalizers({"actor": torch.randn(512, width), "critic": torch.randn(512, 7)})
    with torch.no_grad():
        policy.action_net.weight.mul_(15.0)
        policy.action_net.bias[2] = 1.5
    return policy


def graph_of(env: BatchedEnv, task: str, policy: torch.nn.Module) -> PolicyGraph:
    return PolicyGraph(task_class(task).layout(env.scene), env.encoder, env.actions, policy)  # pyright: ignore


def contract_of(env: BatchedEnv, task: str, graph: PolicyGraph) -> Contract:
    return describe(
        env.scene,
        task,
        graph,
        hand="leap",
        object_name=None,
        control_period=env.control_dt,
        npd=-float("inf"),
        training={"steps": 12, "third": 1 / 3},
    )


class Case(NamedTuple):
    task: str
    env: BatchedEnv
    policy: HandPolicy
    contract: Contract
    report: ExportReport


@pytest.fixture(
    scope="module", params=[("cube_rotate", None), ("cube_rotate", 0.1), ("fingertip_reach", None)]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    task, lead = request.param
    env = make_env(task, lead=lead)
    policy = random_policy(env)
    graph = graph_of(env, task, policy)
    contract = contract_of(env, task, graph)
    path = tmp_path_factory.mktemp("export") / "policy.onnx"
    return Case(task, env, policy, contract, export_policy(graph, contract, path))


def edit(path: Path, to: Path, change) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, to)
    return to


def edit_contract(path: Path, to: Path, change) -> Path:
    """A copy of the file with its contract changed as plain values."""

    def apply(model: onnx.ModelProto) -> None:
        (entry,) = (p for p in model.metadata_props if p.key == CONTRACT_KEY)
        data = json.loads(entry.value)
        change(data)
        entry.value = json.dumps(data)

    return edit(path, to, apply)


def test_one_small_file_without_paths_of_this_machine(case: Case) -> None:
    path = case.report.path
    assert list(path.parent.iterdir()) == [path]
    content = path.read_bytes()
    assert len(content) == case.report.size_bytes < 400_000
    assert case.report.max_error <= TOLERANCE
    for folder in (Path(torch.__file__).parents[1], Path(__file__).parents[1]):
        assert str(folder).encode() not in content


def test_critic_stays_at_home(case: Case) -> None:
    weights = sum(int(np.prod(t.dims)) for t in onnx.load(case.report.path).graph.initializer)
    actor = [*case.policy.mlp_extractor.policy_net.parameters()]
    actor += [*case.policy.action_net.parameters()]
    count = sum(p.numel() for p in actor)
    assert count <= weights < count + 3000


def test_contract_survives_the_file(case: Case) -> None:
    found, model = OnnxPolicy(case.report.path).contract, case.env.scene.model
    assert found.npd is None
    assert found.training == {"steps": 12, "third": 1 / 3}
    assert found.readings == case.contract.readings
    assert found.state == case.contract.state
    assert found.joints == case.env.scene.hand.joints
    for i, name in enumerate(found.joints):
        assert (found.lower[i], found.upper[i]) == tuple(model.joint(name).range)
        assert (found.kp[i], found.kv[i], found.force_limit[i]) == (3.0, 0.05, 0.27)
    assert found.control_period == 0.05
    assert found.object == ("cube" if case.task == "cube_rotate" else None)


@pytest.mark.parametrize("count", [1, 64])
def test_batches_equal_the_modules_of_training(case: Case, count: int) -> None:
    """The path written out as BatchedEnv goes it, beside the graph."""
    env, policy = case.env, OnnxPolicy(case.report.path)
    readings = sample_readings(case.contract, np.random.default_rng(9), count)
    policy.reset(count)
    target = torch.tensor(env.scene.hand.home).repeat(count, 1)
    action, past = torch.zeros(count, 16), torch.full((count, env.encoder.history_width), 7.0)
    fresh = torch.ones(count, 1)
    clipped = 0
    for t in range(len(next(iter(readings.values())))):
        now = {name: values[t] for name, values in readings.items()}
        with torch.no_grad():
            tensors = {name: torch.from_numpy(value) for name, value in now.items()}
            obs, past = env.encoder(tensors, target, action, past, fresh)
            mean = case.policy.mean_action(obs)
            action = mean.clamp(-1, 1)
            target = env.actions(action, target, tensors["joint_pos"])
        fresh = torch.zeros(count, 1)
        clipped += int((mean != action).sum())
        np.testing.assert_allclose(policy(now), target, atol=1e-5)
        np.testing.assert_allclose(policy.state["last_action"], action, atol=1e-4)
    assert clipped > 0


def test_closed_loop_equals_torch(case: Case) -> None:
    """30 steps of two equal worlds, one driven by torch, one by the file alone."""
    lead = case.env.config.target_lead
    ours, theirs = make_env(case.task, lead=lead), make_env(case.task, lead=lead)
    policy = OnnxPolicy(case.report.path)
    policy.reset(NUM_ENVS)
    obs, _ = ours.reset(), theirs.reset()
    for _ in range(30):
        target = torch.from_numpy(policy({k: v.numpy() for k, v in theirs.last_readings.items()}))
        action = torch.from_numpy(policy.state["last_action"])
        result = theirs.step_target(target, action)
        with torch.no_grad():
            obs = ours.step(case.policy.mean_action(obs["actor"])).obs
        torch.testing.assert_close(ours.target, theirs.target, atol=1e-4, rtol=0)
        ended = (result.terminated | result.truncated).nonzero()[:, 0]
        policy.restart(ended.numpy())


def test_restart_is_a_new_episode_for_these_rows_only(case: Case) -> None:
    values = sample_readings(case.contract, np.random.default_rng(4), 3)
    steps = [{name: a[t] for name, a in values.items()} for t in range(4)]
    policy, whole, new = (OnnxPolicy(case.report.path) for _ in range(3))
    for p in (policy, whole, new):
        p.reset(3)
    for step in steps[:3]:
        policy(step), whole(step)
    policy.restart(np.array([1]))
    answer, going_on, beginning = (p(steps[3]) for p in (policy, whole, new))
    np.testing.assert_array_equal(answer[[0, 2]], going_on[[0, 2]])
    np.testing.assert_array_equal(answer[1], beginning[1])
    assert np.abs(going_on[1] - beginning[1]).max() > 1e-3


def test_overruled_target_is_where_the_next_step_begins(case: Case) -> None:
    policy, other = OnnxPolicy(case.report.path), OnnxPolicy(case.report.path)
    x = {k: v[0] for k, v in sample_readings(case.contract, np.random.default_rng(4), 1).items()}
    first = policy(x)
    other(x)
    policy.overrule(first + 0.01)
    assert np.abs(policy(x) - other(x)).max() > 1e-3


def test_golden_vectors(case: Case, tmp_path: Path) -> None:
    policy = OnnxPolicy(case.report.path)
    before = {name: value.copy() for name, value in policy.state.items()}
    assert policy.verify() <= TOLERANCE
    for name, value in before.items():
        np.testing.assert_array_equal(policy.state[name], value)

    def spoil(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda t: np.prod(t.dims))
        changed = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))

    assert OnnxPolicy(edit(case.report.path, tmp_path / "spoilt.onnx", spoil)).verify() > 1e-3


def test_files_that_are_not_policies(case: Case, tmp_path: Path) -> None:
    good, bad = case.report.path, tmp_path / "bad.onnx"
    with pytest.raises(ValueError, match=r"nothing.onnx: cannot be read: No such file"):
        OnnxPolicy(tmp_path / "nothing.onnx")
    bad.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a self-contained ONNX file"):
        OnnxPolicy(bad)
    edit(good, bad, lambda m: m.ClearField("metadata_props"))
    with pytest.raises(ValueError, match="no widen contract in the file"):
        OnnxPolicy(bad)
    onnx.save(onnx.load(good), bad, save_as_external_data=True, size_threshold=0, location="w.bin")
    with pytest.raises(ValueError, match="not a self-contained ONNX file") as error:
        OnnxPolicy(bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema="widen.policy/3"), "made by a newer widen"),
        (lambda d: d.update(schema="other"), "not a policy of widen"),
        (lambda d: d.pop("joints"), "lacks 'joints'"),
        (lambda d: d.update(kp=[1.0]), "kp has 1 numbers, expected 16"),
        (lambda d: d.update(readings=[{"name": "x"}]), r"readings\[0\] lacks 'shape'"),
        (lambda d: d["upper"].__setitem__(0, d["home"][0] - 1), "home .* is not in"),
        (lambda d: d["readings"][0].update(name="joints"), "disagree .* joint_pos, joints"),
        (lambda d: d["state"][0]["initial"].pop(), "initial does not have its shape"),
    ],
)
def test_contracts_that_do_not_fit(case: Case, tmp_path: Path, change, message: str) -> None:
    path = edit_contract(case.report.path, tmp_path / "bad.onnx", change)
    with pytest.raises(ValueError, match=rf"bad.onnx: .*{message}"):
        OnnxPolicy(path)


def test_wrong_readings_are_named(case: Case) -> None:
    policy = OnnxPolicy(case.report.path)
    good = {k: v[0] for k, v in sample_readings(case.contract, np.random.default_rng(4), 1).items()}
    joints = good["joint_pos"]
    for wrong, message in (
        ({"joint_pos": joints[:, :15]}, r"'joint_pos': expected \(1, 16\), got \(1, 15\)"),
        ({"joint_pos": joints.repeat(2, 0)}, r"'joint_pos': expected \(1, 16\)"),
        ({"joint_pos": joints.astype(int)}, "'joint_pos': expected float32 in rad, got int64"),
        ({"joint_vel": joints}, "'joint_vel' is unknown; expected joint_pos"),
    ):
        with pytest.raises(ValueError, match=message):
            policy({**good, **wrong})
    del good["joint_pos"]
    with pytest.raises(ValueError, match="'joint_pos' is missing"):
        policy(good)


class TwoFaced(torch.nn.Module):
    """Answers the exporter a little differently than everybody else."""

    state_widths: ClassVar[dict[str, int]] = {}

    def advance(self, actor_obs: torch.Tensor, state: Any) -> Any:
        answer = torch.tanh(actor_obs[:, :16])
        return answer + 1e-4 if torch.compiler.is_exporting() else answer, state


def test_a_graph_that_differs_is_refused(tmp_path: Path) -> None:
    env = make_env("cube_rotate")
    graph = graph_of(env, "cube_rotate", TwoFaced())
    contract = contract_of(env, "cube_rotate", graph)
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"the earlier one")
    with pytest.raises(ValueError, match=r"policy.onnx: not written: .* differ by"):
        export_policy(graph, contract, path)
    assert path.read_bytes() == b"the earlier one"
    assert list(tmp_path.iterdir()) == [path]


def test_training_is_not_disturbed_and_one_frame_needs_no_past(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    env = make_env("cube_rotate", history=1)
    policy = random_policy(env).train()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    torch.manual_seed(1)
    random_state = torch.get_rng_state()
    graph = graph_of(env, "cube_rotate", policy)
    report = export_policy(graph, contract_of(env, "cube_rotate", graph), tmp_path / "p.onnx")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert policy.training
    assert all(p.requires_grad for p in policy.parameters())
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert capfd.readouterr() == ("", "")
    loaded = OnnxPolicy(report.path)
    assert set(loaded.state) == {"joint_target", "last_action"}
    assert loaded.verify() <= TOLERANCE
    with pytest.raises(ValueError, match="cannot be written: No such file"):
        export_policy(graph, loaded.contract, tmp_path / "no" / "p.onnx")


def test_an_object_beyond_reach_is_what_the_task_calls_dropped() -> None:
    env = make_env("cube_rotate")
    graph = graph_of(env, "cube_rotate", random_policy(env))
    reach = contract_of(env, "cube_rotate", graph).reach
    assert reach is not None
    assert (reach.reading, reach.center, reach.radius) == ("object_pos", env.scene.hand.nest, 0.1)
    ids, rng = torch.arange(NUM_ENVS), np.random.default_rng(0)
    qpos, qvel = env.task.reset(ids)
    away = rng.standard_normal((NUM_ENVS, 3))
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    distance = np.array([0.0, 0.05, 0.099, 0.0999, 0.1001, 0.101, 0.15, 1.0])[:, None]
    place = torch.from_numpy(reach.center + distance * away)
    qpos[:, env.scene.object_qpos : env.scene.object_qpos + 3] = place
    env.sim.reset(ids, qpos, qvel)
    dropped = env.task.evaluate(torch.zeros(NUM_ENVS, 16)).failure
    measured = env.task.readings()["object_pos"].numpy()
    assert [not reach.contains(p) for p in measured] == dropped.tolist() == [False] * 4 + [True] * 4


def test_reach_follows_the_settings_and_the_pose_and_is_none_without_an_object() -> None:
    def reach_of(task: str, settings: dict[str, float] | None = None) -> Any:
        env = make_env(task)
        graph = graph_of(env, task, random_policy(env))
        about: Any = {"hand": "leap", "object_name": None, "control_period": 0.05}
        return env, describe(env.scene, task, graph, settings=settings, **about).reach

    assert reach_of("fingertip_reach")[1] is None
    env, reach = reach_of("cube_reorient", {"drop_distance": 0.07})
    assert (reach.center, reach.radius) == (env.scene.hand.nest, 0.07)


def test_a_contract_that_does_not_fit_is_not_written(tmp_path: Path, case: Case) -> None:
    graph = graph_of(case.env, case.task, case.policy)
    path = tmp_path / "policy.onnx"
    for wrong, message in (
        ({"kv": (-1.0,) * 16}, r"kv\[0\]: expected at least 0, got -1.0"),
        ({"home": (9.0,) * 16}, "home 9.0 is not in"),
        ({"npd": "wide"}, "npd: expected a number or null"),
    ):
        contract = dataclasses.replace(case.contract, **wrong)
        with pytest.raises(ValueError, match=message):
            export_policy(graph, contract, path)
    assert not path.exists()
