import pytest
import torch

from fintune.models import attach_adapter, load_adapter, load_base, save_adapter
from fintune.schema.recipe import AdapterSection, ModelSection

pytestmark = [
    pytest.mark.gpu,
]


def load(folder, **section):
    section = ModelSection(base=str(folder), **section)
    return load_base(section, device=torch.device("cuda", 0), for_training=True)


@pytest.mark.parametrize("dtype", ["auto", "float16", "float32"])
@pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
def test_an_adapter_trains_is_saved_and_comes_back(tiny_folder, tmp_path, kind, dtype):
    base = load(tiny_folder, quantization=kind, dtype=dtype)
    if dtype == "auto":
        modern = torch.cuda.get_device_capability() >= (8, 0)
        assert base.dtype == (torch.bfloat16 if modern else torch.float16)
    assert base.facts.needs_loss_scaling == (base.dtype == torch.float16)
    model = attach_adapter(base, AdapterSection(rank=4), seed=0).train()
    x = torch.randint(3, 500, (2, 16), device="cuda")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=x, labels=x).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.device.type == "cuda"
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32 and parameter.grad.abs().sum() > 0, name
    folder = save_adapter(model, base.tokenizer, tmp_path / "adapter", base.files)
    again = load_adapter(load(tiny_folder, quantization=kind, dtype=dtype), folder)
    assert torch.equal(again.eval()(input_ids=x).logits, model.eval()(input_ids=x).logits)


def test_the_seed_decides_the_adapter_on_any_device(tiny_folder):
    torch.cuda.manual_seed(3)
    expected = torch.rand(2, device="cuda")
    torch.cuda.manual_seed(3)
    on_gpu = attach_adapter(load(tiny_folder, dtype="float32"), AdapterSection(rank=4), seed=3)
    assert torch.equal(torch.rand(2, device="cuda"), expected)
    cpu_base = load_base(ModelSection(base=str(tiny_folder)), device=torch.device("cpu"), for_training=True)
    on_cpu = dict(attach_adapter(cpu_base, AdapterSection(rank=4), seed=3).named_parameters())
    for name, parameter in on_gpu.named_parameters():
        assert torch.equal(parameter.cpu(), on_cpu[name]), name
