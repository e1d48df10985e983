"""Timing on a noisy machine: functions take turns in one process; CPU time is measured, ratios are reported."""

import statistics
import time
from collections.abc import Callable, Mapping


def ratios(contestants: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, tuple[float, float, float]]:
    """Median, minimum and maximum over rounds of each contestant's CPU time over the first one's of the same round.

    One round that is not counted warms up; the order is reversed in every second round.
    """
    names = list(contestants)
    found: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(-1, rounds):
        seconds = {}
        for name in names if round_ % 2 else reversed(names):
            start = time.process_time()
            contestants[name]()
            seconds[name] = time.process_time() - start
        if round_ >= 0:
            for name in names:
                found[name].append(seconds[name] / seconds[names[0]])
    return {name: (statistics.median(v), min(v), max(v)) for name, v in found.items()}


def table(rows: Mapping[str, tuple[float, float, float]], limits: Mapping[str, str]) -> str:
    """Ratios as a markdown table; `limits` states the target of a row."""
    lines = ["| what | CPU-time ratio: median [min, max] | target |", "|---|---|---|"]
    lines += [f"| {n} | {m:.3f} [{a:.3f}, {b:.3f}] | {limits.get(n, '')} |" for n, (m, a, b) in rows.items()]
    return "\n".join(lines)
