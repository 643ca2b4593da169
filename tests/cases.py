"""One input of a user: what is typed, what comes of it, and what is on the disk afterwards."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from messages import told
from vopd import cli

RUN = (
    "train --model {S} --teacher_model {T} --dataset {p} --output_dir {out} --run_name r --use_cpu true "
    "--per_device_train_batch_size 4 --max_completion_length 8 --max_steps 2"
)


@dataclass(frozen=True)
class Place:
    """Where a case happens: a student, a teacher, four prompts, an output folder that is not there yet, another."""

    student: Path
    teacher: Path
    prompts: Path
    out: Path
    work: Path

    def call(self, command: str) -> int:
        """The exit code of `vopd COMMAND`: RUN, {S}, {T}, {p}, {out} and {work} stand for the above."""
        names = {"S": self.student, "T": self.teacher, "p": self.prompts, "out": self.out, "work": self.work}
        words = shlex.split(command.replace("RUN", RUN))
        return cli.main([word if word[0] in "{[" and ":" in word else word.format(**names) for word in words])

    def files(self) -> set[str]:
        """All that is in the output folder, folders with a slash at the end."""
        return {f"{path.relative_to(self.out)}{'/' * path.is_dir()}" for path in self.out.rglob("*")}


@dataclass(frozen=True)
class Case:
    """`command` ends with exit code `code`, and a line of the output has the facts `says` ("a ... b").

    Attributes:
        leaves: paths that the output folder has afterwards, folders with a slash; empty: nothing at all, and as it was
            if `before` left something there.
        lacks: facts that no line may have.
        before: prepares the place.
    """

    command: str
    code: int
    says: str
    leaves: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    before: Callable[[Place], object] | None = None

    def check(self, place: Place, output: Callable[[], tuple[str, str]]) -> None:
        """Run it; `output` is ``capfd.readouterr``."""
        if self.before is not None:
            self.before(place)
        was = place.files()
        output()
        code = place.call(self.command)
        text = "\n".join(output())
        assert code == self.code, text
        assert "Traceback" not in text
        assert told(self.says, text), text
        assert not [facts for facts in self.lacks if told(facts, text)], text
        if self.leaves:
            assert set(self.leaves) <= place.files()
        else:
            assert place.files() == was
