"""Imported once by the fork server, so that each child starts with everything in memory that a run needs."""

import gc

import matplotlib.axes  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import transformers.trainer  # noqa: F401
import typer.main  # noqa: F401
from peft import PeftModel  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer  # noqa: F401

import fintune.cli.app
import fintune.pipeline
import fintune.reporting.wording
import fintune.training.run  # noqa: F401
import tests.runs  # noqa: F401

# Children collect garbage: what is loaded here need not be gone through, nor its pages copied for it.
gc.collect()
gc.freeze()
