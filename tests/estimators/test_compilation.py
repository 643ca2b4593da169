"""Steps under torch.compile: the losses stay out of it, and give what they give without."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

import vopd
from head_reference import batch_of, leaves

pytestmark = [
    # Dynamo hides these from users, but not where warnings are errors.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    # It would trace the checks in the backward pass, and get them wrong.
    pytest.mark.usefixtures("without_checks_of_shapes"),
]


def linear(batch, hidden):
    return vopd.linear_distillation_loss(**{**batch, "student_hidden": hidden}, estimator="full_rkl").loss


def dense(batch, hidden):
    student, teacher = hidden @ batch["student_head"].T, batch["teacher_hidden"] @ batch["teacher_head"].T
    return vopd.distillation_loss(student, teacher, batch["completion_ids"], vocab_size=50).loss


def stepped(loss, compiled):
    """Loss and gradients of one step."""
    batch = batch_of({}, dtype=torch.float32)

    def step(batch):
        value = 3 * loss(batch, batch["student_hidden"].cos())
        value.backward()
        return value

    (compiled(step) if compiled else step)(batch)
    return [leaf.grad for leaf in leaves(batch)]


@pytest.mark.parametrize("loss", [linear, dense])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_step_has_the_same_gradients_to_the_bit(loss, backend):
    expected = stepped(loss, None)
    torch._dynamo.reset()
    for ours, theirs in zip(stepped(loss, lambda step: torch.compile(step, backend=backend)), expected):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("loss", [linear, dense])
def test_nothing_of_a_loss_is_compiled(loss):
    seen = set()

    def backend(graph, inputs):
        seen.update(str(node.target).split(".")[-1] for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    torch._dynamo.reset()
    stepped(loss, lambda step: torch.compile(step, backend=backend))
    assert "cos" in seen and len(seen) < 6, seen


def test_signature_and_documentation_are_the_functions_own():
    for loss in (vopd.distillation_loss, vopd.linear_distillation_loss):
        assert "completion_ids" in inspect.signature(loss).parameters
        assert "Raises:" in loss.__doc__ and loss.__module__ == "vopd.estimators.loss"


def test_the_compiler_is_not_imported_with_the_losses():
    program = "import sys, vopd; vopd.linear_distillation_loss; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
