"""What a model of price tokens starts from: a tokenizer whose words are the tokens, an untrained GPT, and a recipe.

Enters: a codec and the shape of the GPT. Leaves: ``untrained/`` and ``recipe.yaml`` in the folder of built prices. The
model's configuration names the build, which training keeps, so that no model is scored on days that it learned from.
"""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from fintune.schema.errors import ModelError
from fintune.schema.run_directory import write_text_atomically
from fintune.sources.quant.codec import FIELDS, Codec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNTRAINED = "untrained"
RECIPE = "recipe.yaml"
PRICE_DATA = "price_data"
"""Key of the model's ``config.json`` under which the build stands."""
_SPECIAL = ("<|start|>", "<|end|>", "<|unknown|>")
_TEMPLATE = """\
# Trains a GPT from scratch on the price tokens of this folder; written by fintune quant build.
# fintune train {folder}/recipe.yaml; then fintune quant evaluate RUN --data {folder} --split validation

name: quant-gpt
description: A GPT over tokens of daily prices, from scratch.
seed: 17                             # another seed: another order of the blocks

model:
  base: {folder}/untrained           # a GPT that has read nothing; its tokenizer knows the tokens of a day
  chat_template: plain               # not used: there are no turns

adapter:
  kind: none                         # train every weight

data:
  tasks:
    - name: quant                    # any name
      source: {folder}/tokens        # train and validation, split by date; test days are not read while training
      conversations:
        format: text                 # plain documents, cut into blocks
        near_duplicates: null        # tickers of one market resemble each other; nothing is left out
        min_latin_share: 0           # tokens are no words
  remove_overlap: false              # the splits are by date
  near_duplicate_threshold: null     # look for equal texts only: all days are written with the same few words

training:
  epochs: 6                          # passes; the best by validation loss is kept
  samples_per_step: 16               # blocks of {days} days behind each update
  tokens_per_batch: 4112             # tokens computed at once; lower it when memory is short
  packing: sequence                  # blocks share rows without seeing each other
  max_length: {length}                    # {days} days of {fields} tokens behind one token: blocks begin with a day
  learning_rate: 3e-3                # peak; high, for the model is small
  schedule: cosine                   # falls to 0 at the end
  warmup_ratio: 0.05                 # first updates at a rising rate
  weight_decay: 0.1                  # pulls weights to 0: days are few and noisy
  adam_beta2: 0.99                   # memory of the squared gradients
  save_steps: 100                    # checkpoint interval
  eval_steps: 100                    # loss on validation days every so many updates
  best_metric: loss                  # keep the checkpoint that is best on validation days
  log_steps: 20                      # write metrics every so many updates

evaluation:
  split: validation                  # fintune quant evaluate measures the test days, once
  base: false                        # an untrained GPT knows nothing
  baselines: []                      # fintune quant evaluate has its own

report:
  enabled: false                     # fintune quant evaluate says what matters; true writes a page all the same
"""


def tokenizer_of(codec: Codec) -> PreTrainedTokenizerFast:
    """A tokenizer whose ordinary words are the codec's, each one token, divided by blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL, *(word for field in codec.words for word in field)]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=_SPECIAL[2]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped there
        tokenizer_object=backend,
        bos_token=_SPECIAL[0],
        eos_token=_SPECIAL[1],
        pad_token=_SPECIAL[1],
        unk_token=_SPECIAL[2],
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


def head_width(width: int) -> int:
    """Width of a head of attention: GPT-2's 64, and less in models too narrow for several of those."""
    return 64 if width >= 256 else 16


def price_data(codec: Codec, first_validation: date | str, first_test: date | str) -> str:
    """What a build is known by: SHA-256 of its bins and of the dates that divide it."""
    what = [codec.to_json(), str(first_validation), str(first_test)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def require_price_data(model: Path, expected: str) -> None:
    """Looks whether a model started from this build.

    Raises:
        ModelError: it started from another build, or says of none.
    """
    try:
        found = json.loads((model / "config.json").read_text(encoding="utf-8")).get(PRICE_DATA)
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{model / 'config.json'} cannot be read.", "Name a finished run.") from error
    if found is None:
        raise ModelError(
            f"{model} does not say which built prices it started from: it is older, or no model of prices.",
            "Build the prices into a new folder and train with its recipe.yaml.",
        )
    if found != expected:
        raise ModelError(
            f"{model} started from other built prices, with other bins or dates, and may know the days to be scored.",
            "Evaluate with --data of its own build, or train with the recipe.yaml of this one.",
        )


def write_start(folder: Path, codec: Codec, layers: int, width: int, seed: int, *, build: str) -> None:
    """Writes an untrained GPT of this ``build`` with its tokenizer into ``untrained``."""
    from fintune.models.gpt import optimised, write_untrained

    tokenizer = tokenizer_of(codec)
    shape = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": width // head_width(width)}
    config = optimised("tiny", len(tokenizer), **shape, **{PRICE_DATA: build})
    write_untrained(folder / UNTRAINED, config, tokenizer, seed=seed)


def write_recipe(folder: Path, window_days: int) -> None:
    """Writes a recipe that trains the GPT of the folder, named by its absolute path."""
    length = window_days * len(FIELDS) + 1
    text = _TEMPLATE.format(folder=folder.resolve(), days=window_days, length=length, fields=len(FIELDS))
    write_text_atomically(folder / RECIPE, text)
