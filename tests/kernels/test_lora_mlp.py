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

from fintune.kernels.lora_linear import LoraLinear, adapters_of
from fintune.kernels.lora_mlp import lora_swiglu, lora_swiglu_plain
from fintune.kernels.partition import recompute_elementwise


def random_mlp(kind, dtype, *, features=32, hidden=96, ranks=(4, 3, 5), bias=False):
    gate, up = (random_layer(kind, hidden, features, dtype, rank=rank, bias=bias) for rank in ranks[:2])
    return gate, up, random_layer(kind, features, hidden, dtype, rank=ranks[2], bias=bias, scale=1.5)


def both(x, layers, **options):
    leaves = [*([x] if x.requires_grad else []), *adapters_of(layers)]
    return [
        outputs_and_gradients(lambda f=f: f(x, *layers, **options), leaves) for f in (lora_swiglu, lora_swiglu_plain)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_outputs_and_gradients_equal_the_plain_twin(kind, activation, dropout, dtype):
    if dtype == torch.float64 and kind.startswith("nf4"):
        pytest.skip("bitsandbytes unpacks to 16 and 32 bits only")
    torch.manual_seed(0)
    layers = random_mlp(kind, dtype)
    x = torch.randn(1, 9, 32, dtype=dtype, requires_grad=True)
    # The twin rounds the activation's gradient to bf16 at other places, and fp8 rounding magnifies that.
    tolerance = 0.1 if dtype == torch.bfloat16 and kind.startswith("fp8") else TOLERANCE[dtype]
    assert_all_near(*both(x, layers, activation=activation, dropout=dropout, seed=5), tolerance)


@pytest.mark.parametrize("ranks", [(0, 0, 0), (4, 0, 0), (0, 0, 4), (0, 4, 4)])
@pytest.mark.parametrize("wants_input", [True, False])
def test_layers_without_adapters_biases_and_inputs_without_gradient(ranks, wants_input):
    layers = random_mlp("dense", torch.float32, ranks=ranks, bias=True)
    x = torch.randn(9, 32, requires_grad=wants_input)
    if not wants_input and not any(ranks):
        return
    assert_all_near(*both(x, layers, dropout=0.3, seed=5), 1e-5)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gradients_equal_finite_differences(activation):
    layers = random_mlp("dense", torch.float64, features=4, hidden=6)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def output(x, *adapters):
        own = [
            LoraLinear(layer.weight, None, a, b, layer.scale)
            for layer, a, b in zip(layers, adapters[::2], adapters[1::2], strict=True)
        ]
        return lora_swiglu(x, *own, activation=activation, dropout=0.3, seed=1)

    assert torch.autograd.gradcheck(output, (x, *adapters_of(layers)), fast_mode=True)


def sizes_kept(function, layers):
    adapters = {a.data_ptr() for a in adapters_of(layers)}
    return sorted(t.shape[1] for t in kept_for_backward(function) if t.data_ptr() not in adapters and t.dim() == 2)


def test_the_hidden_state_is_not_kept():
    layers = random_mlp("nf4", torch.bfloat16, features=64, hidden=128)
    x = torch.randn(200, 64, dtype=torch.bfloat16, requires_grad=True)
    kept = sizes_kept(lambda: lora_swiglu(x, *layers, dropout=0.3, seed=1), layers)
    assert kept == [5, 7, 64, 128, 128]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch about itself
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiled_as_one_graph_it_is_the_same_and_does_not_keep_the_hidden_state_either(dropout):
    torch._dynamo.reset()
    layers = random_mlp("nf4", torch.float32, features=64, hidden=128)
    x = torch.randn(200, 64, requires_grad=True)
    compiled = torch.compile(lora_swiglu, fullgraph=True, backend="aot_eager_decomp_partition")
    options = {"dropout": dropout, "seed": torch.tensor(3)}
    leaves = [x, *adapters_of(layers)]
    with recompute_elementwise():
        ours = outputs_and_gradients(lambda: compiled(x, *layers, **options), leaves)
    assert_all_near(ours, both(x, layers, **options)[1], 1e-5)
    kept = kept_for_backward(lambda: compiled(x, *layers, **options))
    assert sum(tensor.numel() == 200 * 128 for tensor in kept) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_changes_nothing(reentrant):
    layers = random_mlp("nf4", torch.float32)
    x = torch.randn(6, 32, requires_grad=True)
    leaves = [x, *adapters_of(layers)]

    def mlp(x):
        return lora_swiglu(x, *layers, dropout=0.3, seed=4)

    gradients = []
    for y in (mlp(x), checkpoint(mlp, x, use_reentrant=reentrant)):
        for leaf in leaves:
            leaf.grad = None
        y.pow(2).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))
