"""The support matrix: what combines with what, as one table that validation and the docs both read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fintune.schema.recipe import Recipe, TableSection, TaskSection


@dataclass(frozen=True)
class Problem:
    """Why something cannot run, in one sentence, and what to do instead."""

    reason: str
    remedy: str


@dataclass(frozen=True)
class Conflict:
    """One combination that cannot run: the two keys, why, and what to do instead.

    ``staged`` ones are about the recipe as a whole; all others are about each of its stages, if it has any.
    """

    keys: tuple[str, str]
    reason: str
    remedy: str
    applies: Callable[[Recipe], bool]
    staged: bool = False


class Impossible(ValueError):
    """A recipe that cannot run; pydantic passes it on."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason} {remedy}")
        self.reason = reason
        self.remedy = remedy


def _tasks(recipe: Recipe) -> tuple[TaskSection, ...]:
    return (*recipe.data.tasks, *(recipe.evaluation.tasks or ()))


def _tables(recipe: Recipe) -> list[TableSection]:
    return [task.table for task in _tasks(recipe) if task.table is not None]


def _wrong_number_of_choices(table: TableSection) -> bool:
    if table.bins is None:
        return False
    return len(table.choices) != len(table.bins) + 1 if table.choices else len(table.bins) > 2


def _names_repeat(recipe: Recipe) -> bool:
    lists = (recipe.data.tasks, recipe.evaluation.tasks or ())
    return any(len({task.name for task in tasks}) < len(tasks) for tasks in lists)


def _shares_out(recipe: Recipe) -> bool:
    return recipe.distributed.strategy in ("zero2", "zero3", "fsdp2")


def _has_own_betas(recipe: Recipe) -> bool:
    fields = type(recipe.training).model_fields
    return any(getattr(recipe.training, name) != fields[name].default for name in ("adam_beta1", "adam_beta2"))


