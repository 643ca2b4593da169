"""A stub server that answers as SGLang 0.5.23 does: the form of its answers is that of a real server of the same model,
with which ``tests/real_sglang/check_teacher.py`` compares it."""

from __future__ import annotations

from typing import Any

import torch

from teachers.stub_server import StubServer
from teachers.stub_states import states_of

# What may go wrong with scores and with states, besides what goes wrong on the way.
FAULTS_OF_SCORES = (
    "no_echo", "wrong_echo", "wrong_ids", "wrong_count", "truncated", "aborted", "null", "nan", "positive",
    "short_top_k", "twice_in_top_k", "no_top_k", "shifted_top_k", "other_sampled", "fewer_positions",
)  # fmt: skip
FAULTS_OF_STATES = (
    "no_echo", "wrong_echo", "wrong_ids", "wrong_count", "truncated", "aborted", "no_states", "empty_states",
    "null_state", "infinite_state", "wrong_width", "ragged", "flat", "too_many", "chunked",
)  # fmt: skip


class StubSGLang(StubServer):
    """Serves `model` until closed.

    Attributes:
        gives_states: whether it was started with ``--enable-return-hidden-states``.
        cached: how many of the first tokens of every prompt are in its prefix cache.
        chunk: the last tokens of a prompt that it prefills together; None for all.
        adapters: names of adapters on the first model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        gives_states: bool = True,
        cached: int = 0,
        chunk: int | None = None,
        adapters: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        self.gives_states, self.cached, self.chunk, self.adapters = gives_states, cached, chunk, adapters
        super().__init__(model, tokenizer, **options)

    def teaching(self) -> dict[str, str]:
        """Its one endpoint."""
        return {"/generate": "generate"}

    def models(self) -> dict[str, Any]:
        of_all = {"object": "model", "created": 1795834821, "owned_by": "sglang"}
        models = [
            {"id": name, **of_all, "root": name, "parent": None, "max_model_len": self.max_model_len}
            for name in self.names
        ]
        on_first = {"root": "/adapters", "parent": self.names[0], "max_model_len": None}
        return {"object": "list", "data": [*models, *({"id": name, **of_all, **on_first} for name in self.adapters)]}

    def detokenize(self, body: dict[str, Any]) -> tuple[int, Any]:
        status, answer = super().detokenize(body)
        if status != 200:
            return status, answer
        skipped = body.get("skip_special_tokens", True)
        return 200, {"text": self.tokenizer.decode(body["tokens"], skip_special_tokens=skipped)}

    def generate(self, body: dict[str, Any], fault: str | None) -> tuple[int, Any]:
        """Scores, states, or a continuation, all in one form."""
        ids, new = body["input_ids"], body["sampling_params"]["max_new_tokens"]
        if body.get("return_hidden_states") and not self.gives_states:
            return 400, _error("No hidden states here; set --return-hidden-states-mode full.")
        if len(ids) >= self.max_model_len - 6:
            return 400, _error(f"Input length ({len(ids)} tokens) exceeds {self.max_model_len - 6}.")
        # Text that is generated after a prompt does not matter where scores are asked for, and takes long.
        output = [0] * new if body.get("return_logprob") else self.written(ids, new)
        ended = bool(output) and output[-1] == self.tokenizer.eos_token_id
        reason = {"type": "stop", "matched": output[-1]} if ended else {"type": "length", "length": len(output)}
        meta = {
            "id": "0", "finish_reason": reason, "prompt_tokens": len(ids), "weight_version": "default",
            "cached_tokens": self.left_out(body), "completion_tokens": len(output),
        }  # fmt: skip
        if body.get("return_logprob"):
            meta |= self.scored(body)
        if body.get("return_hidden_states"):
            meta["hidden_states"] = self.hidden(body)
        text = self.tokenizer.decode(output, skip_special_tokens=True)
        answer = {"text": text, "output_ids": output, "meta_info": meta}
        if body.get("return_prompt_token_ids"):
            answer["prompt_token_ids"] = ids
        _spoil(answer, fault)
        return 200, answer

    def left_out(self, body: dict[str, Any]) -> int:
        """How many tokens are not computed again: not those whose scores are requested, nor the last one."""
        most = [self.cached, len(body["input_ids"]) - 1]
        if body.get("return_logprob") and body.get("logprob_start_len", -1) >= 0:
            most.append(body["logprob_start_len"])
        return min(most)

    def scored(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, top_k = body["input_ids"], body.get("top_logprobs_num", 0)
        start = body.get("logprob_start_len", -1)
        start = len(ids) if start < 0 else start
        temperature = body["sampling_params"].get("temperature", 1.0) if self.heeds_temperature else 1.0
        rows = self.logprobs(ids, temperature)[start:-1]
        last = self.model.config.vocab_size - 1
        shown = [token if token < last else 0 for token in ids[start:]]
        values = [None, *rows.gather(-1, torch.tensor(ids[start + 1 :]).unsqueeze(-1))[:, 0].tolist()]
        found = {
            "input_token_logprobs": [[value, token, None] for value, token in zip(values, shown)],
            "output_token_logprobs": [],
        }
        if top_k:
            top = rows.topk(top_k)
            found["input_top_logprobs"] = [None] + [
                [[value, token, None] for value, token in zip(*row)]
                for row in zip(top.values.tolist(), top.indices.tolist())
            ]
        return found

    def hidden(self, body: dict[str, Any]) -> list[Any]:
        """A list of the prompt's states, then one state for each token that is generated but the last."""
        with self.compute:
            states = states_of(self.model, body["input_ids"])[self.left_out(body) :]
        kept = states if self.chunk is None else states[-self.chunk :]
        return [kept.tolist()][: body["sampling_params"]["max_new_tokens"]]


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


