"""Meter of a process: seconds on a monotonic clock, peak memory, energy where the device tells."""

import sys
import time

import torch


class ResourceMeter:
    """Meter that starts when it is made; `lap` reads everything anew.

    `seconds` since the start; `peak_memory` in bytes: what torch allocated on a GPU, on CPUs the resident memory of the
    process (0 where the system does not tell); `energy` in joules: the power of the whole GPU, read at every lap and
    taken as constant since the one before, None where there is no GPU or it does not tell (NVML needs pynvml).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds, self.peak_memory = 0.0, 0
        self.energy: float | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._started = self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the lap before."""
        now = time.perf_counter()
        since, self._last = now - self._last, now
        self.seconds = now - self._started
        if self.device.type == "cuda":
            self.peak_memory = torch.cuda.max_memory_allocated(self.device)
            watts = _power(self.device)
            if watts is not None:
                self.energy = (self.energy or 0.0) + watts * since
        else:
            self.peak_memory = _resident()
        return since


def _power(device: torch.device) -> float | None:
    """Power of the GPU now, in watts."""
    try:
        return torch.cuda.power_draw(device) / 1000
    except Exception:  # no pynvml, no driver, no right to ask: torch raises several kinds, and none matters here
        return None


def _resident() -> int:
    """Largest resident memory of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    run = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * run
