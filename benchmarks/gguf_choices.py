"""Claim: llama.cpp, reading an exported GGUF file, chooses the labels that the merged model chooses.

For each test row of the run's first task the likelihood of every label, end of turn included, is computed by fintune's
scorer on the merged 16-bit weights (in fp32) and by llama.cpp on each GGUF file, on the same tokens. Before that, the
prompt as text is given to llama.cpp's own tokeniser, and its tokens are compared with those the model was trained on;
so are all test texts, and texts with numbers, line breaks and other scripts.

    fintune export RUN -o EXPORTED --formats merged,f16,q8_0,q4_1,q4_0
    python benchmarks/gguf_choices.py RUN EXPORTED --rows 300 --json out.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from fintune.environment import describe_environment
from fintune.evaluation.scoring import Scorer
from fintune.evaluation.suite import load_run_data
from fintune.inference.forward import EdgeModel
from fintune.inference.likelihood import softmax
from fintune.models import load_base
from fintune.models.export.llama_cpp import LlamaCpp
from fintune.schema.example import Example
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import ModelSection
from fintune.trees.chat import ChatFormat

HARD = (
    "Net sales were EUR 1,234,567.89 (+12.5%) in 2007, 0.5 in 2006 and 10 000 in 2005; Q4/08: -3.4%.",
    "first\nsecond\n\nthird\n\n\n 2008\n  12  345\r\n\ttab\t\tend  \n",
    "\u20ac1.2bn \u00a3900k \u00a5100 \u2014 \u201cbeat\u201d \u2026 \u00df \u4e2d \U0001f680 \u043f\u0440",
    "   leading and trailing   ",
    "I'll don't WE'VE it's '90s <|im_end|> </s> [INST] {{x}} \\n",
    "$AAPL #earnings @ceo https://x.com/a?b=1&c=%20 10-K/A 1:2 3/4 5\u00bd",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run that was exported")
    parser.add_argument("exported", type=Path, help="what `fintune export` wrote, merged weights included")
    parser.add_argument("--rows", type=int, default=300, help="test rows, evenly spaced")
    parser.add_argument("--kinds", nargs="*", help="kinds of GGUF files, in this order; all when left out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    recipe = load_recipe(arguments.run)
    _, test = load_run_data(recipe).tested[0]
    rows = [test[i] for i in np.linspace(0, len(test) - 1, min(arguments.rows, len(test))).astype(int)]
    section = ModelSection(base=str(arguments.exported / "merged"), dtype="float32")
    base = load_base(section, device=torch.device("cpu"), for_training=False)
    chat = ChatFormat(base.tokenizer, recipe.training.max_length)
    encoded, expected = Scorer(EdgeModel(base.model, "sdpa"), chat, 4096).log_likelihoods(rows)
    rows = [rows[i] for i in encoded.kept]
    result: dict[str, Any] = {
        "environment": describe_environment(),
        "rows": len(rows),
        "accuracy": accuracy(expected, rows),
    }
    files = sorted((arguments.exported / "gguf").glob("*.gguf"))
    if arguments.kinds:
        files = [file for kind in arguments.kinds for file in files if file.stem.endswith(f"-{kind}")]
    for file in files:
        started = time.perf_counter()
        context = max(len(e.prompt) + sum(map(len, e.choices)) for e in encoded.encoded)
        opened = LlamaCpp(file, context=-(-context // 256) * 256, threads=arguments.threads)
        tokens = same_tokens(opened, chat, rows, test)
        scores = [
            np.array(opened.choice_log_likelihoods(e.prompt.tolist(), [c.tolist() for c in e.choices]))
            for e in encoded.encoded
        ]
        result[file.stem] = tokens | comparison(expected, scores, rows)
        result[file.stem] |= {"bytes": file.stat().st_size, "seconds": round(time.perf_counter() - started, 1)}
        print(file.stem, json.dumps(result[file.stem]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def same_tokens(opened: LlamaCpp, chat: ChatFormat, rows: Sequence[Example], test: Sequence[Example]) -> dict[str, str]:
    """How many prompts, and how many bare texts, llama.cpp splits as they were split in training."""
    prompts = 0
    for row in rows:
        turns = [{"role": message.role, "content": message.content} for message in row.messages]
        text = chat.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompts += opened.tokens(text, control=True) == chat.prompt(row.messages).tolist()
    texts = [*HARD, *(message.content for row in test for message in row.messages)]
    alike = [opened.tokens(t) == chat.tokenizer(t, split_special_tokens=True)["input_ids"] for t in texts]
    return {"prompts": f"{prompts} of {len(rows)}", "texts": f"{sum(alike)} of {len(texts)}"}


def comparison(expected: Sequence[Any], found: Sequence[Any], rows: Sequence[Example]) -> dict[str, Any]:
    """Equal choices with their 95 % interval, and how far likelihoods and probabilities are apart."""
    same = [int(a.argmax()) == int(b.argmax()) for a, b in zip(expected, found, strict=True)]
    low, high = binomtest(sum(same), len(same)).proportion_ci(method="wilson")
    margins = [float(np.sort(softmax(a))[-1] - np.sort(softmax(a))[-2]) for a in expected]
    return {
        "same_choices": f"{sum(same)} of {len(same)}",
        "share": round(sum(same) / len(same), 4),
        "interval": [round(low, 4), round(high, 4)],
        "margin_of_others": [round(m, 3) for m, one in zip(margins, same, strict=True) if not one],
        "mean_nats": round(float(np.mean([np.abs(a - b).mean() for a, b in zip(expected, found, strict=True)])), 4),
        "largest_probability_gap": round(
            max(float(np.abs(softmax(a) - softmax(b)).max()) for a, b in zip(expected, found, strict=True)), 4
        ),
        "accuracy": accuracy(found, rows),
    }


def accuracy(scores: Sequence[Any], rows: Sequence[Example]) -> float:
    """Share of rows whose likeliest label is the right one."""
    right = [row.choices[int(s.argmax())] == row.target for s, row in zip(scores, rows, strict=True)]
    return round(sum(right) / len(right), 4)


if __name__ == "__main__":
    main()
