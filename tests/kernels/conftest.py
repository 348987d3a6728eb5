import pytest


@pytest.fixture
def fp8_card():
    """Skips on cards without fp8."""
    import torch

    from fintune.kernels.fp8_weight import LEAST_CAPABILITY

    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        pytest.skip("the card has no fp8")
