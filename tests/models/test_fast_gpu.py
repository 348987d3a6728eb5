"""On a GPU: layers run by our kernels against transformers' and peft's, kept, moved, recomputed and as CUDA graphs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.kernels.frozen_cases import require_fp8_card
from tests.models.test_fast_layers import FAMILIES, random_base, tree_batch, with_adapter
from tests.trees.samples import sample

from fintune.inference.forward import EdgeModel
from fintune.kernels import decoder_layer, frozen_weight, offload, tree_attention
from fintune.kernels.tree_attention import BLOCKWISE
from fintune.models import attach_adapter, load_base, write_tiny_model
from fintune.models.fast_layers import FastLayers
from fintune.models.fp8_linear import Fp8Linear
from fintune.schema.recipe import AdapterSection, ModelSection
from fintune.training.graphs import GraphedPasses
from fintune.trees.packing import pack_samples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # compilers and drivers warn as they please
]
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def exact_and_compiled(monkeypatch):
    """No TF32, and attention that runs unfused because there are too many compilations is an error."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)


def loss_and_gradients(edge_model, batch):
    edge_model.model.zero_grad()
    loss = edge_model.loss_sum(batch.to(CUDA))
    loss.backward()
    found = {name: p.grad.double() for name, p in edge_model.model.named_parameters() if p.grad is not None}
    edge_model.model.zero_grad()
    return loss.item(), found


def passes(model, batch, *, dtype=torch.float32, backend="sdpa", fast=True, memory="keep"):
    edge_model = EdgeModel(model, backend, dtype, fast=fast)
    edge_model.memory = memory
    assert isinstance(edge_model.fast_layers(), FastLayers) == fast
    return loss_and_gradients(edge_model, batch)


def distance(found, expected):
    """Of all gradients together, relative to their norm."""
    assert found[1].keys() == expected[1].keys() and expected[1]
    apart = sum((found[1][name] - gradient).square().sum() for name, gradient in expected[1].items())
    return (apart / sum(gradient.square().sum() for gradient in expected[1].values())).sqrt().item()


def longer_batch(packing="tree", n=24, seed=1, spread=13):
    """About 700 tokens."""
    generator = np.random.default_rng(seed)
    head = generator.integers(3, 128, 20).tolist()
    samples = []
    for index in range(n):
        start = head if packing == "tree" else []
        tokens = [*start, *generator.integers(3, 128, 20 + index % spread).tolist()]
        samples.append(sample(tokens, len(tokens) // 2, index))
    (batch,) = pack_samples(samples, packing, 1 << 14)
    return batch


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_fp32_and_bf16(family):
    """In bf16 both paths are compared with fp32 on the same weights: ours may be little further away."""
    model = with_adapter(random_base(family)).train().to(CUDA)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16().float()
    batch = tree_batch()
    exact = passes(model, batch, fast=False)
    found = passes(model, batch)
    assert found[0] == pytest.approx(exact[0], rel=1e-5) and distance(found, exact) < 1e-4
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    ours, theirs = (passes(model, batch, dtype=torch.bfloat16, fast=fast) for fast in (True, False))
    assert ours[0] == pytest.approx(exact[0], rel=2e-2)
    assert distance(ours, exact) < 1.3 * distance(theirs, exact) + 2e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("llama"))


def loaded(folder, quantization, dtype="bfloat16", dropout=0.0):
    section = ModelSection(base=str(folder), quantization=quantization, dtype=dtype)
    base = load_base(section, device=CUDA, for_training=True)
    model = attach_adapter(base, AdapterSection(rank=4, dropout=dropout), seed=0).train()
    generator = torch.Generator(CUDA).manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["nf4", "fp8"])
def test_quantised_bases(folder, kind, dtype):
    if kind == "fp8":
        require_fp8_card()
    model = loaded(folder, kind, dtype)
    batch = longer_batch()
    compute = getattr(torch, dtype)
    ours, theirs = (passes(model, batch, dtype=compute, fast=fast) for fast in (True, False))
    # fp8 rounds gradients once for layers that share an input here, once for each there.
    loss, gradients = {
        ("nf4", "float32"): (1e-5, 1e-4),
        ("nf4", "bfloat16"): (2e-2, 4e-2),
        ("fp8", "float32"): (1e-2, 0.1),
        ("fp8", "bfloat16"): (2e-2, 0.25),  # two roundings to three bits, of numbers that differ in the eighth
    }[kind, dtype]
    assert ours[0] == pytest.approx(theirs[0], rel=loss)
    assert distance(ours, theirs) < gradients


