"""The kernels of ``tree_flash`` in Triton's interpreter; run by ``test_interpreted`` in a process of its own."""

import pytest
import torch
from tests.kernels import tree_flash_cases as cases
from triton.runtime import interpreter

from fintune.kernels.tree_flash import Tile, Tiling

CPU = torch.device("cpu")
# No two kernels take the same blocks.
SMALL = Tiling(Tile(16, 32, 4, 1), Tile(32, 16, 4, 1), Tile(16, 16, 4, 1))
WIDE_KEYS = Tiling(Tile(32, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 32, 4, 1))
TALL = Tiling(Tile(16, 16, 4, 1), Tile(16, 32, 4, 1), Tile(32, 16, 4, 1))


@pytest.fixture(autouse=True)
def loops_to_loaded_numbers(monkeypatch):
    """The interpreter holds a loaded number as an array of one, which NumPy no longer takes for a loop's bound."""
    patch = interpreter._patch_lang_tensor

    def patch_and_index(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_and_index)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_prefix_whose_work_is_cut(dtype):
    tree = cases.shared_prefix(5, 9, 7, pad=3)
    work = cases.check(CPU, dtype, tree, tiling=SMALL, slots=8, least_items=2)
    table = work.units(4, 2, 16).table
    assert int(work.units(4, 2, 16).slots[0, 1]) >= 2, "the first keys are seen by all, and were to be cut"
    assert bool((table[:, 2] == 0).any()), "some units were to have nothing to do"


def test_a_prefix_of_several_blocks_with_one_head():
    work = cases.check(CPU, torch.float32, cases.shared_prefix(40, 4, 11), heads=1, groups=1, tiling=TALL, slots=64)
    assert int(work.queries(TALL.key_gradient).full.sum()) > 0


@pytest.mark.parametrize("window, softcap", [(6, None), (None, 1.5), (11, 0.7)])
def test_windows_and_bounded_scores(window, softcap):
    tree = cases.deep_tree(61, 0.2, seed=3)
    options = {"heads": 3, "groups": 1, "size": 24, "scaling": 0.3, "tiling": WIDE_KEYS, "slots": 4, "least_items": 3}
    cases.check(CPU, torch.float32, tree, window=window, softcap=softcap, **options)


def test_documents_of_any_length():
    tree = cases.documents([1, 37, 2, 16, 13])
    cases.check(CPU, torch.float16, tree, heads=2, groups=2, size=48, tiling=WIDE_KEYS, slots=4)


def test_one_token():
    cases.check(CPU, torch.float32, cases.documents([1]), heads=2, groups=1, tiling=SMALL)
