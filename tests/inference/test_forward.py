"""How a run comes to its attention backend."""

import pytest
import torch
from transformers import LlamaConfig

from fintune.inference import forward
from fintune.inference.forward import choose_backend
from fintune.schema.errors import ModelError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("attention", "device", "backend"),
    [
        ("auto", CPU, "sdpa"),
        ("auto", GPU, "triton"),
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


@pytest.mark.parametrize(("installed", "size"), [(False, 64), (True, 512)])
def test_what_our_kernels_cannot_have_goes_to_flex(installed, size, monkeypatch):
    monkeypatch.setattr(forward, "triton_is_installed", lambda: installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    config = LlamaConfig(hidden_size=8 * size, num_attention_heads=8)
    assert choose_backend("auto", GPU, config) == "flex"


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
