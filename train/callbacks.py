"""What happens between iterations: the curriculum, log lines, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from stable_baselines3.common.callbacks import BaseCallback

from widen.envs.batched import BatchedEnv
from widen.randomization.curriculum import Records
from widen.randomization.randomizer import Randomizer

from .ranks import Ranks

Line = dict[str, Any]

DIAGNOSE_EVERY = 10
"""iterations between two lines of diagnosis"""


class _Part(NamedTuple):
    """What one rank brings to the end of a rollout."""

    records: Records
    divergences: int
    mistake: str | None
    """of a setting that the simulation outgrew"""


class RunCallback(BaseCallback):
    """Lets the curriculum decide after every rollout and reports every iteration, in every rank.

    An iteration is complete when its update is, which stable-baselines3 announces only by the
    start of the next rollout or by the end of training: both are hooked here.

    Args:
        ranks: the processes that train together; rank 0 judges and reports.
        randomizer: whose bounds move and are logged.
        report: takes an iteration's interval and its moves and diagnosis, on rank 0.
        save: writes a checkpoint of the whole run; all ranks call it.
        every: iterations between checkpoints.
        total_iterations: of the whole run.
        seconds: training seconds before this process took over.
    """

    def __init__(
        self,
        ranks: Ranks,
        randomizer: Randomizer,
        report: Callable[[Line, Sequence[Line]], Any],
        save: Callable[[], Any],
        every: int,
        total_iterations: int,
        seconds: float,
    ) -> None:
        super().__init__()
        self.ranks, self.randomizer, self.report = ranks, randomizer, report
        self.save, self.every, self.total_iterations = save, every, total_iterations
        self.stopped = 0
        """number of the signal that ended the run, once it is saved"""
        self._seconds_before = seconds
        self._began = self._last = time.perf_counter()
        self._last_iteration = -1
        self._diverged = 0

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
        """Judge the boundary episodes of all ranks.

        Raises:
            ValueError: a simulation outgrew its settings, in any rank.
        """
        env: BatchedEnv = self._ppo.env.batched
        ours = _Part(self.randomizer.records(), env.divergences, _mistake(env.sim.check))
        parts = self.ranks.gather(ours)
        mistakes = [part.mistake for part in parts if part.mistake is not None]
        moved, mistakes = self.ranks.broadcast((self._decide(parts), mistakes))
        if mistakes:
            self.ranks.fail(ValueError(mistakes[0]))
        if moved is not None and not self.ranks.first:
            self.randomizer.load_bounds_state(moved)
        self._diverged = sum(part.divergences for part in parts)
        self._record()

    def _decide(self, parts: Sequence[_Part]) -> dict[str, Any] | None:
        """What other ranks must know of the decision; None where no bound moved."""
        if not self.ranks.first:
            return None
        before = self.randomizer.curriculum.num_moves
        self.randomizer.decide([part.records for part in parts])
        moved = self.randomizer.curriculum.num_moves > before
        return self.randomizer.bounds_state() if moved else None

    def _record(self) -> None:
        self.logger.record("rollout/diverged", self._diverged)
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
        if self.ranks.first:
            lines = [
                {"kind": "move", "iteration": iteration, "steps": self.num_timesteps} | asdict(move)
                for move in self.randomizer.drain_moves()
            ]
            if iteration % DIAGNOSE_EVERY == 0 or iteration >= self.total_iterations:
                about = {"kind": "diagnosis", "iteration": iteration, "steps": self.num_timesteps}
                lines.append(about | self.randomizer.diagnosis.report())
            # the lines go first: a resume drops those that are newer than its checkpoint
            self.report(self._interval(iteration), lines)
        stopped = self.ranks.largest(self.ranks.stop_requested)
        if stopped or iteration % self.every == 0 or iteration >= self.total_iterations:
            self.save()
        self.stopped = stopped

    def _interval(self, iteration: int) -> Line:
        now, ppo = time.perf_counter(), self._ppo
        fps = ppo.n_steps * ppo.n_envs * self.ranks.world / (now - self._last)
        self._last = now
        episodes = list(ppo.ep_info_buffer or ())

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
            "diverged": self._diverged,
            "learning_rate": ppo.learning_rate,
            "npd": self.randomizer.npd(),
            "parameters": self.randomizer.table(),
        }


def _mistake(check: Callable[[], None]) -> str | None:
    try:
        check()
    except ValueError as error:
        return str(error)
    return None
