import pytest
import torch

from fintune.kernels.edge_loss import edge_cross_entropy, edge_cross_entropy_plain


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("parents", "edges"), [(1, 1), (7, 23), (5, 0)])
def test_values_and_gradients_equal_the_plain_twin(dtype, tolerance, parents, edges):
    torch.manual_seed(parents * 100 + edges)
    ours = torch.randn(parents, 33, dtype=dtype, requires_grad=True)
    twin = ours.detach().clone().requires_grad_()
    rows, targets = torch.randint(parents, (edges,)), torch.randint(33, (edges,))
    weights = torch.rand(edges) * 3
    loss = edge_cross_entropy(ours, rows, targets, weights)[0]
    expected = edge_cross_entropy_plain(twin, rows, targets, weights)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=1e-5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, twin.grad, rtol=tolerance, atol=tolerance)
