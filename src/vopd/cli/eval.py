"""Evaluate one or several models on problems: avg@k, pass@k and maj@k, each with a 95 % confidence interval.

Problems come from one of these sources:
  --benchmark  math500, minerva, amc23, aime24, aime25, gpqa_diamond or sciknoweval, sampled as in the paper by default
  --data       a file, folder or OWNER/NAME on the hub with columns problem and answer, graded as --kind says
  --task       a reasoning_gym task, graded by its own verifier

Writes results.json and samples.jsonl to OUTPUT_DIR/RUN_NAME. To resume an interrupted evaluation, run the same command
again.

examples:
  vopd eval --model runs/first/model --benchmark math500 --chat_template
  vopd eval --model BASE,runs/first/model --data problems.jsonl --samples 4 --run_name both
  vopd eval --model BASE --data problems.jsonl --run_name base
  vopd eval --model runs/first/model --data problems.jsonl --against runs/base
"""

from __future__ import annotations

from collections.abc import Sequence

from vopd.errors import Faults, require
from vopd.folders import check_writable, listed_models
from vopd.run import directory
from vopd.run.evaluation import EvalOptions, evaluate, find_problems
from vopd.run.options import read_options


def run(arguments: Sequence[str]) -> int:
    """Run `vopd eval` with these arguments and return its exit code."""
    options = read_options(EvalOptions, "eval", __doc__, arguments)
    require("transformers", "eval")
    from vopd.evaluation.results import compare_results, comparison_rows, load_results, print_table, remarks, table_rows
    from vopd.models import load_configuration, load_tokenizer

    faults = Faults()
    faults.check(check_writable, options.output_dir)
    for model in listed_models(options.model):
        if faults.check(load_tokenizer, model, revision=options.model_revision) is not None:
            faults.check(load_configuration, model, revision=options.model_revision)
    earlier = faults.check(load_results, options.against) if options.against else None
    benchmarks = faults.check(find_problems, options) or []
    faults.tell()
    names = [benchmark.short_name for benchmark in benchmarks]
    folder = directory.run_directory(
        options.output_dir, options.run_name, "eval", listed_models(options.model)[-1], *names
    )
    results = evaluate(options, benchmarks, folder)
    print_table(*table_rows(results))
    print("\n".join(remarks(results)))
    if earlier is not None:
        print_table(*comparison_rows(compare_results(earlier, results)))
    print(f"written to {folder}")
    return 0
