"""A GPT from scratch in ``EdgeModel``: documents in one row are as alone, and the head's loss needs no logits."""

from __future__ import annotations

import pytest
import torch
from tests.inference.test_equality import assert_all_packings_equal, assert_equal_steps, gradients, plain_gradients
from tests.inference.test_heads import assert_fused_equals_plain
from tests.models.gpts import random_gpt, tokens
from tests.trees.samples import sample

from fintune.inference.forward import EdgeModel
from fintune.inference.generate import generate
from fintune.models.gpt import compile_blocks
from fintune.trees.plan import make_step

LENGTHS = (11, 7, 14)


def documents(counted=(0, 1, 2)):
    """Three documents, each beginning alike, of which only some are learnt from, all their tokens but the first."""
    texts = [[1, 5, *tokens(length, seed=length).tolist()] for length in LENGTHS]
    return [sample(text, 1 if i in counted else len(text), i) for i, text in enumerate(texts)]


@pytest.mark.parametrize(("kind", "backend"), [("baseline", "eager"), ("optimised", "sdpa")])
def test_documents_in_one_row_are_as_alone(kind, backend):
    model = EdgeModel(random_gpt(kind), backend)
    assert_all_packings_equal(model, documents())


def test_each_document_of_a_row_has_its_own_loss_and_gradients():
    model = EdgeModel(random_gpt(), "sdpa")
    for index in range(len(LENGTHS)):
        row = documents(counted=[index])
        assert len(make_step(row, "sequence", 10_000).batches) == 1
        loss, found = gradients(model, row, "sequence")
        alone, expected = plain_gradients(model, [row[index]])
        assert loss == pytest.approx(alone, abs=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@torch.no_grad()
def test_positions_that_start_again_divide_documents_without_a_tree():
    model = random_gpt()
    texts = [tokens(1, length, seed=length) for length in LENGTHS]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    together = model(torch.cat(texts, 1), position_ids=positions).logits
    alone = torch.cat([model(text).logits for text in texts], 1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_loss_from_hidden_states_is_that_of_the_logits():
    assert_fused_equals_plain(random_gpt("baseline", biases=False))  # keys' biases have no gradient but rounding
    assert_fused_equals_plain(random_gpt(final_logit_softcapping=2.0))


# Dynamo looks at every tensor's gradient and hides the warning by a filter that pytest's own stands before.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_step_out_for_the_tree():
    plain, compiled = EdgeModel(random_gpt(), "sdpa"), EdgeModel(random_gpt(), "sdpa")
    compile_blocks(compiled.model, backend="eager")
    torch.compiler.reset()
    assert_equal_steps(gradients(compiled, documents(), "sequence"), gradients(plain, documents(), "sequence"))


def test_in_bf16_the_loss_is_nearly_the_same():
    batch = make_step(documents(), "sequence", 10_000).batches[0]
    exact, narrow = (EdgeModel(random_gpt(), "sdpa", dtype) for dtype in (torch.float32, torch.bfloat16))
    loss = narrow.loss_sum(batch)
    loss.backward()
    assert loss.item() == pytest.approx(exact.loss_sum(batch).item(), rel=0.01)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in narrow.model.parameters())


def test_answers_written_in_slots_are_those_of_transformers():
    gpt = random_gpt()
    prompts = [tokens(length, seed=length) for length in LENGTHS]
    expected = [gpt.generate(p[None], do_sample=False, max_new_tokens=10)[0, len(p) :].tolist() for p in prompts]
    written = generate(
        EdgeModel(gpt, "sdpa"),
        [p.numpy() for p in prompts],
        max_new_tokens=10,
        stop_ids=[],
        batch_size=2,
        tokens_per_batch=64,
    )
    assert [answer.tolist() for answer in written] == expected
