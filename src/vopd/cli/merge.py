"""Merge a LoRA adapter into its base model. The result is a plain model that loads without PEFT.

The new folder holds safetensors, tokenizer, generation configuration and a model card. The adapter is not changed.

  vopd merge --model runs/first/model --output merged
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd.errors import ConfigurationError, Faults, check_known
from vopd.folders import nearest_existing, new_folder
from vopd.models.loading import DTYPES
from vopd.run.options import needed, read_options, setting


@dataclass
class MergeOptions:
    """The options of `vopd merge`."""

    model: str = needed("LoRA adapter: folder, such as runs/first/model, or hub id")
    output: str = needed("new folder for the merged model")
    base_model: str | None = setting(None, "base model: folder or hub id; default: the one named in the adapter")
    dtype: str = setting("auto", "dtype of the merged weights: float32, bfloat16, float16; auto: the base model's")
    model_revision: str | None = setting(None, "branch, tag or commit of the adapter on the hub")

    def __post_init__(self) -> None:
        check_known("dtype", self.dtype, DTYPES)


def run(arguments: Sequence[str]) -> int:
    """Run `vopd merge` with these arguments and return its exit code."""
    options = read_options(MergeOptions, "merge", __doc__, arguments)
    output = Path(options.output).resolve()  # a link or "." could not be replaced by a folder
    from vopd.models.merging import adapter_of, merge_adapter

    faults = Faults()
    faults.check(_check_free, output)
    faults.check(adapter_of, options.model, options.model_revision)
    faults.tell()
    merged = merge_adapter(
        options.model, dtype=options.dtype, revision=options.model_revision, base_model=options.base_model
    )
    notes = _notes(merged)
    _save(merged, options.model, output, notes)
    for note in notes:
        print(f"note: {note}")
    print(f"merged {options.model} into {merged.base} ({merged.dtype}): {output}")
    print(f"next: vopd eval --model {shlex.quote(str(output))} --data problems.jsonl")
    print("(--template, --kind and --max_new_tokens as in the command that the run printed at its end)")
    return 0


def _check_free(output: Path) -> None:
    """Raises ConfigurationError unless `output` is a new or empty folder that can be written."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        what = "is not empty" if output.is_dir() else "is a file"
        raise ConfigurationError(f"'{output}' {what}; choose another --output, or delete it first")
    # The folder appears in its parent in one move, which a mount point cannot be the target of.
    if os.path.ismount(output) or not os.access(nearest_existing(output.parent), os.W_OK):
        raise ConfigurationError(f"'{output}' cannot be written; choose another --output, such as a folder in it")


def _notes(merged: Any) -> list[str]:
    """What is different from the model that was trained."""
    notes = []
    rows, ids = merged.model.get_input_embeddings().weight.shape[0], max(merged.tokenizer.get_vocab().values()) + 1
    if ids > rows:
        notes.append(
            f"the tokenizer next to the adapter has {ids} ids, but the model has {rows} embeddings: if the adapter was "
            f"trained on a resized base, save that base and name it with --base_model"
        )
    if merged.dequantized:
        notes.append(f"the base model's weights are quantized; they were converted to {merged.dtype} before the merge")
    trained = _trained_in(merged.adapter)
    if trained.get("quantization") is not None:
        notes.append(
            f"the adapter was trained on a base model in {trained['quantization']}; it is merged into weights in "
            f"{merged.dtype}, so outputs differ slightly from those during training"
        )
    elif trained.get("dtype") == "float32" and merged.dtype != "float32":
        notes.append(
            f"the adapter was trained on a base model in float32 and is merged in {merged.dtype}, which rounds small "
            "changes of a weight away; --dtype float32 keeps them"
        )
    return notes


def _trained_in(adapter: Path) -> dict[str, Any]:
    """The settings of the run that the adapter still lies in the folder of; empty elsewhere."""
    import yaml

    with suppress(OSError, yaml.YAMLError):
        settings = yaml.safe_load((adapter.parent / "resolved_config.yaml").read_text(encoding="utf-8"))
        return settings if isinstance(settings, dict) else {}
    return {}


def _save(merged: Any, source: str, output: Path, notes: Sequence[str]) -> None:
    """Write the model into `output`, whole or not at all."""
    with new_folder(output.parent), tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as place:
        part = Path(place, "model")
        part.mkdir()
        # To write the original format transformers would quantize again, which it cannot.
        merged.model.save_pretrained(part, save_original_format=not merged.dequantized)
        merged.tokenizer.save_pretrained(part)
        _card(merged, source, output.name, notes).save(part / "README.md")
        os.replace(part, output)


def _card(merged: Any, source: str, name: str, notes: Sequence[str]) -> Any:
    """The adapter's model card, if it has one, as the card of a whole model, with a section on the merge."""
    import yaml
    from huggingface_hub import ModelCard

    from vopd.versions import versions

    card = ModelCard(f"---\nlibrary_name: transformers\n---\n\n# {name}\n")
    with suppress(OSError, ValueError, yaml.YAMLError):  # no card, or none that can be read
        card = ModelCard.load(merged.adapter / "README.md")
        card.data.library_name = "transformers"
    shown = [Path(path).name if Path(path).exists() else path for path in (source, merged.base)]
    peft = versions("peft")["peft"]
    text = f"The LoRA adapter {shown[0]} was merged into {shown[1]} in {merged.dtype} by `vopd merge` with PEFT {peft}."
    card.text = "\n".join([card.text.rstrip(), "", "## Merged", "", text, *(f"Note: {note}." for note in notes), ""])
    return card
