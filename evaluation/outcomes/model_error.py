"""Errors that come out of a model: told apart from those of attacks, data, settings and memory."""

import traceback

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from adversarial_lightning.attacks.core.norms import displacement, distance
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.outcome import Outcome

RAISED = 4  # exit status of an evaluation whose model raised an error
_LONGEST = 200  # letters of an error that are kept


def raised_by(model: nn.Module, error: BaseException) -> bool:
    """Whether the error came out of a forward of the model or of a part of it, or out of a backward written by hand."""
    parts, trace = {id(m) for m in model.modules()}, error.__traceback__
    while trace is not None:
        known = trace.tb_frame.f_locals
        if id(known.get("self")) in parts or isinstance(known.get("ctx"), BackwardCFunction):
            return True
        trace = trace.tb_next
    return False


def is_finding(model: nn.Module, error: Exception) -> bool:
    """Whether the error says something of the model: not where settings do not fit, nor where memory is short."""
    return raised_by(model, error) and not isinstance(error, UserError) and not out_of_memory(error)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, or the accelerator failed, after which it answers nothing any more."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "CUDA error" in str(error)


def words(error: BaseException) -> str:
    """Kind and message of an error in one line."""
    said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":. ")
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]} ..."


def place(error: BaseException) -> str:
    """File and line where the error was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"


def raised_outcomes(x: Tensor, y: Tensor, index: Tensor, clean: Tensor, scored: bool) -> list[Outcome]:
    """Outcomes of samples on which the model raised an error: no class, right in no draw, at the image itself.

    A detector flags none of them (its score is -infinite), so that none counts as defended.
    """
    image = distance("l2", displacement(x, torch.zeros_like(x)))
    rows = zip(index.tolist(), y.tolist(), clean.tolist(), image.tolist(), strict=True)
    nothing = {"l0": 0, "l1": 0.0, "l2": 0.0, "linf": 0.0, "forwards": 0.0, "backwards": 0.0, "seconds": 0.0}
    return [
        Outcome(
            index=number,
            label=label,
            clean=before,
            adversarial=-1,
            right_draws=0,
            image_l2=size,
            score=-torch.inf if scored else None,
            **nothing,  # type: ignore[arg-type]
        )
        for number, label, before, size in rows
    ]
