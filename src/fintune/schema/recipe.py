"""The recipe: a frozen description of one run, validated before anything is loaded.

A recipe enters as YAML (or a dict) plus ``key.sub=value`` overrides and leaves as a ``Recipe``. Unknown keys,
bad values and impossible combinations raise ``RecipeError`` naming the nearest valid key and the remedy.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fintune.schema.conversations import ConversationsSection

Quantization = Literal["none", "nf4", "int8", "fp8"]
Decoding = Literal["constrained", "free", "both"]
Packing = Literal["tree", "sequence", "none"]


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelSection(_Section):
    """The base model and how its weights are held."""

    base: str = Field(description="Alias, hub id, local folder or .gguf file of the base model.")
    revision: str | None = Field(None, description="Hub revision; pinned to a commit in the resolved recipe.")
    content_hash: str | None = Field(None, description="SHA-256 of the weights; filled in and checked when resolved.")
    quantization: Quantization = Field(
        "none", description="Storage of the frozen weights: none, nf4, int8 or fp8 (Ada, Hopper and newer)."
    )
    double_quant: bool = Field(True, description="Quantise the NF4 scales too; saves about 0.4 bits a weight.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Compute type; auto takes bf16 on Ampere and newer, fp16 before, fp32 on the CPU."
    )
    attention: Literal["auto", "flex", "triton", "sdpa", "eager"] = Field(
        "auto", description="Tree attention: auto takes our Triton kernels on GPUs, and SDPA over spans elsewhere."
    )
    chat_template: str | None = Field(
        None, description="Override for bases without one: plain, chatml, or a Jinja template."
    )
    trust_remote_code: bool = Field(False, description="Run Python code shipped with the checkpoint. Off unless asked.")


class AdapterSection(_Section):
    """What is trained: a LoRA adapter, or all weights."""

    kind: Literal["lora", "none"] = Field("lora", description="lora trains an adapter; none trains all weights.")
    rank: int = Field(16, ge=1, description="Rank of the update; more rank, more capacity and memory.")
    alpha: float = Field(32.0, gt=0, description="Scale of the update: alpha / rank (alpha / sqrt(rank) with rslora).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input; 0 keeps tree packing exact.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Linear layers that get an adapter: all-linear or a list of module names."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) (arXiv 2312.03732).")
    dora: bool = Field(False, description="Learn magnitude apart from direction (arXiv 2402.09353); slower.")
    init_adapter: str | None = Field(
        None, description="Adapter folder or run directory to start from; a stage starts from the one before it."
    )
    init_hash: str | None = Field(None, description="SHA-256 of that adapter; filled in when resolved.")
    hand_over: Literal["pad", "stack", "merge"] | None = Field(
        None,
        description="How the adapter to start from becomes this one: pad to a larger rank or more layers; stack a new "
        "one on the frozen old one; merge the old one into the base and start afresh; null goes on with equal shapes.",
    )


class TableSection(_Section):
    """A classification task of your own, made from a table: which column is what, and how it is split."""

    text: str = Field(description="Column with the text.")
    label: str = Field(description="Column with the label.")
    date: str | None = Field(None, description="Column with dates; null looks for one by name and by what it holds.")
    date_format: str | None = Field(
        None, description="How dates are written (%d/%m/%Y); needed only where day and month could be mixed up."
    )
    group: str | None = Field(None, description="Column with ticker or document; null looks for one by its name.")
    split: Literal["auto", "time", "group", "stratified", "test"] = Field(
        "auto",
        description="How test rows are held out: auto takes time if nine in ten rows are dated, else groups, else "
        "labels; test makes every row a test row. A source with splits of its own keeps them.",
    )
    labels: dict[str, str] | None = Field(
        None, description="Your label -> the word the model answers with; null takes the labels as they are."
    )
    bins: tuple[float, ...] | None = Field(
        None, description="Thresholds that cut a numeric label into classes; a value equal to one falls above it."
    )
    choices: tuple[str, ...] | None = Field(
        None, description="All labels in order (of rising value with bins); null takes those that occur."
    )
    instruction: str | None = Field(None, description="What is asked about the text; null names the choices.")
    licence: str | None = Field(None, description="Terms of the data, for the report and the licence gate.")
    delimiter: str | None = Field(None, description="Of a CSV file; null detects it.")
    encoding: str | None = Field(None, description="Of a text file; null detects it.")
    sheet: str | None = Field(None, description="Of an Excel file; null takes the first.")


class TaskSection(_Section):
    """One task of the mixture that is trained or measured."""

    name: str = Field(
        description="Registered task name (`fintune tasks` lists them), or any name with table or conversations."
    )
    source: str | None = Field(
        None, description="sample, a local file or folder, or a hub id; null tries the task's own order."
    )
    config: str | None = Field(None, description="Variant of the data set, such as PhraseBank's AllAgree.")
    prompt: str | None = Field(None, description="Named prompt of the task; null takes the task's default.")
    revision: str | None = Field(None, description="Hub revision of the data; pinned when resolved.")
    content_hash: str | None = Field(None, description="SHA-256 of the loaded rows; filled in and checked.")
    table: TableSection | None = Field(None, description="Makes a task of your own from the source's columns.")
    conversations: ConversationsSection | None = Field(
        None, description="Makes a task of conversations, instructions or plain text from the source."
    )
    weight: float | None = Field(
        None, gt=0, description="Share of the draws relative to the other tasks' weights; for data.mixture=weights."
    )
    proportion: float = Field(
        1.0, gt=0, le=1, description="Share of this source's training rows that is used, drawn by the seed."
    )
    epochs: float = Field(
        1.0,
        gt=0,
        description="Passes over this source's rows in each pass over the data; a fraction goes on where the one "
        "before ended. For data.mixture=proportional.",
    )

    def unweighted(self) -> TaskSection:
        """The section whatever its share of a mixture: all its rows, each drawn once."""
        return self.model_copy(update={"weight": None, "epochs": 1.0, "proportion": 1.0})


class DataSection(_Section):
    """Which rows are trained on, and how many."""

    tasks: tuple[TaskSection, ...] = Field(min_length=1, description="Tasks trained on.")
    train_limit: int | None = Field(None, ge=1, description="At most this many training rows a task.")
    validation_limit: int | None = Field(None, ge=1, description="At most this many validation rows a task.")
    balance: bool = Field(False, description="Draw equally many training rows of each class.")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced weighs each row by how rare its label is, with a mean weight of 1."
    )
    mixture: Literal["proportional", "temperature", "weights"] = Field(
        "proportional",
        description="How often a task is drawn: proportional takes every row once an epoch; temperature by its rows to "
        "the power 1/T; weights by the weight of each task. An epoch draws as many samples as there are rows, or as "
        "the tasks' own epochs ask for.",
    )
    mixture_temperature: float = Field(
        2.0, gt=0, description="T of data.mixture=temperature: 1 is proportional, more draws small tasks more often."
    )
    remove_overlap: bool = Field(True, description="Drop training rows whose text is also in validation or test.")
    remove_same_document: bool = Field(
        True,
        description="With remove_overlap, drop training questions about a report page that is also held out, and "
        "conversations of which half of the answers are.",
    )
    near_duplicate_threshold: float | None = Field(
        0.6, ge=0.1, le=1, description="Similarity from which two texts are near-duplicates; null: only equal texts."
    )
    require_licence: Literal["commercial"] | None = Field(
        None, description="commercial refuses data whose terms do not clearly allow commercial use."
    )


class TrainingSection(_Section):
    """How the rows become updates."""

    epochs: float = Field(1.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimiser steps, whatever the epochs.")
    samples_per_step: int = Field(16, ge=1, description="Samples drawn for each optimiser step (effective batch).")
    tokens_per_batch: int = Field(
        2048, ge=16, description="Packing budget: tree tokens computed at once; less saves memory, not the result."
    )
    packing: Packing = Field("tree", description="tree shares prefixes; sequence only concatenates; none pads.")
    sampler: Literal["random", "by_document"] = Field(
        "random", description="by_document draws a group's samples one after the other: fewer tokens, other sampling."
    )
    max_length: int = Field(2048, ge=16, description="Longest sample in tokens; the document is shortened to fit.")
    learning_rate: float = Field(
        2e-4,
        gt=0,
        description="Peak learning rate. With optimizer=muon it is that of matrices, where 0.02 is usual, and those of "
        "embeddings, head and norms follow in nanochat's proportions.",
    )
    schedule: Literal["linear", "cosine", "constant", "wsd", "plateau"] = Field(
        "linear",
        description="Learning-rate schedule after warm-up; wsd holds the peak and falls to 0 in the last decay_ratio "
        "of the steps; plateau lowers it whenever best_metric gets no better.",
    )
    decay_ratio: float = Field(0.4, gt=0, le=1, description="For wsd: the share of all steps in which the rate falls.")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="What a plateau multiplies the learning rate by.")
    plateau_patience: int = Field(
        2, ge=0, description="Validations without a better best_metric that are waited for before the rate is lowered."
    )
    plateau_threshold: float = Field(
        0.0, ge=0, description="How much better a validation must be, in units of best_metric, to count as better."
    )
    plateau_minimum: float = Field(0.0, ge=0, description="The learning rate is not lowered below this.")
    warmup_steps: int | None = Field(None, ge=0, description="Warm-up in steps; excludes warmup_ratio.")
    warmup_ratio: float | None = Field(None, ge=0, lt=1, description="Warm-up as a fraction of all steps.")
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "muon"] = Field(
        "adamw",
        description="adamw is fused where it can be; the 8-bit ones (bitsandbytes) save memory; muon, for pretraining, "
        "is Muon for the matrices of the blocks, AdamW with betas of 0.8 and 0.95 for everything else.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay; with muon of the matrices only.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first-moment decay.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second-moment decay.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient-norm clip; 0 switches it off.")
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute in the backward pass even where memory would do without.",
    )
    compile: bool = Field(
        False, description="Compile the blocks of a GPT of ours (torch.compile); minutes at the start, then faster."
    )
    save_steps: int = Field(50, ge=1, description="Checkpoint interval: at most this many steps are redone.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints kept beside the best one.")
    eval_steps: int | None = Field(
        None, ge=1, description="Validate every so many steps and after the last; null: never."
    )
    best_metric: Literal["macro_f1", "accuracy", "loss"] | None = Field(
        None, description="Keep the checkpoint best on this validation metric; null keeps the last."
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Stop after this many validations in a row without a better best_metric; null: never."
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="How much better a validation must be to count as better."
    )
    early_stopping_mode: Literal["absolute", "relative"] = Field(
        "absolute", description="Whether the threshold is in units of the metric or a fraction of its best value."
    )
    loss_spike: float | None = Field(
        5.0,
        gt=1,
        description="Skip updates whose loss is this many times the recent median and above the early losses.",
    )
    rollback_after: int = Field(
        3, ge=1, description="Skipped updates in a row after which the weights of the newest checkpoint are restored."
    )
    log_steps: int = Field(1, ge=1, description="Write metrics every so many steps.")
    tracking: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = Field(
        ("tensorboard",), description="Where curves go, besides metrics.jsonl."
    )


class DistributedSection(_Section):
    """How several processes share a run; one by itself ignores it. How many there are, the launcher says."""

    strategy: Literal["auto", "ddp", "zero2", "zero3", "fsdp2"] = Field(
        "auto",
        description="What each process holds: ddp, which auto takes, everything; zero2 (DeepSpeed) shares out "
        "gradients and optimiser states; zero3 (DeepSpeed) and fsdp2 (PyTorch) the weights too.",
    )
    offload_optimizer: bool = Field(
        False, description="Keep the optimiser states in the host's memory and update there; zero2 and zero3."
    )
    offload_param: bool = Field(
        False, description="Keep weights in the host's memory while they are not needed; zero3 and fsdp2."
    )


class EvaluationSection(_Section):
    """What is measured after training."""

    tasks: tuple[TaskSection, ...] | None = Field(None, description="Tasks measured; null takes the trained ones.")
    split: Literal["test", "validation"] = Field("test", description="Split that is scored.")
    decoding: Decoding = Field(
        "constrained",
        description="How a closed label set is answered: constrained takes the likeliest label, which FLARE does not "
        "do, so it is scored as robust only; free writes text, read under every protocol; both ranks for robust and "
        "writes for flare_strict.",
    )
    engine: Literal["fintune", "vllm"] = Field(
        "fintune", description="What writes free answers; vllm is experimental and has to be installed."
    )
    shots: int = Field(0, ge=0, description="Solved training rows shown before each document, the same for all.")
    base_variants: tuple[Literal["five_shot", "calibrated"], ...] = Field(
        (), description="Further ways to ask the untuned base, so that tuning is not flattered."
    )
    limit: int | None = Field(None, ge=1, description="At most this many documents a task.")
    base: bool = Field(True, description="Score the untuned base beside the tuned model.")
    baselines: tuple[Literal["majority", "lexicon", "tfidf", "last_direction", "always_rise"], ...] = Field(
        ("majority", "lexicon", "tfidf", "last_direction", "always_rise"),
        description="Classical systems scored on the same documents, each where it applies.",
    )
    tokens_per_batch: int | None = Field(
        None, ge=16, description="Tree tokens scored at once; null: 2048 on the CPU, 16384 or more on a GPU."
    )
    batch_size: int | None = Field(
        None, ge=1, description="Answers generated side by side; null: 16 on the CPU, 256 on a GPU."
    )
    abstention: bool = Field(
        True, description="Score the validation rows too, from which `fintune predict --abstain` takes its threshold."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of the intervals.")
    bootstrap_samples: int = Field(2000, ge=100, description="Resamples behind each interval.")


class ReportSection(_Section):
    """What is written for people."""

    enabled: bool = Field(True, description="Write HTML, Markdown, LaTeX, figures and the model card.")
    title: str | None = Field(None, description="Title of the report; null takes the recipe's name.")
    documents: bool = Field(
        True, description="Put every document with its answers on the page; false where texts must not be passed on."
    )


class StageSection(_Section):
    """One stage of a run with several: what it does not say, it takes from the recipe's own sections."""

    name: str = Field(pattern=NAME, description="Short name; part of the stage's folder.")
    evaluate: bool = Field(
        False, description="Measure the adapter of this stage too on the evaluation's tasks; the last always is."
    )
    data: DataSection = Field(description="Keys of data that differ in this stage.")
    adapter: AdapterSection = Field(AdapterSection(), description="Keys of adapter that differ in this stage.")
    training: TrainingSection = Field(TrainingSection(), description="Keys of training that differ in this stage.")


