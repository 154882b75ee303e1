"""What stands in for the fused kernel where it would be interpreted, which is slow.

The kernel has tests of its own (``test_device_nearest``).
"""

import torch


def by_pytorch(
    rows: torch.Tensor, centroids: torch.Tensor, squares: torch.Tensor, factors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What ``nearest_triton.nearest_two`` gives, by PyTorch's products."""
    scores = squares - factors[:, None] * (rows.float() @ centroids.float().T)
    values, places = torch.nn.functional.pad(scores, (0, 1), value=torch.inf).topk(2, largest=False)
    return values[:, 0], places[:, 0].int(), values[:, 1]
