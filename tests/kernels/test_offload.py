"""What of offloading can be seen without a card: tensors that stay where they are."""

import pytest
import torch

from fintune.kernels.offload import Offload


class Doubled(torch.autograd.Function):
    """Twice the input; its backward pass writes over what was kept, as the MLP's does."""

    @staticmethod
    def forward(ctx, x):
        kept = x.clone()
        ctx.save_for_backward(kept)
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        (kept,) = ctx.saved_tensors
        kept.zero_()
        return 2 * gradient


def test_a_second_backward_pass_over_tensors_that_stay_is_refused():
    offload = Offload()
    x = torch.ones(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: offload._stay(tensor, 0), offload._unpack):
        total = Doubled.apply(x).sum()
    total.backward(retain_graph=True)
    assert x.grad.tolist() == [2.0] * 3
    with pytest.raises(RuntimeError, match="second backward pass"):
        total.backward()
