"""The only module that imports TRL.

TRL's ``DistillationTrainer`` provides generation (transformers or vLLM) for all micro-batches of a step at once, and
forward redirection for DDP, FSDP and DeepSpeed. Its hooks are private and change between minor versions, so the
supported range is narrow and checked at import, and every override of a hook is here or in `micro_batches`.
``TRLAdapter`` turns the hooks into a few named extension points that do not depend on TRL.
"""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler

from vopd.data.chat import Chat
from vopd.data.conversations import Asked
from vopd.data.tokenized import drawn_ids
from vopd.errors import ConfigurationError, require
from vopd.evaluation.benchmarks import Protocol
from vopd.models import States, batch_seed
from vopd.models.adapters import check_mergeable, check_sendable, merged_weights, whole_weights
from vopd.models.decoding import generate
from vopd.models.files.adapter_folders import name_bases_absolutely
from vopd.models.generation import finite_probabilities, whole_head_products
from vopd.models.sampling import padding_id
from vopd.models.undisturbed import evaluating, own_generation_config, random_state, replaced
from vopd.placement import Placement, whole, whole_on
from vopd.teachers import Scored, Teacher
from vopd.versions import check_trl_version

from .agreement import repeated_rows, rollout_bias
from .batch import Batch
from .micro_batches import MicroBatchTrainer
from .models import adapters_of_quantized, check_trained, clear_errors, rollout_errors, student_loaded, teacher_of
from .monitoring.clock import StepClock
from .monitoring.dropped_rows import DroppedRows
from .monitoring.finite import FiniteGuard
from .prompt_order import PromptOrder
from .rollout_logprobs import check_completions, padded, sampled_logprobs

check_trl_version(require("trl", "train").__version__)

from accelerate.utils import is_peft_model  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402
from trl import DistillationConfig, DistillationTrainer  # noqa: E402
from trl import models as trl_models  # noqa: E402
from trl.generation.vllm_generation import VLLMGeneration  # noqa: E402

__all__ = ["DistillationConfig", "TRLAdapter"]

# What an evaluation keeps of the rollouts' generation configuration.
_KEPT = (
    "eos_token_id", "pad_token_id", "bos_token_id", "suppress_tokens", "cache_implementation", "disable_compile",
)  # fmt: skip
_KEPT_BY_VLLM = ("stop_token_ids", "logit_bias")
# TRL averages its other metrics over micro-batches regardless of their length.
_KEPT_METRICS = {"train": ("tools/", "num_tokens"), "eval": ("tools/",)}


