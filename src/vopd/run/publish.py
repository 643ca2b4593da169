"""Publishing a trained model: its data in the model card, and the upload to the Hub if requested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub

from vopd.data.files import is_local
from vopd.errors import VOPDError, counted
from vopd.hub import hub_refusal
from vopd.training import VOPDConfig

from .facts import only_on_hub


def data_notes(sources: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the model card's facts on the prompts: each source with its version, and only the names of files."""
    lines, hub = [], []
    for entry in sources:
        source = str(entry["source"])
        hub += [source] if only_on_hub(source) else []
        shown = Path(source).name if is_local(source) else source
        lines.append(f"{counted(entry['prompts'], 'prompt')} from {shown} ({entry['version']})")
    return {"data": lines, "datasets": hub}


def push(model: Path, config: VOPDConfig) -> str:
    """Upload the folder of a trained model to the Hub and return its address; the repository is private by default.

    Raises:
        VOPDError: the Hub refuses or cannot be reached. The model stays on disk.
    """
    try:
        hub = huggingface_hub.HfApi(token=config.hub_token)
        private = config.hub_private_repo is not False
        name = hub.create_repo(config.hub_model_id, private=private, exist_ok=True).repo_id
        hub.upload_folder(repo_id=name, folder_path=str(model), commit_message="Model trained by vopd")
    except Exception as error:  # of whichever library makes the request
        raise VOPDError(
            f"the model was saved to '{model}' but could not be uploaded to '{config.hub_model_id}': "
            f"{hub_refusal(error)}; then run: hf upload {config.hub_model_id} {model}"
        ) from error
    return f"https://huggingface.co/{name}"
