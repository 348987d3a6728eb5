import pytest
import torch
from tests.kernels.lora_cases import (
    KINDS,
    TOLERANCE,
    assert_all_near,
    kept_for_backward,
    outputs_and_gradients,
    random_layer,
)
from torch.utils.checkpoint import checkpoint

from fintune.kernels.hashed_dropout import as_seed, keep_mask
from fintune.kernels.lora_linear import LoraLinear, adapters_of, lora_linears, lora_linears_plain
from fintune.schema.errors import InternalError


def random_group(kind, size, dtype, inputs=64, **options):
    """Layers of different widths; in a group of three the middle one has no adapter, the last a bias."""
    layers = [random_layer(kind, 48, inputs, dtype, bias=size == 1, **options)]
    if size > 2:
        layers.append(random_layer(kind, 16, inputs, dtype, rank=0))
    if size > 1:
        layers.append(random_layer(kind, 32, inputs, dtype, rank=3, bias=True, scale=2.5, **options))
    return layers


def both(x, group, **options):
    leaves = [*([x] if x.requires_grad else []), *adapters_of(group)]
    ours = outputs_and_gradients(lambda: lora_linears(x, group, **options), leaves)
    twin = outputs_and_gradients(lambda: lora_linears_plain(x, group, **options), leaves)
    return ours, twin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_outputs_and_gradients_equal_the_plain_twin(kind, size, dropout, dtype):
    if dtype == torch.float64 and kind.startswith("nf4"):
        pytest.skip("bitsandbytes unpacks to 16 and 32 bits only")
    torch.manual_seed(size)
    group = random_group(kind, size, dtype)
    x = torch.randn(9, 64, dtype=dtype, requires_grad=True)
    assert_all_near(*both(x, group, dropout=dropout, seed=5), TOLERANCE[dtype])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_equal_finite_differences(dropout):
    group = random_group("dense", 3, torch.float64, inputs=6)
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)

    def outputs(x, *adapters):
        a1, b1, a3, b3 = adapters
        first, middle, last = group
        layers = [
            LoraLinear(first.weight, first.bias, a1, b1, first.scale),
            middle,
            LoraLinear(last.weight, last.bias, a3, b3, last.scale),
        ]
        return lora_linears(x, layers, dropout=dropout, seed=1)

    assert torch.autograd.gradcheck(outputs, (x, *adapters_of(group)), fast_mode=True)


@pytest.mark.parametrize("shape", [(7, 64), (1, 7, 64), (2, 3, 64), (0, 64)])
@pytest.mark.parametrize("wants_input", [True, False])
def test_any_leading_dimensions_and_an_input_without_gradient(shape, wants_input):
    group = random_group("dense", 2, torch.float32)
    x = torch.randn(shape, requires_grad=wants_input)
    ours, twin = both(x, group, dropout=0.3, seed=2)
    assert ours[0].shape == (*shape[:-1], 48)
    assert_all_near(ours, twin, 1e-5)


def test_the_dropped_elements_are_those_of_the_mask():
    eye = torch.eye(16)
    layer = LoraLinear(random_layer("dense", 16, 16, torch.float32, rank=0).weight, a=eye, b=eye)
    x = torch.randn(11, 16)
    (y,) = lora_linears(x, [layer], dropout=0.4, seed=3)
    kept = keep_mask(torch.arange(11, dtype=torch.int32), 16, as_seed(3, x.device), 0.4)
    torch.testing.assert_close(y - layer.weight.product(x), torch.where(kept, x / 0.6, 0.0), rtol=1e-4, atol=1e-5)


def test_an_output_that_is_not_used_adds_nothing():
    group = random_group("dense", 2, torch.float32)
    x = torch.randn(5, 64, requires_grad=True)
    leaves = [x, *adapters_of(group)]
    ours, twin = (
        outputs_and_gradients(lambda f=f: f(x, group)[1], leaves[:1]) for f in (lora_linears, lora_linears_plain)
    )
    assert_all_near(ours, twin, 1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_only_the_input_and_small_products_are_kept(dropout):
    group = random_group("nf4", 3, torch.bfloat16, inputs=256)
    x = torch.randn(512, 256, dtype=torch.bfloat16, requires_grad=True)
    kept = kept_for_backward(lambda: lora_linears(x, group, dropout=dropout, seed=1))
    adapters = {a.data_ptr() for a in adapters_of(group)}
    own = [(tuple(t.shape), t.dtype) for t in kept if t.data_ptr() not in adapters and t.numel() > 1]
    assert own == [((512, 256), torch.bfloat16), ((512, 7), torch.bfloat16)]
    assert any(t.data_ptr() == x.data_ptr() for t in kept)


def test_the_compute_type_is_as_asked_whatever_autocast_says():
    group = random_group("dense", 2, torch.float32)
    x = torch.randn(5, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        outputs = lora_linears(x, group, dtype=torch.bfloat16)
        gradients = torch.autograd.grad(sum(y.float().sum() for y in outputs), [x, *adapters_of(group)])
        exact = lora_linears(x, group)[0]
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    assert {g.dtype for g in gradients} == {torch.float32}
    assert exact.dtype == torch.float32
    assert torch.equal(exact, lora_linears(x, group)[0])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["dense", "nf4", "fp8"])
def test_recomputation_changes_nothing(reentrant, kind):
    group = random_group(kind, 2, torch.float32)
    x = torch.randn(6, 64, requires_grad=True)
    leaves = [x, *adapters_of(group)]

    def total(x):
        return sum(y.pow(2).sum() for y in lora_linears(x, group, dropout=0.3, seed=4))

    gradients = []
    for loss in (total(x), checkpoint(total, x, use_reentrant=reentrant)):
        for leaf in leaves:
            leaf.grad = None
        loss.backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch about itself
@pytest.mark.parametrize("kind", ["dense", "nf4", "fp8"])
def test_layers_compile_as_one_graph_once(kind):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def layer(x, group, seed):
        return lora_linears(x, group, dropout=0.3, seed=seed)

    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    x = torch.randn(6, 64, requires_grad=True)
    for number in range(3):
        group, seed = random_group(kind, 2, torch.float32), torch.tensor(number)
        leaves = [x, *adapters_of(group)]
        ours = outputs_and_gradients(lambda g=group, s=seed: compiled(x, g, s), leaves)
        twin = outputs_and_gradients(lambda g=group, s=seed: lora_linears_plain(x, g, dropout=0.3, seed=s), leaves)
        assert_all_near(ours, twin, 1e-5)
    assert counter.frame_count == 1


def test_half_an_adapter_is_a_mistake():
    layer = random_layer("dense", 4, 4, torch.float32)
    with pytest.raises(InternalError, match="both A and B"):
        lora_linears(torch.randn(1, 4), [LoraLinear(layer.weight, a=layer.a)])
