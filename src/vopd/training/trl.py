"""The only module that touches TRL.

TRL's ``DistillationTrainer`` brings generation (transformers or vLLM), the buffer of one generation batch for all
micro-batches of a step, and forward redirection for DDP, FSDP and DeepSpeed. Its hooks are private and move between
minor versions, so the tested range is narrow, is checked at import, and every override of a hook is in this file.
``TRLAdapter`` turns the hooks into a few named extension points that know nothing of TRL.
"""

from __future__ import annotations

import inspect
import time
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from vopd.errors import ConfigurationError, MismatchError, require
from vopd.evaluation.benchmarks import Protocol
from vopd.models import read_head
from vopd.teachers import Rollouts, States, Teacher

from . import other_sampling
from .batch import MicroBatch, loss_mask, rollouts_of, sequence, student_sequence
from .rollout_logprobs import check_completions, own_generation_config, padded, sampled_logprobs

TESTED_TRL = ("1.16", "1.17")


def check_trl_version(version: str) -> None:
    """Raises ConfigurationError unless `version` of TRL is one whose private hooks this module was tested with."""
    from packaging.version import Version  # which comes with trl

    low, high = TESTED_TRL
    if not Version(low) <= Version(version) < Version(high):
        raise ConfigurationError(
            f"vopd is tested with trl >= {low}, < {high}, but trl {version} is installed; "
            f"install it with pip install 'trl>={low},<{high}'"
        )


check_trl_version(require("trl", "train").__version__)

from accelerate.utils import is_peft_model  # noqa: E402
from jinja2.exceptions import TemplateError  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402
from trl import DistillationConfig, DistillationTrainer  # noqa: E402
from trl.models import prepare_deepspeed  # noqa: E402
from trl.trainer.utils import create_model_from_path  # noqa: E402

__all__ = ["DistillationConfig", "TRLAdapter"]


