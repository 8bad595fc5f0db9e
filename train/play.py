"""One environment to look at: a film, MuJoCo's viewer, or the figures alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from widen.envs.batched import BatchedEnv

    from .evaluate import Trial

WIDTH, HEIGHT = 960, 720
GIF_SIZE, GIF_HZ, GIF_COLOURS = (400, 300), 10, 64  # a README shall load quickly
_SIGNATURES = {".mp4": (4, b"ftyp"), ".gif": (0, b"GIF8")}  # where in the file, and what
_INSTALL = "pip install 'widen[view]'"


class Moment(NamedTuple):
    """What has happened up to some control step."""

    goals: int
    drops: int
    seconds: float


def play(trial: Trial, seconds: float | None) -> Iterator[Moment]:
    """Let a policy play in a trial's only environment; one item after every control step.

    Args:
        trial: of one environment.
        seconds: how long, through as many episodes as it takes; None for one episode.
    """
    import torch

    env, step = trial
    obs, fresh = env.reset(), torch.ones(1, dtype=torch.bool, device=env.device)
    steps = env.max_steps if seconds is None else max(1, round(seconds / env.control_dt))
    before = drops = 0
    for k in range(1, steps + 1):
        result = step(obs, fresh)
        obs, fresh = result.obs, result.terminated | result.truncated
        before += int(result.episodes["score"].sum())
        drops += bool(result.terminated)
        yield Moment(before + int(env.score[0]), drops, k * env.control_dt)
        if seconds is None and bool(fresh):
            return


def film(trial: Trial, seconds: float | None, path: Path) -> Moment:
    """Play, and write a film at the speed of reality; the file appears when it is complete.

    A .gif has fewer pixels, colours and pictures per second than an .mp4.

    Raises:
        ValueError: no OpenGL context, or no encoder.
    """
    write = _write_gif if path.suffix == ".gif" else _write_mp4
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        last = write(beside, _shots(trial, seconds), 1.0 / trial[0].control_dt)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return last


def _shots(trial: Trial, seconds: float | None) -> Iterator[tuple[np.ndarray, Moment]]:
    """A captioned picture (HEIGHT, WIDTH, 3) uint8 after every control step."""
    from widen.envs.render import SceneRenderer

    env = trial[0]
    renderer = SceneRenderer(env.scene, WIDTH, HEIGHT)
    try:
        for moment in play(trial, seconds):
            picture = renderer.frame(env.sim.qpos[0].cpu().numpy(), _readings(env))
            yield _captioned(picture, moment), moment
    finally:
        renderer.close()


def _readings(env: BatchedEnv) -> dict[str, np.ndarray]:
    return {name: value[0].cpu().numpy() for name, value in env.task.readings().items()}


def _write_mp4(path: Path, shots: Iterator[tuple[np.ndarray, Moment]], hz: float) -> Moment:
    imageio, _ = _encoders()
    last = Moment(0, 0, 0.0)
    # both sizes are multiples of 16, the encoder's block
    with imageio.get_writer(path, fps=hz, quality=8) as writer:
        for picture, last in shots:
            writer.append_data(picture)
    return last


def _write_gif(path: Path, shots: Iterator[tuple[np.ndarray, Moment]], hz: float) -> Moment:
    _, image = _encoders()
    skip = max(1, round(hz / GIF_HZ))
    pictures: list[Any] = []
    last = Moment(0, 0, 0.0)
    for k, (picture, last) in enumerate(shots):
        if k % skip == 0:
            small = image.fromarray(picture).resize(GIF_SIZE)
            # one palette and no dithering, so that what rests in the picture stays the same
            palette = pictures[0] if pictures else None
            pictures.append(small.quantize(GIF_COLOURS, palette=palette, dither=0))
    duration = round(1000 * skip / hz)  # [ms]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    return last


def _captioned(picture: np.ndarray, moment: Moment) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    text = f"{moment.goals} goals    {moment.seconds:.0f} s"
    place = (WIDTH // 40, HEIGHT - HEIGHT // 14)
    ImageDraw.Draw(image).text(place, text, fill=(45, 52, 64), font_size=HEIGHT // 24)
    return np.asarray(image)


def _encoders() -> tuple[Any, Any]:
    """imageio and PIL.Image, which come with an extra."""
    try:
        import imageio_ffmpeg  # noqa: F401 - imageio would ask for it late
        from imageio import v2 as imageio
        from PIL import Image
    except ImportError as error:
        raise ValueError(f"--video: needs {error.name}; {_INSTALL}") from None
    return imageio, Image


def check_film(path: Path) -> None:
    """Refuse a name that no film can be written to, before anything takes time.

    Raises:
        ValueError: not .mp4 or .gif, no such folder, or a file that is not a film of that kind.
    """
    if path.suffix not in _SIGNATURES:
        raise ValueError(f"--video {path}: expected a name that ends in .mp4 or .gif")
    if path.is_dir():
        raise ValueError(f"--video {path} is a folder: expected the name of a film to write")
    if not path.parent.is_dir():
        raise ValueError(f"--video {path}: expected an existing folder, got {path.parent}")
    if path.exists():
        start, signature = _SIGNATURES[path.suffix]
        with path.open("rb") as file:
            if file.read(start + len(signature))[start:] != signature:
                raise ValueError(f"--video {path} exists and is no film: expected a new name")
    _encoders()


def choose_gl() -> None:
    """Set MUJOCO_GL to what works without a display, if nobody has set it; call before mujoco.

    Raises:
        ValueError: neither EGL nor OSMesa makes a picture.
    """
    if os.environ.get("MUJOCO_GL") or sys.platform != "linux" or _has_display():
        return
    # in a process of its own: mujoco decides once, when it is imported
    code = "import mujoco; mujoco.GLContext(16, 16).make_current()"
    for backend in ("egl", "osmesa"):
        environment = {**os.environ, "MUJOCO_GL": backend}
        command = [sys.executable, "-c", code]
        if subprocess.run(command, env=environment, capture_output=True).returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return
    raise ValueError(
        "--video: neither EGL nor OSMesa draws on this machine; install libegl1 or libosmesa6, or"
        " set MUJOCO_GL to what works"
    )


def check_display() -> None:
    """Raises ValueError where a window cannot be opened."""
    if sys.platform == "linux" and not _has_display():
        raise ValueError("--viewer: there is no display (DISPLAY is not set); use --video FILE")


def _has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def view(trial: Trial, seconds: float | None) -> Moment:
    """Play in MuJoCo's viewer at the speed of reality, until its window is closed.

    Raises:
        ValueError: the window cannot be opened.
    """
    import mujoco
    import mujoco.viewer

    from widen.envs.render import add_goal

    env, last = trial[0], Moment(0, 0, 0.0)
    data = mujoco.MjData(env.scene.model)
    try:
        window = mujoco.viewer.launch_passive(env.scene.model, data)
    except RuntimeError as error:  # no window system, or macOS without mjpython
        raise ValueError(f"--viewer: {error}") from None
    began = time.perf_counter()
    with window:
        for last in play(trial, seconds):
            if not window.is_running():
                break
            with window.lock():
                data.qpos[:] = env.sim.qpos[0].cpu().numpy()
                mujoco.mj_forward(env.scene.model, data)
                if (goal := window.user_scn) is not None:
                    goal.ngeom = 0
                    add_goal(goal, env.scene, _readings(env))
            window.sync()
            time.sleep(max(0.0, began + last.seconds - time.perf_counter()))
    return last