CONFLICTS: tuple[Conflict, ...] = (
    Conflict(
        ("adapter.kind", "model.quantization"),
        "adapter.kind none trains all weights, but quantised weights cannot be trained.",
        "Set model.quantization=none, or adapter.kind=lora.",
        lambda r: r.adapter.kind == "none" and r.model.quantization != "none",
    ),
    Conflict(
        ("training.warmup_steps", "training.warmup_ratio"),
        "training.warmup_steps and training.warmup_ratio are both set.",
        "Keep one of them.",
        lambda r: r.training.warmup_steps is not None and r.training.warmup_ratio is not None,
    ),
    Conflict(
        ("training.schedule", "training.best_metric"),
        "training.schedule=plateau lowers the learning rate by what validations say, so it needs a metric to watch and "
        "validations during training.",
        "Set training.best_metric and training.eval_steps.",
        lambda r: (
            r.training.schedule == "plateau" and (r.training.best_metric is None or r.training.eval_steps is None)
        ),
    ),
    Conflict(
        ("training.schedule", "training.warmup_steps"),
        "training.schedule=plateau has no warm-up.",
        "Leave training.warmup_steps and training.warmup_ratio out, or choose another schedule.",
        lambda r: r.training.schedule == "plateau" and bool(r.training.warmup_steps or r.training.warmup_ratio),
    ),
    Conflict(
        ("training.plateau_minimum", "training.learning_rate"),
        "training.plateau_minimum is not below training.learning_rate, so the rate would never be lowered.",
        "Set a smaller training.plateau_minimum.",
        lambda r: r.training.schedule == "plateau" and r.training.plateau_minimum >= r.training.learning_rate,
    ),
    Conflict(
        ("training.best_metric", "training.eval_steps"),
        "training.best_metric needs a validation during training.",
        "Set training.eval_steps too.",
        lambda r: r.training.best_metric is not None and r.training.eval_steps is None,
    ),
    Conflict(
        ("training.eval_steps", "training.save_steps"),
        "training.eval_steps must be a multiple of training.save_steps when the best checkpoint is kept, "
        "or the best weights would never have been saved.",
        "Set training.eval_steps to a multiple of training.save_steps.",
        lambda r: (
            r.training.best_metric is not None
            and r.training.eval_steps is not None
            and r.training.eval_steps % r.training.save_steps != 0
        ),
    ),
    Conflict(
        ("data.tasks", "evaluation.tasks"),
        "A task is named twice in one list, so its scores could not be told apart.",
        "Name each task once, and run the other config or prompt as a run of its own.",
        _names_repeat,
    ),
    Conflict(
        ("data.mixture", "data.tasks.0.weight"),
        "data.mixture=weights needs a weight for every task.",
        "Set the weight of each entry of data.tasks, or choose another data.mixture.",
        lambda r: r.data.mixture == "weights" and any(task.weight is None for task in r.data.tasks),
    ),
    Conflict(
        ("data.tasks.0.weight", "data.mixture"),
        "A task has a weight, but data.mixture is not weights, so it would be ignored.",
        "Set data.mixture=weights, or take the weight out.",
        lambda r: r.data.mixture != "weights" and any(task.weight is not None for task in r.data.tasks),
    ),
    Conflict(
        ("data.tasks.0.epochs", "data.mixture"),
        "A task has epochs of its own, but data.mixture already says how often each task is drawn.",
        "Set data.mixture=proportional, or take the task's epochs out.",
        lambda r: r.data.mixture != "proportional" and any(task.epochs != 1 for task in r.data.tasks),
    ),
    Conflict(
        ("data.tasks.0.table.labels", "data.tasks.0.table.bins"),
        "A table has both labels and bins, but its label column is either words or numbers.",
        "Keep one of them.",
        lambda r: any(table.labels is not None and table.bins is not None for table in _tables(r)),
    ),
    Conflict(
        ("data.tasks.0.table.bins", "data.tasks.0.table.choices"),
        "A table's bins need one choice more than they have thresholds, and thresholds that rise.",
        "Name the classes from the lowest to the highest in choices, such as [negative, neutral, positive].",
        lambda r: any(
            _wrong_number_of_choices(table) or list(table.bins or ()) != sorted(set(table.bins or ()))
            for table in _tables(r)
        ),
    ),
    Conflict(
        ("data.tasks.0.table", "data.tasks.0.source"),
        "A task of your own (with table) has no source.",
        "Set source to a file, a folder or a hub id.",
        lambda r: any(task.table is not None and task.source in (None, "sample") for task in _tasks(r)),
    ),
    Conflict(
        ("data.tasks.0.conversations", "data.tasks.0.source"),
        "A task of conversations has no source.",
        "Set source to a file, a folder or a hub id.",
        lambda r: any(task.conversations is not None and task.source in (None, "sample") for task in _tasks(r)),
    ),
    Conflict(
        ("data.tasks.0.conversations", "data.tasks.0.table"),
        "A task has both table and conversations, but its rows are either labelled texts or conversations.",
        "Keep one of them.",
        lambda r: any(task.conversations is not None and task.table is not None for task in _tasks(r)),
    ),
    Conflict(
        ("data.tasks.0.conversations", "data.class_weights"),
        "Conversations and texts have no classes to balance.",
        "Set data.balance=false and data.class_weights=none.",
        lambda r: (
            (r.data.balance or r.data.class_weights != "none")
            and any(task.conversations is not None for task in r.data.tasks)
        ),
    ),
    Conflict(
        ("training.early_stopping_patience", "training.best_metric"),
        "training.early_stopping_patience needs a metric to watch.",
        "Set training.best_metric too.",
        lambda r: r.training.early_stopping_patience is not None and r.training.best_metric is None,
    ),
    Conflict(
        ("adapter.targets", "adapter.kind"),
        "adapter.targets is an empty list, so nothing would be trained.",
        "Name at least one layer, or use all-linear.",
        lambda r: r.adapter.kind == "lora" and r.adapter.targets == (),
    ),
    Conflict(
        ("distributed.offload_param", "distributed.strategy"),
        "distributed.offload_param moves weights that are shared out, and ZeRO-2 shares out gradients and optimiser "
        "states only: DeepSpeed offers it with stage 3.",
        "Set distributed.strategy=zero3, or keep zero2 with distributed.offload_optimizer.",
        lambda r: r.distributed.offload_param and r.distributed.strategy == "zero2",
    ),
    Conflict(
        ("distributed.offload_param", "distributed.strategy"),
        "distributed.offload_param needs a strategy that shares out the weights; with ddp each process holds all.",
        "Set distributed.strategy=fsdp2 or zero3, or take distributed.offload_param out.",
        lambda r: r.distributed.offload_param and r.distributed.strategy in ("auto", "ddp"),
    ),
    Conflict(
        ("distributed.strategy", "model.quantization"),
        "int8 and fp8 weights carry scales beside them, which sharing out the weights (zero3, fsdp2) would tear off.",
        "Set model.quantization=nf4 or none, or distributed.strategy=ddp.",
        lambda r: r.distributed.strategy in ("zero3", "fsdp2") and r.model.quantization in ("int8", "fp8"),
    ),
    Conflict(
        ("distributed.strategy", "training.optimizer"),
        "The 8-bit optimisers hold their states in blocks, which zero2, zero3 and fsdp2 cannot share out.",
        "Set training.optimizer=adamw, whose states are shared out anyway, or distributed.strategy=ddp.",
        lambda r: _shares_out(r) and r.training.optimizer in ("adamw_8bit", "paged_adamw_8bit"),
    ),
    Conflict(
        ("distributed.strategy", "training.optimizer"),
        "Muon looks at whole matrices, which zero2, zero3 and fsdp2 divide between processes.",
        "Set distributed.strategy=ddp, or training.optimizer=adamw.",
        lambda r: _shares_out(r) and r.training.optimizer == "muon",
    ),
    Conflict(
        ("training.optimizer", "adapter.kind"),
        "training.optimizer=muon is for training whole matrices from scratch, but adapter.kind=lora trains thin ones.",
        "Set adapter.kind=none, or training.optimizer=adamw.",
        lambda r: r.training.optimizer == "muon" and r.adapter.kind == "lora",
    ),
    Conflict(
        ("training.optimizer", "training.adam_beta1"),
        "training.optimizer=muon has betas of its own for what AdamW trains beside it (0.8 and 0.95), so "
        "training.adam_beta1 and training.adam_beta2 would be ignored.",
        "Take them out, or set training.optimizer=adamw.",
        lambda r: r.training.optimizer == "muon" and _has_own_betas(r),
    ),
    Conflict(
        ("training.decay_ratio", "training.warmup_ratio"),
        "training.schedule=wsd has no steps between warm-up and decay: together they are more than the whole run.",
        "Make training.warmup_ratio and training.decay_ratio add up to 1 at most.",
        lambda r: r.training.schedule == "wsd" and (r.training.warmup_ratio or 0.0) + r.training.decay_ratio > 1,
    ),
    Conflict(
        ("training.compile", "adapter.kind"),
        "training.compile is for a GPT that is trained as a whole; with adapter.kind=lora our kernels or the layers of "
        "transformers run as they are.",
        "Set adapter.kind=none, or training.compile=false.",
        lambda r: r.training.compile and r.adapter.kind == "lora",
    ),
    Conflict(
        ("training.compile", "distributed.strategy"),
        "training.compile needs whole weights in every process, which zero3 and fsdp2 share out; zero2 is untried.",
        "Set distributed.strategy=ddp, or training.compile=false.",
        lambda r: r.training.compile and _shares_out(r),
    ),
    Conflict(
        ("distributed.offload_optimizer", "distributed.strategy"),
        "distributed.offload_optimizer is DeepSpeed's; FSDP2 offloads optimiser states together with the weights, and "
        "ddp does not.",
        "Set distributed.strategy=zero2 or zero3, or distributed.offload_param=true with fsdp2.",
        lambda r: r.distributed.offload_optimizer and r.distributed.strategy not in ("zero2", "zero3"),
    ),
    Conflict(
        ("evaluation.engine", "model.quantization"),
        "evaluation.engine=vllm reads the base as stored, so its answers would not be those of quantised weights.",
        "Set model.quantization=none, or evaluation.engine=fintune.",
        lambda r: r.evaluation.engine == "vllm" and r.model.quantization != "none",
    ),
    Conflict(
        ("evaluation.engine", "adapter.kind"),
        "evaluation.engine=vllm holds LoRA adapters without DoRA only.",
        "Set adapter.kind=lora and adapter.dora=false, or evaluation.engine=fintune.",
        lambda r: r.evaluation.engine == "vllm" and (r.adapter.kind != "lora" or r.adapter.dora),
    ),
    Conflict(
        ("adapter.hand_over", "adapter.init_adapter"),
        "adapter.hand_over is set, but there is no adapter to take over.",
        "Set adapter.init_adapter too, or take adapter.hand_over out.",
        lambda r: r.adapter.hand_over is not None and r.adapter.init_adapter is None,
    ),
    Conflict(
        ("adapter.hand_over", "adapter.dora"),
        "adapter.hand_over=stack cannot hold DoRA, which scales whole weights, so that two adapters do not add up.",
        "Set adapter.dora=false, or adapter.hand_over=merge.",
        lambda r: r.adapter.hand_over == "stack" and r.adapter.dora,
    ),
    Conflict(
        ("adapter.hand_over", "distributed.strategy"),
        "adapter.hand_over=stack keeps the first rows and columns of whole matrices as they are, and zero2, zero3 and "
        "fsdp2 share out gradients or weights in pieces of their own.",
        "Set distributed.strategy=ddp, or adapter.hand_over=pad.",
        lambda r: r.adapter.hand_over == "stack" and r.distributed.strategy in ("zero2", "zero3", "fsdp2"),
    ),
    Conflict(
        ("adapter.hand_over", "adapter.kind"),
        "adapter.hand_over is about LoRA adapters, but adapter.kind=none trains all weights, which simply go on.",
        "Take adapter.hand_over out.",
        lambda r: r.adapter.hand_over is not None and r.adapter.kind == "none",
    ),
    Conflict(
        ("stages", "stage_order"),
        "stage_order is set, but the recipe has no stages.",
        "Name the stages, or take stage_order out.",
        lambda r: r.stage_order != "as_listed" and not r.stages,
        staged=True,
    ),
    Conflict(
        ("stages.0.name", "stages"),
        "Two stages have the same name, so their folders could not be told apart.",
        "Name each stage differently.",
        lambda r: len({stage.name for stage in r.stages}) < len(r.stages),
        staged=True,
    ),
    Conflict(
        ("stage_order", "stages.0.training.max_steps"),
        "stage_order=mixed draws what the stages' epochs draw, but a stage has training.max_steps.",
        "Take training.max_steps out, or choose another stage_order.",
        lambda r: r.stage_order == "mixed" and any(stage.training.max_steps is not None for stage in r.stages),
        staged=True,
    ),
    Conflict(
        ("stage_order", "stages.0.data"),
        "stage_order=mixed draws from all stages at once, but their data differ in more than tasks, or data.mixture is "
        "not proportional.",
        "Give the stages the same data section but for tasks, and each task the same settings but for epochs.",
        lambda r: r.stage_order == "mixed" and _cannot_be_mixed(r),
        staged=True,
    ),
)


def _cannot_be_mixed(recipe: Recipe) -> bool:
    from fintune.schema.stages import differ_in_more_than_tasks

    return differ_in_more_than_tasks(recipe) or any(stage.data.mixture != "proportional" for stage in recipe.stages)


def first_conflict(recipe: Recipe) -> Conflict | None:
    """The first row of the table that the recipe violates, or None; stages are looked at one by one, elsewhere."""
    rows = [conflict for conflict in CONFLICTS if conflict.staged or not recipe.stages]
    return next((conflict for conflict in rows if conflict.applies(recipe)), None)
