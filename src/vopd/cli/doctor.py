"""Show versions, extras, devices, the backend of each estimator, and the environment. Needs only the core install.

With --teacher URL, check a teacher server instead: what it serves, its vocabulary, determinism and temperature
handling, whether it gives scores or hidden states, their bytes per token, and the estimators that can use them.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vopd.errors import ConfigurationError, Faults, counted
from vopd.folders import check_writable, nearest_existing
from vopd.run.options import read_options, setting
from vopd.versions import versions

if TYPE_CHECKING:
    from vopd.models import CommonVocabulary
    from vopd.teachers.server import ServedModel
    from vopd.teachers.server.questions import Question

# Packages whose names a user sees in errors or tables of results.
_PACKAGES = (
    "torch", "transformers", "trl", "accelerate", "peft", "datasets", "safetensors", "reasoning-gym", "math-verify",
    "triton", "vllm", "deepspeed", "httpx", "matplotlib", "rich", "trackio", "wandb", "tensorboard",
)  # fmt: skip
_GIB = 1 << 30
# Numbers of most likely tokens to request from a server, until it accepts one.
_TOP_K = (20, 5, 1)
# Ids that every tokenizer can decode; the server continues them.
_PROMPT = tuple(range(20, 36))


@dataclass
class DoctorOptions:
    """The options of `vopd doctor`."""

    output_dir: str = setting("runs", "folder whose free disk space is shown: the parent folder of all runs")
    teacher: str | None = setting(None, "address of a teacher server to check, such as http://localhost:8001")
    teacher_server_model: str | None = setting(None, "the teacher's name on a server with several models")
    teacher_server_key_env: str = setting("TEACHER_API_KEY", "environment variable with the server's API key")
    teacher_model: str | None = setting(None, "the teacher's folder or hub id, whose output head is checked")
    model: str | None = setting(None, "student: folder or hub id; compare its vocabulary with the server's")
    temperature: float = setting(1.0, "temperature of the rollouts; check whether the server scores at it")


def run(arguments: Sequence[str]) -> int:
    """Run `vopd doctor` with these arguments and return its exit code."""
    options = read_options(DoctorOptions, "doctor", __doc__, arguments)
    if options.teacher is not None:
        print("\n".join(_teacher(options, options.teacher)))
        return 0
    for name in ("model", "teacher_model", "teacher_server_model"):
        if getattr(options, name) is not None:
            raise ConfigurationError(f"{name} has no effect without teacher; give the address of a server to check")
    sections = {
        "versions": _versions(),
        "extras": _extras(),
        "devices": _devices(),
        "estimators": _estimators(),
        "environment": _environment(options.output_dir),
    }
    print("\n\n".join("\n  ".join([f"{title}:", *lines]) for title, lines in sections.items()))
    return 0


def missing_of_extras() -> dict[str, list[str]]:
    """Return, for each extra of vopd, its packages that are not installed."""
    missing: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("vopd") or []:
        found = re.match(r"([A-Za-z0-9_.-]+).*;.*extra\s*==\s*['\"](\w+)['\"]", requirement)
        if found is not None and found[1] != "vopd":
            package, extra = found.groups()
            missing.setdefault(extra, []).extend([] if package in versions(package) else [package])
    return missing


def _versions() -> list[str]:
    found = versions(*_PACKAGES)
    rows = {"vopd": found["vopd"], "python": platform.python_version()}
    rows |= {package: found.get(package, "not installed") for package in _PACKAGES}
    return [f"{name:<14}{version}" for name, version in rows.items()]


def _extras() -> list[str]:
    try:
        extras = missing_of_extras()
    except importlib.metadata.PackageNotFoundError:
        return ["unknown: vopd runs from its sources without being installed"]
    extras.pop("all", None)  # all others together
    return [
        f"{name:<14}{'missing ' + ', '.join(lacking) if lacking else 'complete'}" for name, lacking in extras.items()
    ]


def _devices() -> list[str]:
    import torch

    lines = [f"CPU: {counted(os.cpu_count() or 1, 'core')}, torch uses {counted(torch.get_num_threads(), 'thread')}"]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        lines.append(f"GPU {index}: {found.name}, {found.total_memory / _GIB:.0f} GiB, {half}")
    if torch.cuda.device_count() == 0:
        lines.append("no CUDA device: training works for small models, but slowly")
    return lines


def _estimators() -> list[str]:
    import torch

    from vopd import ESTIMATORS
    from vopd.kernels import backend_name

    kind, called = ("cuda", "GPU") if torch.cuda.is_available() else ("cpu", "CPU")
    where = f"{backend_name('auto', torch.device(kind))} on the {called}"
    rows = [
        f"{name:<28}{estimator.need:<9}{'unbiased' if estimator.unbiased else 'biased':<8}  {where}"
        for name, estimator in ESTIMATORS.items()
    ]
    return [f"{'name':<28}{'needs':<9}{'gradient':<8}  backend", *rows]


def _environment(output_dir: str) -> list[str]:
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}
    folder, writable = nearest_existing(Path(output_dir)), Faults()
    writable.check(check_writable, output_dir)
    return [
        f"Hugging Face Hub: {'offline (HF_HUB_OFFLINE)' if offline else 'online'}, telemetry off",
        # Whether it is set, never the token itself.
        f"hub token: {'set' if os.environ.get('HF_TOKEN') else 'not set in HF_TOKEN'}",
        f"free disk space for runs in {folder}: {shutil.disk_usage(folder).free / _GIB:.0f} GiB",
        *map(str, writable.found),
    ]


def _teacher(options: DoctorOptions, address: str) -> list[str]:
    """Check a teacher server: what it provides, and the estimators that can use it.

    Raises:
        TeacherServerError: no server responds, or it neither scores texts nor gives hidden states.
        MismatchError: its vocabulary differs from the student's, or its states do not fit the head of teacher_model.
    """
    from vopd.models import load_tokenizer
    from vopd.teachers.server import Patience, Servers
    from vopd.teachers.server.discovery import find_model, pooling_servers
    from vopd.teachers.server.preflight import compare_ids
    from vopd.teachers.server.same_distribution import text_of

    servers = Servers(address, key_env=options.teacher_server_key_env, patience=Patience(retries=1, deadline=120.0))
    tokenizer = None if options.model is None else load_tokenizer(options.model)
    prompt = _PROMPT if tokenizer is None else tokenizer("State the result: 1 + 1 =")["input_ids"]
    found = find_model(servers, options.teacher_server_model)
    model, same_ids = compare_ids(found.model, tokenizer)
    widths, _ = pooling_servers(model, text_of(prompt, model))
    ((url,), length) = servers.urls, f", sequences of up to {found.length} tokens" if found.length else ""
    lines = [
        f"{url} serves {model.name} ({model.engine.name}){length}",
        f"vocabulary: {_vocabulary(same_ids.get(url), tokenizer is not None)}",
    ]
    if widths:
        lines += _states(options, model, widths[url], text_of(prompt, model), found.path)
    else:
        lines += _scores(options, model, prompt)
    servers.close()
    return lines


def _states(options: DoctorOptions, model: ServedModel, width: int, text: Question, path: str | None) -> list[str]:
    """What a server of hidden states provides; with teacher_model, its head is checked."""
    import torch

    from vopd.estimators import ESTIMATORS
    from vopd.models import described_head
    from vopd.models.head_files import load_head
    from vopd.teachers.server.connect import check_width
    from vopd.teachers.server.preflight import by_states, measured
    from vopd.teachers.server.questions import StatesQuestion
    from vopd.teachers.server.same_distribution import check_distribution

    received = model.servers.counts["bytes_received"]
    model.states(StatesQuestion(text.ids, text.start, width=width))
    per_token = (model.servers.counts["bytes_received"] - received) / len(text.ids)
    lines = [
        f"gives hidden states of width {width}: {per_token:,.0f} bytes per token of prompt and completion, "
        "whatever the vocabulary; with the teacher's output head they give its full distribution",
        f"every estimator works, at any temperature: {', '.join(ESTIMATORS)}",
    ]
    if options.teacher_model is None:
        own = f" (the server lists {path})" if path else ""
        return [*lines, f"output head: not checked; name the teacher's folder or hub id with --teacher_model{own}"]
    head = load_head(options.teacher_model)
    check_width(head, {model.servers.urls[0]: width}, options.teacher_model)
    known = replace(model, vocab_size=model.vocab_size or len(head.weight))
    found = measured(known, text, by_states(head, torch.float32))
    (repeat,) = found.repeats.values()
    scoring = model.servers if model.engine.states_with_scores else model.servers.only(())
    return [
        *lines,
        f"output head of {options.teacher_model}: {described_head(head)} in the student's process",
        f"scores repeat to within {repeat.max():.2g} nats/token",
        check_distribution(found, options.teacher_model, None, replace(model, servers=scoring)),
    ]


def _scores(options: DoctorOptions, model: ServedModel, prompt: Sequence[int]) -> list[str]:
    """The scores that a server provides, each tried with a request, and the estimators that can use them."""
    from vopd.estimators import ESTIMATORS
    from vopd.teachers.server.preflight import by_scores, measured, most_top_k, refusal_of_chosen, untempered, written

    text, _ = written(model, prompt)
    found = measured(model, text, by_scores)
    began = time.perf_counter()
    model.score(text)
    seconds = time.perf_counter() - began
    top_k, _ = most_top_k(found, _TOP_K)
    received = model.servers.counts["bytes_received"]
    model.score(replace(text, top_k=top_k))
    per_token = (model.servers.counts["bytes_received"] - received) / len(text.ids)
    refusal = refusal_of_chosen(found)
    gives = {"sampled": True, "top_k": top_k > 0, "chosen": not refusal, "full": False}
    temperature = options.temperature
    applied = not untempered(found, temperature)
    (repeat,) = found.repeats.values()
    lines = [
        f"scores repeat to within {repeat.max():.2g} nats/token; one request took {seconds * 1000:.0f} ms",
        f"temperature {temperature:g}: {_temperature(temperature, applied)}",
        "scores that it provides:",
        "  sampled  yes: the score of each sampled token",
        f"  top_k    {_top_k(top_k)}, {per_token:,.0f} bytes per token",
        f"  chosen   {'no: ' + refusal if refusal else 'yes: scores of ids that the student chooses'}",
        f"  full     no: start the server for hidden states instead: {model.engine.start_states}",
        "estimators that can use them:",
    ]
    for name, estimator in ESTIMATORS.items():
        need = estimator.need
        # Scores of chosen ids are always at temperature 1; an estimator that needs no normalizer can divide them by it.
        at_one = temperature != 1 and estimator.needs.full_teacher if need == "chosen" else not applied
        usable = "no, needs temperature 1" if at_one else "yes"
        lines.append(f"  {name:<28}" + (usable if gives[need] else f"no, needs {need}"))
    return lines


def _vocabulary(same_ids: CommonVocabulary | None, compared: bool) -> str:
    if not compared:
        return "not compared; name the student with --model"
    if same_ids is None:
        return (
            "not compared, because the server has no /detokenize; in training, set teacher_model to compare tokenizers"
        )
    return f"compared with the student's, {same_ids}"


def _temperature(temperature: float, applied: bool) -> str:
    if temperature == 1:
        return "supported by every server; check another one with --temperature"
    from vopd.teachers.server.settings import use_unnormalised

    return (
        "applied" if applied else f"ignored, the server always scores at 1; set temperature=1, or {use_unnormalised()}"
    )


def _top_k(top_k: int) -> str:
    if top_k == 0:
        return f"no: the server refuses prompt_logprobs above 0; start it with --max-logprobs {_TOP_K[0]}"
    more = " (more with --max-logprobs)" if top_k == _TOP_K[0] else ""
    return f"yes: the teacher's most likely tokens, loss_top_k up to {top_k} checked{more}"
