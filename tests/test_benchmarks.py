"""The benchmark scripts: how they time, judge and report, on stand-ins that are quick and known."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = ("report", "run", "score", "startup", "scaling", "layers", "sb3", "hand_block")


class Scripts:
    """The scripts as modules, by name."""

    def __getattr__(self, name: str) -> Any:
        return importlib.import_module(name)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripts]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield Scripts()
    for name in NAMES:  # too common as names to stay
        sys.modules.pop(name, None)


def script(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def test_a_table_is_markdown_and_aligned(scripts: Scripts) -> None:
    table = scripts.report.Table("T", ("what", "n"), [("a", "1"), ("long one", "1,000")])
    title, blank, *lines = scripts.report.markdown(table).splitlines()
    assert (title, blank) == ("**T**", "")
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["what", "n"]
    assert set(cells[1][0]) == {"-"}
    assert cells[1][1].endswith(":")
    assert cells[2:] == [["a", "1"], ["long one", "1,000"]]


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        ("Intel(R) Xeon(R) CPU @ 2.50GHz", "intel-xeon-2-cores"),
        ("AMD EPYC 7B13 64-Core Processor", "amd-epyc-7b13-2-cores"),
    ],
)
def test_a_machine_makes_a_file_name(scripts: Scripts, cpu: str, name: str) -> None:
    assert scripts.report.machine_name({"cpu": cpu, "processors": 2}) == name


def test_a_script_prints_a_table_and_writes_json(
    scripts: Scripts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, out = scripts.report, tmp_path / "deep" / "found.json"
    found = report.Report(
        {"rate": 5.0}, report.Table("T", ("", "n"), [("row", "5")]), [report.Line("row", "5", "6")]
    )
    parser = report.parser_of("A benchmark.")
    assert report.run("it", parser, lambda _: found, ["--out", str(out)]) == 0
    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    assert "| row | 5 |" in printed
    assert written["figures"] == {"rate": 5.0}
    assert written["summary"] == [{"what": "row", "figure": "5", "aim": "6"}]
    assert written["date"] in printed
    assert written["machine"]["processors"] >= 1
    assert {"python", "widen", "mujoco", "torch"} <= set(written["versions"])


def test_a_failure_is_one_line(
    scripts: Scripts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(args: Namespace) -> Any:
        raise ValueError("no\n  luck")

    report, out = scripts.report, tmp_path / "found.json"
    assert report.run("it", report.parser_of(""), measure, ["--out", str(out)]) == 2
    assert capsys.readouterr().err == "error: it: no luck\n"
    assert not out.exists()


GOOD = """
    import json, sys
    out = sys.argv[sys.argv.index("--out") + 1]
    table = {"title": "T", "headings": ["", "n"], "rows": [["a row", "5"]]}
    summary = [{"what": "speed", "figure": "5 steps/s", "aim": "at least 4"}]
    json.dump({"table": table, "summary": summary, "seconds": 1.5}, open(out, "w"))
"""
BAD = """
    print("much talk")
    raise ValueError("boom")
"""
HANGS = """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open({path!r}, "w").write(str(child.pid))
    time.sleep(60)
