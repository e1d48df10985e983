"""Names of before version 0.2 that files still hold: one table of classes and arguments, one of names on disk."""

# (class, its old argument) -> its name now. None: any attack.
ARGUMENTS: dict[tuple[str | None, str], str] = {
    (None, "samples"): "eot_samples",
    ("RIDE", "samples"): "noisy_copies",
    ("ERClassifier", "weight"): "regularization",
    ("VAECLA", "weight"): "kl_weight",
    ("VAT", "weight"): "divergence_weight",
    ("AdversaryCritic", "weight"): "critic_weight",
    ("AdversaryCritic", "slope_weight"): "gradient_penalty_weight",
    ("AdversaryCritic", "slope"): "gradient_norm",
    ("AdversaryCritic", "game"): "gan_loss",
}
CLASSES = {"evaluation.surrogate.Checkpoint": "CheckpointSurrogate"}


# Names on disk (results.json, ledgers) that are words of before: the next schema renames them.
PRECISION, LOW_PRECISION = "haste", "hastened"
ROBUST, ROBUST_WITHOUT_DETECTOR = "stands", "stands_without_detector"  # in results/detectors


def argument(owner: str, name: str) -> str | None:
    """What the old argument `name` of the class `owner` (with or without module) is called now; None: it is not old."""
    return ARGUMENTS.get((owner.rpartition(".")[2], name)) or ARGUMENTS.get((None, name))
