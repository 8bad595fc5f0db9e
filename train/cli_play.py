"""widen play: a policy in the nominal world, or a log of widen run done again in simulation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli_show as show

if TYPE_CHECKING:
    import numpy as np

    from widen.deploy.log_file import Log
    from widen.envs.scene import Scene

    from .replay import Trace


def play(
    subject: str,
    video: Path | None,
    viewer: bool,
    seconds: float | None,
    backend: str | None,
    as_json: bool,
) -> None:
    """The command; arguments as on the command line.

    Raises:
        ValueError: whatever a user got wrong, in one line.
    """
    from widen.deploy.log_file import is_log

    if seconds is not None and not 0 < seconds <= 3600:
        raise ValueError(f"--seconds {seconds:g}: expected more than 0 and at most 3600")
    if video is not None and viewer:
        raise ValueError("--viewer: not together with --video; expected one of them")
    if is_log(subject):
        for option, value in (("--viewer", viewer or None), ("--backend", backend)):
            if value is not None:
                raise ValueError(f"{option}: not for a log; expected --video FILE or --seconds S")
        show.emit(play_log(Path(subject), video, seconds), as_json, show.replayed)
    else:
        result = _play_policy(subject, video, viewer, seconds, backend)
        show.emit(result, as_json, show.played)


def _play_policy(
    subject: str, video: Path | None, viewer: bool, seconds: float | None, backend: str | None
) -> dict[str, Any]:
    from . import play as player

    if video is not None:
        player.check_film(video, seconds)
        player.choose_gl()
    if viewer:
        player.check_display()
    from .cli_policy import open_trial
    from .cli_subject import find_subject

    found = find_subject(subject)
    trial = open_trial(found.path, 1, "none", backend)
    if video is not None:
        last = player.film(trial, seconds, video)
    elif viewer:
        last = player.view(trial, seconds)
    else:
        *_, last = player.play(trial, seconds)
    film = str(video) if video is not None else None
    return {"policy": found.name, **last._asdict(), "video": film}


def play_log(path: Path, video: Path | None, seconds: float | None) -> dict[str, Any]:
    """Send a log's joint targets to the simulated hand, and compare where the joints went.

    Args:
        path: of the log.
        video: film of the simulated hand to write, or None.
        seconds: only so much of the log; None for all.

    Returns:
        log, policy, seconds, cycles, compared (cycles), timestep [s], joint_rms (name -> [rad]),
        joint_rms_mean [rad] and video.

    Raises:
        ValueError: the file is damaged, its hand is not known here, there is nothing in it to
            compare, or the film cannot be made.
    """
    import numpy as np

    from widen.deploy.log_file import read_log

    log = read_log(path)
    if log.header.get("dry_run"):
        raise ValueError(f"{path}: of a dry run, in which the hand was told nothing")
    last = log.times[-1] if len(log.times) else 0.0
    length = min(float(last), seconds) if seconds is not None else float(last)
    if video is not None:
        from .play import check_film, choose_gl

        check_film(video, length)
        choose_gl()
    from .replay import replay

    scene, cycles = _scene(log), int((log.times <= length).sum())
    trace = _trace(log, scene, cycles)
    compared = np.full(trace.joint_pos.shape, np.nan)

    def items() -> Iterator[np.ndarray]:
        for k, done in enumerate(replay(scene, trace)):
            compared[k] = done.joint_pos
            yield done.qpos

    if video is not None:
        _film(log, scene, items(), video)
    else:
        for _ in items():
            pass
    errors = compared - trace.joint_pos
    errors = errors[np.isfinite(errors).all(1)]
    if not len(errors):
        raise ValueError(f"{path}: no joint target was sent that a measurement follows")
    rms = np.sqrt((errors**2).mean(0))
    return {
        "log": str(path),
        "policy": log.header.get("policy"),
        "seconds": length,
        "cycles": cycles,
        "compared": len(errors),
        "timestep": float(scene.model.opt.timestep),
        "joint_rms": dict(zip(scene.hand.joints, map(float, rms), strict=True)),
        "joint_rms_mean": float(rms.mean()),
        "video": str(video) if video is not None else None,
    }


def _scene(log: Log) -> Scene:
    from .cli_policy import contract_scene
    from .replay import TIMESTEP

    step = log.header.get("timestep", TIMESTEP)
    if not isinstance(step, (int, float)) or not 0 < step <= 0.1:
        raise ValueError(f"{log.path}: damaged header: timestep {step!r}")
    scene = contract_scene(log.contract(), float(step))
    if sorted(scene.hand.joints) != sorted(log.header["joints"]):
        raise ValueError(f"{log.path}: its joints are not those of hand {scene.hand.name!r}")
    return scene


def _trace(log: Log, scene: Scene, cycles: int) -> Trace:
    """The first cycles of a log, with joints in the scene's order."""
    import numpy as np

    from .replay import Trace

    if lacking := [name for name in ("joint_pos",) if name not in log.arrays]:
        raise ValueError(f"{log.path}: no reading {lacking[0]!r}, which a replay begins with")
    arrays = {name: values[:cycles] for name, values in log.arrays.items()}
    times = log.times[:cycles]
    order = [log.header["joints"].index(name) for name in scene.hand.joints]
    pose = np.full((cycles, 7), np.nan)
    if "object_pos" in arrays and "object_quat" in arrays:
        pose = np.concatenate((arrays["object_pos"], arrays["object_quat"]), 1)
    states = np.array(log.header["states"] or [""])[arrays["state"]]
    homing = states == "homing"
    return Trace(
        times - arrays["joint_pos_age"],
        arrays["joint_pos"][:, order].astype(np.float64),
        times + arrays["sent_after"],
        arrays["sent"][:, order].astype(np.float64),
        pose.astype(np.float64),
        # the way home begins anew wherever a simulated robot has put the object back
        homing & ~np.concatenate(([False], homing[:-1])),
    )


def _film(log: Log, scene: Scene, states: Iterator[np.ndarray], video: Path) -> None:
    """At the speed of the log; where cycles fell out, the picture before them stays."""
    from widen.envs.render import SceneRenderer

    from .play import HEIGHT, WIDTH, captioned, pictures_skipped, write_film

    hz = 1.0 / float(log.header["control_period"])
    skip, renderer = pictures_skipped(video, hz), SceneRenderer(scene, WIDTH, HEIGHT)
    goals = {name: log.arrays[name] for name in ("goal_quat", "goal_tips") if name in log.arrays}

    def pictures() -> Iterator[np.ndarray]:
        shown = 0
        for k, qpos in enumerate(states):
            due = int(log.times[k] * hz) // skip + 1
            if due <= shown:
                continue
            goal = {name: values[k] for name, values in goals.items()}
            picture = captioned(renderer.frame(qpos, goal), f"replay    {log.times[k]:.0f} s")
            for _ in range(due - shown):
                yield picture
            shown = due

    try:
        write_film(video, pictures(), hz / skip)
    finally:
        renderer.close()
