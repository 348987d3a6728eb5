"""What is trained: a LoRA adapter on frozen linear layers, or all weights; and how many numbers that is.

::

    x ──┬── W (frozen, maybe 4-bit) ───────────┬── + ── y
        └── dropout ── A (r x in) ── B (out x r) ── x alpha/r

Enters: ``LoadedBase`` and ``AdapterSection``. Leaves: the model with its trainable weights in fp32.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fintune.models.foreign import first_line
from fintune.models.fp8_linear import refuse_merging
from fintune.models.load import LoadedBase
from fintune.schema.errors import AdapterError
from fintune.schema.recipe import AdapterSection

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel


def attach_adapter(base: LoadedBase, section: AdapterSection, *, seed: int) -> PeftModel | PreTrainedModel:
    """Makes a loaded base trainable as the recipe asks.

    The base inside ``base`` is changed in place; attach once. Trainable weights are fp32 whatever the base computes in,
    so small updates are not rounded away.

    Args:
        base: a freshly loaded base model.
        section: the recipe's adapter section; ``kind: none`` trains all weights.
        seed: decides the adapter's initial weights, alone; the global random generators are left as they were.
    """
    if section.kind == "none":
        return _train_all_weights(base)
    return attach_lora(base, lora_config(base.model, section), seed=seed)


def attach_lora(base: LoadedBase, config: LoraConfig, *, seed: int) -> PeftModel:
    """Wraps a loaded base in a LoRA adapter of any configuration, as ``attach_adapter`` does."""
    with seeded(seed, base.model.device), peft_quiet():
        model: Any = _wrapped(base.model, config)
    refuse_merging(model)
    # PEFT writes down where the base lies on this machine; the name the recipe used travels better.
    model.peft_config["default"].base_model_name_or_path = base.files.hub_id or base.files.source
    if base.dtype != torch.float32:
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                parameter.data = parameter.data.float()
    wrapped: PeftModel = model
    return wrapped


def _wrapped(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    from peft import get_peft_model

    outputs: Any = model.get_output_embeddings
    head = outputs()
    linear = [name for name, module in model.named_modules() if _is_linear(module) and module is not head]
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as exc:  # Mamba's out_proj, say, whose weight kernels read without calling the layer
        names = sorted({name.rpartition(".")[2] for name in linear})
        refused = [name for name in names if f"'{name}'" in str(exc)]
        said = "" if refused else f" ({first_line(exc)})"
        raise AdapterError(
            f"peft puts no LoRA on {', '.join(refused) or 'these layers'} of a {model.config.model_type} model{said}.",
            f"Set adapter.targets to others, of {', '.join(name for name in names if name not in refused)}.",
        ) from exc


def _train_all_weights(base: LoadedBase) -> PreTrainedModel:
    if base.quantization != "none":
        raise AdapterError(
            f"adapter.kind none trains all weights, but {base.files.source} is held in {base.quantization}.",
            "Set adapter.kind=lora, or use a checkpoint that is not quantised.",
        )
    base.model.float()  # type: ignore[no-untyped-call]  # master weights; the forward pass computes in base.dtype under autocast
    base.model.requires_grad_(True)
    return base.model


def lora_config(model: nn.Module, section: AdapterSection) -> LoraConfig:
    """PEFT's configuration for this model, after checking that every target names a linear layer of it."""
    from peft import LoraConfig, TaskType

    if section.targets != "all-linear":
        require_targets(model, section.targets)
    return LoraConfig(
        r=section.rank,
        # peft types it as int but divides by it; a whole number is kept one for other readers of the file
        lora_alpha=int(section.alpha) if section.alpha.is_integer() else section.alpha,  # type: ignore[arg-type]
        lora_dropout=section.dropout,
        target_modules="all-linear" if section.targets == "all-linear" else list(section.targets),
        use_rslora=section.rslora,
        use_dora=section.dora,
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )


def require_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    """Raises ``AdapterError`` unless each target is the name, or the end of the dotted name, of a linear layer."""
    linear = [name for name, module in model.named_modules() if _is_linear(module)]
    for target in targets:
        if any(name == target or name.endswith(f".{target}") for name in linear):
            continue
        short = sorted({name.rpartition(".")[2] for name in linear})
        nearest = difflib.get_close_matches(target, short, n=3, cutoff=0.3) or short
        raise AdapterError(
            f"adapter.targets names {target}, but this model has no linear layer of that name.",
            f"The nearest are {', '.join(nearest[:8])}; all-linear takes every one.",
        )


def target_layers(model: nn.Module, section: AdapterSection) -> list[str]:
    """The dotted names of the linear layers that the section's adapter changes, as PEFT chooses them."""
    linear = [(name, module) for name, module in model.named_modules() if _is_linear(module)]
    if section.targets == "all-linear":
        outputs: Any = getattr(model, "get_output_embeddings", lambda: None)()
        return [name for name, module in linear if module is not outputs]
    require_targets(model, section.targets)
    ends = tuple(f".{target}" for target in section.targets)
    return [name for name, _ in linear if name in section.targets or name.endswith(ends)]


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Runs the block under its own random state and restores the callers' afterwards."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@contextmanager
def peft_quiet() -> Iterator[None]:
    """Drops warnings of PEFT's own making: a property that transformers renamed, GPT-2's transposed weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and all parameters, each tied weight once, packed 4-bit weights unpacked; as PEFT counts them."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if count == 0 and hasattr(parameter, "ds_numel"):  # partitioned by DeepSpeed ZeRO-3
            count = int(parameter.ds_numel)
        if type(parameter).__name__ == "Params4bit":
            count *= 2 * parameter.element_size()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def trainable_parameters_line(model: nn.Module) -> str:
    """The line PEFT's ``print_trainable_parameters`` prints, for any model."""
    return format_parameter_counts(*count_parameters(model))


def format_parameter_counts(trainable: int, total: int) -> str:
    """PEFT's wording of the two counts."""
    share = 100 * trainable / total
    return f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}"


def count_trainable(config: PreTrainedConfig, section: AdapterSection) -> tuple[int, int]:
    """Trainable and all parameters of a model that is never allocated: everything lives on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), peft_quiet():
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        if section.kind == "none":
            return count_parameters(model)
        model.requires_grad_(False)
        return count_parameters(_wrapped(model, lora_config(model, section)))
