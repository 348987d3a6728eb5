import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels import tree_flash_cases as cases
from tests.trees.samples import sample_lists
from torch import nn

from fintune.kernels.tree_attention import TreeContext, ancestor_mask, tree_attention
from fintune.kernels.tree_blocks import BlockLists, block_lists, deal, seen_blocks
from fintune.kernels.tree_flash import HOPPER_SHARED_BYTES, tiling, tree_flash, tree_work
from fintune.kernels.triton_use import triton_is_installed
from fintune.schema.errors import ModelError
from fintune.trees.prefix_tree import build_tree

GPU = torch.device("cuda")


blocks = st.sampled_from([1, 2, 3, 4, 8])


@given(sample_lists(fewest=1), blocks, blocks, st.sampled_from([None, 1, 2, 4]))
def test_blocks_are_seen_where_a_token_sees_another(samples, query_block, key_block, window):
    tree = build_tree(samples)
    ends, depths = torch.from_numpy(tree.subtree_end), torch.from_numpy(tree.depth)
    mask = ancestor_mask(ends, depths, window)
    seen, full = seen_blocks(ends, depths, window, query_block, key_block)
    for number, rows in enumerate(mask.split(query_block)):
        for key_number, tile in enumerate(rows.split(key_block, 1)):
            unfinished = tile.shape != (query_block, key_block)
            if full[number, key_number]:
                assert tile.all() and not unfinished
            if window is None:  # else least and greatest depths only bound what is seen
                assert bool(seen[number, key_number]) == bool(tile.any())
            assert seen[number, key_number] or not tile.any()
    assert not (full & ~seen).any()
    assert seen.any(0).all() and seen.any(1).all()


def test_before_its_first_query_a_block_is_seen_in_full_wherever_every_token_is():
    ends, depths = cases.shared_prefix(8, 3, 8)
    seen, full = seen_blocks(ends, depths, None, 4, 4)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:, :2] = expected[1, 0] = True  # the prefix
    for first in (2, 4, 6):
        expected[first + 1, first] = True  # the first half of a branch by its second
    assert torch.equal(full, expected)
    assert torch.equal(seen, full | torch.eye(8, dtype=torch.bool))


@given(st.integers(0, 2**20), st.integers(1, 7), st.integers(1, 9))
def test_lists_hold_the_chosen_blocks_in_order_the_full_ones_first(seed, rows, columns):
    random = torch.Generator().manual_seed(seed)
    seen, full = torch.rand(2, rows, columns, generator=random) < 0.5
    lists = block_lists(seen, seen & full)
    for number in range(rows):
        both = (seen & full)[number].nonzero().flatten().tolist()
        some = (seen & ~full)[number].nonzero().flatten().tolist()
        assert lists.blocks[number, : lists.seen[number]].tolist() == both + some
        assert int(lists.full[number]) == len(both)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 8),
    st.integers(0, 20),
    st.integers(1, 5),
    st.sampled_from([1, 16, 512]),
)
def test_units_do_all_work_once_and_fit_into_the_slots(lengths, groups, slots, least, workers):
    seen = torch.tensor(lengths, dtype=torch.int32)
    lists = BlockLists(torch.zeros(len(lengths), 40, dtype=torch.int32), torch.zeros_like(seen), seen)
    units = deal(lists, groups, slots=slots, least=least, workers=workers)
    rows = [row for row in units.table.tolist() if row[2]]
    done = sorted((column, place) for column, first, count, _ in rows for place in range(first, first + count))
    assert done == [(column, place) for column, length in enumerate(lengths) for place in range(length)]
    used = sorted(slot for *_, slot in rows if slot >= 0)
    assert used == list(range(len(used))) and len(used) <= slots
    for column, (first_slot, count) in enumerate(units.slots.tolist()):
        own = [row for row in rows if row[0] == column]
        assert count == (len(own) if len(own) > 1 else 0)
        own.sort(key=lambda row: row[1])
        assert [row[3] for row in own] == (list(range(first_slot, first_slot + count)) if count else [-1])
    counts = units.table[:, 2].tolist()
    assert counts == sorted(counts, reverse=True)


def test_a_long_column_is_cut_and_short_ones_are_not():
    seen = torch.tensor([128] + [2] * 127, dtype=torch.int32)
    lists = BlockLists(torch.zeros(128, 128, dtype=torch.int32), torch.zeros_like(seen), seen)
    units = deal(lists, 8, slots=64, least=4, workers=512)
    # 382 places of 8 heads over 512 programs: six a program, so eight, the next power of two.
    assert units.slots[0].tolist() == [0, 16] and int(units.slots[1:, 1].sum()) == 0
    assert units.table[:16].tolist() == [[0, 8 * piece, 8, piece] for piece in range(16)]


