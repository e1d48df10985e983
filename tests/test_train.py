"""The command line as a user runs it: whole processes, one and two of them, interrupted and mistaken."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import ROOT, environment, run

TRAIN = [sys.executable, str(ROOT / "train.py")]
SHIM = [sys.executable, "-c", "import sys; from adversarial_lightning.cli import main; sys.exit(main())"]
QUICK = str(ROOT / "configs" / "experiments" / "quickstart.yaml")
SMALL = ["--trainer.max_epochs", "2", "--data.init_args.train_limit", "96", "--data.init_args.val_size", "41"]
SMALL += ["--data.init_args.test_limit", "41", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]


def command(how: list[str], action: str, folder: Path, *more: str, config: str = QUICK) -> list[str]:
    return [*how, action, "--config", config, "--trainer.default_root_dir", str(folder), *SMALL, *more]


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("network.")}


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's ATENT, two small epochs of it, by python train.py."""
    folder = tmp_path_factory.mktemp("runs") / "atent"
    run(*command(TRAIN, "fit", folder))
    return folder


@pytest.mark.long
def test_both_commands_give_the_same_weights(trained: Path, tmp_path: Path) -> None:
    run(*command(SHIM, "fit", tmp_path / "b"), cwd=tmp_path)
    assert same(trained / "checkpoints" / "last.ckpt", tmp_path / "b" / "checkpoints" / "last.ckpt")


