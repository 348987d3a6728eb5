"""The models that are set side by side: each sees only what was known, and says what it should."""

import json
import sys

import numpy as np
import pytest
import torch

from fintune.forecasting.quant.baselines import empirical, n_gram, own_history, past_counts, random_walk
from fintune.forecasting.quant.comparison import evaluate_forecasts
from fintune.forecasting.quant.days import DayTable
from fintune.forecasting.quant.forecasts import Forecasts, Targets, targets_of
from fintune.forecasting.quant.garch import CACHE, garch
from fintune.forecasting.quant.gpt import gpt_forecasts
from fintune.forecasting.quant.starting import tokenizer_of
from fintune.metrics.binned import log_scores
from fintune.models.gpt import GPTForCausalLM, optimised
from fintune.models.tiny import tiny_tokenizer
from fintune.schema.errors import DependencyError, ModelError
from fintune.sources.quant.codec import CHANGE
from tests.forecasting.quant.made_up import made_days
from tests.models.gpts import randomised


@pytest.fixture(scope="module")
def made():
    return made_days()


@pytest.fixture(scope="module")
def targets(made):
    return targets_of(*made, "test")


def spoil_after(days, row):
    """The table with other days behind a row of its ticker."""
    ticker = days.ticker[row]
    later = (days.ticker == ticker) & (np.arange(len(days)) > row)
    change, codes = days.change.copy(), days.codes.copy()
    change[later] *= -3
    codes[later, CHANGE] = 0
    return DayTable(days.tickers, days.ticker, days.dates, days.split, change, days.volatility, codes)


@pytest.fixture(scope="module")
def gpt(made):
    _, codec = made
    tokenizer = tokenizer_of(codec)
    config = optimised("tiny", len(tokenizer))
    return randomised(GPTForCausalLM._from_config(config, attn_implementation="sdpa")), tokenizer


def test_every_forecast_is_a_distribution_from_the_past_alone(made, targets, gpt, tmp_path):
    pytest.importorskip("arch", reason="arch (fintune[quant]) is not installed")
    days, codec = made
    validation = targets_of(days, codec, "validation")

    def all_of(where):
        return [
            random_walk(where), empirical(where), own_history(where, validation), n_gram(where, validation),
            garch(where, "t", tmp_path), gpt_forecasts(*gpt, codec, where, window_days=8),
        ]  # fmt: skip

    place = 30
    changed = targets_of(spoil_after(days, targets.rows[place]), codec, "test")
    for one, other in zip(all_of(targets), all_of(changed), strict=True):
        np.testing.assert_allclose(one.probabilities.sum(1), 1)
        assert (one.probabilities > 0).all()
        np.testing.assert_allclose(other.probabilities[: place + 1], one.probabilities[: place + 1], atol=1e-6)


def test_many_days_in_one_pass_are_each_day_alone(made, targets, gpt):
    """The distribution of a day is what the model says behind that day's two known tokens, with the window's past."""
    model, tokenizer = gpt
    days, codec = made
    found = gpt_forecasts(model, tokenizer, codec, targets, window_days=8, windows_per_batch=3)
    first = int(targets.rows[0])
    for place in (0, 3, 4):  # the first window forecasts four days, the second the next four
        start = first - 4 if place < 4 else first
        row = first + place
        words = codec.text(days.codes[start - 1 : row + 1]).split()
        ids = tokenizer.convert_tokens_to_ids(words[7 : -(8 - CHANGE)])
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        alone = torch.softmax(logits[tokenizer.convert_tokens_to_ids(list(codec.words[CHANGE]))], -1)
        np.testing.assert_allclose(found.probabilities[place], alone.detach(), atol=1e-5)
    with pytest.raises(ModelError, match="does not know the tokens"):
        gpt_forecasts(model, tiny_tokenizer(), codec, targets, window_days=8)


