"""Tiny GPTs whose weights are all random, so that no path through them is silent as at initialisation."""

from __future__ import annotations

import torch

from fintune.models.gpt import GPTForCausalLM, baseline, optimised

VOCABULARY = 512
MAKE = {"baseline": baseline, "optimised": optimised}


def random_gpt(kind="optimised", seed=0, attention="sdpa", **changes):
    config = MAKE[kind]("tiny", VOCABULARY, **changes)
    return randomised(GPTForCausalLM._from_config(config, attn_implementation=attention), seed)


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            around = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(around + 0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tokens(*shape, seed=1):
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
