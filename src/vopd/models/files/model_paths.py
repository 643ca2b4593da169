"""What a path or a hub id names: whether there is such a model, and what was meant if there is none."""

from __future__ import annotations

import os
from pathlib import Path

from vopd.errors import MismatchError, require
from vopd.folders import CONFIGURATIONS, check_model_folder, nearest_model
from vopd.hub import hub_refusal

_PATIENCE_S = 10


def check_source(source: str | Path, revision: str | None = None) -> None:
    """Raises MismatchError if there is no such folder with a model, and no such model on the hub."""
    if not check_model_folder(source):
        _check_hub(os.fspath(source), revision)


def has_file(source: str | Path, name: str, revision: str | None) -> bool:
    """Whether a folder or hub id has a file of this name."""
    if Path(source).is_dir():
        return (Path(source) / name).exists()
    found = require("transformers.utils", "train").cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None


def _check_hub(source: str, revision: str | None) -> None:
    """Raise MismatchError if there is no model of this name, neither in the local cache nor on the hub.

    A download would retry six times, with a warning each. This finds a misspelled folder name with a single request.
    """
    hub = require("huggingface_hub", "train")
    if hub.constants.HF_HUB_OFFLINE:
        return
    try:
        cached = (hub.try_to_load_from_cache(source, name, revision=revision) for name in CONFIGURATIONS)
        if not any(isinstance(path, str) for path in cached):
            hub.HfApi().model_info(source, revision=revision, timeout=_PATIENCE_S)
    except hub.errors.RevisionNotFoundError:
        return  # the error of the download is clear
    except hub.errors.GatedRepoError as error:  # which is a RepositoryNotFoundError too
        raise MismatchError(f"'{source}' is gated: {hub_refusal(error)}") from error
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError) as error:
        raise MismatchError(
            f"there is no folder '{source}' here and no such model on the hub{nearest_model(Path(source))}; "
            "if it is private, log in with `hf auth login`"
        ) from error
    except hub.errors.HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            return  # the download retries
        raise MismatchError(f"cannot load '{source}': {hub_refusal(error)}") from error
    except Exception as error:  # of whichever library makes the request
        raise MismatchError(
            f"there is no folder '{source}' here{nearest_model(Path(source))}, and the hub is unreachable: "
            f"{hub_refusal(error)}"
        ) from error
