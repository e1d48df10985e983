"""Text of numbers in reports: shares, intervals, radii, threat models, durations, settings."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

SYMBOLS = {"linf": "ℓ∞", "l2": "ℓ₂", "l1": "ℓ₁", "l0": "ℓ₀"}


def percent(share: float, n: int) -> str:
    """Share of `n` samples in per cent, with as many decimals as n carries: one sample moves the last digit."""
    return f"{100 * share:.{max(0, len(str(n)) - 3)}f} %"


def share_of(share: float | None, n: int) -> str:
    """Share in per cent with its number of samples, ``42 % of 800``; of none at all, only that."""
    return f"of {n:,}" if share is None else f"{percent(share, n)} of {n:,}"


def length(value: float | None, n: int) -> str:
    """Mean of `n` lengths: two digits, three from 1,000 on; empty for None."""
    return "" if value is None else f"{value:.{2 if n < 1000 else 3}g}"


def lengths(bounds: Sequence[float] | None, n: int) -> str:
    """Interval of lengths in brackets; empty where there is none."""
    return f"[{', '.join(length(bound, n) for bound in bounds)}]" if bounds else ""


def interval(bounds: Sequence[float] | None, n: int) -> str:
    """Interval of shares in per cent, in brackets; empty where there is none."""
    if bounds is None:
        return ""
    low, high = (percent(bound, n)[:-2] for bound in bounds)
    return f"[{low}, {high}]"


def samples(results: Mapping[str, Any]) -> str:
    """The images of an evaluation in words: how many, of how many, and how they were chosen."""
    s = results["samples"]
    if s["chosen"] == "all":
        return f"all {s['n']:,} test images"
    whole = "" if s["of"] is None else f" of {s['of']:,}"
    if s["chosen"] == "first":
        return f"the first {s['n']:,}{whole} test images"
    seed = "" if s["seed"] is None else f", sample seed {s['seed']}"
    return f"a random subset of {s['n']:,}{whole} test images{seed}"


def interval_words(bounds: Sequence[float] | None, results: Mapping[str, Any]) -> str:
    """Interval of a headline and what it is over or, where there is none, why."""
    s = results["samples"]
    if bounds is not None:
        return f"95 % interval over images {interval(bounds, s['n'])}"
    if s["chosen"] == "all":
        left = "training seeds and the defense's draws" if results.get("clean_draws") else "training seeds"
        return f"all {s['n']:,} test images, so no interval over images; {left} still vary"
    return f"of these {s['n']:,} images, the first of their set; no interval"


def radius(eps: float | None) -> str:
    """Radius as ``8/255`` where it is such a fraction and decimals would be long, else in decimals."""
    if eps is None:
        return ""
    steps = eps * 255
    if abs(steps - round(steps)) < 1e-4 and Fraction(str(eps)).denominator > 1000:
        return f"{round(steps)}/255"
    return f"{eps:.4g}"


def threat(norm: str | None, eps: float | None, symbols: bool = False) -> str:
    """Threat model in words, ``linf 0.3``; with `symbols`, ``ℓ∞ ≤ 0.3``. Empty for corruptions."""
    if norm is None:
        return ""
    if symbols:
        return SYMBOLS.get(norm, norm) + (f" ≤ {radius(eps)}" if eps is not None else "")
    return f"{norm} {radius(eps)}".strip()


def where(entry: Mapping[str, Any], symbols: bool = False) -> str:
    """Threat model of an attack or a worst case in words; of several norms ``the union of linf 0.1 and l2 0.5``."""
    members = [threat(ball["norm"], ball["eps"], symbols) for ball in entry.get("members") or ()]
    if not members:
        return threat(entry["norm"], entry["eps"], symbols)
    return " ∪ ".join(members) if symbols else f"the union of {', '.join(members[:-1])} and {members[-1]}"


def duration(seconds: float) -> str:
    """Duration in words: ``0.8 s``, ``41 s``, ``12 min 05 s`` or ``3 h 20 min``."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: float) -> str:
    """Count with separated thousands; three digits where it is small and not whole."""
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:.3g}"


