"""Which parameters limit a run, from its evaluations and from the episodes it has seen."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from .curriculum import Uniform

SIDES = ("low", "high")
ROOM = 8192  # episodes that are remembered
STRATUM = 256  # episodes that are compared with one another, since the policy changes
OUTER, INNER = 0.75, 0.5  # of the way from the nominal to a bound
LEAST = 12  # episodes that an estimate needs
SURPRISE = 0.05  # probability that any pair is named by chance
MOST_PAIRS = 10


class Diagnosis:
    """The recent episodes of all processes, and what they say about a curriculum's bounds.

    A value counts as near a bound in the outer quarter of the way there from the nominal, boundary
    evaluations included, and as near the nominal in the inner half of that way.

    Args:
        curriculum: whose bounds are meant.
    """

    def __init__(self, curriculum: Uniform) -> None:
        self._curriculum = curriculum
        self._episodes = np.zeros((0, len(curriculum.ranges) + 1), dtype=np.float32)

    def take(self, episodes: Sequence[np.ndarray]) -> None:
        """Episodes that ended since the last time, (E, P + 1) values and score of each process."""
        self._episodes = np.concatenate((self._episodes, *episodes))[-ROOM:]

    def report(self) -> dict[str, Any]:
        """All findings as plain values.

        Keys: episodes (how many are remembered); limiting, see `limiting`; drops, see
        `_Strata.drops`; pairs, see `_Strata.pairs`.
        """
        strata = _Strata(self._episodes, self._curriculum)
        names = [(what.name, side) for what in self._curriculum.ranges for side in SIDES]
        return {
            "episodes": len(self._episodes),
            "limiting": limiting(self._curriculum),
            "drops": strata.drops(names),
            "pairs": strata.pairs(names, getattr(self._curriculum, "passes_above", None)),
        }

    def state_dict(self) -> dict[str, Any]:
        """The remembered episodes."""
        return {"episodes": torch.from_numpy(self._episodes.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._episodes = state["episodes"].cpu().numpy().copy()


def limiting(curriculum: Uniform) -> list[dict[str, Any]]:
    """Bounds with evaluations, those that failed to widen most often of late first.

    Of each: name, side, decisions and failed over the whole run, recent_decisions and
    recent_failed, and limiting, whether none failed more often of late.
    """
    ever, recent = curriculum.tallies()
    most = max(1, recent[:, 1].max(initial=0))
    found = [
        {
            "name": curriculum.ranges[bound // 2].name,
            "side": SIDES[bound % 2],
            "decisions": int(ever[bound, 0]),
            "failed": int(ever[bound, 1]),
            "recent_decisions": int(recent[bound, 0]),
            "recent_failed": int(recent[bound, 1]),
            "limiting": bool(recent[bound, 1] >= most),
        }
        for bound in np.flatnonzero(ever[:, 0]).tolist()
    ]
    return sorted(found, key=lambda one: -one["recent_failed"])


class _Strata:
    """Sums over episodes near the nominal, near bounds, and near two bounds at once.

    Scores rise while a policy learns and ranges grow meanwhile, so that early episodes are both
    worse and nearer to the nominal. Only episodes of one stratum, which ended about the same time,
    are compared; their differences are then averaged over the strata.
    """

    def __init__(self, episodes: np.ndarray, curriculum: Uniform) -> None:
        scores = episodes[:, -1].astype(np.float64)
        outer, inner = _near(episodes[:, :-1], curriculum)
        count = max(1, round(len(scores) / STRATUM))
        self._parts = [
            (scores[rows], outer[rows], inner[rows])
            for rows in np.array_split(np.arange(len(scores)), count)
            if len(rows)
        ]

    def drops(self, names: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Of every bound by how much success falls from the nominal to it, the largest fall first.

        Of each: name, side, inner and outer (mean scores), drop, error (its standard error) and
        episodes (near the bound). Bounds that lie on the nominal, or were met in fewer than
        `LEAST` episodes, are left out.
        """
        bounds = range(len(names))
        # episodes outer and inner; by outer episodes: their scores, the inner mean, the variance
        sums = np.zeros((5, len(names)))
        for scores, outer, inner in self._parts:
            n_outer, n_inner = outer.sum(0), inner.sum(0)
            usable = n_inner > 0
            mean = np.divide(scores @ inner, n_inner, where=usable, out=np.zeros(len(names)))
            rows = (n_outer, n_inner, scores @ outer, mean * n_outer, scores.var() * n_outer)
            sums += np.where(usable, rows, 0.0)
        found = []
        for bound in (b for b in bounds if min(sums[0, b], sums[1, b]) >= LEAST):
            n_outer, n_inner = sums[:2, bound]
            outer, inner, variance = sums[2:, bound] / n_outer
            error = float(np.sqrt(variance * (1 / n_outer + 1 / n_inner)))
            name, side = names[bound]
            means = {"inner": float(inner), "outer": float(outer), "drop": float(inner - outer)}
            found.append(
                {"name": name, "side": side, **means, "error": error, "episodes": int(n_outer)}
            )
        return sorted(found, key=lambda one: -one["drop"])

    def pairs(
        self, names: Sequence[tuple[str, str]], passes_above: float | None
    ) -> list[dict[str, Any]]:
        """Pairs of bounds that are worse together than the sum of what each does alone.

        A pair is named if its mean lies below that sum by more than chance explains, corrected for
        the number of pairs (Bonferroni). Of each: names, sides, mean, expected, error, episodes,
        and fails: whether the mean is at most `passes_above` although that of each bound alone is
        higher. The curriculum draws parameters independently, and so cannot see these.
        """
        size = len(names)
        joint, total, expected, variance = np.zeros((4, size, size))
        single = np.zeros((2, size))
        for scores, outer, _ in self._parts:
            n, level = outer.sum(0), scores.mean()
            excess = np.divide((scores - level) @ outer, n, where=n > 0, out=np.zeros(size))
            both = outer.T @ outer
            joint += both
            total += (outer * scores[:, None]).T @ outer
            expected += both * (level + excess[:, None] + excess)
            variance += both * scores.var()
            single += [n, scores @ outer]
        one, other = np.nonzero(np.triu(joint >= LEAST, 1))
        if not len(one):
            return []
        n = joint[one, other]
        alone = 1 / single[0, one] + 1 / single[0, other]
        error = np.sqrt(variance[one, other] / n * (1 / n + alone))
        mean, sums = total[one, other] / n, expected[one, other] / n
        critical = NormalDist().inv_cdf(1 - SURPRISE / len(one))
        depth = np.divide(sums - mean, error, where=error > 0, out=np.zeros(len(one)))
        means = single[1] / np.maximum(single[0], 1)
        found = []
        for i in np.argsort(-depth)[:MOST_PAIRS].tolist():
            if depth[i] < critical:
                break
            (a, first), (b, second) = names[int(one[i])], names[int(other[i])]
            least = min(means[one[i]], means[other[i]])
            fails = passes_above is not None and bool(mean[i] <= passes_above < least)
            found.append(
                {
                    "names": [a, b],
                    "sides": [first, second],
                    "mean": float(mean[i]),
                    "expected": float(sums[i]),
                    "error": float(error[i]),
                    "episodes": int(n[i]),
                    "fails": fails,
                }
            )
        return found


def _near(values: np.ndarray, curriculum: Uniform) -> tuple[np.ndarray, np.ndarray]:
    """Of values (E, P): (E, 2P) near each bound, and near the nominal, as 0.0 and 1.0."""
    nominal = np.array([what.nominal for what in curriculum.ranges])
    reach = curriculum.bounds - nominal[:, None]  # (P, 2)
    away = (values - nominal)[:, :, None]  # (E, P, 1)
    share = np.divide(away, reach, where=reach != 0, out=np.zeros((*values.shape, 2)))
    outer = share >= OUTER
    inner = (share >= 0) & (share <= INNER) & (reach != 0)
    flat = (len(values), 2 * values.shape[1])
    return outer.reshape(flat).astype(np.float64), inner.reshape(flat).astype(np.float64)
