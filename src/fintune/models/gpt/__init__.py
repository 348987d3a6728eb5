"""GPTs trained from scratch: the architecture of GPT-2, what later work changed in it, and every step between the two.

Enters: ``GPTConfig``. Leaves: a model of ``transformers`` that ``AutoModelForCausalLM`` loads once this is imported.
"""

from fintune.models.gpt.config import SIZES, GPTConfig, baseline, optimised
from fintune.models.gpt.files import register, write_untrained
from fintune.models.gpt.groups import WeightKinds, weight_kinds
from fintune.models.gpt.model import GPTForCausalLM, compile_blocks

__all__ = [
    "SIZES",
    "GPTConfig",
    "GPTForCausalLM",
    "WeightKinds",
    "baseline",
    "compile_blocks",
    "optimised",
    "register",
    "weight_kinds",
    "write_untrained",
]

register()
