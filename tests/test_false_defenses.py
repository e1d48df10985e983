"""How many false defenses the audit finds, and how many honest models it blames.

    python tests/test_false_defenses.py [--seeds 0 1 2] [--level quick] [--mnist A.ckpt B.ckpt --data-root DIR]

False defenses (tests/fixtures/false_defenses.py, 8x8 digits) are evaluated by PGD-20, honest models by an honest suite;
the first 200 test images, linf 0.2. Checkpoints given with --mnist are evaluated at linf 0.3 by an honest suite, and
once more by PGD-40 alone, whose failed checks are no false alarms where the other suite's robust accuracy is lower.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fixtures.false_defenses import EPS, FALSE, HONEST, NAIVE, SUITE, false_defense, honest
from torch import nn

from adversarial_lightning.attacks import PGD, Attack, Restarts, scale_eps
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.datamodules import MNIST, Digits
from adversarial_lightning.defenses import required_adaptations
from adversarial_lightning.evaluation import Campaign, run_campaign
from adversarial_lightning.evaluation.audit import Check, audit, failed
from adversarial_lightning.evaluation.campaign.identity import claim_folder, suite_part
from adversarial_lightning.evaluation.campaign.merge import merge


def judge(model: nn.Module, suite: Mapping[str, Attack], data: Any, n: int, level: Any) -> tuple[dict[str, Any], Any]:
    """The numbers of an evaluation, and its checks with the CPU seconds that they took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        identity = claim_folder(folder, {"suite": suite_part(suite)})
        campaign = Campaign(suite, data, n, 0, folder, identity)
        run_campaign(campaign, model, batch_size=n)
        results, started = merge(campaign), time.process_time()
        checks = audit(campaign, model, results, required_adaptations=required_adaptations(model), level=level)
    return results, (checks, time.process_time() - started)


def row(name: str, results: dict[str, Any], checks: list[Check], seconds: float) -> str:
    robust = results["worst_case"][0]["robust_accuracy"]
    ids = ", ".join(dict.fromkeys(check.id for check in failed(checks))) or "none"
    return f"| {name} | {100 * results['clean_accuracy']:.1f} | {100 * robust:.1f} | {ids} | {seconds:.1f} |"


@pytest.mark.slow
def test_the_audit_finds_every_false_defense_and_blames_no_honest_model(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "1"])
    said = capsys.readouterr().out
    assert f"found: {len(FALSE)} of {len(FALSE)} false defenses; false alarms: 0 of {len(HONEST)}" in said


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--level", choices=("quick", "full"), default="quick")
    parser.add_argument("--mnist", nargs="*", default=[], help="checkpoints")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args(argv)
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print("| model | clean % | robust % | failed checks | CPU s |\n|---|---|---|---|---|")
    found = blamed = 0
    for seed in options.seeds:
        for name in (*FALSE, *HONEST):
            model = false_defense(name, seed) if name in FALSE else honest(name, seed)
            suite = NAIVE if name in FALSE else SUITE
            results, (checks, seconds) = judge(model, suite, Digits(size=8).dataset("test"), 200, options.level)
            print(row(f"{name}, seed {seed}", results, checks, seconds), flush=True)
            if name in FALSE:
                found += bool({check.id for check in failed(checks)} & FALSE[name][1])
            else:
                blamed += bool(failed(checks))
    mnist = {name: scale_eps(attack, 0.3 / EPS) for name, attack in SUITE.items()}
    alone: dict[str, Attack] = {"pgd": Restarts(PGD(eps=0.3, steps=40, step_size=0.02), 1)}
    for path in options.mnist:
        model, data = load_network(path)[0], MNIST(root=options.data_root).dataset("test")
        for kind, suite in (("honest suite", mnist), ("PGD-40 alone", alone)):
            results, (checks, seconds) = judge(model, suite, data, options.images, options.level)
            print(row(f"{Path(path).parts[-3]}, {kind}", results, checks, seconds), flush=True)
            blamed += kind == "honest suite" and bool(failed(checks))
    defenses, models = len(FALSE) * len(options.seeds), len(HONEST) * len(options.seeds) + len(options.mnist)
    print(f"\nfound: {found} of {defenses} false defenses; false alarms: {blamed} of {models} honest models")


if __name__ == "__main__":
    main()
