import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.kernels.frozen_cases import require_fp8_card

from fintune.kernels.triton_use import triton_is_installed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fp8_card():
    """Skips on cards without fp8."""
    require_fp8_card()


@pytest.fixture
def run_interpreted():
    """Runs tests of a file in Triton's interpreter, in a process of its own: it is asked for once, on import."""
    if not triton_is_installed():
        pytest.skip("Triton, which the development tools bring on Linux, is not installed")

    def run(file, *chosen):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, str(file)]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-5000:] + done.stderr[-2000:]

    return run
