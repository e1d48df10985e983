"""``lightning fit|validate|test|predict``: PyTorch Lightning's command line, with packaged configurations by name."""

import sys
import warnings
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from adversarial_lightning.callbacks import MovedRun
from adversarial_lightning.checkpoints.load import load_checkpoint
from adversarial_lightning.cli.class_names import prefer_ours
from adversarial_lightning.cli.configs import resolved
from adversarial_lightning.cli.messages import exits
from adversarial_lightning.configs import FOLDER
from adversarial_lightning.errors import UserError

# Lightning 2.6 on torch 2.15 says this once an epoch; it concerns neither us nor our users.
warnings.filterwarnings("ignore", message=".*LeafSpec")

BASE = FOLDER / "base.yaml"


class CLI(LightningCLI):
    """Lightning's command line with one folder a run (`trainer.default_root_dir`) for config, checkpoints and logs."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Two callbacks: one that monitors writes `last` only where the best improves, and `best` on exceptions too.
        parser.add_lightning_class_args(ModelCheckpoint, "best")
        parser.add_lightning_class_args(ModelCheckpoint, "last")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint's hyper-parameters override what the command line says."""

    def before_instantiate_classes(self) -> None:
        config, fit = self.config[self.subcommand], self.subcommand == "fit"
        root = Path(config.trainer.default_root_dir)
        used = (root / "checkpoints" / "last.ckpt").exists() and getattr(rank_zero_only, "rank", 0) == 0
        if fit and used and not (config.ckpt_path or config.trainer.fast_dev_run):
            raise UserError(
                f"{root} holds the checkpoints of an earlier run. Continue it with --ckpt_path last, choose another "
                "folder with --trainer.default_root_dir, or remove it"
            )
        if config.trainer.logger in (None, True):
            where = {"save_dir": str(root), "name": "", "version": "", "default_hp_metric": False}
            config.trainer.logger = {"class_path": "pytorch_lightning.loggers.TensorBoardLogger", "init_args": where}
        config.weights_only = True  # explicit: wins over the environment, which may allow code in checkpoints
        if config.ckpt_path not in (None, "last", "best", "hpc"):
            load_checkpoint(config.ckpt_path)  # for its errors: Lightning's are tracebacks
        for checkpoint in (config.best, config.last):
            checkpoint.dirpath = checkpoint.dirpath or str(root / "checkpoints")
        filename = "config.yaml" if fit else f"{self.subcommand}.yaml"
        self.save_config_kwargs = {"overwrite": True, "config_filename": filename}


def main(args: list[str] | None = None) -> CLI:
    """Run the command line; raises what goes wrong (`run` turns it into a message and a status)."""
    prefer_ours()
    kwargs: dict[str, Any] = {name: {"default_config_files": [str(BASE)]} for name in CLI.subcommands()}
    for parser in (kwargs, *list(kwargs.values())):
        parser["exit_on_error"] = False
    return CLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        parser_kwargs=kwargs,
        seed_everything_default=0,
        trainer_defaults={"callbacks": [MovedRun()]},
        args=args,
    )


def run(argv: list[str]) -> int:
    """Exit status: 0 done, 2 an error of the user's, 143 after SIGTERM, once a checkpoint is written."""

    def train() -> CLI:
        sys.argv[1:] = resolved(argv)  # Lightning starts further processes by the same words
        return main()

    try:
        return exits(train)
    except SIGTERMException:
        return 143
