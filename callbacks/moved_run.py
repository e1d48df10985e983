"""Best checkpoint of a run that is resumed where its folder lies now."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_warn


class MovedRun(pl.Callback):
    """Keeps the best checkpoint when a run is resumed after its folder was moved, renamed or copied.

    Lightning knows checkpoints by absolute paths, forgets the best score where these changed, and overwrites the best
    file with a worse one. Here a checkpoint belongs to the folder in which it lies. Where the best file of the earlier
    epochs is not in the folder, or was chosen by another metric, a warning says that the choice begins anew.
    ``lightning fit`` always has this callback.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = checkpoint["callbacks"]
        for keeper in trainer.checkpoint_callbacks:
            if not isinstance(keeper, ModelCheckpoint) or "://" in str(keeper.dirpath):  # a store has no folders
                continue
            if keeper.state_key in states:
                _relocate(trainer, keeper, states)
            elif keeper.monitor:
                others = {s["monitor"] for s in states.values() if isinstance(s, dict) and s.get("best_k_models")}
                if others:
                    rank_zero_warn(
                        f"the best checkpoint was chosen by {', '.join(sorted(others))}, and is chosen by "
                        f"{keeper.monitor} from here on: earlier epochs do not count, and a file of theirs in "
                        f"{keeper.dirpath} may be overwritten"
                    )


def _relocate(trainer: pl.Trainer, keeper: ModelCheckpoint, states: dict[str, Any]) -> None:
    """Rewrite the paths in the state of `keeper`; leave out files that are gone, and the state if none is left."""
    state, here = states[keeper.state_key], Path(str(keeper.dirpath))
    in_place = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve().parent == here.resolve()

    def now(path: str) -> str:
        old = Path(state["dirpath"])
        return str(here / Path(path).relative_to(old)) if in_place and old in Path(path).parents else path

    scores = {now(path): score for path, score in state["best_k_models"].items()}
    kept = {p: s for p, s in scores.items() if here in Path(p).parents and keeper.file_exists(p, trainer)}
    if scores and not kept:
        best = Path(state["best_model_path"]).name
        rank_zero_warn(
            f"the best checkpoint so far ({best}, {keeper.monitor} {float(state['best_model_score']):.4g}) is not in "
            f"{here}: it is chosen anew, among the epochs from here on"
        )
    if (scores and not kept) or (not in_place and state["dirpath"] != str(here)):
        del states[keeper.state_key]
        return
    state |= {name: now(state[name]) for name in ("best_model_path", "last_model_path", "kth_best_model_path")}
    state |= {"dirpath": str(here), "best_k_models": kept}
    if kept:
        ranked = sorted(kept, key=lambda p: float(kept[p]), reverse=keeper.mode == "max")
        state |= {"best_model_path": ranked[0], "best_model_score": kept[ranked[0]]}
        state |= {"kth_best_model_path": ranked[-1], "kth_value": kept[ranked[-1]]}
