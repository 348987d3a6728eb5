"""What the GPU reports of itself while a run trains: utilisation, memory, power and temperature, by NVML.

Enters: the device. Leaves: the figures since they were last taken, sampled by a small thread. Monitoring never stops a
run: without a driver there are no figures, and a device that is lost in the middle ends them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
UTILIZATION, MEMORY = "gpu_utilization_percent", "gpu_memory_bytes"
POWER, TEMPERATURE = "gpu_power_w", "gpu_temperature_c"
FIGURES = (UTILIZATION, MEMORY, POWER, TEMPERATURE)


class DeviceSampler:
    """Samples one GPU at a fixed interval.

    Args:
        handle: NVML's handle of the device.
        interval_s: seconds between samples.
    """

    def __init__(self, handle: Any, interval_s: float = INTERVAL_S) -> None:
        self._readings = _readings(handle)
        self._interval_s = interval_s
        self._untaken: list[dict[str, float]] = []
        self._latest: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-figures", daemon=True)

    def start(self) -> None:
        """Begins to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; a driver that hangs is not waited for."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def take(self) -> dict[str, float]:
        """Figures since the last call, or the latest ones where none are newer; empty once the device is lost.

        Utilisation and power are means, memory and temperature the highest.
        """
        with self._lock:
            samples, self._untaken = self._untaken or ([self._latest] if self._latest else []), []
        return {
            name: (fmean if name in (UTILIZATION, POWER) else max)(values)
            for name in FIGURES
            if (values := [sample[name] for sample in samples if name in sample])
        }

    def sample(self) -> bool:
        """Reads the device once; False when that cannot be done any more."""
        import pynvml

        figures = {}
        for name, read in list(self._readings.items()):
            try:
                figures[name] = read()
            except pynvml.NVMLError_NotSupported:
                del self._readings[name]
            except pynvml.NVMLError as exc:
                log.warning("The GPU no longer reports its utilisation (%s); training goes on without.", exc)
                return False
        with self._lock:
            self._latest = figures
            self._untaken.append(figures)
        return bool(self._readings)

    def _run(self) -> None:
        while self.sample():
            if self._stop.wait(self._interval_s):
                return
        with self._lock:
            self._latest, self._untaken = {}, []


def _readings(handle: Any) -> dict[str, Callable[[], float]]:
    import pynvml

    return {
        UTILIZATION: lambda: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        MEMORY: lambda: float(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
        POWER: lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        TEMPERATURE: lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
    }


@contextmanager
def sampling(device: torch.device, interval_s: float = INTERVAL_S) -> Iterator[DeviceSampler | None]:
    """Samples ``device`` while the block runs; None, without a word, where there is no GPU or no driver to ask."""
    uuid = device_uuid(device)
    if uuid is None:
        yield None
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        log.debug("No figures of the GPU: %s", exc)
        yield None
        return
    try:
        sampler = _open(uuid, interval_s)
        try:
            yield sampler
        finally:
            if sampler is not None:
                sampler.stop()
    finally:
        _shut_down()


def _open(uuid: str, interval_s: float) -> DeviceSampler | None:
    import pynvml

    try:
        sampler = DeviceSampler(pynvml.nvmlDeviceGetHandleByUUID(uuid), interval_s)
    except pynvml.NVMLError as exc:
        log.debug("No figures of the GPU %s: %s", uuid, exc)
        return None
    sampler.start()
    return sampler


def _shut_down() -> None:
    import pynvml

    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as exc:
        log.debug("NVML did not close: %s", exc)


def device_uuid(device: torch.device) -> str | None:
    """NVML's name of the device PyTorch uses, whatever ``CUDA_VISIBLE_DEVICES`` hides; None without CUDA."""
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
