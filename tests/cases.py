"""One input of a user: what is typed, what comes of it, and what is on the disk afterwards."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from messages import told
from vopd import cli
from vopd.errors import Interrupted

RUN = (
    "train --model {S} --teacher_model {T} --dataset {p} --output_dir {out} --run_name r --use_cpu true "
    "--per_device_train_batch_size 4 --max_completion_length 8 --max_steps 2"
)


@dataclass(frozen=True)
class Place:
    """Where a case happens: a student, a teacher, four prompts, an output folder that is not there yet, another one."""

    student: Path
    teacher: Path
    prompts: Path
    out: Path
    work: Path

    def call(self, command: str) -> int:
        """The exit code of `vopd COMMAND`: RUN, {S}, {T}, {p}, {out} and {work} stand for the above."""
        names = {"S": self.student, "T": self.teacher, "p": self.prompts, "out": self.out, "work": self.work}
        words = shlex.split(command.replace("RUN", RUN))
        return cli.main(
            [re.sub(r"\{(\w+)\}", lambda found: str(names.get(found[1], found[0])), word) for word in words]
        )

    def files(self) -> set[str]:
        """All that is in the output folder, folders with a slash at the end."""
        return {f"{path.relative_to(self.out)}{'/' * path.is_dir()}" for path in self.out.rglob("*")}

    def contents(self) -> dict[str, bytes]:
        """Every file in the output folder."""
        return {str(path): path.read_bytes() for path in self.out.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Case:
    """`command` ends with exit code `code`, and a line of the output has the facts `says` ("a ... b").

    Attributes:
        also: facts of further faults, each on a line of its own; no line tells another one.
        leaves: paths that the output folder has afterwards, folders with a slash; empty: nothing at all, and every byte
            as it was if `before` left something there.
        lacks: facts that no line may have.
        before: prepares the place.
    """

    command: str
    code: int
    says: str
    leaves: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    before: Callable[[Place], object] | None = None
    also: tuple[str, ...] = ()

    def check(self, place: Place, output: Callable[[], tuple[str, str]]) -> None:
        """Run it; `output` is ``capfd.readouterr``."""
        if self.before is not None:
            self.before(place)
        was, had = place.files(), place.contents()
        output()
        code = place.call(self.command)
        text = "\n".join(output())
        assert code == self.code, text
        assert "Traceback" not in text
        assert told(self.says, text), text
        assert not [facts for facts in self.lacks if told(facts, text)], text
        faults = [line for line in text.splitlines() if line.startswith("vopd: error:")]
        assert all(told(facts, "\n".join(faults)) for facts in self.also), text
        assert len(faults) == (self.code not in (0, Interrupted.exit_code)) + len(self.also), text
        if self.leaves:
            assert set(self.leaves) <= place.files()
        else:
            assert place.files() == was and place.contents() == had