def test_a_run_leaves_its_folder(trained: Path) -> None:
    assert {p.name for p in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["init_args"]["sampler"]["init_args"]["eps"] == 0.15 and config["seed_everything"] == 0
    assert list(trained.glob("events.out.tfevents.*"))
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["catalogue"]["network"]["class_path"] == "networks.SmallCNN"
    assert checkpoint["catalogue"]["data"]["init_args"]["train_limit"] == 96


@pytest.mark.long
def test_a_used_folder_is_not_overwritten(trained: Path) -> None:
    before = (trained / "checkpoints" / "last.ckpt").read_bytes()
    done = run(*command(TRAIN, "fit", trained), ok=False)
    assert done.returncode == 2 and "--ckpt_path last" in done.stderr and "Traceback" not in done.stderr
    assert (trained / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.long
def test_the_command_line_wins_over_the_checkpoint(trained: Path, tmp_path: Path) -> None:
    """Lightning merges the checkpoint's hyper-parameters last; ours does not."""
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    more = ["--ckpt_path", checkpoint, "--model.init_args.sampler.init_args.eps", "0.01"]
    run(*command(TRAIN, "test", tmp_path, *more))
    saved = yaml.safe_load((tmp_path / "test.yaml").read_text())
    assert saved["model"]["init_args"]["sampler"]["init_args"]["eps"] == 0.01


def figures(output: str) -> dict[str, float]:
    rows = [line.replace("│", " ").split() for line in output.splitlines() if "test/" in line]
    return {name: float(value) for name, value in rows}


@pytest.mark.long
@pytest.mark.parametrize("samples", [41, 1])
def test_two_processes_test_every_sample_once(trained: Path, tmp_path: Path, samples: int) -> None:
    """Same accuracies on one and two processes; a process without a sample neither hangs nor dies."""
    limit = ["--data.init_args.test_limit", str(samples), "--ckpt_path", str(trained / "checkpoints" / "best.ckpt")]
    one = run(*command(TRAIN, "test", tmp_path / "1", *limit))
    two = run(*command(TRAIN, "test", tmp_path / "2", *limit, "--trainer.devices", "2", "--trainer.strategy", "ddp"))
    assert figures(one.stdout) == pytest.approx(figures(two.stdout), abs=1e-6)
    assert {"test/acc", "test/robust_acc/pgd10"} <= figures(one.stdout).keys()


WATCH = """
import sys, torch, pytorch_lightning as pl
sys.path.insert(0, {root!r} + "/tests")
from adversarial_lightning.attacks import Langevin, PGD
from adversarial_lightning.callbacks import AttackEvaluation, CollapseGuard, EpsilonWarmup
from adversarial_lightning.lightning_modules import ATENT, AdversarialTraining, MarginMaximization, OneCycle
from helpers import Bare, adam, digits, trainer

class Check(pl.Callback):
    def on_validation_batch_end(self, trainer, module, *_):
        for b in module.network.buffers():
            both = trainer.strategy.all_gather(b.float()).view(trainer.world_size, -1)
            assert (both == both[0]).all(), "ranks validate different models"

    def on_train_end(self, trainer, module):
        w = torch.cat([p.detach().flatten() for p in module.network.parameters()])
        both = trainer.strategy.all_gather(w).view(trainer.world_size, -1)
        assert (both == both[0]).all(), "ranks differ"
        if trainer.global_rank == 0:
            torch.save({{"w": w, "robust": trainer.callback_metrics["val/robust_acc/pgd"]}}, sys.argv[3])

world, method = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
sampler = Langevin(eps=0.1, steps=3, step_size=0.05)
net = Bare(batch_norm=method == "atent_bn")
if method == "margin":
    module = MarginMaximization(net, 0.01, optimizer=adam, schedule=OneCycle())
elif method != "pgd_at":
    module = ATENT(net, sampler, tail_tol=0.0, optimizer=adam, schedule=OneCycle())
else:
    module = AdversarialTraining(net, PGD(eps=0.1, steps=2), clean_weight=0.5, optimizer=adam, schedule=OneCycle())
callbacks = [CollapseGuard(), AttackEvaluation({{"pgd": PGD(eps=0.05, steps=2)}}), Check()]
callbacks += [] if method == "margin" else [EpsilonWarmup(0.5)]
run = trainer({folder!r}, 2, devices=world, strategy="ddp" if world > 1 else "auto", callbacks=callbacks)
run.fit(module, digits(batch_size=32 // world, val_size=51))
"""


@pytest.mark.long
@pytest.mark.parametrize("method", ["atent", "pgd_at", "margin"])
def test_two_processes_train_to_the_weights_of_one(method: str, tmp_path: Path) -> None:
    """Both ranks end with the same bits, and with one process's weights on the joint batches up to rounding."""
    script = tmp_path / "run.py"
    script.write_text(WATCH.format(root=str(ROOT), folder=str(tmp_path)))
    results = []
    for world in (1, 2):
        out = tmp_path / f"{world}.pt"
        run(sys.executable, str(script), str(world), method, str(out))
        results.append(torch.load(out, weights_only=True))
    one, two = results
    assert (one["w"] - two["w"]).abs().max() < 1e-3 * one["w"].abs().max()
    assert float(one["robust"]) == pytest.approx(float(two["robust"]), abs=0.04)


@pytest.mark.long
def test_sigterm_leaves_a_checkpoint_and_143_and_resume_is_exact(trained: Path, tmp_path: Path) -> None:
    folder, ready = tmp_path / "killed", tmp_path / "ready"
    hook = tmp_path / "slow.py"
    hook.write_text(
        "import pathlib, time, pytorch_lightning as pl\n"
        "class Slow(pl.Callback):\n"
        "    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):\n"
        f"        if trainer.current_epoch == 1: pathlib.Path({str(ready)!r}).touch(); time.sleep(0.5)\n"
    )
    words = command(TRAIN, "fit", folder, "--trainer.callbacks+", "slow.Slow")
    env = {**environment(), "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.time() + 120
    while not ready.exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output[-3000:]
    last = folder / "checkpoints" / "last.ckpt"
    stopped = torch.load(last, weights_only=True)
    assert stopped["epoch"] == 1 and stopped["global_step"] == 3  # in the middle of the second epoch
    assert torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0
    run(*command(TRAIN, "fit", folder, "--ckpt_path", "last"))
    assert same(last, trained / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    "words,says",
    [
        (["--model.init_args.sampler.init_args.eps", "foo"], "8/255"),
        (["--model.init_args.sampler.init_args.eps", "-0.1"], "at least 0"),
        (["--model.init_args.sampler.init_args.steps", "0"], "steps must be at least 1"),
        (["--model.init_args.sampler.init_args.step_sise", "0.1"], "step_size?"),
        (["--model", "ATNET"], "did you mean ATENT"),
        (["--data.init_args.batch_size", "0"], "batch_size"),
        (["--data.init_args.train_limit", "0"], "train_limit"),
        (["--data", "MNIST", "--data.init_args.root", "/nowhere"], "download=true"),
    ],
    ids=lambda v: v if isinstance(v, str) else v[-1],
)
def test_mistakes_are_one_paragraph(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adversarial_lightning.cli import train
    from adversarial_lightning.cli.messages import friendly

    monkeypatch.setattr(sys, "argv", ["lightning"])
    small = command([], "fit", tmp_path)[:5]
    with pytest.raises(Exception) as caught:
        train.main([*small, *words, "--trainer.accelerator", "cpu"])
    message = friendly(caught.value)
    assert message is not None and says in message and "\n" not in message and len(message) < 600
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.long
def test_two_processes_validate_the_same_model(tmp_path: Path) -> None:
    """Batch norm under manual optimisation: DDP does not broadcast the buffers there."""
    script = tmp_path / "run.py"
    script.write_text(WATCH.format(root=str(ROOT), folder=str(tmp_path)))
    run(sys.executable, str(script), "2", "atent_bn", str(tmp_path / "out.pt"))


class Bomb:
    """What no checkpoint may hold: unpickling it runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


@pytest.mark.long
@pytest.mark.parametrize("action", ["fit", "test"])
@pytest.mark.parametrize("kind,says", [("missing", "no checkpoint"), ("torn", "truncated"), ("bomb", "can run code")])
def test_bad_checkpoints_are_refused(
    kind: str, says: str, action: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adversarial_lightning.cli import train
    from adversarial_lightning.cli.messages import friendly

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning"])
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "x.ckpt"
    if kind == "torn":
        path.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes()[:5000])
    elif kind == "bomb":
        torch.save({"state_dict": {}, "x": Bomb()}, path)
    with pytest.raises((ValueError, OSError)) as caught:
        train.main(command([], action, tmp_path / "r", "--ckpt_path", str(path)))
    assert says in (friendly(caught.value) or "") and not (tmp_path / "exploded").exists()


@pytest.mark.long
def test_a_mistake_ends_with_status_2(tmp_path: Path) -> None:
    done = run(*command(TRAIN, "fit", tmp_path, "--model.init_args.alpha", "7"), ok=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: alpha must lie in (0, 1]")


@pytest.mark.long
def test_eps_may_be_a_fraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adversarial_lightning.cli import train

    monkeypatch.setattr(sys, "argv", ["lightning"])
    words = command([], "fit", tmp_path, "--model.init_args.sampler.init_args.eps", "8/255")
    cli = train.main([*words, "--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false"])
    assert cli.model.sampler.eps == pytest.approx(8 / 255)


@pytest.fixture
def tensorboard(trained: Path) -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(trained),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    process = subprocess.Popen(
        [*words, "--load_fast", "false"], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(20)


def fetch(url: str, patience: float = 60) -> bytes:
    deadline = time.time() + patience
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                body: bytes = answer.read()
            if body.strip() not in (b"{}", b"[]"):
                return body
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        if time.time() > deadline:
            raise TimeoutError(url)
        time.sleep(0.5)


@pytest.mark.long
def test_tensorboard_shows_scalars_and_images(tensorboard: str) -> None:
    plugin = f"{tensorboard}/data/plugin"
    tags = yaml.safe_load(fetch(f"{plugin}/scalars/tags"))
    (run_name,) = tags
    assert {"train/loss", "val/acc", "val/robust_acc/pgd10", "train/eps_factor"} <= set(tags[run_name])
    points = yaml.safe_load(fetch(f"{plugin}/scalars/scalars?tag=val%2Facc&run={run_name}"))
    assert len(points) == 2 and all(0 <= value <= 1 for _, _, value in points)
    images = yaml.safe_load(fetch(f"{plugin}/images/images?tag=val%2Fadversarial&run={run_name}&sample=0"))
    picture = fetch(f"{plugin}/images/individualImage?{images[0]['query']}")
    assert picture.startswith(b"\x89PNG")
