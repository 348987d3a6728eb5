"""The queue of measurements: cards are handed out, what is late is stopped, what ended well is not repeated."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "all_figures.py"
QUEUE = """
- {name: first, cards: 0, seconds: 20, run: "python -c 'print(1)'"}
- {name: both, cards: 2, after: [first], seconds: 20, run: "python -c 'import os; print(os.environ[name])'"}
- {name: late, seconds: 0.5, run: "python -c 'import time; time.sleep(60)'"}
- {name: never, after: [late], seconds: 20, run: "python -c 'print(2)'"}
"""

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the benchmarks are not part of this copy")


def test_a_queue_goes_on_where_it_ended(tmp_path):
    queue, out = tmp_path / "queue.yaml", tmp_path / "out"
    queue.write_text(QUEUE.replace("[name]", '[\\"CUDA_VISIBLE_DEVICES\\"]'))
    command = [sys.executable, SCRIPT, "--queue", queue, "--cards", "4", "7", "--output-dir", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "never is left out: late failed" in done.stdout) == (1, True)
    assert (out / "both.log").read_text() == "4,7\n"
    rows = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert {row["name"]: row["stopped"] for row in rows} == {"first": False, "late": True, "both": False}
    again = subprocess.run([*command, "--only", "first", "both"], capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stdout) == (0, "")
