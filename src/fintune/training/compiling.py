"""``training.compile``: the blocks of a GPT of ours compiled before its first step.

Enters: the model that is trained. Leaves: the same model, its blocks compiled in place, or a line that says why not.
Kernels depend on a batch's size alone, never on which sizes came before, so that a resumed run repeats to the bit.
"""

from __future__ import annotations

import logging

import torch

from fintune.inference.forward import EdgeModel
from fintune.models.gpt.model import GPTForCausalLM, compile_blocks

log = logging.getLogger(__name__)

MOST_SIZES = 64  # past the limit of recompilations a block would silently run as it is written


def compile_for_training(model: EdgeModel) -> bool:
    """Compiles the blocks where they are ours; says so, and returns False, where they are not."""
    if not isinstance(model.model, GPTForCausalLM):
        log.warning(
            "training.compile does nothing for %s: its layers run on our kernels or as transformers wrote them.",
            type(model.model).__name__,
        )
        return False
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_SIZES)
    compile_blocks(model.model, dynamic=not model.is_blockwise)  # on GPUs sizes are few, elsewhere they are any
    return True


def end_compilation(model: EdgeModel) -> None:
    """Blocks run as they are written again: answers grow token by token, and each length would be a graph to make."""
    if isinstance(model.model, GPTForCausalLM):
        for block in model.model.model.layers:
            block._compiled_call_impl = None
