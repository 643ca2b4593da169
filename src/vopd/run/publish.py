"""What a run tells of itself to others: its data in the model card, and an upload where one was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub

from vopd.errors import VOPDError, first_line
from vopd.training import VOPDConfig

from .facts import only_on_hub


def data_notes(sources: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the model card says of the prompts: each source with its version; of a file its name alone."""
    lines, hub = [], []
    for entry in sources:
        source = str(entry["source"])
        hub += [source] if only_on_hub(source) else []
        shown = Path(source).name if Path(source).exists() else source
        lines.append(f"{entry['prompts']} prompts of {shown} ({entry['version']})")
    return {"data": lines, "datasets": hub}


def push(model: Path, config: VOPDConfig) -> str:
    """Upload the folder of a trained model to the hub and return its address; the repository is private by default.

    Raises:
        VOPDError: the hub refuses or is out of reach. The model stays where it is.
    """
    hub = huggingface_hub.HfApi(token=config.hub_token)
    try:
        private = config.hub_private_repo is not False
        name = hub.create_repo(config.hub_model_id, private=private, exist_ok=True).repo_id
        hub.upload_folder(repo_id=name, folder_path=str(model), commit_message="Model trained by vopd")
    except (OSError, ValueError) as error:  # the hub's errors are either
        raise VOPDError(
            f"the model is in '{model}' but was not uploaded to '{config.hub_model_id}': {first_line(error)}; "
            f"log in and run: hf upload {config.hub_model_id} {model}"
        ) from error
    return f"https://huggingface.co/{name}"
