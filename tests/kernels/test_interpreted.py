import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fintune.kernels.triton_use import triton_is_installed

HERE = Path(__file__).parent
FILES = ("interpreted_kernels.py", "interpreted_tree_flash.py", "test_linear_edge_loss.py")


@pytest.fixture(scope="module")
def said():
    """What tests say that ran in Triton's interpreter: in one other process, for it is asked for once, on import."""
    if not triton_is_installed():
        pytest.skip("Triton, which the development tools bring on Linux, is not installed")
    chosen = ["-k", "interpreted or by_kernels", "-m", "not gpu", *(str(HERE / file) for file in FILES)]
    command = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", *chosen]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_the_kernels_equal_their_twins_in_the_interpreter(said, file):
    assert said.returncode in (0, 1), said.stdout[-5000:] + said.stderr[-2000:]  # tests ran
    outcomes = re.findall(rf"{file}::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)", said.stdout)
    assert "PASSED" in outcomes and not {"FAILED", "ERROR"} & set(outcomes), said.stdout[-5000:]
