"""Settings that the papers print, against the configurations: a value that drifts would reproduce something else."""

from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import signature
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adversarial_lightning import attacks
from adversarial_lightning.attacks import (
    APGD,
    BPDA,
    CW,
    DAA,
    DDN,
    EAD,
    FAB,
    FGSM,
    FMN,
    JSMA,
    PDGD,
    PDPGD,
    PGD,
    AutoAttack,
    Boundary,
    CWLinf,
    DeepFool,
    DetectorAwareAPGD,
    DetectorAwarePGD,
    FeatureAdversary,
    GaussianNoise,
    HighConfidence,
    HopSkipJump,
    Joint,
    Langevin,
    LogitEOT,
    OnePixel,
    RayS,
    ReconstructionPGD,
    Restarts,
    SaltAndPepper,
    SaltAndPepperSearch,
    SparseFool,
    Square,
    Targeted,
)
from adversarial_lightning.checkpoints.spec import catalogue
from adversarial_lightning.defenses import RIDE, TVBregman, TVChambolle, Voting
from adversarial_lightning.detectors import LID, ReconstructionError
from adversarial_lightning.lightning_modules import (
    ATENT,
    RSE,
    TRADES,
    VAECLA,
    VAT,
    AdversarialTraining,
    AdversaryCritic,
    Cosine,
    DenoisingAutoencoder,
    ERClassifier,
    Exponential,
    MarginMaximization,
    OneCycle,
    Standard,
    Steps,
)
from adversarial_lightning.lightning_modules.critic_settings import AttackSettings, CriticSettings, Pretraining

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

SAMPLER = "model.init_args.sampler.init_args"
THESIS_3 = {  # section 3.5: Adam 1e-3, times 0.95 an epoch, batches of 100, 50,000 images for training
    "model.init_args.optimizer.init_args.lr": 1e-3,
    "model.init_args.schedule.init_args": {"times": 100, "gamma": 0.95},
    "data.init_args": {"batch_size": 100, "val_size": 10_000},
    "trainer.max_epochs": 100,
}
MLP_1000 = {**THESIS_3, "model.init_args.network.init_args.hidden": [1000, 1000, 1000]}
CRITIC = {  # chapter 4, section 4.5
    "model.init_args.optimizer.init_args": {"lr": 5e-4, "betas": [0.5, 0.999]},
    "model.init_args.critic_optimizer.init_args": {"lr": 1e-3, "betas": [0.5, 0.999]},
    "data.init_args.batch_size": 100,
    "trainer.max_epochs": 101,
}


def sampler(norm: str, eps: float, steps: int, step_size: float, noise_scale: float, **more: Any) -> dict[str, Any]:
    found = {"norm": norm, "eps": eps, "steps": steps, "step_size": step_size, "noise_scale": noise_scale, **more}
    return {f"{SAMPLER}.{name}": value for name, value in found.items()}


def embedding(eps: float, steps: int, epochs: int = 30) -> dict[str, Any]:
    """ER-Classifier, Table 9."""
    attack = {"model.init_args.attack.init_args.eps": eps, "model.init_args.attack.init_args.steps": steps}
    return {**attack, "trainer.max_epochs": epochs}


