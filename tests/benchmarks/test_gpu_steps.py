"""The runner of the GPU measurements keeps what it has: failures, hangs and missing packages are passed over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
PROGRAM = """
import sys
sys.path.insert(0, {gpu!r})
from steps import Record, Step
from pathlib import Path
write = "import sys, json; json.dump({{'ms': 3}}, open(sys.argv[1], 'w'))"
Record(Path({file!r}), {{"device": "none"}}).run(
    [
        Step("good", 20, ["-c", write, "RESULT"]),
        Step("fails", 20, ["-c", "print('why'); raise SystemExit(3)"]),
        Step("lacks", 20, ["-c", "0"], packages=["no_such_package"]),
    ],
    [Step("hangs", 1, ["-c", "import time; print('begun', flush=True); time.sleep(60)"])],
)
"""


def test_every_step_is_kept(tmp_path: Path):
    file = tmp_path / "record.json"
    subprocess.run([sys.executable, "-c", PROGRAM.format(gpu=str(GPU), file=str(file))], check=True, timeout=60)
    record = json.loads(file.read_text())
    assert record["device"] == "none"
    steps = record["steps"]
    assert steps["good"]["exit_code"] == 0 and steps["good"]["result"] == {"ms": 3}
    assert steps["fails"]["exit_code"] == 3 and "why" in steps["fails"]["output"]
    assert "no_such_package" in steps["lacks"]["skipped"]
    assert steps["hangs"]["exit_code"] != 0 and "begun" in steps["hangs"]["output"]
    assert "begun" in file.with_suffix(".log").read_text()


def test_tiny_shapes_on_any_machine(tmp_path: Path):
    out = tmp_path / "out.json"
    subprocess.run([sys.executable, str(GPU / "products.py"), "--json", str(out), "--dry-run"], check=True, timeout=120)
    assert json.loads(out.read_text())["ceilings"]["copy_tb_per_s"] > 0