class TRLAdapter(DistillationTrainer):
    """DistillationTrainer with any ``Teacher``, exact positions, and these extension points: ``token_loss``,
    ``rows_drawn``, ``rollout_done``, ``rows_settled``, ``scoring_done``, ``loss_ready``, ``gradient_ready``,
    ``step_metrics``, ``checkpoint_loaded``, ``prompt_sampler``.
    """

    teacher: Teacher

    # ---- extension points -------------------------------------------------------------------------------------

    @abstractmethod
    def token_loss(self, batch: MicroBatch, normalizer: Any) -> tuple[Tensor, Tensor]:
        """Loss of one micro-batch (scalar, with gradient) and its summed entropy. No collectives in here."""

    @abstractmethod
    def rows_drawn(self, rows: list[dict[str, Any]], batch: dict[str, Any]) -> None:
        """Called first with the data set's rows and the batch generated from them: puts what teachers need into it.

        A tensor with one entry a sequence stays with its sequence when the batch is shuffled and split.
        """

    @abstractmethod
    def rollout_done(self, rows: list[dict[str, Any]], batch: dict[str, Any], seconds: float) -> None:
        """Called with the same once the teachers have begun."""

    @abstractmethod
    def rows_settled(self, dropped: int, rows: int) -> None:
        """Called where a teacher may leave rows without scores: how many of an optimizer step's, over all ranks."""

    @abstractmethod
    def scoring_done(self, seconds: float) -> None:
        """Called with the time that a micro-batch waited for its teachers."""

    @abstractmethod
    def loss_ready(self, loss: Tensor) -> None:
        """Called with the loss of every micro-batch of a training step, outside the wrapped forward."""

    @abstractmethod
    def gradient_ready(self, grad_norm: Any) -> None:
        """Called once an optimizer step, after accumulation and before the step is taken."""

    @abstractmethod
    def step_metrics(self, mode: str) -> dict[str, float]:
        """Metrics gathered since the last call, added to the log on every rank. `mode` is "train" or "eval"."""

    @abstractmethod
    def checkpoint_loaded(self, checkpoint: str) -> None:
        """Called when a run resumes, with the folder that it resumes from."""

    @abstractmethod
    def prompt_sampler(self, num_prompts: int) -> Sampler[int]:
        """Order of the prompts: every generation batch once for each of its micro-batches."""

    # ---- the teacher ------------------------------------------------------------------------------------------

    def load_teacher(self, teacher: str | PreTrainedModel, revision: str | None = None) -> PreTrainedModel:
        """The teacher on the host, frozen and in eval mode. A path is loaded in the dtype it was saved in."""
        if not isinstance(teacher, str):
            if self.args.teacher_model_init_kwargs is not None:
                raise ConfigurationError(
                    "teacher_model_init_kwargs means nothing when teacher_model is a model already; "
                    "remove it or pass the teacher's path"
                )
            return teacher
        kwargs = {"dtype": "auto", "trust_remote_code": self.args.trust_remote_code}
        kwargs |= self.args.teacher_model_init_kwargs or {}
        if revision is not None:
            kwargs.setdefault("revision", revision)
        if self.args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            kwargs["device_map"] = None
        try:
            return create_model_from_path(teacher, **kwargs)
        except (OSError, ValueError) as error:
            raise MismatchError(f"the teacher {teacher!r} cannot be loaded: {error}") from error

    def prepared_teacher(self, teacher: PreTrainedModel) -> Any:
        """The teacher frozen and placed as the student's backend wants, for ``teacher_states``.

        TRL's own ``__init__`` was given None: it refuses a teacher whose head has another number of rows.
        """
        teacher.requires_grad_(False)
        teacher.eval()
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(teacher, self.accelerator)
        return self.accelerator.prepare_model(teacher, evaluation_mode=True)

    @torch.no_grad()
    def teacher_states(self, model: Any, rollouts: Rollouts) -> States:
        """States of a prepared teacher, through its own wrapper so that sharded parameters are gathered."""
        teacher = self.accelerator.unwrap_model(model)
        model.eval()
        inputs = sequence(rollouts)
        hidden = self._forward_redirection(model, teacher, self._get_last_hidden_state, teacher, *inputs)
        head = read_head(teacher, "teacher").detach().map(_gathered)
        return States(_as_autocast(hidden), head.map(_as_autocast))

    def inner_states(self, model: Any, rollouts: Rollouts) -> States:
        """States of the unwrapped student, from within its wrapper's forward."""
        hidden = self._get_last_hidden_state(model, *sequence(rollouts))
        head = read_head(model, "student").detach().map(_gathered)
        return States(_as_autocast(hidden), head.map(_as_autocast))

    # ---- what the method may know of TRL's state ----------------------------------------------------------------

    @property
    def generation_batch_size(self) -> int:
        """Completions of one optimizer step over all ranks: TRL generates for all its micro-batches at once."""
        args = self.args
        return int(args.per_device_train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps)

    @property
    def micro_batches(self) -> list[dict[str, Any]]:
        """This rank's micro-batches of the current optimizer step, in the order they are trained on."""
        return self._buffered_inputs

    @property
    def micro_batch(self) -> dict[str, Any]:
        """The one that is being trained on."""
        return self._buffered_inputs[self._step % self.args.gradient_accumulation_steps]

    def tokenize(self, prompts: list[Any]) -> list[list[int]]:
        """Token ids of prompts exactly as the rollout will see them."""
        try:
            return self._tokenize_prompts(prompts)[0]
        except (ValueError, TypeError, TemplateError) as error:
            raise MismatchError(f"the student's tokenizer cannot encode the prompts: {error}") from error

    @property
    def tokenizer(self) -> Any:
        """The student's tokenizer."""
        return self._tokenizer

    def draw(self, prompt_ids: Sequence[Sequence[int]], protocol: Protocol, seed: int) -> list[list[int]]:
        """One completion of each prompt, as ids, by the engine that the rollouts come from, and without a trace."""
        return other_sampling.draw(self, prompt_ids, protocol, seed)

    def refuse_processors(self) -> None:
        """Raises ConfigurationError for a vision-language student: the loss would not see its images."""
        if self._is_vlm:
            raise ConfigurationError(
                "vision-language models are not supported; to train one on text alone pass its tokenizer as "
                "processing_class"
            )

    def sample_only(self, vocab_size: int, rows: int) -> None:
        """Never sample the head rows past `vocab_size`: they stand for no text, and the loss gives them no mass."""
        tail = list(range(vocab_size, rows))
        if not tail:
            return
        self.generation_config.suppress_tokens = sorted({*(self.generation_config.suppress_tokens or ()), *tail})
        if self.use_vllm and self.vllm_mode == "colocate":  # a server's JSON would turn the ids into texts
            sampling = self.vllm_generation.generation_kwargs or {}
            bias = dict.fromkeys(tail, -100.0) | (sampling.get("logit_bias") or {})
            self.vllm_generation.generation_kwargs = {**sampling, "logit_bias": bias}

    @torch.no_grad()
    def probe(self, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        """Logits (N, V) and hidden states (N, H) of a few fixed tokens: two ways to the same distribution."""
        ids = torch.arange(5, device=model.get_output_embeddings().weight.device).unsqueeze(0)
        training = model.training
        model.eval()
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, 1:-1]
        hidden = self._get_last_hidden_state(model, ids, torch.ones_like(ids), ids.size(1) - 2)[0]
        model.train(training)
        return logits, hidden

    def prepare_rollouts(self) -> None:
        """Let vLLM report the log-probability of every sampled token, and stop where ``generate`` would.

        vLLM knows the end tokens of the files on disk; those that the student was given since are passed on.
        """
        self._next_row = 0
        self._rollout_logprobs: list[list[float]] | None = None
        if not self.use_vllm:
            return
        engine = self.vllm_generation
        engine.generation_kwargs = {"stop_token_ids": list(self.eos_token_ids), **(engine.generation_kwargs or {})}
        if self.tools:  # which put completions together from several calls
            return
        engine.logprobs = 0  # the sampled token's alone
        generate = engine.generate

        def recording(*args: Any, **kwargs: Any) -> Any:
            found = generate(*args, **kwargs)
            self._rollout_logprobs = sampled_logprobs(*found[1:])
            return found

        engine.generate = recording

    # ---- TRL's hooks ------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return self.prompt_sampler(len(self.train_dataset if dataset is None else dataset))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.checkpoint_loaded(checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers would take one more step before it sees that a resumed run had taken its last one.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> list[list[int]]:
        model = self.accelerator.unwrap_model(self.model_wrapped)
        with own_generation_config(model, self.generation_config), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TRL calls what transformers renamed
            completions = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        check_completions(prompt_ids, completions)
        return completions

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        started = time.perf_counter()
        batch = super()._generate_and_score_completions(inputs)
        if self._rollout_logprobs is not None:
            batch["rollout_logprobs"] = padded(self._rollout_logprobs, batch["completion_ids"])
            self._rollout_logprobs = None
        # TRL shuffles the rows before it trains on them.
        count, device = len(batch["completion_ids"]), batch["completion_ids"].device
        batch["rollout_rows"] = torch.arange(self._next_row, self._next_row + count, device=device)
        self._next_row += count
        self.rows_drawn(inputs, batch)
        self.teacher.begin(rollouts_of(batch))
        self.rollout_done(inputs, batch, time.perf_counter() - started)
        return batch

    def _get_last_hidden_state(
        self, unwrapped_model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int
    ) -> Tensor:
        """Hidden states (B, logits_to_keep, H) that predict the last `logits_to_keep` tokens.

        Position ids are counted from the first token that is not padding, as ``generate`` counts them. TRL leaves
        them out, so a model with absolute positions would score a left-padded prompt at other positions than it
        was continued at.
        """
        model = unwrapped_model.base_model.model if is_peft_model(unwrapped_model) else unwrapped_model
        backbone = model.base_model
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if "position_ids" in inspect.signature(backbone.forward).parameters:
            inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        hidden = backbone(**inputs).last_hidden_state
        return hidden[:, -1 - logits_to_keep : -1]

    def _compute_loss(
        self, unwrapped_student: Any, inputs: dict[str, Any], num_items_in_batch: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, summed entropy and token count of a micro-batch. Runs inside the student wrapper's forward."""
        # accelerate puts autocast around a model's forward, which the redirection to this method leaves out: without
        # it the student would be trained in float32 on what it sampled in bf16.
        with self.accelerator.autocast():
            batch = self._both_forward(unwrapped_student, inputs)
        loss, entropy = self.token_loss(batch, num_items_in_batch)
        return loss, entropy.detach(), batch.loss_mask.sum()

    def _both_forward(self, student: Any, inputs: dict[str, Any]) -> MicroBatch:
        """The student's forward pass over prompts and completions, and the teachers' scores."""
        rollouts = rollouts_of(inputs)
        hidden = self._get_last_hidden_state(student, *student_sequence(inputs))
        head = read_head(student, "student").map(_gathered)
        device = head.device  # a model split over devices can end on another one than its head
        states = States(_as_autocast(hidden.to(device)), head.map(_as_autocast))
        _synchronize(self.accelerator.device)
        started = time.perf_counter()
        scored = self.teacher.score(rollouts, states)
        _synchronize(self.accelerator.device)
        self.scoring_done(time.perf_counter() - started)
        return MicroBatch(
            student=states,
            scored=scored,
            completion_ids=inputs["completion_ids"].to(device),
            loss_mask=rollouts.loss_mask.to(device),
            rollout_logprobs=inputs["rollout_logprobs"].to(device) if "rollout_logprobs" in inputs else None,
            inputs=inputs,
        )

    def _settle(self, inputs: dict[str, Any]) -> None:
        """Take the rows that no teacher scored out of the loss and out of its normaliser, over all ranks."""
        if "scored_rows" in inputs:
            return
        batches = self._buffered_inputs if self.model.training and self._buffered_inputs else [inputs]
        counts = torch.zeros(3, dtype=torch.long, device=self.accelerator.device)
        for batch in batches:
            scored = self.teacher.settle(rollouts_of(batch))
            if scored is None:
                return
            batch["scored_rows"] = scored = scored.to(counts.device)
            counts += torch.stack([loss_mask(batch).sum(), (~scored).sum(), torch.ones_like(scored).sum()])
        tokens, dropped, rows = self.accelerator.reduce(counts, reduction="sum")
        for batch in batches:
            batch["num_items_in_batch"] = tokens
        self.rows_settled(int(dropped), int(rows))

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self._settle(inputs)
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if self.model.training:
            self.loss_ready(loss.detach())
        return (loss, None) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.gradient_ready(grad_norm)
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        self._metrics[mode].clear()  # TRL's own, averaged over micro-batches whatever their length
        prefix = "" if mode == "train" else "eval_"
        logs.update({prefix + name: value for name, value in self.step_metrics(mode).items()})
        super().log(logs, start_time)

    def log_alone(self, logs: dict[str, float]) -> None:
        """Log `logs` and nothing of what was gathered for the next log of a step, which still comes where it is due."""
        due = self.control.should_log
        super(DistillationTrainer, self).log(logs)
        self.control.should_log = due

    def _send_telemetry(self) -> None:
        if self.args.telemetry:
            super()._send_telemetry()


def _gathered(weight: Tensor) -> Tensor:
    """All of a head's weight or bias on this rank, gathered once a micro-batch where FSDP sharded it."""
    return weight.full_tensor() if isinstance(weight, torch.distributed.tensor.DTensor) else weight


def _as_autocast(tensor: Tensor) -> Tensor:
    """Under autocast the dtype a linear head would compute in, so the loss sees the logits that were sampled from."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
