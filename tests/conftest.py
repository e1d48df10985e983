"""Shared fixtures: every test starts from the same global seed, on one thread."""

import os

import pytest
import torch

torch.set_num_threads(1)
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = (
    "off"  # LightningCLI 2.6 calls a method that jsonargparse 4.49 renamed
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