PRINTED: dict[str, dict[str, Any]] = {
    # Jagatap et al. 2020, section 4 and Tables 1 to 4
    "experiments/atent_mnist_l2_paper": {
        **sampler("l2", 2, 40, 0.25, 1e-3, pull=0.05),
        **{"model.init_args.optimizer.init_args.lr": 1e-3, "data.init_args.batch_size": 50},
    },
    "experiments/atent_mnist_linf_paper": {
        **sampler("linf", 0.3, 40, 0.01, 1e-3, project="last"),
        **{"model.init_args.optimizer.init_args.lr": 0.01, "data.init_args.batch_size": 128},
    },
    "experiments/atent_cifar10_linf": {
        **sampler("linf", 0.031, 10, 0.007, 1e-3, project="last"),
        "model.init_args.optimizer.init_args": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "model.init_args.network.init_args": {"depth": 34, "width": 10},
        "data.init_args.batch_size": 128,
        "trainer.max_epochs": 76,
    },
    "experiments/atent_cifar10_l2": {
        **sampler("l2", 1, 10, 0.2, 1e-3, pull=0.08),
        "model.init_args.optimizer.init_args.lr": 0.1,
        "data.init_args.batch_size": 256,
    },
    "experiments/standard_mnist": {
        **{"model.init_args.optimizer.init_args.lr": 0.1, "data.init_args.batch_size": 128, "trainer.max_epochs": 50}
    },
    "attacks/pgd20_paper_linf_0.3": {"init_args": {"norm": "linf", "eps": 0.3, "steps": 20, "step_size": 0.01}},
    # Matyasko, Table 3.1
    "experiments/margin_mnist_mlp_l2": {**MLP_1000, "model.init_args.penalty": 0.1, "model.init_args.q": 2},
    "experiments/margin_mnist_mlp_l1": {**MLP_1000, "model.init_args.penalty": 0.01, "model.init_args.q": 1},
    "experiments/vat_mnist_mlp": {**MLP_1000, "model.init_args.eps": 2},
    "experiments/fgsm_at_mnist_mlp": {**MLP_1000, "model.init_args.attack.init_args.eps": 0.2},
    "experiments/dropout_mnist_mlp": {**MLP_1000, "model.init_args.network.init_args.dropout": 0.5},
    "experiments/standard_mnist_mlp": MLP_1000,
    # Matyasko, Table 4.1
    "experiments/critic_mnist_mlp": {
        **CRITIC,
        **{"model.init_args.critic_weight": 0.5, "model.init_args.network.init_args.hidden": [1200, 1200, 1200]},
    },
    "experiments/critic_mnist_lenet": {**CRITIC, "model.init_args.critic_weight": 0.1},
    "attacks/high_confidence_critic": {"init_args.steps": 500, "init_args.max_step": 0.1},
    "attacks/deepfool_critic": {"init_args.steps": 500, "init_args.max_step": 0.1, "init_args.box": True},
    # Li et al. 2021, Table 9
    "experiments/er_mnist": embedding(0.3, 40),
    "experiments/er_cifar10": embedding(0.03, 20),
    "experiments/er_stl10": embedding(0.03, 20),
    "experiments/er_tiny_imagenet": embedding(0.01, 10),
    "experiments/madry_er_mnist": embedding(0.3, 40),
    # Srinivasan et al. 2021
    "experiments/sdae_mnist": {"model.init_args.sigma2": 0.15},
}

DEFAULTS: dict[Any, dict[str, Any]] = {
    ATENT: {"alpha": 0.9},
    AdversarialTraining: {"clean_weight": 0.0},
    TRADES: {"beta": 6.0, "attack": PGD(eps=0.3, steps=40, step_size=0.01, loss="kl", start_std=0.001)},
    VAT: {"eps": 2.0, "divergence_weight": 1.0, "iterations": 1},
    MarginMaximization: {"penalty": 0.1, "q": 2},
    DenoisingAutoencoder: {"sigma2": 0.15},
    Exponential: {"times": 100, "gamma": 0.95},
    OneCycle: {"warmup": 0.3, "initial": 1 / 25, "final": 1 / 25 / 1e4},  # torch's div_factor and final_div_factor
    Steps: {"gamma": 0.1},
    Cosine: {"final": 0.0},
    Pretraining: {"epochs": 1},
    TVBregman: {"weight": 10.0, "steps": 100},
    TVChambolle: {"weight": 0.25, "steps": 200},
    Voting: {"votes": 10},
    ReconstructionError: {"p": 1},
    AdversaryCritic: {"critic_weight": 0.5, "cycle_weight": 1e-2},
    CriticSettings: {"steps": 1, "gradient_penalty_weight": 10.0, "gradient_norm": 1.0},
    AttackSettings: {"steps": 5, "confidence": "running_mean", "target": "closest"},
    ERClassifier: {"regularization": 5e-4, "clip": 0.01, "n_critic": 1, "prior": "gaussian"},
    RIDE: {"steps": 2000, "stages": 5, "learning_rate": 1e-4, "weight_decay": 1e-4, "mask_ratio": 0.9},
    LID: {"k": 20, "references": 100},
}

