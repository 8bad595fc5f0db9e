"""What a user may say about randomization."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .adr import ADR, AdrConfig
from .curriculum import Range, Uniform
from .parameters import CATALOGUE, find


class ParameterConfig(BaseModel):
    """Overrides of a catalogue entry; what is left out comes from there."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    step: float | None = Field(default=None, ge=0)
    """by how much an adr bound moves; 0 holds the parameter at its nominal"""
    limits: tuple[float, float] | None = None
    """how far adr bounds may go"""
    range: tuple[float, float] | None = None
    """what curriculum `uniform` draws from; its default is `limits`"""
    widen_at: float | None = None
    """instead of adr.widen_at"""
    narrow_at: float | None = None
    """instead of adr.narrow_at"""


class RandomizationConfig(BaseModel):
    """Which parameters vary, and who decides how widely."""

    model_config = ConfigDict(extra="forbid")

    curriculum: Literal["adr", "uniform", "none"] = "none"
    """adr: ranges widen with success; uniform: fixed ranges; none: the nominal world"""
    adr: AdrConfig = Field(default_factory=AdrConfig)
    parameters: dict[str, ParameterConfig] = Field(default_factory=dict)
    """the parameters that vary, by their names in the catalogue"""

    @field_validator("parameters", mode="before")
    @classmethod
    def _empty_means_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: {} if entry is None else entry for name, entry in value.items()}
        return value

    @model_validator(mode="after")
    def _fits_catalogue(self) -> RandomizationConfig:
        for name, entry in self.parameters.items():
            _check(name, entry)
            low, high = self.adr.narrow_at, self.adr.widen_at
            low = low if entry.narrow_at is None else entry.narrow_at
            high = high if entry.widen_at is None else entry.widen_at
            if low >= high:
                raise ValueError(
                    f"parameters.{name}: narrow_at {low:g} must be below widen_at {high:g}"
                )
            self.adr.with_thresholds(entry.narrow_at, entry.widen_at)
        return self

    def names(self) -> list[str]:
        """The parameters in catalogue order, whatever order the user wrote."""
        return [name for name in CATALOGUE if name in self.parameters]

    def ranges(self) -> list[Range]:
        """The parameters as a curriculum sees them, in catalogue order."""
        chosen = ((find(name), self.parameters[name]) for name in self.names())
        return [
            what.range(entry.step, entry.limits, entry.widen_at, entry.narrow_at)
            for what, entry in chosen
        ]

    def widest(self) -> RandomizationConfig:
        """Every parameter drawn from all that it may ever reach: the worst that a run may meet."""
        if self.curriculum != "adr":
            return self
        entries = {
            name: entry.model_copy(update={"range": None})
            for name, entry in self.parameters.items()
        }
        return self.model_copy(update={"curriculum": "uniform", "parameters": entries})

    def make_curriculum(self) -> Uniform:
        """The curriculum that the config asks for."""
        ranges = self.ranges()
        if self.curriculum == "adr":
            return ADR(ranges, self.adr)
        bounds = [(find(r.name).nominal,) * 2 for r in ranges]
        if self.curriculum == "uniform":
            widest = [self.parameters[r.name].range or (r.limit_low, r.limit_high) for r in ranges]
            bounds = [
                w if r.step > 0 else b for r, w, b in zip(ranges, widest, bounds, strict=True)
            ]
        return Uniform(ranges, np.array(bounds))


def _check(name: str, entry: ParameterConfig) -> None:
    what = find(name)
    for key, pair in (("limits", entry.limits), ("range", entry.range)):
        if pair is not None and pair[0] > pair[1]:
            raise ValueError(f"parameters.{name}.{key}: {_text(pair)} is upside down")
    limits = entry.limits or what.limits
    if limits[0] < what.limits[0] or limits[1] > what.limits[1]:
        raise ValueError(
            f"parameters.{name}.limits: {_text(limits)} goes beyond {_text(what.limits)}"
        )
    if not limits[0] <= what.nominal <= limits[1]:
        raise ValueError(
            f"parameters.{name}.limits: {_text(limits)} excludes the nominal {what.nominal:g}"
        )
    if entry.range and entry.step == 0:
        raise ValueError(
            f"parameters.{name}.range: {_text(entry.range)} is at odds with step 0, which holds the"
            " parameter at its nominal; expected one of the two"
        )
    if entry.range and (entry.range[0] < limits[0] or entry.range[1] > limits[1]):
        raise ValueError(
            f"parameters.{name}.range: {_text(entry.range)} goes beyond the limits {_text(limits)}"
        )


def _text(pair: tuple[float, float]) -> str:
    return f"[{pair[0]:g}, {pair[1]:g}]"