def _spoil(answer: dict[str, Any], fault: str | None) -> None:
    """Make a good answer a bad one."""
    meta = answer["meta_info"]
    if fault == "no_echo":
        del answer["prompt_token_ids"]
    elif fault == "wrong_echo":
        answer["prompt_token_ids"] = [*answer["prompt_token_ids"][:-1], answer["prompt_token_ids"][-1] ^ 1]
    elif fault == "truncated":  # --allow-auto-truncate
        meta["prompt_tokens"] -= 1
    elif fault == "aborted":
        meta["finish_reason"] = {"type": "abort", "message": "aborted by an administrator"}
    elif "input_token_logprobs" in meta:
        _spoil_scores(meta, fault)
        _spoil_states(meta, fault)


def _spoil_scores(meta: dict[str, Any], fault: str | None) -> None:
    scored, top = meta["input_token_logprobs"], meta.get("input_top_logprobs", [])
    if fault == "wrong_ids":
        scored[-1][1] += 1
    elif fault == "wrong_count":
        scored.pop()
    elif fault in {"null", "nan", "positive"}:
        scored[-1][0] = {"null": None, "nan": float("nan"), "positive": 0.5}[fault]
    elif fault == "short_top_k":
        top[-1].pop()
    elif fault == "twice_in_top_k":
        top[-1][-1] = top[-1][0]
    elif fault == "no_top_k":
        top[-1] = None
    elif fault == "fewer_positions":
        top.pop()
    elif fault == "shifted_top_k":
        top.insert(1, top.pop())
    elif fault == "other_sampled":
        scored[1][0] = -1e-4  # more likely than all of the top k


def _spoil_states(meta: dict[str, Any], fault: str | None) -> None:
    states = meta.get("hidden_states")
    if fault == "no_states":
        del meta["hidden_states"]
    elif fault == "empty_states":
        states.clear()
    elif fault in {"null_state", "infinite_state"}:
        states[0][-2][3] = None if fault == "null_state" else float("inf")  # of the state that predicts the last token
    elif fault == "wrong_width":
        states[0] = [row[1:] for row in states[0]]
    elif fault == "ragged":
        states[0][-2].pop()
    elif fault == "flat":
        states[0] = [row[0] for row in states[0]]
    elif fault == "too_many":
        states[0] = [*states[0]] * 3
    elif fault == "chunked":
        states[0] = states[0][-2:]
