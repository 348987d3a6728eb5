"""Whose rules an answer was read by."""

import pytest

from fintune.reporting.wording import rules_name


@pytest.mark.parametrize(
    ("protocol", "tasks", "name"),
    [
        ("robust", ["fpb"], "our rules"),
        ("flare_strict", ["fpb", "ner"], "FLARE's rules"),
        ("flare_strict", ["weekly_acl18_forecast"], "FinGPT's rules"),
        ("flare_strict", ["fpb", "dow30_forecast"], "FLARE's and FinGPT's rules"),
        ("flare_strict", [], "FLARE's rules"),
    ],
)
def test_rules_have_their_authors_name(protocol, tasks, name):
    assert rules_name(protocol, tasks) == name
