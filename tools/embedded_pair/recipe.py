"""Builds the embedded pair with fixed seeds: `python -m tools.embedded_pair.recipe --output DIRECTORY`.

It trains a byte-pair tokenizer on the text of the tasks, then teacher and student by supervised training on worked
steps, and saves both with their measured accuracy. The student is smaller, trained for fewer steps and stopped before
its learning rate has decayed, so that it knows the task without mastering it. One process with one thread takes about
ten minutes on one core of a laptop.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from tools.embedded_pair.tokenizer import build_tokenizer
from tools.embedded_pair.worked_steps import worked_completion
from vopd.data.reasoning import Problem, is_right
from vopd.errors import require
from vopd.experiments.measure import greedy_texts, held_out_reverse_kl
from vopd.experiments.pair import EMBEDDED, MAX_COMPLETION_TOKENS, pair_problems, prompt_text

logger = logging.getLogger(__name__)

Example = tuple[list[int], list[int]]
Write = Callable[[Problem, random.Random], str]


@dataclass(frozen=True)
class ModelRecipe:
    """Sizes of one model and its supervised training.

    The learning rate follows a cosine schedule of `schedule_steps` with 5 % warm-up. Training stops after `steps`; if
    these are fewer, the model is not fully trained.
    """

    layers: int
    width: int
    intermediate: int
    key_value_heads: int
    head_rows: int
    steps: int
    schedule_steps: int
    batch: int
    learning_rate: float
    seed: int


VOCABULARY, PROBLEMS, SEED = 500, 30_000, 0
PAIR = {
    "teacher": ModelRecipe(
        layers=3, width=128, intermediate=384, key_value_heads=2, head_rows=640,
        steps=1400, schedule_steps=1400, batch=64, learning_rate=2.5e-3, seed=1,
    ),
    "student": ModelRecipe(
        layers=2, width=64, intermediate=192, key_value_heads=1, head_rows=512,
        steps=500, schedule_steps=700, batch=48, learning_rate=3e-3, seed=2,
    ),
}  # fmt: skip


def build_model(recipe: ModelRecipe, tokenizer: Any) -> Any:
    """Return a randomly initialized model of the Qwen3 architecture, in float32, with untied heads of 32 dimensions."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=recipe.head_rows,
        hidden_size=recipe.width,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // 32,
        num_key_value_heads=recipe.key_value_heads,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    # Rows above the tokenizer's entries are no tokens: never to be drawn, however a model drifts.
    model.generation_config.suppress_tokens = list(range(len(tokenizer), recipe.head_rows))
    return model


def stream_batches(
    problems: list[Problem],
    tokenizer: Any,
    batch: int,
    seed: int,
    write: Write = worked_completion,
) -> Iterator[list[Example]]:
    """Yield batches of (prompt ids, completion ids) indefinitely; every epoch has a new order and new wordings."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(problems, len(problems))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            prompts = tokenizer([prompt_text(problem) for problem in chosen])["input_ids"]
            completions = tokenizer([write(problem, rng) for problem in chosen])["input_ids"]
            yield [(p, [*c, tokenizer.eos_token_id]) for p, c in zip(prompts, completions, strict=True)]


def supervised_loss(model: Any, examples: list[Example], pad: int, vocabulary: int) -> torch.Tensor:
    """Mean cross-entropy of the completion tokens, plus `unused_row_penalty`; prompt tokens are not in the loss."""
    rows = [torch.tensor(prompt + completion) for prompt, completion in examples]
    wanted_rows = [torch.tensor([-100] * len(prompt) + completion) for prompt, completion in examples]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    labels = pad_sequence(wanted_rows, batch_first=True, padding_value=-100)
    # Padding stands on the right, where causal attention never looks back at it: no mask is needed.
    targets = labels[:, 1:].flatten()
    wanted = targets != -100
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)[wanted]
    logits = model.lm_head(hidden)
    loss = torch.nn.functional.cross_entropy(logits, targets[wanted])
    return loss + unused_row_penalty(model.lm_head.weight[vocabulary:], hidden, logits)


def unused_row_penalty(rows: torch.Tensor, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Push the head rows beyond the tokenizer's entries to probabilities of e^-25; only `rows` get gradient.

    After a few hundred steps of training they would still be sampled now and then, unlike in a large model, and such an
    id is not a token.
    """
    log_probabilities = hidden.detach() @ rows.T - logits.detach().logsumexp(-1, keepdim=True)
    # AdamW rescales the gradient of the rows anyway; a small one does not affect gradient clipping.
    return 0.01 * (log_probabilities + 25).clamp(min=0).sum() / max(1, log_probabilities.numel())


def train_model(
    recipe: ModelRecipe, problems: list[Problem], tokenizer: Any, name: str, write: Write = worked_completion
) -> Any:
    """Train one model on worked steps with supervision; deterministic on one machine with one thread.

    `write` returns a random correct completion of a problem.
    """
    model = build_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    warmup = max(1, recipe.schedule_steps // 20)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.schedule_steps - warmup)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, falling], milestones=[warmup])
    batches = stream_batches(problems, tokenizer, recipe.batch, recipe.seed, write)
    start = time.monotonic()
    for step in range(recipe.steps):
        loss = supervised_loss(model, next(batches), tokenizer.pad_token_id, len(tokenizer))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            logger.info("%s step %d loss %.4f after %.0f s", name, step + 1, loss.item(), time.monotonic() - start)
    return model.eval()


def build_pair(pair: Mapping[str, ModelRecipe], vocabulary: int, output: Path) -> dict[str, Any]:
    """Build tokenizer, teacher and student into `output`; return the measurements and write them to `recipe.json`."""
    require("transformers.utils.logging", "train").disable_progress_bar()
    start = time.monotonic()
    problems = pair_problems("train", PROBLEMS, SEED)
    tokenizer = build_tokenizer(problems, vocabulary, SEED)
    held_out = pair_problems("held_out", 500, SEED)
    prompts = [prompt_text(problem) for problem in held_out]
    models, measured = {}, {}
    for name, recipe in pair.items():
        model = models[name] = train_model(recipe, problems, tokenizer, name)
        texts = greedy_texts(model, tokenizer, prompts, MAX_COMPLETION_TOKENS)
        measured[f"{name}_greedy_accuracy"] = sum(map(is_right, held_out, texts)) / len(held_out)
        logger.info("%s greedy accuracy %.3f", name, measured[f"{name}_greedy_accuracy"])
        model.save_pretrained(output / name)
        tokenizer.save_pretrained(output / name)
    divergence = held_out_reverse_kl(
        models["student"], models["teacher"], tokenizer, prompts, max_new_tokens=MAX_COMPLETION_TOKENS
    )
    measured["held_out_reverse_kl"] = divergence.value
    measured["seconds"] = round(time.monotonic() - start)
    used = {"vocabulary": vocabulary, "problems": PROBLEMS, "seed": SEED, **pair}
    record = {"measured": measured, "recipe": used, "torch": torch.__version__}
    (output / "recipe.json").write_text(json.dumps(record, indent=2, default=asdict) + "\n")
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the embedded pair of models.")
    parser.add_argument("--output", type=Path, default=EMBEDDED)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    print(json.dumps(build_pair(PAIR, VOCABULARY, arguments.output), indent=2))


if __name__ == "__main__":
    main()