def test_an_n_gram_finds_what_follows_what(made):
    """Changes that repeat the day before's bin: the n-gram knows, the random walk does not."""
    days, codec = made
    codes = days.codes.copy()
    generator = np.random.default_rng(0)
    for rows in days.series():
        blocks = generator.integers(0, 4, len(codes[rows]) // 10 + 1)
        codes[rows, CHANGE] = np.repeat(blocks, 10)[: len(codes[rows])]
    sticky = DayTable(days.tickers, days.ticker, days.dates, days.split, days.change, days.volatility, codes)
    targets, validation = (targets_of(sticky, codec, split) for split in ("test", "validation"))
    known = n_gram(targets, validation)
    assert "and last" in known.chosen
    gap = log_scores(known.probabilities, targets.code) - log_scores(empirical(targets).probabilities, targets.code)
    assert gap.mean() > 0.3


def test_weeks_run_from_monday_to_sunday(made):
    days, _ = made
    first = int(np.flatnonzero(days.dates >= np.datetime64("2020-06-01"))[0])  # a Monday; business days follow
    week = Targets(days, np.arange(first, first + 11), np.zeros(1)).week
    assert week.tolist() == [0] * 5 + [1] * 5 + [2]


def test_own_history_counts_the_tickers_last_days(targets):
    counts = past_counts(targets)
    row = int(targets.rows[7])
    past = targets.days.change[max(0, row - 250) : row][targets.days.ticker[max(0, row - 250) : row] == 0]
    by_hand = np.histogram(past, np.concatenate([[-np.inf], targets.log_edges[7], [np.inf]]))[0]
    np.testing.assert_array_equal(counts[7], by_hand)


@pytest.mark.parametrize("shape", ["normal", "t"])
def test_garch_is_archs(targets, tmp_path, shape, monkeypatch):
    """Variances and densities as ``arch`` has them with the parameters of the training days; fitted once."""
    arch = pytest.importorskip("arch", reason="arch (fintune[quant]) is not installed")
    found = garch(targets, shape, tmp_path)
    rows = next(targets.days.series())
    is_train = targets.days.in_split("train")[rows]
    changes = 100 * targets.days.change[rows]
    options = {"mean": "Constant", "vol": "GARCH", "p": 1, "q": 1, "dist": shape, "rescale": False}
    fit = arch.arch_model(changes[is_train], **options).fit(disp="off", show_warning=False)
    filtered = arch.arch_model(changes, **options).fix(fit.params)
    place = 20
    row = targets.rows[place] - rows.start
    edges = 100 * targets.log_edges[place]
    standard = (edges - fit.params["mu"]) / np.asarray(filtered.conditional_volatility)[row]
    cdf = filtered.model.distribution.cdf(standard, fit.params[4:] if shape == "t" else None)
    np.testing.assert_allclose(np.cumsum(found.probabilities[place])[:-1], cdf, atol=2e-4)
    kept = json.loads((tmp_path / CACHE).read_text())
    assert len(kept) == len(targets.days.tickers)
    monkeypatch.setattr(arch, "arch_model", None)
    np.testing.assert_array_equal(garch(targets, shape, tmp_path).probabilities, found.probabilities)


def test_without_arch_the_error_says_how_to_get_it(targets, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "arch", None)
    with pytest.raises(DependencyError, match=r"fintune\[quant\]"):
        garch(targets, "t", tmp_path)


def test_the_verdict_knows_better_worse_and_the_same(targets):
    """A forecast that knows the bin half of the time, against the shares of the bins and against its own twin."""
    plain = empirical(targets)
    informed = plain.probabilities.copy()
    informed[np.arange(len(informed)), targets.code] += 0.02
    informed /= informed.sum(1, keepdims=True)
    noise = np.random.default_rng(0).uniform(0.95, 1.05, informed.shape)
    twin = informed * noise / (informed * noise).sum(1, keepdims=True)
    found = evaluate_forecasts(targets, [Forecasts("one", informed), plain, Forecasts("twin", twin)], split="test")
    verdicts = {(one.reference, one.score): one.verdict for one in found.differences}
    assert verdicts["random walk, empirical", "log_score"] == "better"
    assert verdicts["twin", "log_score"] == "not told apart"
    turned = evaluate_forecasts(targets, [plain, Forecasts("one", informed)], split="test")
    assert {one.verdict for one in turned.differences} == {"worse"}
    assert (found.n, found.n_days) == (len(targets.rows), len(set(targets.days.dates[targets.rows].tolist())))
