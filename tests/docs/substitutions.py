"""All that differs between a document and what the tests run of it, in one place.

Everything is run but what ``NOT_RUN`` and ``PYTHON_NOT_RUN`` name; that is still parsed, validated and resolved
(``tests/docs/checks.py``). An entry that no document needs any more fails a test.
"""

from __future__ import annotations

import re

# The embedded model ``smollm2-135m`` is a tiny random Llama (its place in the cache is taken), and runs are short.
SMALL = (
    "model.quantization=none",
    "data.train_limit=16",
    "data.validation_limit=12",
    "data.near_duplicate_threshold=null",
    "training.tracking=[]",
    "evaluation.limit=12",
    "evaluation.bootstrap_samples=100",
    "evaluation.baselines=[majority]",
    "report.enabled=false",
)
MORE_ARGUMENTS = {
    "train": SMALL,
    "quickstart": SMALL,
    "evaluate": ("--limit", "8", "--baselines", "majority", *SMALL[3:4], *SMALL[6:7], *SMALL[8:]),
    "generate": ("--max-new-tokens", "8"),
}

# Text of a command or a Python block -> what stands there in a test.
IN_COMMANDS = (
    ("runs/stage2", "runs/quickstart", "any second run shows how adapters are kept"),
    ("combine sentiment@1 headlines ", "combine sentiment@1 sentiment@2 ", "the second adapter"),
    ("fed_speeches/speeches.jsonl", "finance_corpus.txt", "text of the reader's"),
)
IN_PYTHON = (
    ("overrides=[", "overrides=[*SMALL, ", "short trainings"),
    ('label="tone", table', 'label="tone", overrides=SMALL, table', "short trainings"),
    ("abstain=0.9", "abstain=0.05", "few rows and a random model allow no better bound"),
    ("headlines@2", "sentiment@1", "the second adapter"),
)

# Where a server is asked: one of the session answers.
SERVED = re.compile(r"http://(?:127\.0\.0\.1|localhost):\d+")

# Commands, by a regular expression, that are parsed and not run, each with the reason.
NOT_RUN = (
    (r"^fintune collect ", "asks providers on the network, with keys"),
    (r"^fintune (judge|rationales) ", "asks a language model at an address of one's own"),
    (r"^fintune serve", "serves until it is stopped; requests to it run"),
    (r"^fintune push (?!.*--dry-run)", "uploads to the hub"),
    (r"^fintune demo", "serves until it is stopped; tests/serving runs the page"),
    (r"^fintune bench ", "measures for minutes; tests/bench runs it"),
    (r"(^|/)(torchrun|accelerate|srun) |--gpus|--processes|--engine ray", "needs GPUs, machines or processes to spare"),
    (r"flare|finqa|fpb|fomc|fiqa_sa|dow30|weekly_", "needs data sets that may not be shipped; tests/tasks has rows"),
    (r"finllama|finsight|news-cpt|gpt-scratch", "needs weights or data sets that are not shipped"),
    (r"my-chat|runs/(label|table)|=runs/curriculum", "a run of the reader's"),
    (r" quant|quant-data", "minutes of building and fitting; tests/forecasting/quant runs it"),
    (r"^fintune corpus build (sources|news|clean)", "files of the reader's; tests/test_corpora.py builds such"),
    (r"^python ", "a benchmark, for minutes and mostly for a GPU"),
    (r"^(make|pip|python3|source|export|git|cd|mkdir|printf|docker) ?", "installs, or is the shell's"),
)
PYTHON_NOT_RUN = (
    ("FLAREEvaluator", "needs FLARE's data sets, which may not be shipped"),
    ("CurriculumTrainer", "needs Llama-3.1-8B and a GPU; tests/test_curriculum.py runs it"),
    ("fintune.collect(", "asks providers on the network, with keys"),
    ("find_lookahead", "takes a builder of one's own; tests/tasks/weekly runs it"),
    (".cuda()", "needs a GPU"),
    ("LocalPipelineExecutor", "starts processes; tests/test_corpora.py runs it"),
)
