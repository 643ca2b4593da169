"""What a run says of itself before its first step: processes, device, and the models in them."""

from __future__ import annotations

import os
from typing import Any

from vopd.models import device_name
from vopd.placement import Placement, described
from vopd.teachers.build import TeacherSet
from vopd.teachers.columns import DEFAULT
from vopd.teachers.local import LocalTeacher


def first_lines(placement: Placement, student: Any, teachers: TeacherSet) -> list[str]:
    """One line of the processes and one of the parameters in them.

    Args:
        placement: of the run.
        student: unwrapped, as it is trained.
        teachers: of which those in this process are told, each once.
    """
    return [_processes(placement), f"parameters: {'; '.join(_models(placement, student, teachers))}"]


def _processes(placement: Placement) -> str:
    accelerator = placement.accelerator
    count, machines = accelerator.num_processes, int(os.environ.get("GROUP_WORLD_SIZE", "1"))  # torchrun's agents
    facts = [f"processes: {count}"]
    if machines > 1:
        facts[0] += f" on {machines} machines"
    if count > 1 or placement.managed:
        facts.append(placement.launcher)
    precision = accelerator.mixed_precision
    facts.append(f"{'no' if precision == 'no' else precision} mixed precision")
    return f"{', '.join(facts)}, on {device_name(accelerator.device)}"


def _models(placement: Placement, student: Any, teachers: TeacherSet) -> list[str]:
    where = placement.accelerator.device, placement.accelerator.num_processes
    lines = [f"student {described(student, *where)}"]
    seen = set()
    for name, placed in teachers.placed.items():
        if isinstance(placed.teacher, LocalTeacher) and id(placed.teacher) not in seen:
            seen.add(id(placed.teacher))
            called = "teacher" if name == DEFAULT else f"teacher {name}"
            lines.append(f"{called} {described(placement.unwrap(placed.teacher.model), *where)}")
    return lines
