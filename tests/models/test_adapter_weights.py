"""Norms, differences and combinations from the factors alone, against dense matrices."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.models.stored_adapters import write_adapter

from fintune.models import attach_adapter, load_adapter, save_adapter
from fintune.models.adapter_weights import compare_adapters, distance_from_sum, inspect_adapter
from fintune.models.combining import METHODS, combine_adapters
from fintune.schema.errors import AdapterError
from fintune.schema.recipe import AdapterSection


def dense(folder) -> dict[str, np.ndarray]:
    """The whole update of each module, from the files and the definition of LoRA."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {key: value.double().numpy() for key, value in load_file(folder / "adapter_model.safetensors").items()}
    found = {}
    for key in tensors:
        if "lora_A" not in key:
            continue
        a, b = tensors[key], tensors[key.replace("lora_A", "lora_B")]
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        alpha = config["lora_alpha"]
        for ending, own in (config.get("alpha_pattern") or {}).items():
            alpha = own if module.endswith(ending) else alpha
        rank = len(a)
        found[module] = b @ a * (alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
    return found


def norm(matrices) -> float:
    return math.sqrt(sum(float((matrix**2).sum()) for matrix in matrices))


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}])
def test_norms_by_layer_type_are_those_of_the_dense_update(tmp_path, config):
    folder = write_adapter(tmp_path / "one", layers=3, **config)
    found, whole = inspect_adapter(folder), dense(folder)
    for kind in ("q_proj", "v_proj"):
        expected = norm(matrix for name, matrix in whole.items() if name.endswith(kind))
        assert found.norms[kind] == pytest.approx(expected, rel=1e-12)
    assert found.parameters == 3 * 2 * 2 * 4 * 16 and found.modules == 6 and found.targets == ("q_proj", "v_proj")


def test_differences_are_those_of_the_dense_updates(tmp_path):
    first = write_adapter(tmp_path / "one", layers=2)
    second = write_adapter(tmp_path / "two", seed=1, rank=6, layers=3, use_rslora=True, alpha_pattern={"v_proj": 2})
    found, one, two = compare_adapters(first, second), dense(first), dense(second)
    zero = np.zeros((16, 16))
    assert [row.module for row in found.modules] == sorted(one | two)
    for row in found.modules:
        mine, theirs = one.get(row.module, zero), two.get(row.module, zero)
        assert row.norms == pytest.approx((norm([mine]), norm([theirs])), rel=1e-12)
        if row.module not in one:
            assert row.relative is None
            continue
        assert row.relative == pytest.approx(norm([mine - theirs]) / norm([mine]), rel=1e-12)
    whole = norm(one.get(name, zero) - two.get(name, zero) for name in one | two)
    assert found.relative == pytest.approx(whole / norm(one.values()), rel=1e-12)
    assert set(found.configuration) == {"r", "use_rslora", "alpha_pattern"}


def test_small_differences_are_not_lost_in_rounding(tmp_path):
    first, second = write_adapter(tmp_path / "one"), write_adapter(tmp_path / "two")
    assert compare_adapters(first, second).relative < 1e-14
    file = second / "adapter_model.safetensors"
    from safetensors.torch import save_file

    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] += 1e-4
    save_file(tensors, file)
    one, two = dense(first), dense(second)
    expected = norm(one[name] - two[name] for name in one) / norm(one.values())
    assert 0 < expected < 1e-4 and compare_adapters(first, second).relative == pytest.approx(expected, rel=1e-6)


def test_adapters_of_other_bases_are_refused(tmp_path):
    one = write_adapter(tmp_path / "one", base_hash="a" * 64)
    two = write_adapter(tmp_path / "two", base_hash="b" * 64)
    with pytest.raises(AdapterError, match="one base"):
        compare_adapters(one, two)
    with pytest.raises(AdapterError, match="one base"):
        combine_adapters([one, two], [1, 1], "cat", tmp_path / "sum")
    foreign = write_adapter(tmp_path / "three", base="other/model")
    with pytest.raises(AdapterError, match="other/model"):
        compare_adapters(one, foreign)
    wider = write_adapter(tmp_path / "four", width=32)
    with pytest.raises(AdapterError, match="another shape"):
        compare_adapters(write_adapter(tmp_path / "five"), wider)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -0.5)])
def test_cat_and_full_svd_give_the_weighted_sum(tmp_path, rslora, weights):
    parents = [
        write_adapter(tmp_path / "one", use_rslora=rslora, base_hash="a" * 64),
        write_adapter(tmp_path / "two", seed=1, rank=3, use_rslora=rslora, base_hash="a" * 64),
    ]
    one, two = map(dense, parents)
    expected = {name: weights[0] * one[name] + weights[1] * two[name] for name in one}
    for method, rank in (("cat", None), ("svd", 7)):
        made = combine_adapters(parents, weights, method, tmp_path / method, rank=rank)
        found = dense(made)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], atol=3e-5)
        assert json.loads((made / "adapter_config.json").read_text())["r"] == 7
        assert distance_from_sum(made, parents, weights) < 1e-6


