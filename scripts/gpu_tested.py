"""Says whether the code that runs on a GPU is the code that was last tested on one.

pytest -m gpu                                # on a machine with a GPU: writes gpu_tested.json when all tests pass
python scripts/gpu_tested.py                 # anywhere: warns where the code has changed since
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "gpu_tested.json"
ROOMS = ("kernels", "trees", "models", "inference", "training")


def code_hash(root: Path = ROOT) -> str:
    """SHA-256 over the Python files of the rooms whose code runs on a GPU, by name and content."""
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((root / "src" / "fintune" / room).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def write_record(path: Path, facts: dict[str, Any]) -> None:
    """Notes that the code as it is now passed."""
    path.write_text(json.dumps({"code": code_hash(), **facts}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Prints one line."""
    if not RECORD.is_file():
        print("warning: no GPU test run is on record (gpu_tested.json); run pytest -m gpu on a machine with a GPU.")
        return
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    when = f"{record['date']} on {record['device']}, {record['passed']} tests passed"
    if record["code"] == code_hash():
        print(f"The GPU tests ran on this code: {when}.")
    else:
        print(f"warning: {', '.join(ROOMS)} changed since the last GPU test run ({when}).")


if __name__ == "__main__":
    main()
