"""Old names that files may still hold: tables of arguments, of classes and of keys of results.json."""

# (class, its old argument) -> its name now; a dot leads into a group of settings. None: any attack.
ARGUMENTS: dict[tuple[str | None, str], str] = {
    (None, "samples"): "eot_samples",
    ("RIDE", "samples"): "noisy_copies",
    ("ERClassifier", "weight"): "regularization",
    ("VAECLA", "weight"): "kl_weight",
    ("VAT", "weight"): "divergence_weight",
    ("AdversaryCritic", "weight"): "critic_weight",
    ("AdversaryCritic", "slope_weight"): "critic_settings.gradient_penalty_weight",
    ("AdversaryCritic", "slope"): "critic_settings.gradient_norm",
    ("AdversaryCritic", "game"): "critic_settings.gan_loss",
    ("AdversaryCritic", "gan_loss"): "critic_settings.gan_loss",
    ("AdversaryCritic", "critic_steps"): "critic_settings.steps",
    ("AdversaryCritic", "gradient_penalty_weight"): "critic_settings.gradient_penalty_weight",
    ("AdversaryCritic", "gradient_norm"): "critic_settings.gradient_norm",
    ("AdversaryCritic", "steps"): "attack_settings.steps",
    ("AdversaryCritic", "overshoot"): "attack_settings.overshoot",
    ("AdversaryCritic", "confidence"): "attack_settings.confidence",
    ("AdversaryCritic", "momentum"): "attack_settings.momentum",
    ("AdversaryCritic", "target"): "attack_settings.target",
    ("AdversaryCritic", "unroll"): "attack_settings.unroll",
    ("AdversaryCritic", "clamp"): "attack_settings.clamp",
    ("AdversaryCritic", "pretrain_epochs"): "pretraining.epochs",
    ("AdversaryCritic", "pretrain_decay"): "pretraining.decay",
    ("ERClassifier", "critic_out"): "authors_code.critic_out",
    ("ERClassifier", "reg_optimizer"): "authors_code.reg_optimizer",
    ("ERClassifier", "accumulate_grads"): "authors_code.accumulate_grads",
    ("ERClassifier", "mix_clean"): "authors_code.mix_clean",
    ("ERClassifier", "attack_label"): "authors_code.attack_label",
}
CLASSES = {"evaluation.surrogate.Checkpoint": "CheckpointSurrogate"}

# Old key of results.json, schema 1 and 2 -> its name now.
RESULTS = {"haste": "precision", "hastened": "low_precision", "exact": "float32"}


def argument(owner: str, name: str) -> str | None:
    """Present name of the old argument `name` of the class `owner` (with or without module); None: it is not old."""
    return ARGUMENTS.get((owner.rpartition(".")[2], name)) or ARGUMENTS.get((None, name))
