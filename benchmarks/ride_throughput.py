"""Time and memory of RIDE's fits: together or one by one, against the machine's convolutions.

python benchmarks/ride_throughput.py [--network mnist] [--device cuda] [--rounds 3] [--output FILE.json]

Contestants take turns in one process and CPU time is counted (on a GPU: time on the clock). "One by one, modules" is
the usual loop: `nn.Sequential`, `nn.Dropout`, torch's own draws, `torch.optim.Adam`.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from timing import ratios, table
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise, noise_for
from adversarial_lightning.defenses import RIDE, fitting
from adversarial_lightning.defenses.fitting import PerImageFit
from adversarial_lightning.evaluation.report.formatting import duration
from adversarial_lightning.reproduce.record import record_benchmark

NETWORKS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "mnist": ((1, 16, 16, 16, 1), (2, 3), 28),
    "cifar10": ((3, 32, 32, 32, 32, 3), (2, 3), 32),
    "imagenet": ((3, *[32] * 7, 3), (4, 5, 6), 224),
}


def images(n: int, network: str, device: str) -> Tensor:
    channels, _, side = NETWORKS[network]
    return torch.rand(n, channels[0], side, side, generator=torch.Generator().manual_seed(0)).to(device)


def together(n: int, network: str, device: str) -> Callable[[], object]:
    """One step of the engine for `n` images."""
    x = images(n, network, device)
    fit = PerImageFit(RIDE(*NETWORKS[network][:2]).fit_settings, Noise.keyed(0, torch.arange(n, device=device)), x)
    return lambda: fit.step(x)


def modules(network: str, device: str) -> Callable[[], object]:
    """One step of the usual loop with modules, for one image."""
    channels, dropped, _ = NETWORKS[network]
    layers: list[nn.Module] = []
    for number, (a, b) in enumerate(pairwise(channels), 1):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), *([nn.Dropout(0.5)] if number in dropped else [])]
    net = nn.Sequential(*layers[:-1], nn.Sigmoid()).to(device)
    adam, x = torch.optim.Adam(net.parameters(), 1e-4, weight_decay=1e-4), images(1, network, device)

    def step() -> None:
        z, s = x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)
        kept = (torch.rand_like(x[:, :1]) > 0.9).to(x.dtype)
        adam.zero_grad()
        (((net(z) - s).square() * kept).sum() / kept.sum()).backward()
        adam.step()

    return step


def convolutions(n: int, network: str, device: str) -> Callable[[], object]:
    """Forward and backward pass of one hidden layer of `n` images with shared weights: the machine's upper bound."""
    channels, _, side = NETWORKS[network]
    wide = channels[1]
    weight = torch.randn(wide, wide, 3, 3, device=device, requires_grad=True)
    x = torch.rand(n, wide, side, side, device=device, requires_grad=True)
    y = torch.rand_like(x)
    return lambda: torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), y)


