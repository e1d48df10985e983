"""Whether intervals of random subsets hold the accuracy on the whole test set, and what the first images say instead.

python -m adversarial_lightning.reproduce.subset_bias NAME=DIR [...] --output FILE.json [--n 300 1000] [--seeds 200]

DIR is the folder of an evaluation of all test images: its results.json says which of them are robust. For every n, as
many random subsets as `--seeds` says are drawn from them, each as `--limit n --sample_seed s` would; 93 to 97 % of
their 95 % intervals should hold the accuracy on the whole set. Beside it stand the first n images, and whether Wilson's
interval, as if they were a sample, holds it.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.statistics import flags_of, sampling_interval, wilson
from adversarial_lightning.evaluation.outcomes.subset import Samples, random_subset
from adversarial_lightning.evaluation.outcomes.types import Flags
from adversarial_lightning.evaluation.report.formatting import percent, table, threat
from adversarial_lightning.reproduce.record import about


def coverage(right: Flags, n: int, seeds: int) -> dict[str, Any]:
    """Share of `seeds` random subsets of `n` whose 95 % interval holds the mean of all; the first n beside them.

    `right` (N,) says for every sample of the set, in its order, whether the model is robust there.
    """
    whole, numbers = float(right.mean()), torch.arange(len(right))
    found = [float(right[random_subset(numbers, n, seed).numpy()].mean()) for seed in range(seeds)]
    intervals = [sampling_interval(mean, Samples("random", seed, n, len(right))) for seed, mean in enumerate(found)]
    held = [bounds is not None and bounds[0] <= whole <= bounds[1] for bounds in intervals]
    first = float(right[:n].mean())
    low, high = wilson(first, n)
    return {
        **{"n": n, "of": len(right), "seeds": seeds, "whole": whole, "covered": sum(held) / seeds},
        **{"mean": float(np.mean(found)), "deviation": float(np.std(found))},
        **{"first": first, "first_interval": [low, high], "first_covers": low <= whole <= high},
    }


def bitmaps(results: Mapping[str, Any]) -> dict[str, Flags]:
    """Which samples are right without an attack and in each worst case. UserError where not all images were used."""
    if results["schema"] < 3 or results["samples"]["chosen"] != "all" or results.get("detection"):
        raise UserError("evaluate all test images first, without --limit and --detector, by this version")
    n = results["n"]
    found = {"clean": flags_of(results["clean_bitmap"], n)}
    return found | {threat(c["norm"], c["eps"]): flags_of(c["bitmap"], n) for c in results["worst_case"]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--n", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--note", default="")
    options = parser.parse_args(argv)
    found = []
    for name, _, folder in (entry.partition("=") for entry in options.evaluations):
        for what, right in bitmaps(json.loads((Path(folder) / "results.json").read_text())).items():
            found += [{"model": name, "under": what, **coverage(right, n, options.seeds)} for n in options.n]
    rows = [
        [
            *(row["model"], row["under"], percent(row["whole"], row["of"]), f"{row['n']:,} of {row['of']:,}"),
            *(f"{100 * row['covered']:.1f} %", percent(row["first"], row["n"])),
            "yes" if row["first_covers"] else "NO",
        ]
        for row in found
    ]
    head = ["model", "under", "all images", "n", "intervals that hold it", "first n", "Wilson's holds it"]
    print("\n".join(table(head, rows)))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema": 1, **about(options.note), "seeds": options.seeds, "rows": found}
    options.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
