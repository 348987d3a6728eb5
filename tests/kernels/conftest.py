import pytest
from tests.kernels.frozen_cases import require_fp8_card


@pytest.fixture
def fp8_card():
    """Skips on cards without fp8."""
    require_fp8_card()
