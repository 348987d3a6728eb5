"""Figures of the GPU: NVML's own functions answer from a script here, also with errors in the middle of a run."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pynvml
import pytest
import torch

from fintune.models.tiny import write_tiny_model
from fintune.training import devices
from fintune.training.devices import DeviceSampler, sampling
from tests.runs import metrics, run, weights

CUDA = SimpleNamespace(type="cuda")
QUICK = ("evaluation.base=false", "evaluation.limit=3", "data.train_limit=64", "training.samples_per_step=8")
GPU_KEYS = {"gpu_utilization_percent", "gpu_memory_bytes", "gpu_power_w", "gpu_temperature_c"}


class FakeGpu:
    """A card whose readings rise by one with each sample, and that may be lost or lack a sensor."""

    def __init__(self, monkeypatch, *, lost_after: int | None = None, lacks: str | None = None, error=None):
        self.samples, self.opened, self.lost_after, self.lacks = 0, 0, lost_after, lacks
        self.error = error or pynvml.NVMLError_GpuIsLost
        monkeypatch.setattr(devices, "device_uuid", lambda device: "GPU-1234")
        for name, function in {
            "nvmlInit": self.open,
            "nvmlShutdown": self.close,
            "nvmlDeviceGetHandleByUUID": lambda uuid: f"handle of {uuid}",
            "nvmlDeviceGetUtilizationRates": self.utilization,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=1000 + self.samples),
            "nvmlDeviceGetPowerUsage": self.power,
            "nvmlDeviceGetTemperature": lambda handle, sensor: 50 + self.samples,
        }.items():
            monkeypatch.setattr(pynvml, name, function)

    def open(self):
        self.opened += 1

    def close(self):
        self.opened -= 1

    def utilization(self, handle):
        assert handle == "handle of GPU-1234"
        if self.lost_after is not None and self.samples >= self.lost_after:
            raise self.error()
        self.samples += 1
        return SimpleNamespace(gpu=self.samples, memory=0)

    def power(self, handle):
        if self.lacks == "power":
            raise pynvml.NVMLError_NotSupported()
        return 100_000 + 1000 * self.samples


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_means_and_highest_values_since_the_last_line(monkeypatch):
    FakeGpu(monkeypatch)
    sampler = DeviceSampler("handle of GPU-1234")
    assert sampler.take() == {}
    for _ in range(3):
        assert sampler.sample()
    first = {"gpu_utilization_percent": 2, "gpu_memory_bytes": 1003, "gpu_power_w": 102, "gpu_temperature_c": 53}
    assert sampler.take() == first
    again = {"gpu_utilization_percent": 3, "gpu_memory_bytes": 1003, "gpu_power_w": 103, "gpu_temperature_c": 53}
    assert sampler.take() == again == sampler.take()  # nothing newer: the latest
    assert sampler.sample() and sampler.take()["gpu_utilization_percent"] == 4


def test_a_sensor_that_a_card_lacks_is_left_out(monkeypatch, caplog):
    FakeGpu(monkeypatch, lacks="power")
    sampler = DeviceSampler("handle of GPU-1234")
    assert sampler.sample() and sampler.sample()
    assert set(sampler.take()) == GPU_KEYS - {"gpu_power_w"} and not caplog.records


def test_the_thread_samples_ends_with_the_block_and_closes_nvml(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    with sampling(CUDA, interval_s=0.01) as sampler:
        assert gpu.opened == 1
        wait_until(lambda: gpu.samples >= 3)
        assert set(sampler.take()) == GPU_KEYS
    assert gpu.opened == 0 and not sampler._thread.is_alive()
    stopped = gpu.samples
    time.sleep(0.05)
    assert gpu.samples == stopped


def test_an_error_of_the_run_passes_through(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    with pytest.raises(KeyError), sampling(CUDA, interval_s=0.01):
        raise KeyError("of the run")
    assert gpu.opened == 0


@pytest.mark.parametrize("failing", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_no_driver_or_device_is_passed_over_in_silence(monkeypatch, caplog, failing):
    gpu = FakeGpu(monkeypatch)

    def fails(*_):
        raise pynvml.NVMLError_LibraryNotFound()

    monkeypatch.setattr(pynvml, failing, fails)
    with sampling(CUDA) as sampler:
        assert sampler is None
    assert gpu.opened == 0 and not caplog.records


def test_the_cpu_has_no_figures():
    with sampling(torch.device("cpu")) as sampler:
        assert sampler is None


@pytest.mark.parametrize("error", [pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_Unknown, pynvml.NVMLError_Timeout])
def test_a_lost_device_is_reported_once(monkeypatch, caplog, error):
    gpu = FakeGpu(monkeypatch, lost_after=2, error=error)
    with sampling(CUDA, interval_s=0.005) as sampler:
        wait_until(lambda: not sampler._thread.is_alive())
        assert gpu.samples == 2 and sampler.take() == {}
    assert len([record for record in caplog.records if "no longer reports" in record.message]) == 1


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("FINTUNE_CACHE", str(tmp_path / "cache"))
    return write_tiny_model(tmp_path / "tiny")


def test_a_run_logs_the_figures_everywhere_and_outlives_its_gpu(base, tmp_path, monkeypatch, caplog):
    plain = run(base, tmp_path / "plain", *QUICK)
    gpu = FakeGpu(monkeypatch, lost_after=3)
    monkeypatch.setattr(DeviceSampler, "start", lambda self: None)  # sampled step by step, to know what is logged when
    monkeypatch.setattr(DeviceSampler, "stop", lambda self: None)
    take = DeviceSampler.take

    def sample_and_take(self):
        if not getattr(self, "ended", False) and not self.sample():
            self.ended, self._latest, self._untaken = True, {}, []
        return take(self)

    monkeypatch.setattr(DeviceSampler, "take", sample_and_take)
    watched = run(base, tmp_path / "watched", *QUICK, "training.tracking=[tensorboard]", "report.enabled=true")
    rows = metrics(watched)
    assert [row.get("gpu_utilization_percent") for row in rows] == [1, 2, 3] + [None] * (len(rows) - 3)
    assert all(set(row) >= GPU_KEYS for row in rows[:3]) and not any(GPU_KEYS & set(row) for row in rows[3:])
    assert len(rows) == 8 and "training goes on without" in caplog.text and gpu.opened == 0
    assert weights(watched) == weights(plain)  # watching changes nothing
    assert (watched.run_dir / "figures" / "gpu_utilization.png").is_file()
    assert not (plain.run_dir / "figures" / "gpu_utilization.png").exists()
    shown = tensorboard_scalars(watched.run_dir / "tensorboard")
    assert shown["train/gpu_power_w"] == [101.0, 102.0, 103.0]
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "train/tokens_per_s"} <= set(shown)
    assert {"train/distinct_tokens_per_s", "train/sharing_ratio", "train/padding_ratio"} <= set(shown)


def tensorboard_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_each_rank_has_a_file_of_its_own(tmp_path):
    from fintune.schema.run_directory import RunDirectory
    from fintune.training.metrics_log import MetricsLog

    place = RunDirectory(tmp_path)
    place.metrics_of(1).parent.mkdir()
    for rank in (0, 1, 10):
        MetricsLog(place.metrics_of(rank), 0).append({"step": 1, "loss": float(rank)})
    assert place.metrics_of(0) == place.metrics
    assert [row["loss"] for row in place.read_history()] == [0.0]
    assert {rank: rows[0]["loss"] for rank, rows in place.read_other_ranks().items()} == {1: 1.0, 10: 10.0}