def test_without_triton_the_backend_is_the_eager_twin():
    ends, depths = cases.deep_tree(30, 0.3)
    inputs = cases.states("cpu", torch.float32, 30, 4, 2, 8)
    ours, twin = (
        tree_attention(nn.Module(), *inputs, None, sliding_window=5, tree=TreeContext(ends, depths, backend))[0]
        for backend in ("triton", "eager")
    )
    assert torch.equal(ours, twin)


@pytest.mark.slow
@pytest.mark.skipif(not triton_is_installed(), reason="Triton is not installed")
@pytest.mark.parametrize(("capability", "shared"), [(86, 99 * 1024), (90, HOPPER_SHARED_BYTES)], ids=["RTX", "H100"])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_tiles_fit_into_the_shared_memory_of_cards(size, capability, shared):
    from tests.kernels.compiled import shared_bytes

    from fintune.kernels.tree_flash_keys_triton import _key_gradient_kernel
    from fintune.kernels.tree_flash_triton import _forward_kernel, _query_gradient_kernel

    tiles = tiling(size, torch.bfloat16, shared)
    constants = {"SIZE": size, "BLOCK_D": size, "GROUP": 4, "GROUPS": 8, "WINDOW": True, "SOFTCAP": False, "LSE": True}
    constants |= dict.fromkeys(("Q_STRIDE", "K_STRIDE", "V_STRIDE"), 48 * size)
    constants |= dict.fromkeys(("OUT_STRIDE", "D_OUT_STRIDE"), 32 * size)
    for kernel, tile in zip((_forward_kernel, _query_gradient_kernel, _key_gradient_kernel), tiles, strict=True):
        own = {**constants, "QUERIES": tile.queries, "KEYS": tile.keys}
        needed = shared_bytes(kernel, own, tile, capability, "bf16")
        assert 0 < needed <= shared, (kernel.__name__, tile)


def test_heads_too_large_for_the_kernels_are_refused():
    with pytest.raises(ModelError, match="288 features"):
        tree_work(*cases.documents([4]), None, 288, torch.float32)


TREES = {
    "prefix": cases.shared_prefix(56, 60, 33, pad=12),
    "long_prefix": cases.shared_prefix(700, 17, 75),
    "documents": cases.documents([1024, 3, 500, 521]),
    "deep": cases.deep_tree(2001, 0.03, seed=1),
}
on_gpu = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


def gpu_cases(*values):
    return [pytest.param(*value, marks=on_gpu) for value in values]


@pytest.mark.parametrize("tree", [pytest.param(name, marks=on_gpu) for name in TREES])
@pytest.mark.parametrize(
    "dtype, heads, groups, size",
    gpu_cases(
        (torch.bfloat16, 8, 2, 128),
        (torch.bfloat16, 9, 3, 64),
        (torch.bfloat16, 4, 2, 256),
        (torch.float16, 6, 6, 96),
        (torch.float32, 4, 2, 128),
    ),
)
def test_on_a_gpu_it_equals_the_eager_twin(tree, dtype, heads, groups, size):
    torch.manual_seed(0)
    cases.check(GPU, dtype, TREES[tree], heads=heads, groups=groups, size=size)


@pytest.mark.parametrize("dtype, window, softcap", gpu_cases((torch.bfloat16, 64, 20.0), (torch.float32, 100, None)))
def test_on_a_gpu_windows_and_bounded_scores(dtype, window, softcap):
    torch.manual_seed(0)
    cases.check(GPU, dtype, TREES["deep"], heads=4, groups=2, size=256, window=window, softcap=softcap)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
def test_it_is_recorded_in_a_cuda_graph_that_serves_other_trees():
    torch.manual_seed(0)
    first, second = cases.shared_prefix(56, 40, 49), cases.documents([1000, 1016])
    ends, depths = (part.cuda() for part in first)
    inputs = cases.states(GPU, torch.bfloat16, len(ends), 8, 2, 128)
    d_out = torch.randn(1, 8, len(ends), 128, device=GPU, dtype=torch.bfloat16)

    def both_ways():
        out = tree_flash(*inputs, tree_work(ends, depths, None, 128, torch.bfloat16))
        return out, *torch.autograd.grad(out, inputs, d_out)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        both_ways()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = both_ways()
    for tree in (first, second):
        ends.copy_(tree[0])
        depths.copy_(tree[1])
        graph.replay()
        assert all(torch.equal(one, other) for one, other in zip(recorded, both_ways(), strict=True))


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
def test_nothing_waits_for_the_device_and_lengths_do_not_recompile(monkeypatch):
    import triton

    compiled = []
    for number, tree in enumerate(
        (cases.documents([512]), cases.documents([300, 77]), cases.shared_prefix(31, 9, 100))
    ):
        ends, depths = (part.cuda() for part in tree)
        inputs = cases.states(GPU, torch.bfloat16, len(ends), 4, 2, 64)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            tree_flash(*inputs, tree_work(ends, depths, None, 64, torch.bfloat16)).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        if number == 0:
            monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **_: compiled.append(1))
    assert not compiled
