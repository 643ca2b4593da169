"""A disk that runs full at one chosen write of a save."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class FullDisk:
    """Counts the writes below `folder` and fails the one numbered `fails_at`, as each writer reports a full disk.

    Files of Python fail when they are opened and at each write to them; the native writers of torch, safetensors and
    tokenizers meet a limit of the kernel's. Renames, new folders and flushes count as well.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.fails_at, self.count = str(folder), 0, 0
        import peft.peft_model
        import torch
        import transformers.modeling_utils
        from transformers import PreTrainedTokenizerFast

        for module in (builtins, io):
            patch.setattr(module, "open", self._opening(open))
        patch.setattr(os, "open", self._os_open(os.open))
        patch.setattr(os, "write", self._counted(os.write, lambda handle, data: True))
        for name in ("replace", "fsync"):
            patch.setattr(os, name, self._counted(getattr(os, name), self._below))
        patch.setattr(os, "mkdir", self._counted(os.mkdir, self._is_new))
        for module, name in (
            (torch, "save"),
            (peft.peft_model, "safe_save_file"),
            (transformers.modeling_utils, "safe_save_file"),
            (PreTrainedTokenizerFast, "save_pretrained"),
        ):
            patch.setattr(module, name, self._native(getattr(module, name)))

    def start(self, fails_at: int) -> None:
        self.count, self.fails_at = 0, fails_at

    def _hit(self) -> bool:
        self.count += 1
        return self.count == self.fails_at

    def _below(self, path: Any, *rest: Any) -> bool:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        return str(path).startswith(self.folder)

    def _is_new(self, path: Any, *rest: Any) -> bool:
        return self._below(path) and not os.path.isdir(path)

    def _counted(self, original: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if counts(*args) and self._hit():
                raise full()
            return original(*args, **named)

        return call

    def _os_open(self, original: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & (os.O_WRONLY | os.O_CREAT) and self._below(path) and self._hit():
                raise full()
            return original(path, flags, *rest, **named)

        return call

    def _opening(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or not self._below(path):
                return original(path, mode, *rest, **named)
            if self._hit():
                raise full()
            return _File(original(path, mode, *rest, **named), self._hit)

        return call

    def _native(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if not self._hit():
                return original(*args, **named)
            with largest_file(100):
                return original(*args, **named)

        return call


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to make any file larger than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class _File:
    """A file whose writes are counted."""

    def __init__(self, file: Any, hit: Callable[[], bool]) -> None:
        self._file, self._hit = file, hit

    def write(self, data: Any) -> int:
        if self._hit():
            self._file.write(data[: len(data) // 2])
            raise full()
        return self._file.write(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
