"""The loss over rows: every way of computing it gives the loss and gradients of the model's own forward pass."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.models.gpts import random_gpt, tokens

from fintune.models.gpt.rows import IGNORED, RowLoss, RowOptions
from fintune.schema.errors import ModelError

WAYS = [
    RowOptions(compiled="no"),
    RowOptions(compiled="no", head="logits", joined=False),
    RowOptions(compiled="no", attention="eager", chunk_rows=7),
    RowOptions(compiled="whole"),
    RowOptions(compiled="whole", head="logits"),
    RowOptions(compiled="blocks"),
    RowOptions(compiled="no", fused_heads=True),
    RowOptions(compiled="whole", fused_heads=True),
]


def rows():
    read = tokens(3, 33)
    return read[:, :-1].contiguous(), read[:, 1:].contiguous()


# Dynamo looks at every tensor's gradient, and makes an autograd function, behind filters that pytest's stand before.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning")
@pytest.mark.parametrize("kind", ["optimised", "baseline"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.compiled}-{way.attention}-{way.head}-{way.fused_heads}")
def test_every_way_gives_the_loss_and_gradients_of_the_model(monkeypatch, kind, way):
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traced as a whole, not lowered
    ids, targets = rows()
    targets[0, :5] = targets[2, -1] = IGNORED
    model, twin = random_gpt(kind), random_gpt(kind)
    logits = twin(ids, use_cache=False).logits.float()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss = RowLoss(model, way)(ids, targets)
    for each in (loss, expected):
        each.backward()
    torch.testing.assert_close(loss, expected)
    for (name, own), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("head", ["logits", "fused"])
def test_rows_without_any_target_have_no_loss(head):
    ids, targets = rows()
    model = random_gpt()
    loss = RowLoss(model, RowOptions(compiled="no", head=head))(ids, torch.full_like(targets, IGNORED))
    loss.backward()
    assert loss == 0 and all(not weight.grad.any() for weight in model.parameters())


def test_a_head_in_fp8_leaves_the_loss_and_the_blocks_gradients_about_where_they_were():
    ids, targets = rows()

    def measured(in_config, head):
        model = random_gpt()
        model.config.fp8_head = in_config
        loss = RowLoss(model, RowOptions(compiled="no", head=head))(ids, targets)
        loss.backward()
        return loss.detach(), torch.cat([weight.grad.flatten() for weight in model.model.layers.parameters()])

    plain, asked, configured = measured(False, "fused"), measured(False, "fp8"), measured(True, "fused")
    torch.testing.assert_close(asked[0], plain[0], atol=0, rtol=2e-3)
    assert torch.nn.functional.cosine_similarity(asked[1], plain[1], dim=0) > 0.99
    assert asked[0] == configured[0] and asked[1].equal(configured[1]) and not asked[1].equal(plain[1])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_keeps_documents_of_a_row_apart():
    ids, targets = rows()
    ids[:, 20] = 1  # the last token of a document
    model = random_gpt(attention="sdpa")
    positions = torch.arange(32)[None]
    later = torch.arange(32)[:, None] >= torch.arange(32)[None]
    same = (torch.arange(32) > 20)[:, None] == (torch.arange(32) > 20)[None]
    seen = torch.zeros(32, 32).masked_fill(~(later & same), -torch.inf)[None, None]
    logits = model(ids, attention_mask=seen, position_ids=positions, use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    whole = RowLoss(random_gpt(), RowOptions(compiled="no"))(ids, targets)
    loss = RowLoss(model, RowOptions(compiled="no", attention="flex", end_of_document=1))(ids, targets)
    torch.testing.assert_close(loss, expected)
    assert abs(loss - whole) > 1e-3


def test_no_attention_of_this_name():
    with pytest.raises(ModelError, match="called paged"):
        RowLoss(random_gpt(), RowOptions(attention="paged"))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # the exact side needs fp32
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning")
@pytest.mark.parametrize("compiled", ["no", "whole"])
def test_fused_heads_give_what_the_graph_gives_on_a_gpu(compiled):
    """In bf16, against fp32: no further from it than the graph's own operations are, but for a part of the rounding."""
    torch.compiler.reset()
    ids, targets = (part.cuda() for part in rows())

    def gradients(precise, fused):
        model = random_gpt().cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=not precise):
            RowLoss(model, RowOptions(compiled=compiled, fused_heads=fused))(ids, targets).backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    exact, graph, fused = gradients(True, False), gradients(False, False), gradients(False, True)
    for name, wanted in exact.items():
        least = 0.01 * wanted.norm()
        assert (fused[name] - wanted).norm() < 1.5 * (graph[name] - wanted).norm() + least, name
    for name, wanted in gradients(True, True).items():
        torch.testing.assert_close(wanted, exact[name], atol=1e-5, rtol=1e-3, msg=name)
