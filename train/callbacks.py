"""What happens between iterations: log lines, the display, checkpoints, a clean stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from widen.randomization.randomizer import Randomizer

from .progress import ProgressDisplay
from .run_folder import RunFolder


class RunCallback(BaseCallback):
    """Keeps the run folder up to date.

    An iteration is complete when its update is, which stable-baselines3 announces only by the
    start of the next rollout or by the end of training: both are hooked here.

    Args:
        run: the folder.
        randomizer: whose bounds are logged.
        display: shown on stderr.
        save: writes a checkpoint of the whole run.
        every: iterations between checkpoints.
        total_iterations: of the whole run.
        seconds: training seconds before this process took over.
    """

    def __init__(
        self,
        run: RunFolder,
        randomizer: Randomizer,
        display: ProgressDisplay,
        save: Callable[[], Any],
        every: int,
        total_iterations: int,
        seconds: float,
    ) -> None:
        super().__init__()
        self.run, self.randomizer, self.display = run, randomizer, display
        self.save, self.every, self.total_iterations = save, every, total_iterations
        self.stopped = False
        self._seconds_before = seconds
        self._began = self._last = time.perf_counter()
        self._last_iteration = -1

    @property
    def seconds(self) -> float:
        """Training time of the run so far, earlier processes included [s]."""
        return self._seconds_before + time.perf_counter() - self._began

    def _on_training_start(self) -> None:
        self._began = self._last = time.perf_counter()
        self._last_iteration = self._ppo.iteration

    def _on_step(self) -> bool:
        return not self.stopped

    def _on_rollout_start(self) -> None:
        self._iteration_ended()

    def _on_rollout_end(self) -> None:
        self.logger.record("rollout/diverged", self._ppo.env.batched.divergences)
        self.logger.record("adr/npd", self.randomizer.npd())
        self.logger.record("adr/bounds_moved", self.randomizer.curriculum.num_moves)
        for row in self.randomizer.table():
            self.logger.record(f"adr/{row['name']}/low", row["low"])
            self.logger.record(f"adr/{row['name']}/high", row["high"])

    def _on_training_end(self) -> None:
        if not self.stopped:
            self._iteration_ended()

    @property
    def _ppo(self) -> Any:
        return self.model

    def _iteration_ended(self) -> None:
        iteration = self._ppo.iteration
        if iteration == self._last_iteration:
            return
        self._last_iteration = iteration
        moves = [
            {"kind": "move", "iteration": iteration, "steps": self.num_timesteps, **asdict(move)}
            for move in self.randomizer.drain_moves()
        ]
        interval = self._interval(iteration)
        # the lines go first: a resume drops those that are newer than its checkpoint
        self.run.append(*moves, interval)
        self.display.update(interval, moves)
        stopped = self.stop_requested > 0  # read once: a signal may come at any moment
        if stopped or iteration % self.every == 0 or iteration >= self.total_iterations:
            self.save()
        self.stopped = stopped

    stop_requested = 0
    """number of the signal that asked for it; the run is saved and ends with the iteration"""

    def _interval(self, iteration: int) -> dict[str, Any]:
        now = time.perf_counter()
        fps = self._ppo.n_steps * self._ppo.n_envs / (now - self._last)
        self._last = now
        episodes = list(self._ppo.ep_info_buffer or ())

        def mean(key: str) -> float | None:
            return sum(e[key] for e in episodes) / len(episodes) if episodes else None

        return {
            "kind": "interval",
            "iteration": iteration,
            "total_iterations": self.total_iterations,
            "steps": self.num_timesteps,
            "seconds": self.seconds,
            "fps": fps,
            "goals_mean": mean("score"),
            "drop_rate": mean("failed"),
            "return_mean": mean("r"),
            "learning_rate": self._ppo.learning_rate,
            "npd": self.randomizer.npd(),
            "parameters": self.randomizer.table(),
        }

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the iteration under way, saved."""

        def request(number: int, frame: Any) -> None:
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = number

        before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
