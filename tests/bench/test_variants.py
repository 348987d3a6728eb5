"""What is switched: needs are kept, both directions exist, and rows say what else changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fintune.bench.jobs import chosen_variants, jobs_of_round
from fintune.bench.optimisations import companions, full_set, optimisations, variants
from fintune.bench.sizes import SIZES
from fintune.bench.summary import loss_at, variant_rows
from fintune.bench.written import family_tables


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("family", ["gpt", "llm"])
def test_every_optimisation_is_switched_once_from_either_end(family, device):
    known = {one.key: one for one in optimisations(family)}
    found = variants(family, device)
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert all(need in one.switches for key in one.switches for need in known[key].needs), one.name
        if one.key:
            was_on = one.key in (full_set(family, device) if one.origin == "full" else ())
            assert (one.key in one.switches) != was_on
    switched = {one.key for one in found} - {""}
    assert switched | {key for key, one in known.items() if one.why_impossible(device)} == set(known)


def test_what_needs_another_comes_and_goes_with_it():
    found = {one.name: one for one in variants("llm", "cpu")}
    assert found["base+nf4"].switches == ("lora", "nf4")
    assert companions(found["base+nf4"], "cpu") == ["lora"]
    assert "fast_layers" not in found["full-lora"].switches
    assert companions(found["full-lora"], "cpu") == ["fast_layers"]


def test_a_round_has_every_job_once_and_begins_elsewhere():
    chosen = chosen_variants(["gpt", "llm"], "cuda")
    first, second = (jobs_of_round(chosen, SIZES["gpu"], "cuda", number) for number in range(2))
    assert len({job.key for job in first}) == len(first)
    assert sorted(replace(job, round=1).key for job in first) == sorted(job.key for job in second)
    assert sum(job.variant == "base" and job.family == "gpt" for job in first) == 3  # what the others are compared with
    assert first[0].variant != second[0].variant or first[0].part != second[0].part
    assert {job.part for job in first if job.family == "llm"} == {"whole", "speed"}


def test_loss_at_a_time_lies_on_the_line_between_points():
    curve = [{"seconds": s, "tokens": 0, "loss": loss} for s, loss in ((0.0, 6.0), (2.0, 4.0), (4.0, 3.0))]
    assert loss_at(curve, 1.0) == 5.0
    assert loss_at(curve, 3.0) == 3.5
    assert loss_at(curve, 9.0) == 3.0


def record(variant, rate, seconds, loss, number=0, problem=""):
    curve = [{"seconds": 0.0, "tokens": 0, "loss": 6.0}, {"seconds": seconds, "tokens": 100, "loss": loss}]
    measured = {
        **{"curve": curve, "tokens_per_s": rate, "peak_bytes": 2**20, "latency_ms": 1.0, "cold_s": 0.5},
        **{"parameters": 10, "notes": []},
    }
    return {
        **{"family": "llm", "variant": variant, "part": "whole", "round": number, "problem": problem},
        "measured": None if problem else measured,
    }


def test_effects_are_with_against_without_whichever_way_it_was_switched():
    records = [
        *(record("base", 100, 4.0, 5.0), record("base+packing", 200, 2.0, 5.0), record("base+tree", 600, 1.0, 5.0)),
        *(record("full", 900, 1.0, 4.0), record("full-tree", 300, 3.0, 4.5)),
        record("full-lora", 0, 0, 0, problem="memory ran out"),
    ]
    rows = {row.name: row for row in variant_rows(records, "llm", "cpu")}
    assert rows["base+packing"].effect.middle == 2
    assert rows["base+tree"].effect.middle == 3  # against packing alone, which it needs
    assert rows["full-tree"].effect.middle == 3
    assert rows["full-tree"].loss_effect.middle == -0.5
    assert rows["full-tree"].loss_at_time.middle == pytest.approx(5.5)  # after the one second that full takes
    assert "failed: memory ran out" in rows["full-lora"].said
    assert rows["full+graphs"].said == ("not measured: needs a CUDA device",)
    cells = {cells[0]: cells for table in family_tables("llm", list(rows.values())) for cells in table.rows}
    assert cells["− LoRA (all weights trained)"][1] == "–"