@pytest.fixture(scope="module")
def wider_folder(tmp_path_factory):
    """Four layers whose weights take as long to unpack as attention takes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = write_tiny_model(tmp_path_factory.mktemp("wider"), layers=4)
    config = AutoConfig.from_pretrained(path, hidden_size=1024, intermediate_size=4096, head_dim=256)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("memory", ["recompute", "offload"])
@pytest.mark.parametrize("late", [(frozen_weight, "_unpack_together"), (decoder_layer, "gated")])
def test_streams_wait_for_each_other(wider_folder, monkeypatch, memory, late):
    """Weights are not used before they are unpacked, nor written over while a product that is late still reads them."""
    model, batch = loaded(wider_folder, "nf4"), longer_batch(n=250)
    assert len(batch.tokens) > decoder_layer.MLP_ROWS
    with monkeypatch.context() as patch:
        patch.setattr(frozen_weight, "_can_be_unpacked_beside", lambda part: False)
        expected = passes(model, batch, dtype=torch.bfloat16, memory=memory)
    in_time = getattr(*late)

    def too_late(*given, **options):
        torch.cuda._sleep(50_000_000)
        return in_time(*given, **options)

    monkeypatch.setattr(*late, too_late)
    frozen_weight.release_buffers()
    for _ in range(2):
        found = passes(model, batch, dtype=torch.bfloat16, memory=memory)
        assert found[0] == expected[0] and distance(found, expected) < 1e-5
    assert frozen_weight._ahead


@pytest.mark.usefixtures("own_cache")
def test_the_card_and_the_processor_round_fp8_alike(folder):
    require_fp8_card()
    model = loaded(folder, "fp8", "float32")
    there = passes(model, longer_batch())
    assert any(isinstance(module, Fp8Linear) for module in model.modules())
    with torch.no_grad():
        here = EdgeModel(model.cpu(), "sdpa").loss_sum(longer_batch()).item()
    # The card writes products in bf16.
    assert there[0] == pytest.approx(here, rel=2e-2)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_samples_of_one_length_as_rows_equal_flex_attention(family, monkeypatch):
    """Mistral has a window, which rows do not know: it must stay with flex."""
    model = with_adapter(random_base(family)).train().to(CUDA)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    batch = longer_batch("sequence", spread=1)
    assert batch.equal_rows == 24
    used, over_rows = [], tree_attention._over_rows
    monkeypatch.setattr(tree_attention, "_over_rows", lambda *given: (used.append(1), over_rows(*given))[1])
    rows = passes(model, batch, dtype=torch.bfloat16, backend="flex")
    assert bool(used) == (family == "llama")
    used.clear()
    flex = passes(model, replace(batch, longest=0), dtype=torch.bfloat16, backend="flex")
    exact = passes(model, batch, dtype=torch.bfloat16)
    assert not used
    for found in (rows, flex):
        assert found[0] == pytest.approx(exact[0], rel=2e-2)
        assert distance(found, exact) < 6e-2


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moving_and_recomputing_change_nothing(monkeypatch, dtype, dropout):
    monkeypatch.setattr(offload, "LEAST_BYTES", 1024)
    if dtype == torch.float32:  # in bf16 products of other sizes may round otherwise
        monkeypatch.setattr(decoder_layer, "MLP_ROWS", 128)
    model = with_adapter(random_base(num_hidden_layers=6), lora_dropout=dropout).train().to(CUDA)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    batch, found = longer_batch(), {}
    for memory in ("keep", "recompute", "offload", "offload"):  # the second time on buffers that were used before
        torch.manual_seed(3)
        found.setdefault(memory, []).append(passes(model, batch, dtype=dtype, memory=memory))
    (kept,) = found["keep"]
    for ours in (*found["recompute"], *found["offload"]):
        assert ours[0] == pytest.approx(kept[0], rel=1e-6)
        # Sums over chunks of rows are added up in another order.
        assert distance(ours, kept) < (1e-5 if dtype == torch.float32 else 1e-6)


def test_moving_moves_and_takes_less_memory_on_the_card(monkeypatch):
    monkeypatch.setattr(offload, "LEAST_BYTES", 1024)
    model = with_adapter(random_base(num_hidden_layers=16)).train().to(CUDA)
    batch = longer_batch(n=300).to(CUDA)
    held = {}
    for memory in ("recompute", "offload"):
        edge_model = EdgeModel(model, "sdpa")
        edge_model.memory = memory
        edge_model.loss_sum(batch).backward()
        before = torch.cuda.memory_allocated()
        loss = edge_model.loss_sum(batch)
        held[memory] = torch.cuda.memory_allocated() - before
        loss.backward()
    assert held["offload"] < 0.8 * held["recompute"]


@pytest.mark.parametrize("backend", BLOCKWISE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_replayed_equal_eager_passes(dtype, backend):
    model = graphed_model(dtype)
    edge_model = EdgeModel(model, backend, dtype)
    assert GraphedPasses.suits(edge_model)
    graphs = GraphedPasses(edge_model)
    same, replayed = longer_batch(n=24), 0
    for number, batch in enumerate([same, same, *same_sizes(same, 3)]):
        graphs.start()
        loss, losses = graphs.add(batch, 0.5)
        found = loss.item(), {name: p.grad.double().clone() for name, p in trained(model)}
        assert losses.shape == (len(batch.edge_parent),)
        replayed += any(graphs.recorded.values())
        for parameter in model.parameters():
            parameter.grad = None
        exact, gradients = loss_and_gradients(edge_model, batch)
        assert found[0] == pytest.approx(0.5 * exact, rel=1e-5 if dtype == torch.float32 else 2e-2), number
        halves = {name: 0.5 * gradient for name, gradient in gradients.items()}
        # Flex multiplies in TF32, and adds gradients of keys up in no fixed order.
        assert distance(found, (0.0, halves)) < (1e-3 if dtype == torch.float32 else 2e-2), number
    assert replayed == 4


def trained(model):
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def graphed_model(dtype, dropout=0.0):
    model = with_adapter(random_base(), lora_dropout=dropout).train().to(CUDA)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    return model


def same_sizes(batch, count):
    """Batches of the same shape whose tokens differ."""
    return [replace(batch, tokens=batch.tokens.roll(turn)) for turn in range(1, count + 1)]


@pytest.mark.parametrize("backend", BLOCKWISE)
def test_several_sizes_are_recorded_and_gradients_add_up(backend):
    model = graphed_model(torch.float32)
    edge_model = EdgeModel(model, backend)
    graphs = GraphedPasses(edge_model)
    first, second = longer_batch(n=24), longer_batch(n=9)
    for _ in range(3):
        graphs.start()
        total = sum(graphs.add(batch, 1.0)[0].item() for batch in (first, second))
    found = total, {name: p.grad.double().clone() for name, p in trained(model)}
    assert len(graphs.recorded) == 2 and all(graphs.recorded.values())
    for parameter in model.parameters():
        parameter.grad = None
    parts = [loss_and_gradients(edge_model, batch) for batch in (first, second)]
    whole = {name: parts[0][1][name] + parts[1][1][name] for name in parts[0][1]}
    assert total == pytest.approx(parts[0][0] + parts[1][0], rel=1e-5)
    assert distance(found, (0.0, whole)) < 1e-3


def test_every_replay_draws_masks_of_its_own():
    model = graphed_model(torch.float32, dropout=0.3)
    graphs = GraphedPasses(EdgeModel(model, "flex"))
    batch = longer_batch()
    losses = []
    for _ in range(6):
        graphs.start()
        losses.append(graphs.add(batch, 1.0)[0].item())
    assert any(graphs.recorded.values()) and len(set(losses)) == 6


@pytest.mark.parametrize("backend", BLOCKWISE)
def test_graphs_follow_the_optimiser(backend):
    """Adapters change in place between replays, and a recorded pass must see it."""
    model = graphed_model(torch.float32)
    edge_model = EdgeModel(model, backend)
    graphs = GraphedPasses(edge_model)
    optimizer = torch.optim.SGD([p for _, p in trained(model)], lr=1e-5)
    batch, losses = longer_batch(), []
    for _ in range(5):
        graphs.start()
        with torch.no_grad():
            expected = edge_model.loss_sum(batch.to(CUDA)).item()
        loss = graphs.add(batch, 1.0)[0].item()
        assert loss == pytest.approx(expected, rel=1e-3)  # FlexAttention scores and trains by different kernels
        losses.append(loss)
        optimizer.step()
    assert len(set(losses)) == len(losses) and losses[-1] < losses[0]
