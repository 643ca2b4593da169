"""The core install: nothing but torch and what torch brings. Every other package is made impossible to import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import vopd

# Of what `make test` installs, everything that somebody imports from this project and torch alone does not bring.
ABSENT = (
    "accelerate", "beartype", "datasets", "huggingface_hub", "jaxtyping", "math_verify", "matplotlib", "numpy",
    "packaging", "peft", "psutil", "pyarrow", "reasoning_gym", "rich", "safetensors", "scipy", "statsmodels",
    "tokenizers", "trackio", "transformers", "trl", "yaml",
)  # fmt: skip


def run_without_extras(statements: str) -> subprocess.CompletedProcess[str]:
    # None in sys.modules makes an import fail as if the package were not installed.
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"
    environment = {**os.environ, "PYTHONPATH": str(Path(vopd.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", "-c", blocked + statements]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_both_losses_work_with_torch_alone():
    done = run_without_extras(
        "import torch, vopd\n"
        "hidden, head = torch.randn(4, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)\n"
        "for name, estimator in vopd.ESTIMATORS.items():\n"
        "    options = {'estimator': name, 'top_k': 2 if estimator.needs_top_k else None}\n"
        "    ids = torch.arange(4)\n"
        "    teacher = torch.randn(4, 5), torch.randn(9, 5)\n"
        "    vopd.linear_distillation_loss(hidden, head, *teacher, ids, **options).loss.backward()\n"
        "    vopd.distillation_loss(hidden @ head.T, torch.randn(4, 9), ids, **options).loss.backward()\n"
        "print('worked')\n"
    )
    assert done.stdout == "worked\n", done.stderr


def test_the_trainer_names_the_extra_that_it_needs():
    done = run_without_extras(
        "import vopd\ntry:\n    vopd.VOPDTrainer\nexcept vopd.errors.MissingExtraError as error:\n    print(error)\n"
    )
    assert "pip install -e '.[train]'" in done.stdout, done.stderr


def test_accuracies_need_torch_alone_and_a_t_interval_names_its_extra():
    done = run_without_extras(
        "from vopd.statistics import avg_at_k, paired_difference, t_interval\n"
        "print(avg_at_k([[True], [True]]).low, paired_difference([1, 1], [0, 0]).p_value)\n"
        "try:\n    t_interval([1.0, 2.0])\nexcept ImportError as error:\n    print(error)\n"
    )
    assert done.stdout.startswith("1.0 0.5\nscipy is needed") and "'.[train]'" in done.stdout, done.stderr


def test_a_command_without_its_extra_ends_with_the_code_of_a_configuration_error():
    done = run_without_extras("from vopd.cli import main\nsys.exit(main(['train', '--model', 'x']))\n")
    assert done.returncode == 2
    assert "pip install -e '.[train]'" in done.stderr
