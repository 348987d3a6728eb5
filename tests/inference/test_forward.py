"""How a run comes to its attention backend."""

import pytest
import torch

from fintune.inference import forward
from fintune.inference.forward import choose_backend
from fintune.schema.errors import ModelError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("attention", "device", "backend"),
    [
        ("auto", CPU, "sdpa"),
        ("auto", GPU, "flex"),
        ("flex", GPU, "flex"),
        ("sdpa", GPU, "sdpa"),
        ("eager", CPU, "eager"),
        ("triton", GPU, "triton"),
    ],
)
def test_backends_by_name_and_device(attention, device, backend, monkeypatch):
    monkeypatch.setattr(forward, "triton_is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert choose_backend(attention, device) == backend


def test_cards_before_ampere_attend_by_pytorchs_own_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert choose_backend("auto", GPU) == "sdpa"


@pytest.mark.parametrize("attention", ["flex", "triton"])
def test_kernels_of_gpus_are_refused_elsewhere(attention):
    with pytest.raises(ModelError, match=f"attention={attention} needs a CUDA device"):
        choose_backend(attention, CPU)


def test_our_kernels_need_triton(monkeypatch):
    monkeypatch.setattr(forward, "triton_is_installed", lambda: False)
    with pytest.raises(ModelError, match="needs Triton"):
        choose_backend("triton", GPU)
