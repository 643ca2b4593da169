"""Makes docs/images/report.png, the picture of a report in the README.

    python tools/screenshot.py            trains for a minute or two on the CPU, then takes the picture
    python tools/screenshot.py RUN        takes it of a run that is there

Needs `chromium` on the PATH. The run is

    vopd train --config recipes/embedded-pair/config.yaml --estimator vopd --max_steps 150 --eval_task none

and the picture is its report.html in a window of 1100 x 800, with the sections and figures that do not fit left out
and the time, which differs from machine to machine, not shown.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "report.png"
RUN = "embedded-pair"
WIDTH, HEIGHT = 1100, 800
# What fits: the tiles, three curves and the first samples. The page's own policy allows styles and nothing else.
STYLE = """
main > section, .tiles > div:nth-child(4), .figures figure:nth-child(n+4), section .note:not(.key) { display: none; }
main > #progress, main > #samples { display: block; }
"""
SETTINGS = ("--config", "recipes/embedded-pair/config.yaml", "--estimator", "vopd", "--max_steps", "150")


def main(arguments: list[str]) -> int:
    """Train unless a run is given, and take the picture."""
    browser = shutil.which("chromium")
    if browser is None:
        print("screenshot: there is no chromium on the PATH", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = Path(arguments[0]) if arguments else train(folder)
        page = folder / "page.html"
        text = (run / "report.html").read_text(encoding="utf-8")
        page.write_text(text.replace("</style>", f"{STYLE}</style>", 1), encoding="utf-8")
        PICTURE.parent.mkdir(exist_ok=True)
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1")
        command = [browser, *options, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={PICTURE}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} KB")
    return 0


def train(folder: Path) -> Path:
    """Train the run of the picture, and return its folder."""
    command = [sys.executable, "-m", "vopd", "train", *SETTINGS, "--eval_task", "none", "--run_name", RUN]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([*command, "--output_dir", str(folder)], check=True, cwd=ROOT, env=environment)
    return folder / RUN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
