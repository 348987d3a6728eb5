"""Many clients at once against `fintune serve`: latency, failures, and the server's memory over time.

Starts the server with a base and two adapters, lets the clients ask for so many seconds (chat whole and streamed, text
completions, classification; prompts that never repeat), and writes one JSON document. A share of the clients goes away
in the middle of an answer, on purpose; those requests are counted apart. Every other request must succeed.

    python benchmarks/serve_load.py --clients 64 --seconds 180 --output serve_load.json
    python benchmarks/serve_load.py --model smollm2-135m --clients 16
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

WORDS = (
    "shares",
    "profit",
    "fell",
    "rose",
    "bank",
    "dividend",
    "sales",
    "outlook",
    "warns",
    "beats",
    "estimates",
    "cuts",
    "raises",
    "loans",
    "yield",
    "oil",
)
MIB = 1 << 20


@dataclass
class Result:
    """What happened to the requests."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    first: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    tokens: int = 0
    gone: int = 0
    rss: list[tuple[float, float]] = field(default_factory=list)


def make_adapters(model: str, folder: Path) -> tuple[str, list[str]]:
    """A base, and two LoRA adapters with random weights on it."""
    import torch
    from peft import LoraConfig, get_peft_model

    from fintune.models.adapters import peft_quiet
    from fintune.models.load import load_base
    from fintune.models.tiny import write_tiny_model
    from fintune.schema.recipe import ModelSection

    base = str(write_tiny_model(folder / "tiny")) if model == "tiny" else model
    flags = []
    for seed, name in enumerate(("one", "two")):
        loaded = load_base(ModelSection(base=base), device=torch.device("cpu"), for_training=False)
        torch.manual_seed(seed)
        with peft_quiet():
            tuned = get_peft_model(loaded.model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        for parameter_name, parameter in tuned.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.02)
        tuned.peft_config["default"].base_model_name_or_path = base
        tuned.save_pretrained(folder / name, save_embedding_layers=False)
        flags += ["--adapter", f"{name}={folder / name}"]
    return base, flags


def start_server(base: str, flags: list[str], log: Path) -> tuple[subprocess.Popen[str], str, list[str]]:
    """The server's process, its address, and the models it serves."""
    command = [sys.executable, "-m", "fintune.cli", "--json", "serve", base, "--port", "0", *flags]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("}"):
            told = json.loads("".join(lines))
            return process, told["address"], told["models"]
    raise SystemExit(f"The server did not start; see {log}.")


def text(rng: random.Random, longest: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(4, longest)))


async def client(
    number: int, http: httpx.AsyncClient, models: list[str], until: float, options: argparse.Namespace, result: Result
) -> None:
    rng = random.Random(number)
    kinds = ("chat", "stream", "completion", "classify")
    while time.monotonic() < until:
        kind = rng.choices(kinds, weights=(5, 3, 1, 1))[0]
        leaves = rng.random() < options.leaving
        began = time.monotonic()
        try:
            await ask(kind, http, rng, models, options, result, leaves)
        except (httpx.HTTPError, AssertionError, KeyError, ValueError) as error:
            result.failures.append(f"{kind}: {type(error).__name__}: {error}"[:300])
        else:
            if not leaves:
                result.seconds.setdefault(kind, []).append(time.monotonic() - began)


