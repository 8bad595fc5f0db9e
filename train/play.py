"""One environment to look at: a film, MuJoCo's viewer, or the figures alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from widen.envs.batched import BatchedEnv

    from .evaluate import Trial

WIDTH, HEIGHT = 640, 480
GIF_SIZE, GIF_HZ, GIF_COLOURS = (400, 300), 10, 128  # a README shall load quickly
GIF_SECONDS = 60.0  # all pictures are in memory at once
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
        before += int(result.episodes.rows()["score"].sum())
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
    from widen.envs.render import SceneRenderer

    env, last = trial[0], Moment(0, 0, 0.0)
    hz = 1.0 / env.control_dt
    skip, renderer = pictures_skipped(path, hz), SceneRenderer(env.scene, WIDTH, HEIGHT)

    def pictures() -> Iterator[np.ndarray]:
        nonlocal last
        for k, moment in enumerate(play(trial, seconds)):
            last = moment
            if k % skip:
                continue
            qpos = env.sim.qpos[0].cpu().numpy()
            text = f"{moment.goals} goals    {moment.seconds:.0f} s"
            yield captioned(renderer.frame(qpos, _readings(env)), text)

    try:
        write_film(path, pictures(), hz / skip)
    finally:
        renderer.close()
    return last


def pictures_skipped(path: Path, hz: float) -> int:
    """Every how many-th picture of `hz` a film of this kind has."""
    return max(1, round(hz / GIF_HZ)) if path.suffix == ".gif" else 1


def write_film(path: Path, pictures: Iterator[np.ndarray], hz: float) -> None:
    """Write pictures (HEIGHT, WIDTH, 3) uint8, `hz` per second; the file appears when complete."""
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write = _write_gif if path.suffix == ".gif" else _write_mp4
        write(beside, pictures, hz)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _readings(env: BatchedEnv) -> dict[str, np.ndarray]:
    return {name: value[0].cpu().numpy() for name, value in env.task.readings().items()}


def _write_mp4(path: Path, pictures: Iterator[np.ndarray], hz: float) -> None:
    imageio, _ = _encoders()
    # both sizes are multiples of 16, the encoder's block
    with imageio.get_writer(path, fps=hz, quality=8) as writer:
        for picture in pictures:
            writer.append_data(picture)


def _write_gif(path: Path, pictures: Iterator[np.ndarray], hz: float) -> None:
    _, image = _encoders()
    small = [image.fromarray(picture).resize(GIF_SIZE) for picture in pictures]
    sample = np.concatenate([np.asarray(picture) for picture in small[:: len(small) // 8 + 1]])
    # one palette and no dithering, so that what rests in the picture stays the same
    palette = image.fromarray(sample).quantize(GIF_COLOURS, image.Quantize.FASTOCTREE)
    first, *rest = (picture.quantize(palette=palette, dither=0) for picture in small)
    duration = round(1000 / hz)  # [ms]
    first.save(path, save_all=True, append_images=rest, duration=duration, loop=0)


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """A picture (HEIGHT, WIDTH, 3) uint8 with a line below."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
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


def check_film(path: Path, seconds: float | None) -> None:
    """Refuse what cannot be filmed, before anything takes time.

    Raises:
        ValueError: not .mp4 or .gif, no such folder or one that cannot be written to, a file that
            is not a film of that kind, or a .gif of too many seconds.
    """
    if path.suffix not in _SIGNATURES:
        raise ValueError(f"--video {path}: expected a name that ends in .mp4 or .gif")
    if path.is_dir():
        raise ValueError(f"--video {path} is a folder: expected the name of a film to write")
    if not path.parent.is_dir():
        raise ValueError(f"--video {path}: expected an existing folder, got {path.parent}")
    if path.suffix == ".gif" and (seconds or 0.0) > GIF_SECONDS:
        raise ValueError(f"--seconds {seconds:g}: expected at most {GIF_SECONDS:g} for a .gif")
    if path.exists():
        start, signature = _SIGNATURES[path.suffix]
        with path.open("rb") as file:
            if file.read(start + len(signature))[start:] != signature:
                raise ValueError(f"--video {path} exists and is no film: expected a new name")
    try:
        # the encoder is another program, which would only say that its pipe broke
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"--video {path}: cannot be written: {error.strerror or error}") from None
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
