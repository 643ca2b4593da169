"""Makes docs/images/report.png, the picture of a report in the README.

    python tools/screenshot.py            trains for a minute or two on the CPU, then takes the picture
    python tools/screenshot.py RUN        takes it of a run that is there

Needs `chromium` on the PATH. The run is

    vopd train --config recipes/embedded-pair/config.yaml --estimator vopd --max_steps 150 --eval_task none

and the picture is its report.html in a window of 1100 x 840, without the sections and figures that do not fit.
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
WIDTH, HEIGHT = 1100, 840
# What fits: three curves and the newest samples. The page's own policy allows styles and nothing else.
STYLE = """
main { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 2fr); column-gap: 16px; }
header, main > section, main > .tiles, #progress figure:not(#reverse_kl), .note:not(.key), figure > p { display: none; }
main > #progress, main > #variance, main > #samples { display: block; }
main > #samples { grid-column: 1 / -1; }
h2 { margin-top: 20px; }
.note { max-width: none; }
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
