"""Measure the gradient variance of each estimator for your student, teacher and prompts; nothing is trained.

Samples contexts (rollouts) from the student, keeps every prefix fixed, resamples every token, and splits the variance
of the gradient into the token part, which an estimator can reduce, and the context part, which only more rollouts
reduce. Ends with a verdict: which estimator to use. For a LoRA adapter the variance is that of the adapter's
gradient. The teacher may be behind a server that gives hidden states. Writes results.json and variance.png to
OUTPUT_DIR/RUN_NAME.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vopd.data.conversations import check_last_turn
from vopd.errors import ConfigurationError, DataError, Faults, check_at_least, counted, require
from vopd.run import directory
from vopd.run.options import needed, read_options, setting

if TYPE_CHECKING:
    from vopd.experiments.measure import ModelPair
    from vopd.experiments.teacher_states import StatesServer
    from vopd.teachers.server.teacher import ServerStates

_OF_SERVER = ("teacher_server_url", "teacher_server_model", "teacher_server_key_env", "teacher_server_dtype")


@dataclass
class VarianceOptions:
    """The options of `vopd variance`."""

    model: str = needed("student: folder or hub id of a model or an adapter")
    teacher_model: str = needed(
        "teacher: folder or hub id, with the student's vocabulary; with teacher_server_url only its output head is read"
    )
    dataset: str = needed("prompts: a file, pattern, folder or hub id as in vopd train, or reasoning_gym:NAME")
    dataset_split: str = setting("train", "split of a hub dataset")
    dataset_options: dict | None = setting(None, "options of a reasoning_gym task, or of datasets.load_dataset")
    prompt_template: str | None = setting(None, "prompt text, with {column} for a column of the dataset")
    chat_template: bool = setting(False, "apply the student's chat template to texts too; conversations always get it")
    thinking: bool | None = setting(None, "switch the chat template's thinking mode; default: the template's own")
    system_prompt: str | None = setting(None, "system prompt of conversations that have none of their own")
    last_assistant_turn: str = setting("drop", "a conversation's last turn by the assistant: drop or continue it")
    chat_template_kwargs: dict | None = setting(None, "further arguments of the chat template")
    estimators: list[str] | None = setting(
        None,
        "estimators to measure: names, or module:NAME for your own; default: six, from the noisiest to the exact one",
    )
    loss_top_k: int = setting(20, "k of the top-k estimators")
    contexts: int = setting(16, "number of rollouts, one per prompt; more rollouts give narrower intervals")
    resamples: int = setting(64, "number of times that each token is resampled")
    temperature: float = setting(1.0, "temperature of sampling and loss")
    max_completion_length: int = setting(512, "maximum number of tokens per rollout")
    seed: int = setting(0, "seed of rollouts, resampling and a task's problems")
    teacher_server_url: str | list[str] | None = setting(
        None, "address of a server that gives the teacher's hidden states, or several addresses"
    )
    teacher_server_model: str | None = setting(None, "the teacher's name on a server with several models")
    teacher_server_key_env: str = setting("TEACHER_API_KEY", "environment variable with the server's API key")
    teacher_server_dtype: str = setting(
        "float32", "hidden states on the way: bfloat16, float16 or float32; a measurement asks for few, once"
    )
    dtype: str = setting("float32", "dtype of the student's weights")
    device: str = setting("auto", "device: auto, cpu or cuda")
    output_dir: str = setting("runs", "parent folder of all runs")
    run_name: str | None = setting(None, "folder of this measurement inside output_dir; default: variance-MODEL")

    def __post_init__(self) -> None:
        from vopd.estimators.catalogue import SPECTRUM, find_estimators
        from vopd.teachers.server.settings import check_server

        self.estimators = self.estimators or [estimator.name for estimator in SPECTRUM]
        find_estimators(self.estimators)
        for name, least in (("contexts", 2), ("resamples", 2), ("loss_top_k", 1), ("max_completion_length", 1)):
            check_at_least(name, getattr(self, name), least)
        check_last_turn(self.last_assistant_turn)
        check_server(self.server())
        if self.temperature <= 0:
            raise ConfigurationError(f"temperature must be above 0, got {self.temperature}")

    def server(self) -> StatesServer:
        """Return the settings of the teacher's server."""
        from vopd.experiments.teacher_states import StatesServer

        return StatesServer(**{name: getattr(self, name) for name in _OF_SERVER})


def run(arguments: Sequence[str]) -> int:
    """Run `vopd variance` with these arguments and return its exit code."""
    options = read_options(VarianceOptions, "variance", __doc__, arguments)
    # Needed at the end; check now, not after minutes of measuring.
    require("matplotlib", "report")
    from vopd.reporting.variance_report import draw_variance, variance_text

    folder = directory.run_directory(options.output_dir, options.run_name, "variance", options.model)
    faults = Faults()
    faults.check(directory.check_free, folder)
    prompts = _check(options, faults)
    faults.tell()
    with directory.created(folder):
        results = measure(options, prompts)
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="ascii")
        draw_variance(results, folder / "variance.png")
    print(f"written to {folder}\n\n{variance_text(results)}")
    return 0


