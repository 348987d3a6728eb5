"""Loads a base model for training or inference: weights, precision, quantisation, tokenizer, chat template.

Enters: ``ModelSection`` and a device. Leaves: ``LoadedBase`` with every weight frozen; ``attach_adapter`` decides what
is trained. Nothing is fetched but the model itself, and no code of the checkpoint runs unless the recipe asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fintune.kernels.fp8_weight import require_fp8
from fintune.models.files import BaseModelFiles, read_json
from fintune.models.foreign import first_line, speaks_of_the_file
from fintune.models.fp8_linear import hold_in_fp8
from fintune.models.locate import locate_base
from fintune.models.own import know_own_models
from fintune.models.plausible import require_plausible
from fintune.models.quantize import QuantizationPlan, bitsandbytes_config, plan_quantization, settle_quantized_layers
from fintune.models.quiet import forbid_fetched_kernels, no_progress_bars
from fintune.models.templates import apply_chat_template_override
from fintune.schema.errors import ModelError
from fintune.schema.recipe import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadFacts:
    """What was decided while loading, for the resolved recipe and the report.

    Attributes:
        needs_loss_scaling: computing in fp16, whose small gradients vanish unless the loss is scaled up.
        prequantized: the checkpoint carried its own quantisation.
        double_quant: the NF4 scales are quantised too.
        chat_template: ``own``, ``plain``, ``chatml`` or ``jinja``; ``none`` for a model of plain text.
        attention: attention implementation the model was built with.
        weight_bytes: memory of all parameters and buffers as loaded.
        parameters: number of weights, four-bit ones counted singly.
    """

    needs_loss_scaling: bool
    prequantized: bool
    double_quant: bool
    chat_template: str
    attention: str
    weight_bytes: int
    parameters: int


@dataclass(frozen=True)
class LoadedBase:
    """A base model in memory, all weights frozen, with where it came from and how it is held."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    files: BaseModelFiles
    dtype: torch.dtype
    quantization: str
    facts: LoadFacts


def is_ampere_or_newer(device: torch.device) -> bool:
    """Whether a GPU multiplies in bf16 and has the shared memory that attention over blocks of a tree takes."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def pick_dtype(requested: str, device: torch.device) -> torch.dtype:
    """The compute type: as requested, or by ``auto`` bf16 on Ampere and newer, fp16 on older GPUs, fp32 elsewhere."""
    if requested != "auto":
        return DTYPES[requested]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if is_ampere_or_newer(device) else torch.float16


def load_base(
    section: ModelSection, *, device: torch.device, for_training: bool, needs_template: bool = True
) -> LoadedBase:
    """Loads the base model of a recipe with its tokenizer.

    Args:
        section: the recipe's model section.
        device: where the model goes.
        for_training: switches the key-value cache off; the model is returned in evaluation mode either way.
        needs_template: whether a tokenizer without a chat template is an error.

    Raises:
        ModelError: the model cannot be found, read, or held as asked.
    """
    forbid_fetched_kernels()
    know_own_models()
    files = locate_base(section)
    config = read_json(files.path / "config.json")
    require_plausible(files.path, config)
    plan = plan_quantization(section, config)
    dtype = pick_dtype(section.dtype, device)
    tokenizer = load_tokenizer(files, section)
    template = apply_chat_template_override(tokenizer, section.chat_template, section.base, needed=needs_template)
    model = _load_model(files, section, plan, dtype, device)
    settle_quantized_layers(model, plan, dtype, device)
    # transformers gives the pad token's embedding no gradient; where the pad token is the end-of-turn token, that token
    # would never learn. Nothing here relies on padding: batches are masked by length.
    embeddings: Any = model.get_input_embeddings()
    embeddings.padding_idx = None
    model.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
    if for_training:
        model.config.use_cache = False
    facts = LoadFacts(
        needs_loss_scaling=dtype == torch.float16,
        prequantized=plan.prequantized,
        double_quant=plan.double_quant,
        chat_template=template,
        attention=str(model.config._attn_implementation),
        weight_bytes=int(model.get_memory_footprint()),  # type: ignore[no-untyped-call]
        parameters=int(model.num_parameters()),
    )
    return LoadedBase(model, tokenizer, files, dtype, plan.kind, facts)


def load_tokenizer(files: BaseModelFiles, section: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model, as its publisher made it: no added tokens, pad token untouched."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            files.path, trust_remote_code=section.trust_remote_code
        )
    except BaseException as exc:  # tokenizer libraries raise what they like on a missing or damaged file
        if not speaks_of_the_file(exc):
            raise
        raise _unreadable(files.path, "tokenizer", exc) from exc
    return tokenizer


def _load_model(
    files: BaseModelFiles,
    section: ModelSection,
    plan: QuantizationPlan,
    dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if (config := bitsandbytes_config(plan, dtype)) is not None:
        options["quantization_config"] = config
    if plan.kind == "fp8":
        require_fp8(device)
    elif plan.kind != "none" or device.type == "cuda":
        options["device_map"] = {"": device}  # straight to the device, tensor by tensor, quantised on the way
    try:
        with no_progress_bars():
            loader: Any = AutoModelForCausalLM
            model, report = loader.from_pretrained(
                files.path,
                dtype=dtype,
                trust_remote_code=section.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except BaseException as exc:  # safetensors, JSON, configuration and shape errors of several libraries
        if not speaks_of_the_file(exc):
            raise
        raise _unreadable(files.path, "model", exc) from exc
    # transformers fills what a checkpoint lacks with random numbers and only logs it.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{section.base} lacks {len(missing)} of the weights its config.json promises, first {missing[0]}.",
            "Download the model again, or use the causal language model rather than a part of it.",
        )
    if plan.kind == "fp8":
        hold_in_fp8(model, device)
    loaded: PreTrainedModel = model if "device_map" in options else model.to(device)
    return loaded


def _unreadable(path: Path, what: str, exc: BaseException) -> ModelError:
    reason = first_line(exc)
    remedy = "Download it again; the files may be incomplete."
    if "trust_remote_code" in str(exc):
        reason = "it needs Python code that ships with the checkpoint"
        remedy = "Read that code, and set model.trust_remote_code=true if you trust it."
    return ModelError(f"The {what} in {path} cannot be loaded ({type(exc).__name__}: {reason}).", remedy)
