"""Check the settings of a training run without loading weights.

Checks options, estimator, sampling, tokenizers, vocabularies and prompts. Takes the options of `vopd train` and writes
nothing. Models and datasets that are not on this machine are skipped and listed; `vopd train --dry-run` needs them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """Run `vopd validate` with these arguments and return its exit code."""
    # Set before anything that reads it is imported: validation must not wait for the network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vopd.errors import counted
    from vopd.run.directory import is_main_process
    from vopd.run.train import check_run

    checked = check_run("validate", __doc__, arguments, far=False)
    facts, accuracy = checked.facts, checked.accuracy
    lines = [f"note: {note}" for note in facts.notes]
    if facts.vocabulary is not None:
        lines.append(f"common vocabulary: {facts.vocabulary} tokens")
    if facts.prompts is not None:
        lines.append(f"prompts: {len(facts.prompts.dataset):,}")
    lines += facts.benchmarks
    if accuracy is not None:
        lines.append(f"accuracy is measured on {accuracy.name}: {counted(accuracy.problems, 'problem')}")
    if is_main_process():
        print("\n".join([*lines, "the settings are valid"]))
    return 0