def _check(options: VarianceOptions, faults: Faults) -> list[list[int]]:
    """Check the models without their weights, and the prompts; returns the token ids of the prompts."""
    from vopd.data.chat import Chat
    from vopd.data.prompts import read_prompts
    from vopd.data.tokenized import prompt_ids
    from vopd.experiments.measure import check_pair

    tokenizer = check_pair(options.model, options.teacher_model, faults)
    with faults:
        found = read_prompts(
            options.dataset, split=options.dataset_split, count=options.contexts, seed=options.seed,
            options=options.dataset_options, template=options.prompt_template,
            chat=None if tokenizer is None else Chat.of(options, tokenizer),
        ).dataset  # fmt: skip
        if len(found) < 2:
            raise DataError(
                f"'{options.dataset}' has {counted(len(found), 'prompt')}; a variance over contexts needs 2 or more"
            )
        return [] if tokenizer is None else prompt_ids(found)
    return []


def measure(options: VarianceOptions, prompts: list[list[int]]) -> dict[str, Any]:
    """Return the content of results.json: settings, the context part, each estimator's parts, and the profile."""
    from vopd.estimators.catalogue import ESTIMATORS, find_estimators
    from vopd.experiments.measure import ModelPair
    from vopd.experiments.rollouts import sample_rollouts
    from vopd.experiments.teacher_states import local_states, served_states
    from vopd.experiments.variance import decompose_variance, variance_profile
    from vopd.models import best_device, described_head, device_name
    from vopd.placement import described

    models = ModelPair(options.model, options.teacher_model, teacher_dtype="auto", device=best_device(options.device))
    student, vocabulary = models.student(options.model, options.dtype), models.vocabulary
    if options.teacher_server_url is None:
        teacher, size = local_states(models.teacher), described(models.teacher, models.teacher.device)
    else:
        served = _connected(options, models, prompts)
        teacher, vocabulary = served_states(served, student.device), served.model.vocab_size or vocabulary
        size = f"on a server, its output head {described_head(served.head)}"
    sizes = f"student {described(student, student.device)}; teacher {size}"
    print(f"parameters: {sizes}, on {device_name(student.device)}", file=sys.stderr, flush=True)
    rollouts = sample_rollouts(
        student, models.tokenizer, prompts, temperature=options.temperature, seed=options.seed,
        max_new_tokens=options.max_completion_length, batch_size=16, vocab_size=vocabulary,
    )  # fmt: skip
    estimators = find_estimators(options.estimators or ())
    found = decompose_variance(
        student, teacher, rollouts, estimators=estimators, top_k=options.loss_top_k,
        resamples=options.resamples, temperature=options.temperature, vocab_size=vocabulary, seed=options.seed,
        tick=lambda name: print(f"measured {name}", file=sys.stderr, flush=True),
    )  # fmt: skip
    profile = variance_profile(student, teacher, rollouts, temperature=options.temperature, vocab_size=vocabulary)
    return {
        "settings": {**asdict(options), "contexts": len(rollouts)},
        **asdict(found),
        "profile": asdict(profile),
        "biased": [estimator.name for estimator in estimators if not estimator.unbiased],
        # A report may be written where the module of a custom estimator cannot be imported.
        "colours": {estimator.name: estimator.colour for estimator in estimators if estimator.name not in ESTIMATORS},
    }


def _connected(options: VarianceOptions, models: ModelPair, prompts: list[list[int]]) -> ServerStates:
    """The teacher on its server, which was checked.

    Raises:
        ConfigurationError: the server gives no hidden states, or takes no sequences that are as long as a rollout.
    """
    import torch

    from vopd.teachers.server.connect import Files, Pupil, connect
    from vopd.teachers.server.teacher import ServerStates

    pupil = Pupil(models.tokenizer, models.vocabulary, models.end_ids, prompts[0], torch.device(models.device))
    teacher, notes = connect(options.server(), Files(options.teacher_model), pupil)
    assert isinstance(teacher, ServerStates)  # which is what the payload of these settings is
    for note in notes:
        print(f"teacher server: {note}", file=sys.stderr, flush=True)
    longest = max(map(len, prompts))
    if teacher.positions is not None and longest + options.max_completion_length > teacher.positions:
        raise ConfigurationError(
            f"the teacher's server takes sequences of up to {teacher.positions} tokens, but a prompt has {longest} and "
            f"max_completion_length={options.max_completion_length}; lower it, or start the server with a larger "
            "--max-model-len"
        )
    return teacher
