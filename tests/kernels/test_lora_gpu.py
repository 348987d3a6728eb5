"""On a GPU: the LoRA kernels in every representation against their twins, eager, compiled and beside the CPU."""

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

from fintune.kernels.fp8_weight import LEAST_CAPABILITY, fp8_weight
from fintune.kernels.frozen_weight import frozen_weight, release_buffers
from fintune.kernels.hashed_dropout import as_seed, drop, keep_mask, layer_seeds
from fintune.kernels.lora_linear import adapters_of, lora_linears, lora_linears_plain
from fintune.kernels.lora_mlp import lora_swiglu, lora_swiglu_plain
from fintune.kernels.partition import recompute_elementwise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # compilers and drivers warn as they please
]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Fp32 products in fp32, and a recompilation too many is an error."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    release_buffers()


@pytest.fixture(params=KINDS)
def kind(request):
    if request.param.startswith("fp8") and torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        pytest.skip("the card has no fp8")
    return request.param


def tolerance(kind, dtype):
    # The products' sums may be rounded once more, to bf16, or in fast accumulators, before the twin's are compared.
    return 3e-2 if kind.startswith("fp8") else TOLERANCE[dtype]


def layer(kind, outputs, inputs, dtype, **options):
    return random_layer(kind, outputs, inputs, dtype, device="cuda", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("tokens", [0, 1, 257])
def test_a_group_equals_the_plain_twin(kind, dtype, dropout, tokens):
    group = [
        layer(kind, 256, 128, dtype, bias=True),
        layer(kind, 64, 128, dtype, rank=0),
        layer(kind, 64, 128, dtype, rank=16),
    ]
    x = torch.randn(1, tokens, 128, dtype=dtype, device="cuda", requires_grad=True)
    leaves = [x, *adapters_of(group)]
    ours, twin = (
        outputs_and_gradients(lambda f=f: f(x, group, dropout=dropout, seed=3), leaves)
        for f in (lora_linears, lora_linears_plain)
    )
    assert_all_near(ours, twin, tolerance(kind, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_mlp_equals_the_plain_twin(kind, dtype, activation, dropout):
    layers = [layer(kind, 256, 128, dtype), layer(kind, 256, 128, dtype), layer(kind, 128, 256, dtype, bias=True)]
    x = torch.randn(193, 128, dtype=dtype, device="cuda", requires_grad=True)
    leaves = [x, *adapters_of(layers)]
    ours, twin = (
        outputs_and_gradients(lambda f=f: f(x, *layers, activation=activation, dropout=dropout, seed=3), leaves)
        for f in (lora_swiglu, lora_swiglu_plain)
    )
    # An fp8 product magnifies where the twin rounds the activation's gradient.
    assert_all_near(ours, twin, 0.1 if kind.startswith("fp8") else tolerance(kind, dtype))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiled_layers_share_one_graph_and_equal_the_twin(kind, dropout):
    def layers(x, group, mlp, seed):
        first, second = lora_linears(x, group, dropout=dropout, seed=seed)
        return first + lora_swiglu(second, *mlp, dropout=dropout, seed=seed + 1)

    def plain(x, group, mlp, seed):
        first, second = lora_linears_plain(x, group, dropout=dropout, seed=seed)
        return first + lora_swiglu_plain(second, *mlp, dropout=dropout, seed=seed + 1)

    compiled = torch.compile(layers, fullgraph=True)
    x = torch.randn(320, 128, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    with recompute_elementwise(), torch._dynamo.config.patch(recompile_limit=1):
        for seed in layer_seeds(as_seed(1, x.device), 3):
            group = [layer(kind, 128, 128, torch.bfloat16) for _ in range(2)]
            mlp = [layer(kind, 256, 128, torch.bfloat16) for _ in range(2)]
            mlp.append(layer(kind, 128, 256, torch.bfloat16))
            leaves = [x, *adapters_of(group), *adapters_of(mlp)]
            ours, twin = (
                outputs_and_gradients(lambda f=f, s=seed, g=group, m=mlp: f(x, g, m, s), leaves)
                for f in (compiled, plain)
            )
            assert_all_near(ours, twin, 0.15 if kind.startswith("fp8") else 3e-2)


def test_the_mask_is_that_of_the_cpu_eager_and_compiled():
    expected = keep_mask(torch.arange(300, dtype=torch.int32), 500, as_seed(-9, torch.device("cpu")), 0.3)
    rows = torch.arange(300, dtype=torch.int32, device="cuda")
    seed = as_seed(-9, rows.device)
    for function in (keep_mask, torch.compile(keep_mask, fullgraph=True)):
        assert torch.equal(function(rows, 500, seed, 0.3).cpu(), expected)
    seeds = layer_seeds(as_seed(5, torch.device("cpu")), 40)
    assert torch.equal(layer_seeds(as_seed(5, rows.device), 40).cpu(), seeds)
    x = torch.randn(9000, 1024, device="cuda")  # more than one chunk
    torch.testing.assert_close(drop(x, seed, 0.3), torch.compile(drop, fullgraph=True)(x, seed, 0.3))


def test_products_agree_with_the_cpu(kind):
    matrix, x, dy = torch.randn(128, 64), torch.randn(33, 64).bfloat16(), torch.randn(33, 128).bfloat16()
    if kind.startswith("fp8"):
        scaling, copies = "tensor" if kind == "fp8 tensor" else "row", 2 if kind == "fp8 two copies" else 1
        pair = [fp8_weight(matrix.to(device), scaling=scaling, copies=copies) for device in ("cpu", "cuda")]
    else:
        weight = layer(kind, 128, 64, torch.bfloat16).weight
        pair = [frozen_weight(weight.dense(torch.float32).cpu()), weight]
    assert_all_near([pair[1].product(x.cuda()).cpu()], [pair[0].product(x)], 2e-2)
    assert_all_near([pair[1].input_gradient(dy.cuda()).cpu()], [pair[0].input_gradient(dy)], 2e-2)


def test_no_unpacked_weight_outlives_a_product():
    group = [layer("nf4", 1024, 1024, torch.bfloat16) for _ in range(4)]
    x = torch.randn(64, 1024, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    lora_linears(x, group)  # the shared buffer, and cuBLAS's workspace
    before = torch.cuda.memory_allocated()
    outputs = lora_linears(x, group)
    held = torch.cuda.memory_allocated() - before
    assert held < 1024 * 1024 * 2, "more than one unpacked weight is held"
    del outputs
    kept = kept_for_backward(lambda: lora_linears(x, group))
    adapters = {a.data_ptr() for a in adapters_of(group)}
    assert sorted(t.numel() for t in kept if t.data_ptr() not in adapters) == [1, 64 * 16, 64 * 1024]


def test_two_streams_unpack_into_two_buffers():
    first, second = (layer("nf4", 512, 512, torch.bfloat16, rank=0) for _ in range(2))
    x = torch.randn(64, 512, dtype=torch.bfloat16, device="cuda")
    expected = first.weight.product(x), second.weight.product(x)
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(20):
        results = []
        for stream, own in zip(streams, (first, second), strict=True):
            with torch.cuda.stream(stream):
                results.append(own.weight.product(x))
        torch.cuda.synchronize()
        assert_all_near(results, expected, 1e-2)