class TRLAdapter(MicroBatchTrainer, DistillationTrainer):
    """DistillationTrainer with any ``Teacher``, exact positions, and a few extension points.

    Attributes:
        teacher: scores every batch.
        order: order of the prompts.
        clock: measures rollouts and scoring.
        finite: checks every loss and gradient before the optimizer step.
        dropped: counts rows that no teacher scored.
    """

    teacher: Teacher
    order: PromptOrder
    clock: StepClock
    finite: FiniteGuard
    dropped: DroppedRows
    _drawn_ids: list[list[int]] | None = None  # of the rows that the next rollout continues

    def __init__(self, **arguments: Any) -> None:
        with clear_errors(arguments["args"]), student_loaded(arguments) as loaded, warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")  # of PEFT's calls
            unrounded = adapters_of_quantized(loaded["model"])
            super().__init__(teacher_model=None, **loaded)
        if self._is_vlm:
            raise ConfigurationError(
                "vision-language models are not supported; to train one on text only, pass its tokenizer as "
                "processing_class"
            )
        # With TRL's own template, if tools are called: it renders what was said before as the model said it.
        self.chat = Chat.of(self.args, self.tokenizer, tools=self.tools, template=self.chat_template)
        self.chat_template_kwargs = self.chat.arguments  # for the results of tools
        check_trained(self.model)
        name_bases_absolutely(self.model)
        self.placement = Placement(self.accelerator, self._forward_redirection, trl_models)
        if not self.placement.managed:  # which may need one dtype for all weights
            for weight, own in adapters_of_quantized(self.model).items():
                weight.data = unrounded.get(weight, own).float()  # TRL rounds them to bf16, where updates are lost
        self._prepare_rollouts()

    # ---- extension points -------------------------------------------------------------------------------------

    @abstractmethod
    def token_loss(self, batch: Batch, student: States, scored: Sequence[Scored], normalizer: Any) -> Tensor:
        """Loss of one micro-batch, a scalar with gradient. Must not run collectives or synchronize with the device."""

    @abstractmethod
    def rows_drawn(self, rows: list[dict[str, Any]], batch: Batch) -> Batch:
        """The batch generated from the dataset's `rows`, with what teachers need. Called before they get the batch."""

    @abstractmethod
    def rollout_done(self, rows: list[dict[str, Any]], batch: Batch) -> Batch:
        """The same batch with its rewards. Called after teachers got the batch."""

    @abstractmethod
    def step_metrics(self, mode: str) -> dict[str, float]:
        """Metrics gathered since the last call, added to the log on every rank. `mode` is "train" or "eval"."""

    # ---- what the trainer may use of TRL's state ------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The student's tokenizer."""
        return self._tokenizer

    def tokenize(self, prompts: list[Any]) -> list[list[int]]:
        """Token ids of prompts exactly as the rollout will see them."""
        return self.chat.ids(prompts)

    def load_teacher(self, teacher: str | PreTrainedModel, revision: str | None = None) -> PreTrainedModel:
        """The teacher on the host. A path is loaded in the dtype it was saved in."""
        return teacher_of(teacher, self.args, revision, self.placement.loading_options())

    def sample_only(self, vocab_size: int, rows: int) -> None:
        """Sample only ids below `vocab_size`, and pad with one: others are no tokens, or only one model has them.

        Raises:
            ConfigurationError: on every rank, if vLLM's engine would crash with so many excluded ids.
        """
        tail, config = range(vocab_size, rows), self.generation_config
        config.suppress_tokens = sorted({*(config.suppress_tokens or ()), *tail}) or None
        config.pad_token_id = pad = padding_id(self.tokenizer, self.eos_token_ids, vocab_size)
        self._padding = {} if pad == self.tokenizer.pad_token_id else {"pad_token_id": pad}
        if tail and self.use_vllm:
            sampling = self.vllm_generation.generation_kwargs or {}
            bias = rollout_bias(self.accelerator, self.vllm_generation, self.vllm_mode, tail)
            self.vllm_generation.generation_kwargs = {**sampling, "logit_bias": bias}

    def log_alone(self, logs: dict[str, float]) -> None:
        """Log only `logs`; metrics gathered for the next log of a step are kept for it."""
        due = self.control.should_log
        super(DistillationTrainer, self).log(logs)
        self.control.should_log = due

    def evaluation_loop(self, *given: Any, metric_key_prefix: str = "eval", **named: Any) -> Any:
        """Like ``transformers.Trainer``, for ``evaluate`` and ``predict``, with the metrics of the method.

        The draws are seeded, on each process differently: the same student has the same numbers, and training is the
        same with and without. The loss is the mean over all tokens, not over batches.

        Raises:
            ConfigurationError: before training, if FSDP or DeepSpeed places the student together with its optimizer.
        """
        self.placement.check_placed(self.optimizer)
        self._metrics["eval"].clear()
        with random_state(self.accelerator.device, batch_seed(self.args.seed, self.accelerator.process_index)):
            output = super().evaluation_loop(*given, metric_key_prefix=metric_key_prefix, **named)
        found = self.step_metrics("eval").items()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found})
        return output

    # ---- rollouts -----------------------------------------------------------------------------------------------

    def _prepare_rollouts(self) -> None:
        """Let vLLM report the log-probability of every sampled token, and stop where ``generate`` would.

        vLLM reads the EOS tokens from the files on disk; those that the student was given later are passed to it.
        """
        self._next_row = 0
        self._rollout_logprobs: list[list[float]] | None = None
        if not self.use_vllm:
            return
        check_sendable(self.model)
        if not self.placement.managed:  # whose weights cannot be read one layer at a time
            check_mergeable(self.model)
        engine = self.vllm_generation
        if isinstance(engine, VLLMGeneration):
            engine.__class__ = _Engine  # TRL's trainer creates it, and takes no other class
        engine.generation_kwargs = {"stop_token_ids": list(self.eos_token_ids), **(engine.generation_kwargs or {})}
        if self.tools:  # a completion with tools consists of several calls
            return
        engine.logprobs = 0  # only that of the sampled token
        generate = engine.generate

        def recording(*args: Any, **kwargs: Any) -> Any:
            found = generate(*args, **kwargs)
            self._rollout_logprobs = sampled_logprobs(*found[1:])
            return found

        engine.generate = recording

    def draw(self, prompt_ids: Sequence[Sequence[int]], protocol: Protocol, seed: int) -> list[list[int]]:
        """Sample one completion per prompt, as ids, with an evaluation's settings and the engine of the rollouts.

        Restores modes, settings and random states of this process, so that training is not affected. An engine in
        another process (a vLLM server) has a random state of its own.

        Args:
            prompt_ids: the same number on every process; all processes must call this equally often, because an engine
                may gather the prompts.
            protocol: temperature, top_p, top_k and max_new_tokens.
            seed: sampling seed, if the engine is in this process.
        """
        with self._sampling_as(protocol), evaluating(self.model), random_state(self.accelerator.device, seed):
            return [list(ids) for ids in self._generate_single_turn([list(ids) for ids in prompt_ids], None, {})]

    @contextmanager
    def _sampling_as(self, protocol: Protocol) -> Iterator[None]:
        shaping = {"temperature": protocol.temperature, "top_p": protocol.top_p, "top_k": protocol.top_k}
        with ExitStack() as changes:
            changes.enter_context(replaced(self._tokenizer, **self._padding))
            if self.use_vllm:
                engine = self.vllm_generation
                before = engine.generation_kwargs or {}
                kept = {name: before[name] for name in _KEPT_BY_VLLM if name in before}
                own = {"min_p": None, "repetition_penalty": 1.0, "structured_outputs_regex": None}
                limit = {"max_completion_length": protocol.max_new_tokens, "generation_kwargs": kept}
                changes.enter_context(replaced(engine, **shaping, **own, **limit))
                changes.enter_context(replaced(self, _rollout_logprobs=self._rollout_logprobs))
            else:
                rollout = self.generation_config
                kept = {name: getattr(rollout, name, None) for name in _KEPT}
                config = type(rollout)(do_sample=True, max_new_tokens=protocol.max_new_tokens, **shaping, **kept)
                changes.enter_context(replaced(self, generation_config=config, generation_kwargs={}))
            yield

    # ---- TRL's hooks ------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        prompts = self.train_dataset if dataset is None else dataset
        return self.order.sampler(len(prompts), self.args.step_completions)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)  # TRL's shuffles, with persistent workers differently each time

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # An error may have ended the last epoch within a step.
        self._reading = 0
        self.finite.forget()
        # transformers would take one more step before it notices that the resumed run is complete.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        ids, self._drawn_ids = self._drawn_ids, None
        return self.tokenize(prompts) if ids is None else ids, None, {}

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> list[list[int]]:
        model = self.placement.unwrap(self.model_wrapped)
        # Sharded weights need the same number of forward passes on every rank; other settings may refer to the batch.
        plain = self.placement.managed or self.args.generation_kwargs
        decoding = nullcontext() if plain else replaced(model, generate=partial(generate, model.generate))
        configured = own_generation_config(model, self.generation_config)
        with configured, decoding, finite_probabilities(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TRL calls what transformers renamed
            with rollout_errors(self.args), whole_head_products(model):
                completions = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        check_completions(prompt_ids, completions)
        return completions

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        started = time.perf_counter()
        # Rows that a transform makes have no ids.
        self._drawn_ids = drawn_ids(inputs) or self.tokenize([Asked.of(row, row["prompt"]) for row in inputs])
        with replaced(self._tokenizer, **self._padding):
            batch = Batch.of(super()._generate_and_score_completions(inputs))
        if self._rollout_logprobs is not None:
            batch = replace(batch, rollout_logprobs=padded(self._rollout_logprobs, batch.completion_ids))
            self._rollout_logprobs = None
        count = len(batch.completion_ids)
        batch = replace(batch, rollout_rows=torch.arange(self._next_row, self._next_row + count))
        self._next_row += count
        repeated = None if self.model.training else repeated_rows(self.accelerator, count)
        batch = replace(self.rows_drawn(inputs, batch), repeated_rows=repeated)
        self.clock.spend("rollout", time.perf_counter() - started)
        with self.accelerator.autocast(), self.clock.spending("scoring", self.accelerator.device):
            self.teacher.begin(batch.rollouts)
        return self.rollout_done(inputs, batch).entries()

    def _compute_loss(self, unwrapped_student: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        """Loss of a micro-batch. Runs inside the student wrapper's forward."""
        batch = Batch.of(inputs)
        # accelerate puts autocast around a model's forward, but not around this method, to which it is redirected:
        # without autocast the student would be trained in float32 on what it sampled in bf16.
        with self.accelerator.autocast():
            student = self.placement.states(unwrapped_student, "student", batch.sequence)
            with self.clock.spending("scoring", self.accelerator.device):
                scored = self.teacher.score(batch.rollouts, student)
        batch = batch.to(student.head.device)
        # Again for the products with the head: the loss rounds its float32 weights but keeps their gradient in float32.
        # A separate context, because autocast frees its cache at the end.
        with self.accelerator.autocast():
            return self.token_loss(batch, student, scored, num_items_in_batch)

    def completions_of(self, rows: list[dict[str, Any]]) -> Batch:
        """Completions of the dataset's `rows` with their rewards, in a random order for samples.jsonl."""
        batch = Batch.of(self._generate_and_score_completions(rows))
        with self.clock.spending("scoring"):
            scored = self.teacher.settle(batch.rollouts)
        if scored is not None:
            batch = self.dropped.left_out(batch, scored, self.accelerator, counted=self.model.training)
        return replace(batch, sample_order=torch.randperm(len(batch.completion_ids)))

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As TRL's without the mean entropy, which costs two collectives and two synchronizations per micro-batch."""
        tokens = Batch.of(inputs).num_items_in_batch
        if self.model.training and tokens is not None:  # transformers counted other tokens than the completions'
            num_items_in_batch = tokens.clamp(min=1.0) / self.accelerator.num_processes
        student = self.placement.unwrap(model)
        loss = self._forward_redirection(model, student, self._compute_loss, student, inputs, num_items_in_batch)
        if self.model.training:
            self.finite.watch(loss.detach())
            if (
                self.placement.in_an_engine and self.accelerator.sync_gradients
            ):  # its backward pass takes the optimizer step
                self.finite.check(None, self.micro_batches, self.state.global_step + 1)
        return (loss, None) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if isinstance(grad_norm, Tensor):
            grad_norm = whole(grad_norm)
        self.finite.check(grad_norm, self.micro_batches, self.state.global_step + 1)
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        for name in [name for name in self._metrics[mode] if not name.startswith(_KEPT_METRICS[mode])]:
            del self._metrics[mode][name]
        if mode == "train":  # `evaluation_loop` has added those of an evaluation
            logs.update(self.step_metrics(mode))
        super().log(logs, start_time)

    def _send_telemetry(self) -> None:
        if self.args.telemetry:
            super()._send_telemetry()


class _Engine(VLLMGeneration):
    """TRL's vLLM engine, with the student's weights sent without changing the student.

    TRL merges adapters into the base and subtracts them again, so a bf16 base drifts; and it cannot send a weight that
    FSDP2 has left gathered, such as the head after an evaluation.
    """

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        adapted, gather = is_peft_model(self.model), partial(whole_on, self.accelerator.device)
        named = merged_weights(self.model, gather) if adapted else whole_weights(self.model, gather)
        yield from ((self._fix_param_name_to_vllm(name), weight) for name, weight in named)
