import os
import subprocess
import sys
from pathlib import Path

import pytest

from fintune.kernels.triton_use import triton_is_installed

CASES = Path(__file__).with_name("interpreted_kernels.py")


@pytest.mark.slow
def test_the_kernels_equal_their_twins_in_the_interpreter():
    """In a process of its own: Triton looks once, on import, whether it shall interpret."""
    if not triton_is_installed():
        pytest.skip("Triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, cwd=CASES.parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
