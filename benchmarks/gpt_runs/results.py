"""What was measured, as rows of JSON and as tables.

Enters: a process's answers. Leaves: a row a variant, and tables on standard output.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from gpt_runs.settings import BASELINES, Job

Row = dict[str, Any]


def speed_row(job: Job, gpu: str | None, facts: Row, windows: list[Row]) -> Row:
    """What a variant's windows come to."""
    row = {"measure": "speed", "variant": job.variant.name, "size": job.size, "gpu": gpu, **facts}
    row |= {
        "rows_per_step": job.rows_per_step,
        "length": job.length,
        "windows": windows,
        "setting": asdict(job.variant),
    }
    if windows:
        rates = [window["tokens_per_s"] for window in windows]
        row |= {"tokens_per_s": statistics.median(rates), "least": min(rates), "most": max(rates)}
        row["peak_gib"] = max(window["peak_bytes"] for window in windows) / 2**30
        row["tflops"] = row["tokens_per_s"] * facts["flops_per_token"] / 1e12
        if facts.get("peak_flops"):
            row["mfu"] = row["tflops"] * 1e12 / facts["peak_flops"]
    return row


def speed_table(rows: list[Row]) -> None:
    heads = ("size", "variant", "GPU", "attention", "weights", "MFLOP/token", "rows at once", "tokens/s (least-most)")
    heads += ("TFLOP/s", "MFU", "peak GiB")
    print("\n|", " | ".join((*heads, "against nanochat", "against nanoGPT")), "|")
    print("|" + " --- |" * (len(heads) + 2))
    for row in (row for row in rows if row["measure"] == "speed"):
        place = f"| {row['size']} | {row['variant']} | {row['gpu'] or 'CPU'} |"
        if "tokens_per_s" not in row:
            print(place, f"{row.get('error', 'no window')}{' |' * (len(heads) - 1)}")
            continue
        mfu = f"{row['mfu']:.1%}" if "mfu" in row else ""
        rate = f"{row['tokens_per_s']:,.0f} ({row['least']:,.0f}-{row['most']:,.0f})"
        against = " | ".join(_against(row, rows, peer) for peer in ("nanochat", "nanogpt"))
        model = f"{row['attention']} | {row['weights'] / 1e6:.1f}M | {row['flops_per_token'] / 1e6:,.0f}"
        speed = f"{row['rows_at_once']} | {rate} | {row['tflops']:.3g} | {mfu} | {row['peak_gib']:.1f}"
        print(place, f"{model} | {speed} | {against} |")


def _against(row: Row, rows: list[Row], peer: str) -> str:
    """Times the rate of the peer whose windows took turns with these; empty where it was not in the group."""
    name = f"{peer}-wide" if "wide" in row["variant"] else peer
    place = ("speed", name, row["size"], row["group"])
    same = [r for r in rows if (r["measure"], r["variant"], r["size"], r["group"]) == place]
    rates = [r["tokens_per_s"] for r in same if "tokens_per_s" in r]
    return f"{row['tokens_per_s'] / statistics.median(rates):.2f}x" if rates else ""


def race_table(rows: list[Row]) -> None:
    print("\n| size | variant | last loss | seconds | reaches the baseline's last loss after | times less |")
    print("| --- | --- | --- | --- | --- | --- |")
    raced = [row for row in rows if row["measure"] == "race"]
    for row in raced:
        place = f"| {row['size']} | {row['variant']} |"
        if not row["points"]:
            print(place, f"{row.get('error')} | | | |")
            continue
        last = row["points"][-1]
        ended = f"{last['validation_loss']:.4f}{' (stopped)' if 'error' in row else ''} | {last['seconds']:.1f}"
        alike = [(r["size"], r.get("device_name")) == (row["size"], row.get("device_name")) for r in raced]
        target = _baseline([r for r, is_alike in zip(raced, alike, strict=True) if is_alike])
        if target is None:
            print(place, f"{ended} | no baseline ended on {row.get('device_name')} | |")
            continue
        goal = target["points"][-1]
        reached = next((p for p in row["points"] if p["validation_loss"] <= goal["validation_loss"]), None)
        if reached is None:
            print(place, f"{ended} | not reached | |")
        else:
            how = f"{reached['seconds']:.1f} s, {reached['tokens']:,} tokens"
            times = f"{goal['seconds'] / reached['seconds']:.1f}x against {target['variant']}"
            print(place, f"{ended} | {how} | {times} |")


def _baseline(raced: list[Row]) -> Row | None:
    """The first of the baselines that ran to its end."""
    ended = {row["variant"]: row for row in raced if row["points"] and "error" not in row}
    return next((ended[variant.name] for variant in BASELINES if variant.name in ended), None)
