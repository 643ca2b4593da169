"""On-policy distillation: the student samples, the teacher scores each token, an estimator computes the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from vopd.data.prompt_checks import check_enough, check_no_stream, check_room, each, keep_short
from vopd.data.prompts import settled, with_ids
from vopd.errors import ConfigurationError, Faults, GuardError, MismatchError, TeacherServerError
from vopd.folders import check_model_folder, check_writable, new_folder
from vopd.kernels import backend_name
from vopd.models import States
from vopd.models.generation import allow_saving
from vopd.models.head_checks import disable_dropout
from vopd.models.undisturbed import replaced
from vopd.placement import head_rows
from vopd.teachers import Scored
from vopd.teachers.build import check_sources, set_up_teachers, sources
from vopd.teachers.columns import Routes, TeacherPrompts, check_readers
from vopd.teachers.itself import check_worth, is_self

from .batch import Batch
from .config import VOPDConfig
from .inherited import check_evaluated, own_errors
from .monitoring.benchmark_runs import BenchmarkRuns, load_benchmarks
from .monitoring.clock import StepClock
from .monitoring.dropped_rows import DroppedRows
from .monitoring.finite import FiniteGuard
from .monitoring.first_lines import first_lines, start_of
from .monitoring.guards import GuardWatch
from .monitoring.head_check import HeadCheck
from .monitoring.metrics import Averages, add_completion_metrics, add_token_metrics, with_old_names
from .monitoring.progress import Progress
from .monitoring.rounding import RoundedUpdates
from .monitoring.samples import SampleBuffer, sample_table
from .monitoring.step_end import StepEnd
from .monitoring.stopping import Stopping
from .objective import Objective, combined, own_mask
from .prompt_order import PromptOrder
from .rewards.functions import Rewards
from .rollout_logprobs import RolloutDifference, check_engine
from .saving.card import card_facts, write_card, writes_card
from .saving.checkpoints import Checkpoints, clear_save_errors
from .saving.contents import Given
from .saving.logs import RunLog
from .saving.schedule import asked_rates
from .trl import TRLAdapter


class VOPDTrainer(TRLAdapter):
    """Trains a student to match a teacher on the student's own samples.

    Follows TRL's conventions: arguments, dataset format (a column "prompt" with texts or chat messages), callbacks,
    multi-GPU training through accelerate. Writes metrics.jsonl and samples.jsonl into args.output_dir; models are saved
    as safetensors.

    Args:
        model: the student: a path or hub id, or a causal language model, with or without LoRA.
        teacher_model: the same, with the student's vocabulary; hidden size and head rows may differ. Never trained. Or
            the student itself: "self:frozen" as it was before training, "self:base" without its adapter,
            "self:average" as a moving average (args.teacher_decay).
        args: a VOPDConfig.
        train_dataset: the prompts.
        eval_dataset: prompts to measure the same loss and metrics on.
        processing_class: the student's tokenizer; default: the one next to the model.
        reward_funcs: rewards added to the teacher's signal: a name ("math", "choice", "reasoning_gym",
            "module:function"), a callable with TRL's signature, or several; needs args.num_generations of 2 or more.
        teachers: several teachers by name; each row names one in the column args.teacher_column. teacher_model is then
            the teacher of rows without a name. One behind a server is its URL, or {"server_url": URL, "model": PATH}.
        callbacks, optimizers, quantization_config, peft_config, tools: as in ``trl.DistillationTrainer``.

    Raises:
        ConfigurationError, DataError, MismatchError: before training starts; the message names the fix.
        NonFiniteError: from ``train``, before an optimizer step with a non-finite loss or gradient.
    """

    card_tags: ClassVar[list[str]] = ["vopd", "trl", "on-policy-distillation"]
    _tag_names = card_tags
    _name = "vopd"

    args: VOPDConfig
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self,
        model: Any,
        teacher_model: Any = None,
        args: VOPDConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: list[Callable[..., Any]] | None = None,
        reward_funcs: Any = None,
        teachers: dict[str, Any] | None = None,
    ) -> None:
        args = VOPDConfig() if args is None else args
        if not isinstance(args, VOPDConfig):
            raise ConfigurationError(f"args must be a VOPDConfig, not {type(args).__name__}")
        self.sources = given = sources(teacher_model, teachers, args.teacher_server_url)
        self.rewards = Rewards.of(args, reward_funcs)
        self._routes = Routes(list(given), args.teacher_column)
        self._teacher_prompts, self._last_turn = TeacherPrompts.of(args), args.last_assistant_turn
        faults = Faults()
        faults.check(check_writable, args.output_dir)
        faults.check(check_engine, args.use_vllm, args.importance_sampling, tools)
        faults.check(check_sources, args, given)
        faults.check(check_evaluated, args, eval_dataset)
        faults.check(check_worth, given, args.teacher_prompt_column, bool(self.rewards.names))
        for source in (model, *given.values()):
            if isinstance(source, str | Path) and not is_self(source):
                faults.check(check_model_folder, source)
        train_dataset = faults.check(self._settled, train_dataset, "train_dataset")
        eval_dataset = each(eval_dataset, partial(faults.check, self._settled))
        backend = faults.check(backend_name, args.loss_backend, args.device)
        benchmarks = faults.check(load_benchmarks, args)
        faults.tell()
        self.loss_backend, self._benchmarks = backend or "", benchmarks or []
        # Before TRL's __init__, which may log.
        self._averages = {"train": Averages(), "eval": Averages()}
        self._rollout = {"train": RolloutDifference(), "eval": RolloutDifference()}
        self._tokens = 0.0
        self.clock = StepClock()
        self.card_notes: dict[str, Any] = {}
        # Before training changes them.
        self.given = Given.of(model, given, peft_config, self.rewards.rewards)
        self.prompts_dropped = 0  # too long ones; vopd train adds those it dropped before
        with new_folder(Path(args.output_dir)) if args.should_save else nullcontext():
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                tools=tools,
            )
            self._tokenize_datasets()
            self._prepare_teacher(given)
            self._prepare_prompts()
            self._prepare_callbacks()

    # ---- setting up -------------------------------------------------------------------------------------------

    def _settled(self, dataset: Any, name: str) -> Any:
        dataset = settled(dataset, name, self._last_turn, self._teacher_prompts.column)
        for part in (self.rewards, self._routes, self._teacher_prompts):
            part.check(dataset, name)
        return dataset

    def _prepare_teacher(self, given: dict[str, Any]) -> None:
        self.teachers = set_up_teachers(self, given)
        self.teacher = self.teachers.as_one(self.placement, self.args)
        self.teacher_model = self.teachers.model
        self.vocab_size = self.teachers.vocab_size
        if self.args.disable_dropout:
            disable_dropout(self.model)
        self.sample_only(self.vocab_size, head_rows(self.model, "student"))
        if not self.placement.managed:
            self._check_head()
        self._objective = Objective(self.args, self.vocab_size, self.loss_backend)

    def _check_head(self) -> None:
        self.placement.check_head(self.model_wrapped, "student")

    def _tokenize_datasets(self) -> None:
        self.train_dataset = self._with_ids(self.train_dataset, "train_dataset")
        self.eval_dataset = each(self.eval_dataset, self._with_ids)

    def _with_ids(self, dataset: Any, name: str) -> Any:
        return with_ids(dataset, self.chat, name, self.args.teacher_prompt_column)

    def _prepare_prompts(self) -> None:
        given = len(self.train_dataset)
        self.train_dataset = keep_short(self.train_dataset, self.args.max_prompt_length)
        self.prompts_dropped = given - len(self.train_dataset)
        self._check_readable(self.train_dataset, "train_dataset")
        each(self.eval_dataset, self._check_readable)
        check_enough(len(self.train_dataset), self.args.step_prompts)

    def _check_readable(self, dataset: Any, name: str) -> None:
        positions, sizes = self.teachers.positions, self.teachers.vocab_sizes
        check_room(dataset, name, positions, self.args.max_completion_length, self.args.teacher_prompt_column)
        check_readers(dataset, name, self.tokenizer, head_rows(self.model, "student"), sizes, self._routes)

    def _prepare_callbacks(self) -> None:
        kept = self.args.samples_per_step if self.accelerator.is_main_process else 0
        self._samples = SampleBuffer(kept, self.rewards.names)
        self.order = PromptOrder(self.args)
        self.finite = FiniteGuard(self.accelerator, self.tokenizer, self.args.output_dir)
        for default in (PrinterCallback, ProgressCallback):
            self.remove_callback(default)
        self._step_end = StepEnd(self.accelerator)
        self._progress = Progress(first_lines=lambda: first_lines(self.args, start_of(self)))
        self.stopping, self.checkpoints = Stopping(self.accelerator), Checkpoints(self)
        self.dropped = DroppedRows(self.args.teacher_drop_limit, self.stopping)
        run_log = RunLog(self.args.output_dir, self._take_samples)
        watches = [self.stopping, self._step_end, self.dropped, GuardWatch(self.stopping), self.teachers.average]
        for callback in (self.order, self.clock, run_log, self._progress, *filter(None, watches)):
            self.add_callback(callback)
        if not self.placement.managed:  # whose optimizer holds the student's own weights
            self.add_callback(RoundedUpdates())
        if self.placement.managed:  # after the first lines: a checked head stays gathered until training
            self.add_callback(HeadCheck(self._check_head))
        if self._benchmarks:  # last: the log is open and the trackers have started
            self.add_callback(BenchmarkRuns(self, self._benchmarks))

    def _take_samples(self, step: int) -> list[dict[str, Any]]:
        records = self._samples.take(step, self.tokenizer, self.eos_token_ids)
        if self.args.show_samples:
            self._progress.show(sample_table(records[: self.args.show_samples], step))
        return records

    # ---- what TRL's trainer asks of the method ------------------------------------------------------------------

    def token_loss(self, batch: Batch, student: States, scored: Sequence[Scored], normalizer: Any) -> Tensor:
        training = self.model.training
        mode = "train" if training else "eval"
        if training and self.args.loss_normalizer is not None:
            normalizer = self.args.loss_normalizer / self.accelerator.num_processes
        every = self.args.metrics_every
        measures = every > 0 and (not training or self.state.global_step % every == 0)
        parts = self._objective.parts(batch, student, scored, normalizer=normalizer, diagnostics=measures)
        averages, output = self._averages[mode], combined(parts)
        for part, entry in zip(parts, scored, strict=True):
            add_token_metrics(averages, part, own_mask(entry, batch.loss_mask), entry.name)
        if batch.rollout_logprobs is not None:
            self._rollout[mode].add(averages, output.student_logprobs, batch.rollout_logprobs, batch.loss_mask)
        if training:
            self._samples.offer(batch, output)
        else:  # the mean over a batch's tokens, which an evaluation weights by their number
            averages.add("loss", output.loss.expand(batch.loss_mask.shape), batch.loss_mask)
        return output.loss

    def rows_drawn(self, rows: list[dict[str, Any]], batch: Batch) -> Batch:
        self._check_drawn(batch)
        like = batch.prompt_ids
        places = self._routes.places(rows)
        if places is not None:
            batch = replace(batch, teacher_places=torch.tensor(places))
        prompts = self._teacher_prompts.padded(rows, self.tokenize, self.generation_config.pad_token_id)
        if prompts is not None:
            ids, mask = (torch.tensor(part, dtype=like.dtype, device=like.device) for part in prompts)
            batch = replace(batch, teacher_prompt_ids=ids, teacher_prompt_mask=mask)
        return batch

    def _check_drawn(self, batch: Batch) -> None:
        """Raises MismatchError on every rank if one of them sampled an id outside the vocabulary: if only that rank
        raised it, the others would wait for it."""
        highest = (batch.completion_ids * batch.completion_mask).max().reshape(1)
        anywhere = int(self.accelerator.gather(highest).max())
        if anywhere >= self.vocab_size:
            raise MismatchError(
                f"a completion has token id {anywhere}, but student and teacher share {self.vocab_size} ids; a rollout "
                "server must serve the student's own model, and tools must not answer with other tokens"
            )

    def rollout_done(self, rows: list[dict[str, Any]], batch: Batch) -> Batch:
        mode = "train" if self.model.training else "eval"
        add_completion_metrics(self._averages[mode], batch, self.eos_token_ids)
        if mode == "train":
            self._tokens += float(batch.loss_mask.sum())
        if not self.rewards.names:
            return batch
        with self.clock.spending("reward"):
            state = self.state if mode == "train" else None
            return self.rewards.scored(rows, batch, self.tokenizer, self._averages[mode], state)

    def step_metrics(self, mode: str) -> dict[str, float]:
        averages = self._averages[mode]
        if mode == "train":
            self.clock.report(averages, self._tokens, self.accelerator.num_processes, self.accelerator.device)
            self._tokens = 0.0
            for name, count in self.teacher.metrics().items():  # summed over processes
                averages.add_total(name, count, 1 / self.accelerator.num_processes, self.accelerator.device)
        return {**with_old_names(averages.reduce(self.accelerator)), **self._rollout[mode].reduce(self.accelerator)}

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Like ``transformers.Trainer.train``; also restores the terminal after an error.

        Args:
            resume_from_checkpoint: True resumes from the newest valid checkpoint in output_dir, or starts at step 0
                if there is none; a path resumes from that checkpoint. Settings are compared with the checkpoint's:
                what would change the objective or the data is refused, other changes are told.

        Raises:
            ConfigurationError: the checkpoint is refused.
            Interrupted, Terminated: Ctrl-C or SIGTERM ended the run; a checkpoint was saved.
            GuardError: a guard ended it; a checkpoint was saved.
            TeacherServerError: a server did not score a completion, or more completions than may be dropped; a process
                that trains alone saves a checkpoint of the last step.
        """
        try:
            with self.stopping.until_done():
                start = self.checkpoints.begin(resume_from_checkpoint)
                try:
                    found = super().train(start, *args, **kwargs)
                except TeacherServerError as error:
                    if self._step_end.restored():
                        self.stopping.end(error, self.control)
                        self._save_checkpoint(self.model, None)
                    raise
                if self.stopping.late(self.state):
                    self._save_checkpoint(self.model, None)
                return found
        finally:
            self._progress.close()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As TRL's, which also takes a stream, and rows without the columns that the run needs.

        Raises:
            DataError: `eval_dataset` is one of these.
        """
        if hasattr(eval_dataset, "column_names"):
            eval_dataset = self._with_ids(self._settled(eval_dataset, "eval_dataset"), "eval_dataset")
        elif eval_dataset is not None and not isinstance(eval_dataset, str):
            check_no_stream(eval_dataset, "eval_dataset")
        return super().get_eval_dataloader(eval_dataset)

    # ---- loading and saving -------------------------------------------------------------------------------------

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with asked_rates(self.optimizer, self.lr_scheduler):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.teachers.average is not None:
            self.teachers.average.load(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Without the weights that are tied to others, which no checkpoint has."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.checkpoints.other_processes:  # transformers would repeat the random numbers of the first steps
            set_seed(self.args.seed + self.state.global_step * self.args.world_size, device_specific=True)
        else:
            super()._load_rng_state(checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.checkpoints.keep_all = isinstance(self.stopping.error, GuardError)
        self.checkpoints.whole = self.stopping.error is not None
        self.checkpoints.unplanned = self.stopping.unplanned
        self.checkpoints.save(partial(super()._save_checkpoint, model, trial), self.teachers.average)

    def _determine_best_metric(self, *given: Any, **named: Any) -> bool:
        with own_errors():  # the metric is not there, such as the exact reverse KL to a teacher on a server
            return super()._determine_best_metric(*given, **named)

    def _finalize_training(self, *given: Any, **named: Any) -> Any:
        # With a limit of 1 transformers would delete the last checkpoint, from which the run goes on, for the best one.
        with replaced(self.args, save_total_limit=None):
            return super()._finalize_training(*given, **named)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        allow_saving(self.model)
        super()._save(output_dir, state_dict)
        # A pickle that vopd and transformers never read.
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student as safetensors, with its tokenizer and a model card."""
        folder = output_dir or self.args.output_dir
        writes = writes_card(folder)  # before PEFT writes a card of its own
        # The launcher decides the format of checkpoints, which are internal calls.
        with clear_save_errors(folder), nullcontext() if _internal_call else self.placement.saved_whole():
            super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero() and hasattr(self.model, "peft_config"):
            # PEFT does not save it with the adapter, and the EOS tokens that the student was given would be lost.
            self.model.get_base_model().generation_config.save_pretrained(folder)
        if writes:
            self._write_card(folder)

    def create_model_card(self, model_name: str | None = None, **kwargs: Any) -> None:
        """Write the model card into the run directory; called by transformers with every checkpoint."""
        if writes_card(self.args.output_dir):
            self._write_card(self.args.output_dir, model_name)

    def _write_card(self, folder: str, name: str | None = None) -> None:
        if self.is_world_process_zero():
            write_card(folder, card_facts(self, name or Path(folder).name))
