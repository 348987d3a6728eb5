"""A server that plays the providers, keys for it, and a clock that nobody waits for."""

from datetime import UTC, datetime

import pytest
from tests.sources.collect.provider_server import EODHD_KEY, FINNHUB_KEY, ProviderServer

from fintune.sources.collect.requesting import Clock, Patience


class FakeClock:
    """Sleeping moves time on; ``slept`` has every pause."""

    def __init__(self, today="2024-06-03T12:00:00+00:00"):
        self.moment, self.slept = 0.0, []
        self.start = datetime.fromisoformat(today)

    def sleep(self, seconds):
        if seconds > 0:
            self.slept.append(seconds)
        self.moment += seconds

    def clock(self):
        return Clock(
            monotonic=lambda: self.moment,
            sleep=self.sleep,
            now=lambda: datetime.fromtimestamp(self.start.timestamp() + self.moment, UTC),
        )


@pytest.fixture
def server():
    found = ProviderServer()
    yield found
    found.close()


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("FINNHUB_API_KEY", FINNHUB_KEY)
    monkeypatch.setenv("EODHD_API_KEY", EODHD_KEY)


@pytest.fixture
def time_passes():
    return FakeClock()


@pytest.fixture
def patience():
    return Patience(timeout_s=0.2)