# For MNIST, as printed or, where a paper is silent, as in its authors' code; none has weight decay.
SGD_MOMENTUM = {"optimizer": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9})}
OPTIMIZERS: dict[type, dict[str, tuple[type, dict[str, Any]]]] = {
    Standard: {"optimizer": (torch.optim.SGD, {"lr": 0.1, "momentum": 0})},
    **{method: SGD_MOMENTUM for method in (AdversarialTraining, TRADES, RSE, ATENT)},
    AdversaryCritic: {
        "optimizer": (torch.optim.Adam, {"lr": 5e-4, "betas": (0.5, 0.999)}),
        "critic_optimizer": (torch.optim.Adam, {"lr": 1e-3, "betas": (0.5, 0.999)}),
    },
    ERClassifier: {  # of the encoder; a 20th of it; half of it
        "optimizer": (torch.optim.Adam, {"lr": 1e-4, "betas": (0.9, 0.999)}),
        "classifier_optimizer": (torch.optim.Adam, {"lr": 5e-6, "betas": (0.9, 0.999)}),
        "critic_optimizer": (torch.optim.Adam, {"lr": 5e-5, "betas": (0.9, 0.999)}),
    },
    VAECLA: {
        "optimizer": (torch.optim.Adam, {"lr": 1e-4, "betas": (0.9, 0.999)}),
        "classifier_optimizer": (torch.optim.Adam, {"lr": 5e-6, "betas": (0.9, 0.999)}),
    },
    **{
        method: {"optimizer": (torch.optim.Adam, {"lr": 1e-3, "betas": (0.9, 0.999)})}
        for method in (DenoisingAutoencoder, MarginMaximization, VAT)
    },
}

# As printed, or, where the paper is silent, as in its authors' code; radii, and steps of our own attacks, are what
# suites count on. All attacks aim away from the label and look once at each point.
ATTACKS: dict[Any, dict[str, Any]] = {
    APGD: {"eps": 0.3, "steps": 100, "loss": "ce", "random_start": True, "multi_eps": False, "rho": 0.75},
    AutoAttack: {"version": "standard", "norm": "linf", "eps": 0.3},
    BPDA: {"backward": "identity", "steps": None, "network": None},
    Boundary: {"queries": 5625, "sphere_step": 0.3, "source_step": 0.05, "start": "varied", "starts": 100, "votes": 1},
    CW: {"steps": 1000, "search_steps": 9, "step_size": 0.01, "const": 1e-3, "kappa": 0.0, "abort_early": True},
    CWLinf: {"steps": 1000, "step_size": 5e-3, "const": 1e-5, "max_const": 20.0, "decrease": 0.9, "min_tau": 1 / 256},
    DAA: {"eps": 0.3, "steps": 200, "step_size": None, "particles": 10, "kernel_weight": 1.1},
    DDN: {"steps": 1000, "step_size": 1.0, "init_norm": 1.0, "gamma": 0.05, "levels": None},
    DeepFool: {"norm": "l2", "steps": 50, "overshoot": 0.02, "max_step": None, "box": True, "candidates": 10},
    DetectorAwareAPGD: {"eps": 8 / 255, "steps": 100, "detector_weight": 0.1, "kappa": 0.05, "random_start": True},
    DetectorAwarePGD: {"eps": 8 / 255, "steps": 200, "step_size": None, "detector_weight": 1.0, "kappa": 0.05},
    EAD: {
        "rule": "en",
        "beta": 1e-3,
        "steps": 1000,
        "search_steps": 9,
        "step_size": 0.01,
        "const": 1e-3,
        "fista": True,
    },
    FAB: {"steps": 100, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9, "restarts": 1, "search_steps": 3},
    FGSM: {"norm": "linf", "eps": 0.3, "loss": "ce"},
    FMN: {"norm": "l2", "steps": 1000, "step_size": None, "gamma": 0.05, "gamma_final": 0.001},
    FeatureAdversary: {"eps": 10 / 255, "steps": 100, "step_size": None, "random_start": True},
    GaussianNoise: {"std": 0.1},
    HighConfidence: {"confidence": None, "steps": 500, "max_step": 0.1, "overshoot": 0.02, "candidates": 10},
    HopSkipJump: {"queries": 10_000, "probes": 100, "gamma": 1.0, "start": "varied", "starts": 100, "votes": 1},
    JSMA: {"theta": 1.0, "direction": "up", "gamma": 0.145, "candidates": 10},
    Joint: {"restarts": 10, "n_targets": 9, "theta": None},
    Langevin: {"eps": 0.3, "steps": 20, "step_size": 0.03, "pull": 0.0, "coupled": False, "noise_scale": 1e-3},
    LogitEOT: {"eot_samples": 20},
    OnePixel: {"pixels": 1, "population": 400, "generations": 100, "differential": 0.5},
    PDGD: {"norm": "l2", "steps": 500, "step_size": 0.3, "restarts": 1, "finetune": 0, "runners_up": 0, "spread": 0.5},
    PDPGD: {"norm": "linf", "steps": 500, "step_size": 1.0, "restarts": 1, "finetune": 0, "dual_step": 0.1},
    PGD: {"eps": 0.3, "steps": 40, "step_size": None, "random_start": True, "momentum": 0.0, "start_std": None},
    RayS: {"queries": 10_000, "tolerance": 1e-4, "votes": 1},
    ReconstructionPGD: {
        "eps": 0.3,
        "steps": 1000,
        "step_size": 0.01,
        "random_start": True,
        "one_pass": True,
        "bpda": True,
    },
    Restarts: {"n": 5},
    SaltAndPepper: {"density": 0.25},
    SaltAndPepperSearch: {"queries": 1000, "steps": 50, "votes": 1},
    SparseFool: {"steps": 20, "overshoot": 0.02, "lambda_": 3.0, "deepfool_steps": 50, "candidates": 10},
    Square: {"eps": 0.3, "queries": 5000, "p_init": 0.8, "rescale_schedule": True, "loss": "margin"},
    Targeted: {"n_targets": 9},
}
NO_SETTINGS = {"CheckpointSurrogate", "GrayBox", "Sweep", "Transfer", "Within", "WorstOf"}


