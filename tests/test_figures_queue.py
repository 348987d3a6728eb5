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
- {name: left, part: 0.5, after: [both], seconds: 40, run: "python MEET left right whole"}
- {name: turn, turns: true, part: 0.5, after: [both], seconds: 9, run: "python -c 'import os; print(os.environ[lock])'"}
- {name: right, part: 0.5, after: [both], seconds: 40, run: "python MEET right whole left"}
- {name: whole, after: [both], seconds: 40, run: "python MEET whole left right"}
- {name: late, seconds: 0.5, run: "python -c 'import time; time.sleep(60)'"}
- {name: never, after: [late], seconds: 20, run: "python -c 'print(2)'"}
"""
# Each waits for the others, so none ends unless all run at the same time.
MEET = """
import os, pathlib, sys, time
here = pathlib.Path(__file__).parent
(here / f"{sys.argv[1]}.here").touch()
while not all((here / f"{name}.here").exists() for name in sys.argv[2:]):
    time.sleep(0.05)
print(os.environ["CUDA_VISIBLE_DEVICES"])
"""

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the benchmarks are not part of this copy")


def test_a_queue_goes_on_where_it_ended(tmp_path):
    queue, out = tmp_path / "queue.yaml", tmp_path / "out"
    (tmp_path / "meet.py").write_text(MEET)
    text = QUEUE.replace("[name]", '[\\"CUDA_VISIBLE_DEVICES\\"]').replace("[lock]", '[\\"FINTUNE_BENCH_TURN\\"]')
    text = text.replace("MEET", str(tmp_path / "meet.py"))
    queue.write_text(text)
    command = [sys.executable, SCRIPT, "--queue", queue, "--cards", "4", "7", "--output-dir", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert (done.returncode, "never is left out: late failed" in done.stdout) == (1, True)
    assert (out / "both.log").read_text() == "4,7\n"
    rows = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows if row["stopped"]} == {"late"}
    assert {row["name"] for row in rows} == {"first", "both", "left", "right", "turn", "whole", "late"}
    assert [(out / f"{name}.log").read_text() for name in ("left", "right", "whole")] == ["4\n", "4\n", "7\n"]
    assert (out / "turn.log").read_text() == f"{out / 'turn-7.lock'}\n"  # beside its like alone
    again = subprocess.run([*command, "--only", "first", "both"], capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stdout) == (0, "")
