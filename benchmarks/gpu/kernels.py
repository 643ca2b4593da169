"""The first run on one GPU: is the Triton path right, and how fast is the loss?

    python benchmarks/gpu/kernels.py [--results FOLDER] [--dry-run]

Writes gpu-kernels.json and gpu-kernels.log. About 5 minutes on one H100; --dry-run takes tiny shapes on any machine.
"""

from __future__ import annotations

from steps import HERE, ROOT, Record, Step, about, arguments

CONTESTANTS = (
    "naive opd", "naive vopd", "naive full_rkl", "trl chunked reverse KL", "liger fused JSD", "opd", "vopd",
    "vopd with diagnostics", "vopd in plain torch", "vopd_optimal", "vopd_sparse, k = 20",
    "rao_blackwell_teacher_top_k, k = 20", "full_rkl",
)  # fmt: skip


def steps(dry: bool) -> list[Step]:
    """The steps, in the order of their worth."""
    small = ["--dry-run"] * dry
    shape = ["--shape", "reference", "--rounds", "5", "--only", *CONTESTANTS]
    if dry:
        shape = ["--shape", "dry", "--rounds", "1", "--head", "frozen", "--only", "vopd"]
    pytest = [
        "-m",
        "pytest",
        "-q",
        "-o",
        "minversion=0",
        "-o",
        "addopts=--import-mode=importlib",
        "-p",
        "no:cacheprovider",
    ]
    tests = ["-W", "default", "tests/kernels/test_triton.py", *(["--collect-only"] if dry else ["-n", "14"])]
    return [
        Step("products", 40, [str(HERE / "products.py"), "--json", "RESULT", *small]),
        Step("not a number", 60, [str(HERE / "not_finite.py"), "--json", "RESULT", *small]),
        Step("loss", 130, [str(ROOT / "benchmarks" / "loss.py"), *shape, "--json", "RESULT"]),
        Step("tests", 90, [*pytest, *tests], packages=["pytest", "triton"]),
        Step("profile and chunks", 60, [str(HERE / "chunks.py"), "--json", "RESULT", *small]),
    ]  # fmt: skip


def main() -> None:
    """Run all steps."""
    given = arguments(__doc__)
    Record(given.results / "gpu-kernels.json", about("benchmarks/gpu/kernels.py")).run(steps(given.dry_run))


if __name__ == "__main__":
    main()
