"""How anything is run: ``lightning fit|validate|test|predict --config …``, or ``python train.py`` with the same words."""

import sys
from pathlib import Path

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

import attacks  # noqa: F401  (the catalogues are imported before parsing, so that short class names are known)
import callbacks  # noqa: F401
import datamodules  # noqa: F401
import defenses  # noqa: F401
import lightning_modules  # noqa: F401
import networks  # noqa: F401
from evaluation.errors import Parser, friendly

BASE = Path(__file__).parent / "configs" / "base.yaml"


class TrainingParser(Parser, LightningArgumentParser):
    """Lightning's parser, whose errors name the true cause first."""


class CLI(LightningCLI):
    """One folder a run (`trainer.default_root_dir`): config.yaml, checkpoints/{best,last}.ckpt, TensorBoard logs."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(RichProgressBar, "progress")

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let the checkpoint's hyper-parameters override what the command line says."""

    def before_instantiate_classes(self) -> None:
        config, fit = self.config[self.subcommand], self.subcommand == "fit"
        root = Path(config.trainer.default_root_dir)
        used = root / "checkpoints" / "last.ckpt"
        if fit and rank_zero_only.rank == 0 and used.exists() and not (config.ckpt_path or config.trainer.fast_dev_run):
            raise ValueError(
                f"{root} holds the checkpoints of an earlier run. Continue it with --ckpt_path last, choose another "
                "folder with --trainer.default_root_dir, or remove it"
            )
        if config.trainer.logger in (None, True):
            where = {"save_dir": str(root), "name": "", "version": ""}
            config.trainer.logger = {"class_path": "pytorch_lightning.loggers.TensorBoardLogger", "init_args": where}
        if config.checkpoint.dirpath is None:
            config.checkpoint.dirpath = str(root / "checkpoints")
        filename = "config.yaml" if fit else f"{self.subcommand}.yaml"
        self.save_config_kwargs = {"overwrite": True, "config_filename": filename}


def main(args: list[str] | None = None) -> CLI:
    """Run the command line; a user's mistake becomes one paragraph and status 2, SIGTERM status 143."""
    defaults = {"default_config_files": [str(BASE)]}
    try:
        return CLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=TrainingParser,
            parser_kwargs={name: defaults for name in ("fit", "validate", "test", "predict")},
            seed_everything_default=0,
            args=args,
        )
    except SIGTERMException:
        sys.exit(143)
    except Exception as error:
        message = friendly(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


if __name__ == "__main__":
    main()