"""


def run_stubs(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str
) -> tuple[int, dict[str, Any], str]:
    monkeypatch.setattr(scripts.run, "LIMITS", dict.fromkeys(("bad", "hangs", "good"), 20))
    script(folder / "good.py", GOOD)
    script(folder / "bad.py", BAD)
    script(folder / "hangs.py", HANGS.format(path=str(folder / "pid")))
    code = scripts.run.main(["--out", str(folder / "out"), *arguments], scripts=folder)
    written = {path.suffix: path.read_text() for path in (folder / "out").iterdir()}
    return code, json.loads(written[".json"]), written[".md"]


def test_what_fails_or_hangs_costs_one_line_and_no_other(
    scripts: Scripts,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--only", "bad,hangs,good", "--limit", "4")
    code, found, text = run_stubs(scripts, monkeypatch, tmp_path, *arguments)
    assert code == 1
    assert found["benchmarks"]["bad"]["error"] == "ValueError: boom"
    assert "limit of 4 s" in found["benchmarks"]["hangs"]["error"]
    assert "error" not in found["benchmarks"]["good"]
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if "..." not in line] == [
        "bad: ValueError: boom",
        "hangs: ended at its time limit of 4 s",
    ]
    assert "5 steps/s" in text
    assert "at least 4" in text
    assert "a row" in text
    assert f"{found['seconds']:g} s in all" in text
    # what the hanging one had started is gone, too
    pid = (tmp_path / "pid").read_text()
    for _ in range(100):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        pytest.fail("a child of the benchmark lives on")


def test_only_what_was_asked_for(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, found, _ = run_stubs(scripts, monkeypatch, tmp_path, "--only", "good")
    assert code == 0
    assert list(found["benchmarks"]) == ["good"]


def test_an_unknown_name_is_one_line(
    scripts: Scripts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scripts.run.main(["--only", "layer", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --only layer: expected of layers, sb3")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_every_name_is_a_script(scripts: Scripts) -> None:
    assert [name for name in scripts.run.LIMITS if not (FOLDER / f"{name}.py").exists()] == []


def test_a_crossing_is_found_in_few_looks(scripts: Scripts) -> None:
    rng = random.Random(0)
    for _ in range(200):
        count = rng.randint(1, 60)
        scores = sorted(rng.uniform(0.0, 30.0) for _ in range(count))
        marks = sorted(rng.sample(range(count), rng.randint(1, min(4, count))))
        aim, looked = rng.uniform(0.0, 30.0), set()

        def goals_of(i: int, scores: list[float] = scores, looked: set[int] = looked) -> float:
            looked.add(i)
            return scores[i]

        found = scripts.score.first_reaching(goals_of, marks, aim)
        reaching = [i for i, score in enumerate(scores) if score >= aim and i <= marks[-1]]
        assert found == (reaching[0] if reaching else None)
        assert len(looked) <= 4 + 6


def test_a_score_that_falls_again_still_crosses_where_it_says(scripts: Scripts) -> None:
    scores = [0.0, 3.0, 12.0, 8.0, 9.0, 14.0, 20.0]
    found = scripts.score.first_reaching(scores.__getitem__, (0, 4, 6), 10.0)
    assert found is not None
    assert scores[found] >= 10.0 > scores[found - 1]


def test_time_is_from_the_start_of_the_process_to_the_file(
    scripts: Scripts, tmp_path: Path
) -> None:
    folder, began = tmp_path / "checkpoints", 1_700_000_000.0
    folder.mkdir()
    for steps, after in ((900, 12.5), (1000, 31.0), (20, 4.0)):
        path = folder / f"{steps:012d}.pt"
        path.touch()
        os.utime(path, (began + after, began + after))
    (folder / "000000000030.pt.tmp").touch()
    saved = scripts.score.saved_since(began, tmp_path, 30.0)
    assert [one.seconds for one in saved] == [4.0, 12.5]
    assert [scripts.score.newest(saved, at) for at in (1.0, 4.0, 12.0, 29.0)] == [None, 0, 0, 1]
    assert scripts.score.marks_of(100.0) == [30.0, 60.0, 90.0, 100.0]


def test_a_checkpoint_is_judged_as_the_run_itself_would(scripts: Scripts, tmp_path: Path) -> None:
    from widen.train.checkpoint import list_checkpoints
    from widen.train.config import load_config
    from widen.train.start import start

    small = ("env.num_envs=4", "ppo.steps=4", "ppo.iterations=2", "ppo.threads=1")
    config = load_config("quickstart", [*small, "checkpoint.every=1", "env.episode_seconds=1"])
    runner = start(config, tmp_path / "run", False)
    assert runner.run is not None
    runner._learn()
    first, last = list_checkpoints(runner.run)
    goals = scripts.score.judge(tmp_path / "run", last, 4)
    wanted = runner.evaluate(4)
    assert {**goals, "seconds": 0} == {**wanted, "seconds": 0}
    assert scripts.score.judge(tmp_path / "run", first, 4)["episodes"] == 4


def test_the_summary_is_over_seeds(scripts: Scripts) -> None:
    trial = scripts.score.Trial
    trials = [
        trial(0, {60.0: 12.0, 120.0: 26.0}, {10.0: 50.0, 25.0: 110.0}, 1),
        trial(1, {60.0: 8.0, 120.0: 20.0}, {10.0: 70.0, 25.0: None}, 1),
        trial(2, {60.0: 10.0, 120.0: 23.0}, {10.0: 60.0, 25.0: None}, 1),
    ]
    figures = [line.figure for line in scripts.score._summary(trials, 120.0)]
    assert figures == ["10.0", "60", "23.0", "more than 120"]


def test_a_command_takes_as_long_as_it_does(scripts: Scripts) -> None:
    sleeps = [sys.executable, "-S", "-c", "import time; time.sleep(0.3)"]
    assert 0.3 < scripts.startup.seconds_of(sleeps) < 5.0
    with pytest.raises(ValueError, match="ValueError: boom"):
        scripts.startup.seconds_of([sys.executable, "-c", "raise ValueError('boom')"])


def test_the_first_iteration_is_timed_and_the_training_ended(
    scripts: Scripts, tmp_path: Path
) -> None:
    fake = script(
        tmp_path / "fake.py",
        """
        import json, os, pathlib, sys, time
        run = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
        open(sys.argv[1], "w").write(str(os.getpid()))
        run.mkdir()
        time.sleep(0.3)
        with open(run / "adr.jsonl", "w", buffering=1) as log:
            print(json.dumps({"kind": "move"}), file=log)
            time.sleep(0.2)
            print(json.dumps({"kind": "interval", "seconds": 0.2}), file=log)
            time.sleep(60)
        """,
    )
    pid = tmp_path / "pid"
    started = scripts.startup.first_iteration([sys.executable, str(fake), str(pid)])
    assert 0.5 < started.iterated < 10.0
    assert started.iterated - started.begins == pytest.approx(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_training_that_fails_says_why(scripts: Scripts) -> None:
    with pytest.raises(ValueError, match="error: no such config"):
        scripts.startup.first_iteration([sys.executable, "-c", "exit('error: no such config')"])


def test_threads_are_doubled_up_to_all(scripts: Scripts) -> None:
    counts = {n: scripts.scaling.thread_counts(n) for n in (1, 2, 6, 8)}
    assert counts == {1: [1], 2: [1, 2], 6: [1, 2, 4, 6], 8: [1, 2, 4, 8]}


def test_peak_memory_is_what_was_taken() -> None:
    """In a process of its own: what these tests used at their worst would hide it."""
    code = (
        "from widen.train.bench_memory import own_peak_mb as peak\n"
        "before = peak(); taken = b'x' * (256 << 20); print(peak() - before)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ran.stdout) == pytest.approx(256.0, abs=40.0)


def test_memory_is_growth_by_environments(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that takes 300 MB and 2 MB for each environment, and makes 100 steps/s a thread."""
    scaling = scripts.scaling

    def process(_: Any, num_envs: int, threads: int, size: Any) -> Any:
        return scaling.Row(num_envs, threads, 100.0 * threads, 300.0 + 2.0 * num_envs)

    monkeypatch.setattr(scaling, "in_fresh_process", process)
    monkeypatch.setattr(scaling, "memory_mb_per_env", lambda few, many, trains: 3.0)
    monkeypatch.setattr(scaling, "processors", lambda: 4)
    found = scaling.measure(Namespace(smoke=False, full=False))
    assert found.figures["memory_mb_per_env"] == {256: 2.0, 1024: 2.0, 4096: 2.0}
    assert found.summary[0].figure == "2.00 and 3.00 MB"
    measured = [row[:3] for row in found.table.rows]
    assert ("1024", "1", "100") in measured
    assert ("1024", "2", "200") in measured
    assert measured.count(("1024", "4", "400")) == 1


