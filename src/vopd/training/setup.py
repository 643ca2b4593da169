"""What a trainer is made of, looked at before and while it is put together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vopd.errors import ConfigurationError, MismatchError, TeacherServerError, VOPDError

logger = logging.getLogger("vopd")


def named_datasets(eval_dataset: Any) -> list[tuple[str, Any]]:
    """What errors call each data set to evaluate on, and the data set."""
    if eval_dataset is None:
        return []
    if isinstance(eval_dataset, dict):
        return [(f"eval_dataset[{name!r}]", dataset) for name, dataset in eval_dataset.items()]
    return [("eval_dataset", eval_dataset)]


@contextmanager
def clear_errors() -> Iterator[None]:
    """What TRL and transformers raise while a trainer is set up, as vopd's own errors."""
    try:
        yield
    except VOPDError:
        raise
    except ConnectionError as error:
        raise TeacherServerError(
            f"the vLLM server for rollouts does not answer ({error}); start it with vllm serve, or use "
            "vllm_mode=colocate"
        ) from error
    except OSError as error:
        raise MismatchError(f"the student cannot be loaded: {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(str(error)) from error
