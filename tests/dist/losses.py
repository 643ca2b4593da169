"""Both losses of an installed wheel, in an environment with torch alone: run by `make test-dist`."""

import torch

import vopd

hidden, head = torch.randn(4, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)
ids = torch.arange(4)
for name, estimator in vopd.ESTIMATORS.items():
    options = {"estimator": name, "top_k": 2 if estimator.needs_top_k else None}
    hidden.grad = head.grad = None
    loss = vopd.linear_distillation_loss(hidden, head, torch.randn(4, 5), torch.randn(9, 5), ids, **options).loss
    loss += vopd.distillation_loss(hidden @ head.T, torch.randn(4, 9), ids, **options).loss
    loss.backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0, name
print(f"vopd {vopd.__version__} from {vopd.__file__}: {len(vopd.ESTIMATORS)} estimators")
