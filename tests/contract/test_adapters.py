"""Adapters are models in every command, and every model that cannot be loaded is told in one line with the fix."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cases import Case, Place
from vopd.models import load_model, load_tokenizer

EVAL = "eval --data {p} --kind math --samples 1 --max_new_tokens 2 --device cpu --output_dir {work}/o --run_name e"
VARIANCE = (
    "variance --teacher_model {T} --dataset {p} --contexts 2 --resamples 2 --max_completion_length 3 --device cpu "
    "--output_dir {work}/o --run_name v --estimators opd"
)
VALIDATE = "validate --teacher_model {T} --dataset {p} --max_completion_length 8 --per_device_train_batch_size 4"
ON_A = "RUN --model {work}/a"
ON_M = "RUN --dry_run --model {work}/m"


def adapter(kind: str = "LoraConfig", base: str = "student", **named: Any) -> Callable[[Place], None]:
    """`work`/a is an adapter of rank 3 on the student, or of another kind or base."""

    def make(place: Place) -> None:
        import peft

        settings = {"r": 3, "target_modules": ["q_proj", "v_proj"]} if kind == "LoraConfig" else {}
        config = getattr(peft, kind)(task_type="CAUSAL_LM", **{**settings, **named})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a tied head that is trained apart
            adapted = peft.get_peft_model(load_model(getattr(place, base)), config)
        adapted.save_pretrained(place.work / "a")

    return make


def grown(saved: bool) -> Callable[[Place], None]:
    """An adapter whose tokenizer has ten more tokens than its base; with the embeddings of its training or not."""

    def make(place: Place) -> None:
        import peft

        base, tokenizer = load_model(place.student), load_tokenizer(place.student)
        tokenizer.add_tokens([f"<more{number}>" for number in range(10)])
        if saved:
            base.resize_token_embeddings(len(tokenizer))
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"])
        peft.get_peft_model(base, config).save_pretrained(place.work / "a", save_embedding_layers=saved)
        tokenizer.save_pretrained(place.work / "a")
        problems = place.prompts.read_text().replace('{"prompt": "', '{"prompt": "", "problem": "<more9>')
        place.prompts.write_text(problems)

    return make


def teacher_of_its_tokenizer(place: Place) -> None:
    load_tokenizer(place.work / "a").save_pretrained(shutil.copytree(place.teacher, place.work / "m"))
    place.prompts.write_text('{"prompt": "1+1="}\n' * 2)


def changed(**named: Any) -> Callable[[Place], None]:
    """The adapter with other entries in its configuration; {work} and {T} in them are folders."""

    def make(place: Place) -> None:
        adapter()(place)
        texts = {
            name: value.format(work=place.work, T=place.teacher) if isinstance(value, str) else value
            for name, value in named.items()
        }
        edit(place.work / "a" / "adapter_config.json", **texts)

    return make


def then(*steps: Callable[[Place], object]) -> Callable[[Place], None]:
    """All steps in order."""

    def make(place: Place) -> None:
        for step in steps:
            step(place)

    return make


def model(*steps: Callable[[Path], object]) -> Callable[[Place], None]:
    """`work`/m is a copy of the student to which these things happened."""

    def make(place: Place) -> None:
        folder = Path(shutil.copytree(place.student, place.work / "m"))
        for step in steps:
            step(folder)

    return make


def edit(path: Path, **named: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | named))


def cut(name: str) -> Callable[[Path], None]:
    """The file loses its second half."""

    def happen(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return happen


def holds(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def sharded(folder: Path) -> None:
    weights = load_model(folder)
    (folder / "model.safetensors").unlink()
    weights.save_pretrained(folder, max_shard_size="20KB")


def without_a_shard(folder: Path) -> None:
    next(folder.glob("model-*.safetensors")).unlink()


def names_another_shard(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={**places, next(iter(places)): "model-00009-of-00009.safetensors"})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def of_another_architecture(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({f"transformer.{name}": weight for name, weight in load_file(path).items()}, path)


def renamed(**named: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "config.json", **named)


def encoder(folder: Path) -> None:
    from transformers import BertConfig

    BertConfig(vocab_size=304, hidden_size=32, architectures=["BertForMaskedLM"]).save_pretrained(folder)


def quantized(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "fp8"})


def in_work(*steps: Callable[[Path], object]) -> Callable[[Place], None]:
    """These things happen to the adapter in `work`/a."""
    return then(adapter(), *(lambda place, step=step: step(place.work / "a") for step in steps))


def hinted(place: Place) -> None:
    rows = [json.loads(line) | {"hint": "1+1="} for line in place.prompts.read_text().splitlines()]
    place.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))


SAVED = ("r/model/adapter_config.json", "r/model/adapter_model.safetensors")
CASES = [
    # An adapter is trained further
    Case(f"{ON_A} --lora_rank 3", 0, "trained 2 steps ... LoRA adapter ... model", SAVED, before=adapter()),
    Case(ON_A, 0, "trained 2 steps ... LoRA adapter", SAVED, before=adapter(use_dora=True, use_rslora=True)),
    Case(ON_A, 0, "LoRA adapter", SAVED, before=adapter(trainable_token_indices=[3, 4])),
    Case(f"{ON_A} --lora_rank 8", 2, "lora_rank=8 ... a ... lora_rank=3 ... vopd merge", before=adapter()),
    Case(f"{ON_A} --lora_alpha 5", 2, "lora_alpha=5 ... a ... lora_alpha=8", before=adapter()),
    Case(f"{ON_A} --lora_target_modules k_proj", 2, "lora_target_modules=k_proj ... q_proj,v_proj", before=adapter()),
    Case(
        f"{ON_A} --dry_run",
        2,
        "student ... PROMPT_TUNING ... LoRA",
        before=adapter("PromptTuningConfig", num_virtual_tokens=2),
    ),
    Case(
        f"{ON_A} --dry_run --use_vllm true",
        2,
        "adapters merged ... use_vllm=false",
        before=adapter("LilyConfig", r=2, target_modules=["q_proj"]),
    ),
    # Everywhere else it is a model too
    Case(
        "RUN --teacher_model {work}/a",
        0,
        "teacher ... a ... float32",
        ("r/model/model.safetensors",),
        before=adapter(base="teacher"),
    ),
    Case(
        f"{ON_A} --teacher_model self:base --teacher_prompt_column hint",
        0,
        "self:base ... without its adapter",
        SAVED,
        before=then(adapter(), hinted),
    ),
    Case(f"{VALIDATE} --model {{work}}/a", 0, "settings are valid", lacks=("not checked",), before=adapter()),
    Case(f"{ON_A} --dry_run", 0, "student ... a ... trained", lacks=("float32, all trained",), before=adapter()),
    Case(EVAL + " --model {work}/a", 0, "parameters ... a ... float32", before=adapter(use_dora=True)),
    Case(
        VARIANCE + " --model {work}/a", 0, "parameters ... trained", lacks=("float32, all trained",), before=adapter()
    ),
    Case("merge --model {work}/a --output {work}/merged", 0, "merged ... a", before=adapter(use_dora=True)),
    Case(
        f"{VALIDATE} --model {{work}}/a",
        0,
        "not checked ... me/base",
        before=changed(base_model_name_or_path="me/base"),
    ),
    # Adapters that cannot be loaded
    Case(
        f"{ON_A} --dry_run",
        4,
        "base model ... /gone/base ... adapter ... a ... base_model_name_or_path",
        before=changed(base_model_name_or_path="/gone/base"),
    ),
    Case(
        f"{ON_A} --dry_run",
        4,
        "base model ... models/base ... adapter ... a ... base_model_name_or_path",
        before=changed(base_model_name_or_path="models/base"),
    ),
    Case(
        EVAL + " --model {work}/a",
        4,
        "../base ... adapter ... a ... in ... base_model_name_or_path",
        before=changed(base_model_name_or_path="../base"),
    ),
    Case(
        VARIANCE + " --model {work}/a",
        4,
        "a ... no base model ... base_model_name_or_path",
        before=changed(base_model_name_or_path=None),
    ),
    Case(
        "RUN --dry_run --teacher_model {work}/a",
        4,
        "a ... does not fit ... teacher ... size mismatch",
        before=changed(base_model_name_or_path="{T}"),
    ),
    Case(
        f"{ON_A} --dry_run",
        4,
        "a ... adapter itself ... vopd merge",
        before=changed(base_model_name_or_path="{work}/a"),
    ),
    Case(f"{ON_A} --dry_run", 4, "a ... SEQ_CLS ... CAUSAL_LM", before=changed(task_type="SEQ_CLS")),
    Case(EVAL + " --model {work}/a", 4, "NEWER ... PEFT", before=changed(peft_type="NEWER")),
    Case(
        f"{ON_A} --dry_run",
        4,
        "adapter_model.safetensors is cut off ... bytes",
        before=in_work(cut("adapter_model.safetensors")),
    ),
    Case(
        EVAL + " --model {work}/a",
        4,
        "adapter_config.json ... JSON ... download",
        before=in_work(cut("adapter_config.json")),
    ),
    Case(
        f"{ON_A} --dry_run",
        4,
        "both ... adapter_config.json ... whole model",
        before=then(
            model(sharded),
            adapter(),
            lambda place: shutil.copytree(place.work / "m", place.work / "a", dirs_exist_ok=True),
        ),
    ),
    *(
        Case(
            command,
            4,
            "a ... trained on a base with 310 embedding rows ... student ... 304 ... resize_token_embeddings(310) ... "
            "base_model_name_or_path",
            before=grown(True),
            also=("every prompt ... empty",) if "dry_run" in command else (),
        )
        for command in (f"{ON_A} --dry_run", EVAL + " --model {work}/a", "merge --model {work}/a --output {work}/m")
    ),
    Case(EVAL + " --model {work}/a", 4, "'<more9>' (id 309) ... 304 embeddings", before=grown(False)),
    Case(
        "merge --model {work}/a --output {work}/merged",
        0,
        "note ... 310 ids ... 304 embeddings ... --base_model",
        before=grown(False),
    ),
    Case(
        (VARIANCE + " --model {work}/a").replace("{T}", "{work}/m"),
        4,
        "304 rows ... 310 ids ... resize_token_embeddings(310)",
        before=then(grown(False), teacher_of_its_tokenizer),
    ),
    # Models that cannot be loaded
    Case(ON_M, 4, "model.safetensors is cut off ... bytes ... download", before=model(cut("model.safetensors"))),
    Case(
        "RUN --dry_run --teacher_model {work}/m",
        4,
        "model.safetensors is cut off",
        before=model(cut("model.safetensors")),
    ),
    Case(EVAL + " --model {work}/m", 4, "model.safetensors is cut off", before=model(cut("model.safetensors"))),
    Case(VARIANCE + " --model {work}/m", 4, "model.safetensors is cut off", before=model(cut("model.safetensors"))),
    Case(
        ON_M, 4, "Git LFS ... git lfs pull", before=model(holds("model.safetensors", "version https://git-lfs.github"))
    ),
    Case(ON_M, 4, "no weights ... model.safetensors", before=model(lambda at: (at / "model.safetensors").unlink())),
    Case(ON_M, 4, "model.safetensors.index.json names ... not in ... download", before=model(sharded, without_a_shard)),
    Case(
        ON_M,
        4,
        "model.safetensors.index.json ... model-00009-of-00009.safetensors",
        before=model(sharded, names_another_shard),
    ),
    Case(ON_M, 4, "pytorch_model.bin is cut off", before=model(pickled, cut("pytorch_model.bin"))),
    Case(
        EVAL + " --model {work}/m",
        4,
        "lacks ... transformer.model.embed_tokens.weight ... config.json",
        lacks=("LOAD REPORT",),
        before=model(of_another_architecture),
    ),
    Case(
        EVAL + " --model {work}/m",
        4,
        "another shape ... model.embed_tokens.weight ... (304, 32) ... (304, 64)",
        before=model(renamed(hidden_size=64)),
    ),
    Case(ON_M, 4, "encoder ... BertForMaskedLM ... causal language model", before=model(encoder)),
    Case(
        ON_M,
        4,
        "sequence-to-sequence ... causal language model",
        before=model(holds("config.json", '{"model_type": "t5"}')),
    ),
    Case(ON_M, 4, "vit ... causal language model", before=model(holds("config.json", '{"model_type": "vit"}'))),
    Case(ON_M, 4, "config.json ... JSON ... download", before=model(cut("config.json"))),
    Case(ON_M, 4, "num_hidden_layers ... transformers", before=model(renamed(num_hidden_layers="two"))),
    Case(
        EVAL + " --model {work}/m",
        0,
        "11 weights ... does not use ... model.layers.1",
        lacks=("LOAD REPORT",),
        before=model(renamed(num_hidden_layers=1, layer_types=["full_attention"])),
    ),
    Case(ON_M, 4, "generation_config.json ... JSON", before=model(cut("generation_config.json"))),
    Case(ON_M, 4, "tokenizer.json ... JSON ... download", before=model(cut("tokenizer.json"))),
    Case(ON_M, 2, "stored quantized ... lora_rank", before=model(quantized)),
    # Updates that the dtype of the weights swallows
    Case("RUN --dtype bfloat16", 0, "bfloat16 ... learning_rate 1e-06 ... float32 ... lora_rank", ("r/model/",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.says[:40]}-{case.command[-24:]}")
def test_adapters(case: Case, place, capfd):
    case.check(place, capfd.readouterr)


def test_an_adapter_of_the_hub(place, capfd, monkeypatch):
    """As a download leaves it in the cache."""
    adapter()(place)
    cached = place.work / "cache" / "models--me--adapter"
    shutil.copytree(place.work / "a", cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place.work / "cache"))
    Case("RUN --model me/adapter", 0, "student ... me/adapter ... trained", SAVED).check(place, capfd.readouterr)
    Case(EVAL + " --model me/adapter", 0, "parameters ... me/adapter", SAVED).check(place, capfd.readouterr)
