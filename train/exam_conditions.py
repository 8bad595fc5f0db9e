"""What a policy is examined in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from widen.randomization.events import LatencyStep, MotorDead, PoseLost, WrenchPulse
from widen.randomization.manual import held_out
from widen.randomization.parameters import find
from widen.randomization.scripted import Script

from .cli_errors import near

SHORT_SECONDS = 3.0
"""Length of the episodes of all conditions but nominal and held_out."""

EVENT_AT = 1.0 / 3.0  # of an episode
PULSES = {"small": 2.0, "medium": 5.0, "large": 10.0}  # force by the object's mass [m/s^2]
PULSE_SECONDS = 0.2
LOST_SECONDS = 0.5
ENCODER_OFFSET = 0.05  # std [rad]
WEAK = 0.8
FINE_STEP = 0.005  # [s]
FINE_ITERATIONS = 2  # times as many

GROUPS = ("nominal", "held_out", "suite", "bounds", "fine")


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        name: unique; its part before a slash is the parameter of a bound.
        group: of GROUPS.
        summary: for people.
        script: what happens.
        steps: control steps of an episode.
        fine: simulated in steps of FINE_STEP with more solver iterations.
        reference: name of the nominal condition of the same length and simulation.
        event: control steps before something happens; None if nothing does.
    """

    name: str
    group: str
    summary: str
    script: Script
    steps: int
    reference: str
    fine: bool = False
    event: int | None = None

    def describe(self) -> dict[str, Any]:
        """What tells this condition from others, as JSON-friendly values."""
        return {"name": self.name, "steps": self.steps, "fine": self.fine, **self.script.describe()}


@dataclass(frozen=True)
class Syllabus:
    """All conditions of one policy.

    Attributes:
        conditions: in the order of the table.
        unmoved: bounds that stand at the nominal value, as names of conditions: they are the
            condition nominal/short and are left out.
    """

    conditions: tuple[Condition, ...]
    unmoved: tuple[str, ...]

    def select(self, names: Sequence[str]) -> tuple[Condition, ...]:
        """The conditions of these names and groups.

        Raises:
            ValueError: a name is unknown.
        """
        known = {*GROUPS, *(condition.name for condition in self.conditions)}
        for name in names:
            if name in self.unmoved:
                raise ValueError(f"--conditions {name}: this bound is at its nominal value")
            if name not in known:
                hint = near(name, [*GROUPS, *known.difference(GROUPS)])
                raise ValueError(f"--conditions {name}: unknown; expected {hint}")
        wanted = {*names}
        if "bounds" in wanted:  # what they are compared with comes along
            wanted |= {c.reference for c in self.conditions if c.group == "bounds"}
        return tuple(c for c in self.conditions if wanted & {c.name, c.group})


def syllabus(
    ranges: Iterable[dict[str, Any]],
    control_dt: float,
    episode_seconds: float,
    short_seconds: float,
    has_object: bool,
) -> Syllabus:
    """The conditions of a policy.

    Args:
        ranges: at the end of its training, as `Randomizer.table` gives them.
        control_dt: [s].
        episode_seconds: of the task; nominal and held_out last as long.
        short_seconds: of all others, unless the task's are shorter.
        has_object: whether there is something to push, to lose and to weigh.

    Raises:
        ValueError: a parameter is unknown.
    """
    whole = max(2, round(episode_seconds / control_dt))
    short = min(whole, max(2, round(short_seconds / control_dt)))
    # "nominal" is also a group: what is nominal and of one length is one condition
    reference = "nominal" if short == whole else "nominal/short"
    found = [
        Condition("nominal", "nominal", "nothing is randomised", Script(), whole, "nominal"),
        Condition(
            "held_out",
            "held_out",
            "manual randomisation of arXiv 1808.00177",
            held_out(has_object),
            whole,
            "nominal",
        ),
    ]
    suite = [
        Condition(reference, "suite", "nothing is randomised", Script(), short, reference),
        *_suite(short, control_dt, reference, has_object),
    ]
    bounds, unmoved = _bounds(ranges, short, reference)
    fine = [_fine(condition, reference) for condition in suite]
    if short == whole:
        del suite[0]
    return Syllabus((*found, *suite, *bounds, *fine), unmoved)


def _suite(steps: int, dt: float, reference: str, has_object: bool) -> list[Condition]:
    at = max(1, round(EVENT_AT * steps))
    pulse, lost = max(1, round(PULSE_SECONDS / dt)), max(1, round(LOST_SECONDS / dt))

    def event(name: str, summary: str, layer: Any, **settings: float) -> Condition:
        script = Script(layers=(partial(layer, at=at, **settings),))
        return Condition(name, "suite", summary, script, steps, reference, event=at)

    def held(name: str, summary: str, **values: float) -> Condition:
        return Condition(name, "suite", summary, Script.held(**values), steps, reference)

    friction = {"hand_friction": 0.5, **({"object_friction": 0.5} if has_object else {})}
    weak = {"actuator_gain": WEAK, "actuator_damping": WEAK, "force_limit": WEAK}
    of_object = [
        *(
            event(
                f"wrench_{word}",
                f"a push of {size:g} m/s^2 for {PULSE_SECONDS:g} s",
                WrenchPulse,
                steps=pulse,
                size=size,
            )
            for word, size in PULSES.items()
        ),
        event("pose_lost", f"no new pose for {LOST_SECONDS:g} s", PoseLost, steps=lost),
        held("mass_x2", "object twice as heavy", object_mass=2.0),
    ]
    return [
        event("latency_step", "one control step more of latency", LatencyStep),
        event("motor_dead", "one motor goes limp", MotorDead),
        *(of_object if has_object else ()),
        held("friction_x0.5", "half the friction", **friction),
        held(
            "encoder_offset",
            f"encoder zeros off by {ENCODER_OFFSET:g} rad (std)",
            encoder_offset=ENCODER_OFFSET,
        ),
        held("motors_weak", "motors 20 % weaker", **weak),
    ]


def _bounds(
    ranges: Iterable[dict[str, Any]], steps: int, reference: str
) -> tuple[list[Condition], tuple[str, ...]]:
    """One parameter at one of its bounds, all else nominal."""
    found, unmoved = [], []
    for row in ranges:
        unit = "" if (what := find(row["name"])).unit in ("x", "1") else f" {what.unit}"
        for side in ("low", "high"):
            name, value = f"{what.name}/{side}", row[side]
            # a bound that came back is not back to the last digit
            if math.isclose(value, row["nominal"], rel_tol=1e-9, abs_tol=1e-12):
                unmoved.append(name)
                continue
            summary = f"{what.name} {value:.4g}{unit}"
            script = Script.held(**{what.name: value})
            # control steps stretch with the time step; the episode shall last as long
            length = round(steps / value) if what.name == "time_step" else steps
            found.append(Condition(name, "bounds", summary, script, length, reference))
    return found, tuple(unmoved)


def _fine(condition: Condition, reference: str) -> Condition:
    """The same at a smaller time step: does the policy exploit the simulator?"""
    fine = "nominal/fine" if condition.name == reference else f"{condition.name}/fine"
    return replace(condition, name=fine, group="fine", reference="nominal/fine", fine=True)