def number(value: Any) -> str:
    """Number with four digits; empty for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def settings(spec: Any) -> str:
    """Spec of class_path and init_args as in Python, ``PGD(eps=0.3, steps=40)``; without arguments that are None."""
    if isinstance(spec, Mapping) and "class_path" in spec:
        given = {name: value for name, value in (spec.get("init_args") or {}).items() if value is not None}
        arguments = ", ".join(f"{name}={settings(value)}" for name, value in given.items())
        return str(spec["class_path"]).rpartition(".")[2] + (f"({arguments})" if given else "")
    if isinstance(spec, Mapping):
        return "{" + ", ".join(f"{name}: {settings(value)}" for name, value in spec.items()) + "}"
    if isinstance(spec, list | tuple):
        return "[" + ", ".join(map(settings, spec)) + "]"
    return number(spec) if isinstance(spec, float) else str(spec)


def place(checkpoint: str) -> str:
    """End of a checkpoint's path, which names the run: ``run/best.ckpt``."""
    parts = [part for part in checkpoint.replace("\\", "/").split("/") if part not in ("", ".", "..", "checkpoints")]
    return "/".join(parts[-2:])


def facts(results: Mapping[str, Any]) -> dict[str, str]:
    """Identity of an evaluation: files with checksums, and all choices."""
    checkpoint, data = results["checkpoint"], results["data"]
    found = {
        "checkpoint": f"{checkpoint['path']}",
        "sha256": checkpoint["sha256"],
        "data": f"{samples(results)} of {settings(data)}",
        "fingerprint": data.get("fingerprint", ""),
        "defenses": ", ".join(settings(entry) for entry in results["defenses"]) or "none",
        "seed": str(results["seed"]),
        "mode": str(results.get("mode", "")).replace("_", " "),
    }
    return {name: value for name, value in found.items() if value}


def facts_of_cost(results: Mapping[str, Any]) -> dict[str, str]:
    """Cost of the whole evaluation; empty where none was recorded."""
    cost = results["cost"]
    if not cost:
        return {}
    count = "1 process" if cost["processes"] == 1 else f"{cost['processes']} processes"
    found = {
        "wall time": f"{duration(cost['wall_seconds'])} on {count}",
        "peak memory": f"{cost['peak_memory'] / 2**20:,.0f} MiB of the largest process" if cost["peak_memory"] else "",
        "energy": f"{cost['energy'] / 3600:.3g} Wh of the GPUs" if cost["energy"] is not None else "",
    }
    if low := results.get("precision"):
        compared = "; ".join(
            f"{percent(c['low_precision'], c['n'])} robust at {threat(c['norm'], c['eps'])}, "
            f"{percent(c['float32'], c['n'])} in float32"
            for c in low["cases"]
        )
        how = f"{low['attacks']}{', compiled' * low['compile']}"
        on = f"on {low['cases'][0]['n']} samples {compared}" if low["cases"] else "without a radius, so not compared"
        found["attacks computed in"] = f"{how}, judged in float32; {on}"
    return {name: value for name, value in found.items() if value}


def too_weak(case: Mapping[str, Any]) -> str:
    """Reason why attacks in low precision give no headline number."""
    low, full = (percent(case[key], case["n"]) for key in ("low_precision", "float32"))
    return (
        f"on {case['n']} samples attacks in low precision leave {low} robust, those in float32 {full}: "
        "they are too weak; leave out --precision and --compile"
    )


def half(x: Sequence[float], y: Sequence[float]) -> str:
    """First x where y is at most half of its first value."""
    return next((f"{a:.3g}" for a, b in zip(x, y, strict=True) if b <= y[0] / 2), f"beyond {x[-1]:.3g}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a markdown table, aligned for reading as text."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