class Recipe(_Section):
    """One run, whole: everything that steers it is here."""

    name: str = Field(pattern=NAME, description="Short name; names the run directory.")
    description: str = Field("", description="What the recipe is for.")
    seed: int = Field(17, ge=0, description="Seeds sampling, initialisation, dropout and the bootstrap.")
    output_dir: str | None = Field(None, description="Run directory; null: runs/<name>.")
    model: ModelSection
    adapter: AdapterSection = AdapterSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    distributed: DistributedSection = DistributedSection()
    evaluation: EvaluationSection = EvaluationSection()
    report: ReportSection = ReportSection()
    stages: tuple[StageSection, ...] = Field(
        (), description="Stages trained one after the other, each from the adapter before it; none: one run as it is."
    )
    stage_order: Literal["as_listed", "reversed", "mixed", "measured_loss"] = Field(
        "as_listed",
        description="Order of the stages' data: mixed draws all of it at random in one stage; measured_loss begins "
        "with what the untuned base finds hardest.",
    )

    @model_validator(mode="before")
    @classmethod
    def _stages_in_full(cls, value: Any) -> Any:
        from fintune.schema.stages import with_full_stages

        return with_full_stages(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _combinations(self) -> Recipe:
        from fintune.schema.stages import first_stage_problem
        from fintune.schema.support import Impossible, first_conflict

        problem = first_conflict(self) or first_stage_problem(self)
        if problem is not None:
            raise Impossible(problem.reason, problem.remedy)
        return self


def sanitize_name(text: str) -> str:
    """A recipe or run name made from any text: only letters, digits, dot, dash and underscore stay."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"
