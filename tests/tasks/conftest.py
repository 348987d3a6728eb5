"""Where the public data files are, when they are at hand."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def shared_data():
    given = os.environ.get("FINTUNE_SHARED_DATA")
    folder = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    if not (folder / "fpb" / "Sentences_50Agree.txt").is_file():
        pytest.skip("the public data files are not at hand (set FINTUNE_SHARED_DATA)")
    return folder