async def ask(
    kind: str,
    http: httpx.AsyncClient,
    rng: random.Random,
    models: list[str],
    options: argparse.Namespace,
    result: Result,
    leaves: bool,
) -> None:
    model = rng.choice(models)
    writing = {
        "model": model,
        "max_tokens": rng.randint(options.tokens // 2, options.tokens),
        "temperature": rng.choice([0, 0.7, 1]),
    }
    asked = [{"role": "user", "content": text(rng, options.words)}]
    if kind == "classify":
        body = {"model": model, "input": [text(rng, 30) for _ in range(rng.randint(1, 4))]}
        answer = await whole(http, "/v1/classify", body, result, leaves)
        if answer:
            assert len(answer["data"]) == len(body["input"]), "labels are missing"
    elif kind == "completion":
        body = {**writing, "prompt": text(rng, options.words)}
        answer = await whole(http, "/v1/completions", body, result, leaves)
    elif kind == "chat":
        answer = await whole(http, "/v1/chat/completions", {**writing, "messages": asked}, result, leaves)
    else:
        await streamed(http, {**writing, "messages": asked, "stream": True}, result, leaves)
        return
    if answer:
        result.tokens += answer["usage"]["completion_tokens"]


async def whole(http: httpx.AsyncClient, path: str, body: Any, result: Result, leaves: bool) -> Any:
    if leaves:
        try:
            await http.post(path, json=body, timeout=0.05)
        except httpx.TimeoutException:
            result.gone += 1
        return None
    response = await http.post(path, json=body)
    result.statuses[str(response.status_code)] += 1
    assert response.status_code == 200, response.text
    return response.json()


async def streamed(http: httpx.AsyncClient, body: Any, result: Result, leaves: bool) -> None:
    began, n_events, ended = time.monotonic(), 0, False
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if not leaves:
            result.statuses[str(response.status_code)] += 1
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            n_events += 1
            if leaves and n_events == 3:
                result.gone += 1
                return
            if n_events == 2 and not leaves:
                result.first.append(time.monotonic() - began)
            assert '"error"' not in line[:10], line
            ended = line == "data: [DONE]"
    assert ended or leaves, "the stream broke off"


async def watch(process: subprocess.Popen[str], until: float, result: Result) -> None:
    server, began = psutil.Process(process.pid), time.monotonic()
    while time.monotonic() < until:
        result.rss.append((time.monotonic() - began, server.memory_info().rss / MIB))
        await asyncio.sleep(min(1.0, max(0.1, (until - began) / 30)))


async def load(
    address: str, models: list[str], process: subprocess.Popen[str], options: argparse.Namespace
) -> tuple[Result, str]:
    result, until = Result(), time.monotonic() + options.seconds
    limits = httpx.Limits(max_connections=2 * options.clients, max_keepalive_connections=options.clients)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits, trust_env=False) as http:
        clients = [client(number, http, models, until, options, result) for number in range(options.clients)]
        await asyncio.gather(watch(process, until, result), *clients)
        page = (await http.get("/metrics")).text
    return result, page


def percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    return {"n": len(seconds), "p50_s": round(p50, 3), "p95_s": round(p95, 3), "p99_s": round(p99, 3)}


def memory(rss: list[tuple[float, float]]) -> dict[str, Any]:
    """Resident memory in MiB: first, after a third (everything has been seen by then), last, and the slope since."""
    late = np.asarray(rss[len(rss) // 3 :])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 60 if len(late) > 2 else 0.0
    return {
        "first": round(rss[0][1], 1),
        "after_a_third": round(float(late[0, 1]), 1),
        "last": round(rss[-1][1], 1),
        "most": round(max(value for _, value in rss), 1),
        "slope_mib_per_minute": round(slope, 2),
        "by_time": [(round(at, 1), round(value, 1)) for at, value in rss[:: max(1, len(rss) // 40)]],
    }


def gauge(page: str, name: str) -> float:
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} "))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One measurement."""
    with tempfile.TemporaryDirectory() as folder:
        base, flags = make_adapters(options.model, Path(folder))
        log = Path(folder) / "log"
        process, address, models = start_server(base, [*flags, *options.server], log)
        try:
            began = time.monotonic()
            result, page = asyncio.run(load(address, models, process, options))
            elapsed = time.monotonic() - began
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        problems = [line for line in log.read_text().splitlines() if '"event": "message"' in line]
    n_requests = sum(map(len, result.seconds.values()))
    return {
        "model": options.model,
        "models": len(models),
        "clients": options.clients,
        "seconds": round(elapsed, 1),
        "cores": os.cpu_count(),
        "requests": n_requests,
        "requests_per_s": round(n_requests / elapsed, 2),
        "failed": len(result.failures),
        "failures": result.failures[:10],
        "left_on_purpose": result.gone,
        "statuses": dict(result.statuses),
        "latency": {kind: percentiles(seconds) for kind, seconds in sorted(result.seconds.items())},
        "latency_all": percentiles([value for seconds in result.seconds.values() for value in seconds]),
        "first_token": percentiles(result.first) if result.first else None,
        "rss_mib": memory(result.rss),
        "answers_open_at_the_end": gauge(page, "fintune_answers_open"),
        "server_exit_code": code,
        "server_messages": problems[:5],
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny (random weights), or anything fintune serve takes")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--words", type=int, default=60, help="most words of a prompt")
    parser.add_argument("--leaving", type=float, default=0.02, help="share of requests whose client goes away")
    parser.add_argument("--output", type=Path)
    parser.add_argument("server", nargs="*", help="further options of fintune serve, after --")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    found = json.dumps(run(options), indent=2)
    print(found)
    if options.output is not None:
        options.output.write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
