"""What a model is trained on, token by token, without loading its weights.

Enters: a recipe. Leaves: its first samples as tokens with their loss mask.
"""

from __future__ import annotations

from fintune.evaluation.suite import load_run_data
from fintune.models.load import load_tokenizer
from fintune.models.locate import locate_base
from fintune.models.templates import apply_chat_template_override
from fintune.schema.errors import DataError
from fintune.schema.outcomes import PreviewSample
from fintune.schema.recipe import Recipe
from fintune.trees.chat import ChatFormat, encode_parts


def preview_samples(recipe: Recipe, samples: int, split: str) -> list[PreviewSample]:
    """The first samples of a split.

    Args:
        recipe: whose rows, template and length limit are used.
        samples: how many examples; one of several samples, such as a long text, gives them all.
        split: train, validation or test.

    Raises:
        DataError: there is no such split.
    """
    data = load_run_data(recipe)
    rows = {"train": data.train, "validation": data.validation, "test": data.tested[0][1]}
    if split not in rows:
        raise DataError(f"There is no split named {split}.", f"Choose one of {', '.join(rows)}.")
    files = locate_base(recipe.model)
    tokenizer = load_tokenizer(files, recipe.model)
    apply_chat_template_override(tokenizer, recipe.model.chat_template, recipe.model.base)
    chat = ChatFormat(tokenizer, recipe.training.max_length)
    shown = []
    for example in rows[split][:samples]:
        for encoded in encode_parts(chat, example):
            sample = encoded.training_sample()
            ids = sample.tokens.tolist()
            texts = [str(tokenizer.decode([token])) for token in ids]
            supervised = (sample.supervision > 0).tolist()
            shown.append(
                PreviewSample(example.example_id, tuple(zip(texts, ids, supervised, strict=True)), encoded.truncated)
            )
    return shown
