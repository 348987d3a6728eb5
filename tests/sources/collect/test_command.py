"""``fintune collect`` and ``fintune.collect``: what is shown, exit codes, Ctrl-C, and a key that is nowhere."""

import json
import logging

import pytest
from tests.sources.collect.provider_server import EODHD_KEY, FINNHUB_KEY

import fintune
from fintune.cli import main
from fintune.sources.collect import eodhd, finnhub, yahoo
from fintune.sources.collect import requesting as requesting_module
from fintune.sources.collect.requesting import Patience


@pytest.fixture(autouse=True)
def at_once(server, monkeypatch):
    """The command at the local server, without the pauses it makes for real ones."""
    for name, url in server.base_urls.items():
        monkeypatch.setenv(f"FINTUNE_{name.upper()}_URL", url + "/")
    for module in (finnhub, eodhd, yahoo):
        monkeypatch.setattr(module, "LIMITS", ())
    monkeypatch.setattr(requesting_module, "Patience", lambda: Patience(timeout_s=0.3, first_wait_s=0.001))


@pytest.fixture
def collect(tmp_path, capsys):
    def run(*arguments):
        code = main(["collect", *arguments, "--output-dir", str(tmp_path / "data")])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


DAYS = ("--from", "2024-01-01", "--to", "2024-01-14")


def nowhere(folder, *texts):
    forms = (FINNHUB_KEY, EODHD_KEY, EODHD_KEY.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"))
    for key in forms:
        assert not any(key in text for text in texts)
        assert not [path for path in folder.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


def test_a_collection_is_summed_up(collect, tmp_path):
    code, out, err = collect("AAPL", "MSFT", *DAYS, "--provider", "finnhub,eodhd")
    assert code == 0 and "2 companies. Rows: 2 in universe.csv" in out and "Note: AAPL: 2 periods" in out
    assert {path.name for path in (tmp_path / "data").iterdir()} >= {"news.jsonl", "prices.csv", "raw"}
    code, out, err = collect("AAPL", "MSFT", *DAYS, "--provider", "finnhub,eodhd")
    assert code == 0 and "Requests: none, all was there." in out
    nowhere(tmp_path, out, err)


def test_machines_get_one_document(collect):
    code, out, err = collect("AAPL", *DAYS, "--json", "--what", "news,prices")
    found = json.loads(out)
    assert code == 0 and found["members"] == 1 and set(found["rows"]) == {"universe.csv", "news.jsonl", "prices.csv"}
    assert "companies" in err


def test_what_is_missing_makes_the_exit_code_1(collect):
    code, out, _ = collect("AAPL", "GONE", *DAYS, "--what", "prices")
    assert code == 1 and "Missing: yahoo has no prices of GONE from 2024-01-01 to 2024-01-14." in out


@pytest.mark.parametrize("fault", [401, 402, 403, 500, "html", "close", (429, "99999")])
def test_the_key_is_nowhere_whatever_goes_wrong(collect, server, tmp_path, caplog, fault):
    caplog.set_level(logging.DEBUG)
    server.fault = lambda url, attempt: fault if "news" in url and "MSFT" in url else None
    code, out, err = collect("AAPL", "MSFT", *DAYS, "--provider", "eodhd,finnhub", "--debug")
    assert code in (1, 2) and ("Missing" in out or "error:" in err)
    nowhere(tmp_path, out, err, caplog.text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("AAPL", "--from", "2024-02-01", "--to", "2024-01-01"), "is after the last"),
        (("AAPL", "--from", "2024-02-01", "--to", "2999-01-01"), "is yet to come"),
        (("AA PL", *DAYS), "is no ticker"),
        (("AAPL", *DAYS, "--what", "weather"), "'weather' is no kind of data"),
        (("AAPL", *DAYS, "--provider", "reuters"), "'reuters' is no provider of news"),
    ],
)
def test_mistakes_are_one_sentence(collect, arguments, said):
    code, _, err = collect(*arguments)
    assert code == 2 and said in err and "Traceback" not in err


def test_a_missing_key_is_said_before_anything_is_asked(collect, monkeypatch, server):
    import sys

    monkeypatch.delenv("EODHD_API_KEY")
    monkeypatch.setitem(sys.modules, "keyring", None)
    code, _, err = collect("AAPL", *DAYS, "--provider", "finnhub,eodhd")
    assert code == 2 and "EODHD_API_KEY is not set" in err and "https://eodhd.com/register" in err
    assert not server.asked


def test_ctrl_c_keeps_what_is_there_and_says_how_to_go_on(collect, server, monkeypatch):
    fetch = requesting_module.Requester._exchange

    def interrupted(self, question):
        if server.delivered.total() == 5:
            raise KeyboardInterrupt
        return fetch(self, question)

    monkeypatch.setattr(requesting_module.Requester, "_exchange", interrupted)
    code, _, err = collect("AAPL", "MSFT", *DAYS)
    assert code == 130 and "Give the same command again to go on" in err
    monkeypatch.setattr(requesting_module.Requester, "_exchange", fetch)
    code, out, _ = collect("AAPL", "MSFT", *DAYS)
    assert code == 0 and set(server.delivered.values()) == {1} and len(server.delivered) > 10


def test_in_python_it_is_one_call(tmp_path, server, capsys):
    found = fintune.collect("AAPL", first="2024-01-01", last="2024-01-14", output_dir=tmp_path, what=["prices"])
    assert found.rows["prices.csv"] == 9 and found.folder == tmp_path and not found.failed
    assert "collecting" in capsys.readouterr().err  # a bar
