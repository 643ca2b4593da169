"""Single weights of a model, read from its safetensors files without those that hold the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vopd.errors import MismatchError, require
from vopd.folders import nearest_model
from vopd.hub import hub_refusal

from .model_files import damaged_file, listed_weights

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a whole model in a folder or on the hub.

    Attributes:
        source: the folder or hub id.
        revision: branch, tag or commit of a hub id.
        here: whether nothing may be downloaded.
        files: the file of each weight, by the weight's name.
    """

    source: str | Path
    revision: str | None
    here: bool
    files: dict[str, str]

    def path(self, file: str) -> Path:
        """Return the path of one of the files, which is downloaded if it has to be.

        Raises:
            MismatchError: it is not there, cannot be downloaded, or is damaged.
        """
        path = _fetched(self.source, self.revision, file, self.here)
        if path is None:
            where = "there" if Path(self.source).is_dir() else "on this machine"
            raise MismatchError(f"{file} of '{self.source}' is not {where}; copy or download it again")
        if (problem := damaged_file(path)) is not None:
            raise MismatchError(f"cannot read the weights of '{self.source}': {problem}")
        return path

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight; only its file is opened, and no weight is read."""
        with self._opened(name) as file:
            return tuple(file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return the dtype of a weight as its file calls it, such as "BF16"; only that file is opened."""
        with self._opened(name) as file:
            return str(file.get_slice(name).get_dtype())

    def read(self, name: str) -> Tensor:
        """Return a weight as it was saved; only its file is opened."""
        with self._opened(name) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor.clone()  # the file may be replaced while the weight is in use

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        path = self.path(self.files[name])
        with require("safetensors", "train").safe_open(path, framework="pt") as file:
            if name not in file.keys():  # noqa: SIM118
                raise MismatchError(f"{path} lacks {name}, which {INDEX} places there; copy or download it again")
            yield file


def find_weights(source: str | Path, revision: str | None = None, *, here: bool = False) -> WeightFiles:
    """Return what the safetensors files of a model hold.

    Of a hub id with several files only their index is downloaded.

    Args:
        source: a local folder or a hub id.
        revision: branch, tag or commit of a hub id.
        here: whether to look only at what is on this machine.

    Raises:
        MismatchError: there are none, the hub cannot be reached, or a file is damaged.
    """
    if (path := _fetched(source, revision, WHOLE, here)) is not None:
        found = WeightFiles(source, revision, here, {})
        with require("safetensors", "train").safe_open(found.path(WHOLE), framework="pt") as file:
            return WeightFiles(source, revision, here, dict.fromkeys(file.keys(), WHOLE))
    if (path := _fetched(source, revision, INDEX, here)) is not None:
        if (files := listed_weights(path)) is None:
            raise MismatchError(f"{path} is no index of weights; copy or download it again")
        return WeightFiles(source, revision, here, files)
    if not Path(source).is_dir() and (here or require("huggingface_hub", "train").constants.HF_HUB_OFFLINE):
        raise MismatchError(f"the weights of '{source}' are not on this machine; download them, or pass a local folder")
    raise MismatchError(
        f"'{source}' has no {WHOLE}, nor several of them with an index; load the model in Python and save it again "
        "(save_pretrained), which writes such files"
    )


def _fetched(source: str | Path, revision: str | None, name: str, here: bool) -> Path | None:
    """The path of a file in a folder or of a hub id, downloaded if it has to be; None if there is none."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.exists() else None
    hub = require("huggingface_hub", "train")
    try:
        return Path(hub.hf_hub_download(str(source), name, revision=revision, local_files_only=here))
    except hub.errors.RemoteEntryNotFoundError:
        return None
    except Exception as error:  # of whichever library makes the request
        if isinstance(error, hub.errors.LocalEntryNotFoundError) and (here or hub.constants.HF_HUB_OFFLINE):
            return None
        where = nearest_model(Path(source)) or "; pass a local folder, or a hub id that this machine can reach"
        raise MismatchError(f"cannot load {name} of '{source}' ({hub_refusal(error)}){where}") from error
