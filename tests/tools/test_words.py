"""Phrases that read as translated are found in documents and in the strings of sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import words


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.md", "# Noise\n\nIt is 0.2 nats a token.\n", [(3, '"nats a token": write "nats/token"')]),
        ("a.md", "It is 0.2 nats/token.\n", []),
        ("a.md", "It reads k + 1 rows and 21 rows.", []),
        ("a.md", "It reads 1 rows.", [(1, '"1 rows": write "1 row"')]),
        ("a.md", "with 4\ncompletions a\nprompt", [(2, '"completions a prompt": write "completions per prompt"')]),
        ("a.md", "goes on from it", [(1, '"goes on from": write "resumes from"')]),
        ("a.md", "with 4 completions\n\na prompt", []),
        (
            "a.md",
            "> The guard\n> Heeds the\n> price of it.",
            [(2, '"the price of": write "the cost of"'), (2, '"Heeds": write "respects, follows"')],
        ),
        ("a.md", "on 1 threads, 11 threads, 0.1 threads", [(1, '"1 threads": write "1 thread"')]),
        ("a.md", "A log-normaliser, renormalised_rows.", [(1, '"normaliser": write "normalizer"')]),
        (
            "a.py",
            'x = (\n    f"{n} tokens a "\n    f"position"\n)',
            [(2, '"tokens a position": write "tokens per position"')],
        ),
        ("a.py", "# one that\n# was looked at", [(2, '"was looked at": write "is checked, is read"')]),
        ("a.py", "def mend_it(): told_as = mend", []),
        ("a.py", "x = ['nats a', token]\nfits(1, rooms)  # gifts", [(2, '"gifts": write "say what it is"')]),
        ("a.md", "an estimator of one's own", [(1, '"of one\'s own": write "your own ..."')]),
        ("a.py", 'def f():\n    """Text\n    anew.\n    """\n', [(3, '"anew": write "again, from scratch"')]),
    ],
)
def test_phrases_and_their_lines(tmp_path: Path, name: str, text: str, found: list[tuple[int, str]]) -> None:
    (tmp_path / name).write_text(text)
    assert list(words.faults(tmp_path / name)) == found


def test_files_and_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("README.md", "docs/how-to/a.md", "src/vopd/a.py", "tools/words.py", "tests/a.py", "docs/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("0.2 nats a token\n")
    found = words.files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "README.md", "docs/how-to/a.md", "src/vopd/a.py",
    ]  # fmt: skip
    assert words.main([str(path) for path in found]) == 1
    assert "docs/how-to/a.md:1" in capsys.readouterr().out
    (tmp_path / "README.md").write_text("0.2 nats/token\n")
    assert words.main([str(tmp_path / "README.md")]) == 0