def hidden_layer(n: int, network: str, device: str) -> dict[str, Callable[[], object]]:
    """Forward and backward pass of one hidden layer of `n` images, each with its own weights, in four ways."""
    channels, _, side = NETWORKS[network]
    wide = channels[1]
    weight = torch.randn(n, wide, wide, 3, 3, device=device, requires_grad=True)
    bias, x = (
        torch.zeros(n, wide, device=device),
        torch.rand(1, n * wide, side, side, device=device, requires_grad=True),
    )

    def unfolded(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        patches = F.unfold(h.view(n, wide, side, side), 3, padding=1)
        return (weight.flatten(2) @ patches + bias[:, :, None]).view(h.shape)

    def mapped(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        alone = torch.func.vmap(lambda z, w, b: F.conv2d(z[None], w, b, padding=1)[0])
        return alone(h.view(n, wide, side, side), weight, bias).view(h.shape)

    def there_and_back(layer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(layer(x, weight, bias), (x, weight), torch.ones_like(x))

    ways = {"grouped convolution": grouped, "torch.func.vmap": mapped, "unfold and bmm": unfolded}
    ways["products and shifts"] = fitting._to_few_channels
    return {name: loop(there_and_back(layer), 2, device) for name, layer in ways.items()}


def arithmetic(n: int, network: str) -> float:
    """Floating-point operations of a step: forwards, and twice of it backwards except for the input's gradient."""
    channels, _, side = NETWORKS[network]
    first = 9 * channels[0] * channels[1] * side**2
    return 2.0 * n * (3 * RIDE(*NETWORKS[network][:2]).fit_settings.multiplications(side, side) - first)


def seconds(work: Callable[[], object], device: str, least: float = 1.0) -> float:
    """Time of one call in seconds: the least of three means over at least a third of `least` seconds."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    work()
    best = float("inf")
    for _ in range(3):
        calls, start = 0, clock()
        while calls == 0 or clock() - start < least / 3:
            work()
            calls += 1
            if device != "cpu":
                torch.cuda.synchronize()
        best = min(best, (clock() - start) / calls)
    return best


def peak(n: int, network: str, device: str) -> float:
    """Peak memory in MiB of two steps for `n` images; on the CPU in its own process."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        step = together(n, network, device)
        step(), step()
        return torch.cuda.max_memory_allocated() / 2**20
    words = [sys.executable, __file__, "--network", network, "--memory-of", str(n)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout) / 1024


def grouped(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(h, weight.flatten(0, 1), bias.flatten(), padding=1, groups=len(weight))


def loop(work: Callable[[], object], times: int, device: str) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            work()
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="mnist")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=64, help="largest number of images together")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)  # a child process: peak memory for this B
    options = parser.parse_args()
    network, device = options.network, options.device
    torch.set_num_threads(options.threads)
    if options.memory_of is not None:
        step = together(max(1, options.memory_of), network, device)
        for _ in range(2 if options.memory_of else 0):
            step()
        print(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0])
        return

    figures: dict[str, Any] = {}
    most = options.most
    batches = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if n <= most]
    solo = together(1, network, device)
    contestants = {"one by one, this engine": loop(solo, most, device)}
    contestants["one by one, modules"] = loop(modules(network, device), most, device)
    contestants |= {f"{n} together": loop(together(n, network, device), most // n, device) for n in batches[1:]}
    with patch.object(fitting, "_to_few_channels", grouped):
        grouped_step = together(most, network, device)

    def with_grouped_last() -> None:
        with patch.object(fitting, "_to_few_channels", grouped):
            loop(grouped_step, 1, device)()

    contestants[f"{most} together, last layer grouped"] = with_grouped_last
    found = ratios(contestants, options.rounds)
    print(table(found, {f"{n} together": "<= 0.33" for n in batches[-2:]}))
    figures["ratio to one by one"] = {name: median for name, (median, _, _) in found.items()}
    auto = RIDE(*NETWORKS[network][:2]).images_per_pass(images(most, network, device))
    taken = max(n for n in batches if n <= auto)
    alone = "one by one, this engine"
    taken_ratio = found[alone if taken == 1 else f"{taken} together"][0]
    modules_, own = found["one by one, modules"][0] / taken_ratio, found[alone][0] / taken_ratio
    figures |= {"images in a pass, auto": auto, "measured at": taken}
    figures |= {"speed-up over modules": modules_, "speed-up over this engine one by one": own}
    print(f"\nauto takes {auto} images in a pass; {most} images by {taken} are {own:.2f} times as fast as this")
    print(f"engine one by one (target >= 3), and {modules_:.2f} times as fast as modules one by one")

    found = ratios(hidden_layer(min(most, 32), network, device), options.rounds)
    print(f"\nA hidden layer of {min(most, 32)} images, there and back:\n\n{table(found, {})}\n")
    figures["hidden layer over grouped convolution"] = {name: median for name, (median, _, _) in found.items()}

    step, rate = seconds(together(most, network, device), device), convolutions(most, network, device)
    shared = 2.0 * most * 3 * 9 * NETWORKS[network][0][1] ** 2 * NETWORKS[network][2] ** 2 / seconds(rate, device)
    figures |= {"ms per image and step": 1e3 * step / most, "GFLOP/s": arithmetic(most, network) / step / 1e9}
    figures |= {"GFLOP/s of a convolution": shared / 1e9, "times the floor": step * shared / arithmetic(most, network)}
    print(f"{figures['ms per image and step']:.3f} ms per image and step: {figures['GFLOP/s']:.0f} GFLOP/s;")
    print(f"a convolution of {most} images with shared weights: {shared / 1e9:.0f} GFLOP/s; ", end="")
    print(f"the engine takes {figures['times the floor']:.2f} times the floor (target <= 2)")

    noise, like = Noise.keyed(0, torch.arange(most, device=device)), images(most, network, device)
    channels, dropped, side = NETWORKS[network]
    maps = [like.new_empty(most, channels[layer], side, side) for layer in dropped]

    def draws() -> None:
        noise.normal(like), noise.normal(like), noise.bernoulli(like[:, :1], 0.1)
        for h in maps:
            noise.bernoulli(h, 0.5).to(h.dtype)

    figures["share of draws"] = seconds(draws, device) / step
    print(f"random draws: {100 * figures['share of draws']:.0f} % of a step")

    base = peak(0, network, device)
    figures["MiB per image"] = {str(n): (peak(n, network, device) - base) / n for n in (most, 2 * most, 4 * most)}
    formula = RIDE(*NETWORKS[network][:2]).fit_settings.bytes_per_image(side, side, 4) / 2**20
    figures["MiB per image, as budgeted"] = formula
    print(f"MiB per image: {figures['MiB per image']}, as budgeted {formula:.2f}")

    ride = RIDE(*NETWORKS[network][:2], steps=150, stages=2)
    x = images(most, network, device)
    forecast = seconds(together(most, network, device), device) * ride.steps * ride.stages
    clock = time.process_time if device == "cpu" else time.perf_counter
    with noise_for(ride, Noise.keyed(0, torch.arange(most, device=device))):
        start = clock()
        ride(x)
        took = clock() - start
    figures["fit over forecast"] = took / forecast
    print(f"forecast {forecast:.1f} s, took {took:.1f} s: {took / forecast:.3f} (target: within 25 %)")
    figures["10,000 steps of 1,000 images, s"] = 1e4 * 1e3 * step / most
    print(f"10,000 steps of 1,000 images: {duration(figures['10,000 steps of 1,000 images, s'])} on this device")
    if options.output:
        settings = {"network": network, "device": device, "threads": options.threads, "rounds": options.rounds}
        record_benchmark(options.output, {}, settings, figures, "times are CPU times on a shared machine")


if __name__ == "__main__":
    main()
