from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_kernels_equal_their_twins_in_the_interpreter(run_interpreted):
    run_interpreted(Path(__file__).with_name("interpreted_kernels.py"))
