"""A figure of the benchmark: what was measured in each turn, held against what must be; and the table of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`must`: what is asked, as '>= 0.85', an 'aim >= 0.85', or '' where only a report is. `holds`: None then."""

    figure: str
    value: float
    must: str
    holds: bool | None
    spread: tuple[float, float]


def judged(figure: str, values: Sequence[float], must: str = "") -> Figure:
    """The median of the turns' values, their spread from the least to the greatest."""
    value = statistics.median(values)
    holds = None
    if must:
        sign, _, limit = must.removeprefix("aim ").partition(" ")
        least = float(limit)
        holds = {">=": value >= least, "<=": value <= least, "=": value == least, ">": value > least}[sign]
    return Figure(figure, float(value), must, holds, (float(min(values)), float(max(values))))


def as_table(found: Sequence[Figure]) -> str:
    lines = ["| figure | value | spread | must | holds |", "|---|---|---|---|---|"]
    for one in found:
        low, high = one.spread
        holds = {None: "", True: "yes", False: "**no**"}[one.holds]
        lines.append(f"| {one.figure} | {one.value:.4g} | {low:.4g} to {high:.4g} | {one.must} | {holds} |")
    return "\n".join(lines)
