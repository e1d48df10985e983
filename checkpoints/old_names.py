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


def argument(owner: str, name: str) -> str | None:
    """What the argument `name` of the class `owner` (with or without its module) is called now; None: not old."""
    return ARGUMENTS.get((owner.rpartition(".")[2], name)) or ARGUMENTS.get((None, name))