def test_a_smaller_svd_is_the_nearest_of_its_rank(tmp_path):
    parents = [write_adapter(tmp_path / "one"), write_adapter(tmp_path / "two", seed=1)]
    one, two = map(dense, parents)
    lost = whole = 0.0
    for name in one:
        values = np.linalg.svd(0.5 * one[name] + 0.5 * two[name], compute_uv=False)
        lost, whole = lost + (values[4:] ** 2).sum(), whole + (values**2).sum()
    made = combine_adapters(parents, [0.5, 0.5], "svd", tmp_path / "svd")
    assert distance_from_sum(made, parents, [0.5, 0.5]) == pytest.approx(math.sqrt(lost / whole), rel=1e-5)


def test_linear_weighs_the_factors_and_says_how_far_off_that_is(tmp_path):
    parents = [write_adapter(tmp_path / "one"), write_adapter(tmp_path / "two", seed=1)]
    made = combine_adapters(parents, [0.5, 0.25], "linear", tmp_path / "linear")
    files = [load_file(folder / "adapter_model.safetensors") for folder in parents]
    shares = [math.sqrt(weight * 8 / 4) for weight in (0.5, 0.25)]
    for key, tensor in load_file(made / "adapter_model.safetensors").items():
        expected = sum(share * file[key] for share, file in zip(shares, files, strict=True))
        torch.testing.assert_close(tensor, expected)
    one, two, found = (*map(dense, parents), dense(made))
    exact = {name: 0.5 * one[name] + 0.25 * two[name] for name in one}
    gap = norm(found[name] - exact[name] for name in exact) / norm(exact.values())
    assert distance_from_sum(made, parents, [0.5, 0.25]) == pytest.approx(gap, rel=1e-9) and gap > 0.1


def test_dare_drops_by_its_seed_and_leaves_global_randomness_alone(tmp_path):
    parents = [write_adapter(tmp_path / "one"), write_adapter(tmp_path / "two", seed=1)]
    state = torch.get_rng_state()
    made = [
        combine_adapters(parents, [0.5, 0.5], "dare_linear", tmp_path / f"dare{index}", seed=seed, density=0.5)
        for index, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(state, torch.get_rng_state())
    first, again, other = [(folder / "adapter_model.safetensors").read_bytes() for folder in made]
    assert first == again != other


def test_ties_keeps_the_share_it_is_told_to(tmp_path):
    parents = [write_adapter(tmp_path / "one"), write_adapter(tmp_path / "two")]  # equal ones: no sign is in dispute
    made = combine_adapters(parents, [0.5, 0.5], "ties", tmp_path / "ties", density=0.25)
    for key, tensor in load_file(made / "adapter_model.safetensors").items():
        original = load_file(parents[0] / "adapter_model.safetensors")[key]
        kept = original.abs() >= original.abs().flatten().sort(descending=True).values[original.numel() // 4 - 1]
        assert torch.equal(tensor != 0, kept)


def test_what_cannot_be_combined(tmp_path):
    one, dora = write_adapter(tmp_path / "one"), write_adapter(tmp_path / "dora", use_dora=True)
    larger = write_adapter(tmp_path / "larger", rank=5)
    for parents, weights, method, words in (
        ([one], [1.0], "cat", "1 adapters"),
        ([one, larger], [1.0], "cat", "2 adapters and 1 weights"),
        ([one, larger], [1.0, 1.0], "linear", "svd and cat take adapters of any rank"),
        ([one, dora], [1.0, 1.0], "svd", "DoRA"),
        ([one, larger], [1.0, 1.0], "mean", ", ".join(METHODS)),
    ):
        with pytest.raises(AdapterError, match=words):
            combine_adapters(parents, weights, method, tmp_path / "never")
    with pytest.raises(AdapterError, match="density"):
        combine_adapters([one, one], [1.0, 1.0], "ties", tmp_path / "never", density=1.5)
    assert not (tmp_path / "never").exists()


def test_a_combination_works_on_its_base(load_tiny, tmp_path):
    """On a real model: logits of the combination are those of a base whose weights got the weighted sum."""
    parents, expected = [], load_tiny()
    for index, weight in enumerate((0.6, 0.4)):
        base = load_tiny()
        model = attach_adapter(base, AdapterSection(rank=4, rslora=index == 0), seed=index)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name) + index))
        parents.append(save_adapter(model, base.tokenizer, tmp_path / str(index), base.files))
        for name, module in model.named_modules():
            if "default" in getattr(module, "lora_A", {}):
                own = expected.model.get_submodule(name.removeprefix("base_model.model."))
                own.weight.data += weight * module.get_delta_weight("default")
    made = combine_adapters(parents, [0.6, 0.4], "cat", tmp_path / "sum")
    combined, ids = load_adapter(load_tiny(), made), torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            combined(input_ids=ids).logits, expected.model(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )
