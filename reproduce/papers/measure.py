"""Calls a measure of a paper in a process of its own, and writes down its numbers.

A measure is a function ``measure(*, checkpoint, data, n, output, **arguments)`` below `reproduce`: `checkpoint` is the
file of a training run (None where the measure needs none), `data` the folder of the data (None: as recorded), `n` the
number of test images (None: all), `output` a folder for pictures. It returns ``{"numbers": {key: {"value",
"interval"}}, "samples": {"chosen", "seed", "n", "of"}}``.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adversarial_lightning.checkpoints.files import write_whole
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.subset import Samples
from adversarial_lightning.reproduce.papers.work import measure_named


def measured(samples: Samples, numbers: dict[str, tuple[float | None, list[float] | None]]) -> dict[str, Any]:
    """What a measure returns, from values and their 95 % intervals by key."""
    entries = {key: {"value": value, "interval": interval} for key, (value, interval) in numbers.items()}
    return {"numbers": entries, "samples": asdict(samples)}


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 2 an error of the user's."""
    request = json.loads(argv[0])
    output, checkpoint = Path(request["output"]), request["checkpoint"]
    try:
        found = measure_named(request["measure"])(
            checkpoint=Path(checkpoint) if checkpoint else None,
            data=request["data"],
            n=request["n"],
            output=output,
            **request["arguments"],
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_whole(output / "measured.json", json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
