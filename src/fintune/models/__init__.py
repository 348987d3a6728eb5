"""Base models and adapters: find the files, load them as asked, attach what is trained, save and load it again.

Enters: ``ModelSection`` and ``AdapterSection`` of a recipe. Leaves: a ``transformers`` model with PEFT adapters and its
tokenizer, plus hashes that say exactly which weights they are. Only safetensors and GGUF files are ever read.
"""

from fintune.models.adapter_files import AdapterInfo, load_adapter, read_adapter_info, save_adapter
from fintune.models.adapters import attach_adapter, count_parameters, count_trainable, trainable_parameters_line
from fintune.models.files import BaseModelFiles, cache_dir
from fintune.models.load import LoadedBase, LoadFacts, load_base, pick_dtype
from fintune.models.locate import ALIASES, locate_base
from fintune.models.templates import apply_chat_template_override
from fintune.models.tiny import write_tiny_model

__all__ = [
    "ALIASES",
    "AdapterInfo",
    "BaseModelFiles",
    "LoadFacts",
    "LoadedBase",
    "apply_chat_template_override",
    "attach_adapter",
    "cache_dir",
    "count_parameters",
    "count_trainable",
    "load_adapter",
    "load_base",
    "locate_base",
    "pick_dtype",
    "read_adapter_info",
    "save_adapter",
    "trainable_parameters_line",
    "write_tiny_model",
]
