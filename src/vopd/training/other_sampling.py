"""The rollout engine borrowed: completions by an evaluation's settings from the student as it is, without a trace.

With ``trl_adapter`` the only module that touches TRL's own attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from vopd.evaluation.benchmarks import Protocol

# Of a rollout's generation configuration what an evaluation keeps: which tokens there are, and how to run.
_KEPT = (
    "eos_token_id", "pad_token_id", "bos_token_id", "suppress_tokens", "cache_implementation", "disable_compile",
)  # fmt: skip
_KEPT_BY_VLLM = ("stop_token_ids", "logit_bias")


def draw(trainer: Any, prompt_ids: Sequence[Sequence[int]], protocol: Protocol, seed: int) -> list[list[int]]:
    """One completion of each prompt, as ids, by the engine that the rollouts come from.

    Modes, settings and random states of this process are afterwards what they were: training goes on as if nothing had
    been drawn. The state of another process's engine (a vLLM server) is its own.

    Args:
        trainer: a TRLAdapter.
        prompt_ids: as many on every process, which must all call this as often: an engine may gather them.
        protocol: temperature, top_p, top_k and max_new_tokens.
        seed: of the draws, where the engine is in this process.
    """
    with _settings(trainer, protocol), _evaluation_mode(trainer.model), _own_random_state(trainer, seed):
        return [list(ids) for ids in trainer._generate_single_turn([list(ids) for ids in prompt_ids], None, {})]


@contextmanager
def _settings(trainer: Any, protocol: Protocol) -> Iterator[None]:
    shaping = {"temperature": protocol.temperature, "top_p": protocol.top_p, "top_k": protocol.top_k}
    with ExitStack() as changes:
        if trainer.use_vllm:
            engine = trainer.vllm_generation
            kept = {name: value for name, value in (engine.generation_kwargs or {}).items() if name in _KEPT_BY_VLLM}
            changes.enter_context(
                _replaced(
                    engine,
                    **shaping,
                    min_p=None,
                    repetition_penalty=1.0,
                    max_completion_length=protocol.max_new_tokens,
                    structured_outputs_regex=None,
                    generation_kwargs=kept,
                )
            )
            changes.enter_context(_replaced(trainer, _rollout_logprobs=trainer._rollout_logprobs))
        else:
            before = trainer.generation_config
            kept = {name: getattr(before, name, None) for name in _KEPT}
            config = type(before)(do_sample=True, max_new_tokens=protocol.max_new_tokens, **shaping, **kept)
            changes.enter_context(_replaced(trainer, generation_config=config, generation_kwargs={}))
        yield


@contextmanager
def _replaced(holder: Any, **values: Any) -> Iterator[None]:
    """Attributes of `holder` as given; afterwards as they were, or absent where they were."""
    before = {name: getattr(holder, name) for name in values if hasattr(holder, name)}
    try:
        for name, value in values.items():
            setattr(holder, name, value)
        yield
    finally:
        for name in values:
            if name in before:
                setattr(holder, name, before[name])
            else:
                delattr(holder, name)


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _own_random_state(trainer: Any, seed: int) -> Iterator[None]:
    device = trainer.accelerator.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
