"""An example as tokens, with what of it is learnt.

Enters: arrays from the chat template. Leaves: ``TokenSample`` objects for training and scoring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fintune.trees.prefix_tree import IntArray, TokenSample

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EncodedExample:
    """An example as tokens.

    Attributes:
        prompt: (L,) tokens up to where the answer starts.
        completion: (C,) tokens of the target and its end of turn; empty when the example has no target.
        choices: one (C_i,) array per choice, end of turn included unless the format leaves it out.
        truncated: whether the document was shortened, or a conversation's last turns were cut off.
        learnt: (L,) True at tokens of the prompt that are supervised too: earlier answers of a conversation.
        text_bytes: UTF-8 bytes of the text that is supervised; 0 where nobody asks.
    """

    prompt: IntArray
    completion: IntArray
    choices: tuple[IntArray, ...]
    truncated: bool
    learnt: BoolArray | None = None
    text_bytes: int = 0

    def training_sample(self, index: int = 0, weight: float = 1.0) -> TokenSample:
        """The prompt with the target; the target, and what is learnt of the prompt, has ``weight`` for each token."""
        sample = _supervised(self.prompt, self.completion, index, weight)
        if self.learnt is None:
            return sample
        return replace(
            sample, supervision=np.concatenate([weight * self.learnt, sample.supervision[len(self.learnt) :]])
        )

    def choice_samples(self) -> list[TokenSample]:
        """The prompt with each choice in turn."""
        return [_supervised(self.prompt, choice, i) for i, choice in enumerate(self.choices)]


def _supervised(prompt: IntArray, completion: IntArray, index: int, weight: float = 1.0) -> TokenSample:
    tokens = np.concatenate([prompt, completion])
    supervision = np.zeros(len(tokens))
    supervision[len(prompt) :] = weight
    return TokenSample(tokens, supervision, index)