def at(tree: Any, path: str) -> Any:
    """The value at a dotted `path`; whole numbers are positions."""
    for name in path.split("."):
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
    return tree


@pytest.mark.parametrize("name", PRINTED)
def test_printed_settings_are_configured(name: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert {path: at(config, path) for path in PRINTED[name]} == PRINTED[name]


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_defaults_are_the_papers_values(kind: Any) -> None:
    assert {n: signature(kind).parameters[n].default for n in DEFAULTS[kind]} == DEFAULTS[kind]


@pytest.mark.parametrize("method", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_default_optimizers_are_the_papers(method: type) -> None:
    defaults = {n: p.default for n, p in signature(method).parameters.items() if n.endswith("optimizer")}
    made = {name: default([torch.nn.Parameter(torch.zeros(1))]) for name, default in defaults.items()}
    expected = {name: (kind, {**settings, "weight_decay": 0}) for name, (kind, settings) in OPTIMIZERS[method].items()}
    settings = {name: {n: made[name].defaults[n] for n in expected[name][1]} for name in made}
    assert {name: (type(made[name]), settings[name]) for name in made} == expected


@pytest.mark.parametrize("kind", ATTACKS, ids=lambda kind: kind.__name__)
def test_defaults_of_attacks(kind: Any) -> None:
    defaults = {field.name: field.default for field in fields(kind)}
    expected = {**{n: v for n, v in {"targeted": False, "eot_samples": 1}.items() if n in defaults}, **ATTACKS[kind]}
    assert {name: defaults[name] for name in expected} == expected


def test_every_attack_has_its_defaults_in_the_table() -> None:
    known = {kind.__name__ for kind in catalogue(attacks) if is_dataclass(kind)}
    assert known - NO_SETTINGS == {kind.__name__ for kind in ATTACKS}


# Constants of papers and of their authors' code, and of reports that are compared with each other.
CONSTANTS: dict[str, dict[str, Any]] = {
    "attacks.apgd": {"FIRST_CHECKPOINT": 0.22, "FIRST_CHECKPOINT_L1": 0.04, "PERIOD_DECREASE": 0.03},
    "attacks.fab": {"START_RADIUS": {"linf": 0.3, "l2": 1.0, "l1": 5.0}},
    "attacks.square": {"HALVINGS": (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)},
    "attacks.step_size_search": {"GRID": (0.01, 0.05, 0.1, 0.5, 1.0)},
    "attacks.pdpgd": {"FLOOR": log(1e-6)},
    "attacks.core.best_adversarial": {"VOTES": 10},
    "detectors.fitting": {"SHARE": 0.2},
    "detectors.lid": {"CAP": 1000.0},
    "evaluation.outcomes.detection": {"LEVELS": (0.0, 0.01, 0.05, 0.1)},
    "evaluation.outcomes.imported_proof": {"ROUNDING": 0.001, "ORDER": 0.05},
    "evaluation.campaign.sample_status": {"MOST_DRAWS": 62},
    "lightning_modules.trades": {"KL_PGD": PGD(loss="kl", eps=0.3, steps=40, step_size=0.01, start_std=0.001)},
}


@pytest.mark.parametrize("module", CONSTANTS)
def test_constants_are_the_papers(module: str) -> None:
    found = vars(import_module(f"adversarial_lightning.{module}"))
    assert {name: found[name] for name in CONSTANTS[module]} == CONSTANTS[module]


def test_draws_of_the_randomised_auto_attack() -> None:
    assert (AutoAttack(version="rand").eot_samples, AutoAttack().eot_samples) == (20, 1)