def test_against_stable_baselines3(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "train_steps_per_s": 12_000,
        "sb3_steps_per_s": 4_000,
        "train_over_sb3": 3.0,
        "sb3_defaults_steps_per_s": 1_500,
        "train_over_sb3_defaults": 8.0,
        "sb3": {"DummyVecEnv(8)": 4_000, "SubprocVecEnv(2)": 2_000},
    }
    monkeypatch.setattr(scripts.sb3, "training", lambda size: found)
    rows = scripts.sb3.measure(Namespace(smoke=True)).table.rows
    assert [row[1:] for row in rows] == [
        ("12,000", ""),
        ("4,000", "3.0"),
        ("2,000", "6.0"),
        ("1,500", "8.0"),
    ]


def test_the_other_environment_has_our_torch_and_its_own_mujoco(scripts: Scripts) -> None:
    ours = "# why\nabsl-py==2\nmujoco==4.0.0\nnumpy==2.4.6\ntorch==2.13.0\ntorchx==1\n"
    assert scripts.hand_block.pins(ours) == ["numpy==2.4.6", "torch==2.13.0"]
    assert any(line.startswith("mujoco==3.11") for line in scripts.hand_block.REQUIRED)


def test_another_folder_is_left_alone(scripts: Scripts, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    assert not scripts.hand_block.is_ready(tmp_path)
    with pytest.raises(ValueError, match="expected a new folder"):
        scripts.hand_block.set_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_worker_is_asked_and_its_last_words_heard(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = script(
        tmp_path / "worker.py",
        """
        import json, sys
        print("a library talks")
        for line in sys.stdin:
            if line == "die\\n":
                raise ValueError("boom")
            print(json.dumps({"heard": line.strip(), "of": json.loads(sys.argv[1])}), flush=True)
        """,
    )
    block = scripts.hand_block
    monkeypatch.setattr(block, "WORKER", fake)
    with block.worker(Path(sys.executable), {"steps": 3}) as other:
        assert other.ask("alone") == {"heard": "alone", "of": {"steps": 3}}
    with (
        pytest.raises(ValueError, match="ValueError: boom"),
        block.worker(Path(sys.executable), {}) as other,
    ):
        other.ask("die")


def test_hands_of_other_rates_are_compared_by_their_time(scripts: Scripts) -> None:
    theirs = {"steps_per_s": 100.0, "over_bare": 0.4, "control_hz": 25.0, "substeps": 20}
    found = {
        **{"env_steps_per_s": 8000.0, "train_steps_per_s": 4000.0, "control_hz": 20.0},
        **{"substeps": 3, "processes": 2, "theirs": {**theirs, "versions": {"mujoco": "3.11"}}},
        **{"their_vector_steps_per_s": 200.0, "their_train_steps_per_s": 125.0},
    }
    report = scripts.hand_block.reported(found)
    assert report.summary[1].figure == "40 times"  # 200 s of one in a second against 5 s
    assert report.table.rows[2][1:] == ("100", "4.0", "2,000", "0.40")


def test_left_out_where_its_environment_is_missing(scripts: Scripts, tmp_path: Path) -> None:
    asked = Namespace(with_gymnasium_robotics=False, env=tmp_path)
    assert "--with-gymnasium-robotics" in scripts.run._left_out("hand_block", asked)["left_out"]
    assert scripts.run._left_out("layers", asked) is None
    asked.with_gymnasium_robotics = True
    assert scripts.run._left_out("hand_block", asked) is None
