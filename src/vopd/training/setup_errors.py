"""What TRL and transformers raise while a trainer is set up, as vopd's own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ConfigurationError, MismatchError, TeacherServerError, VOPDError


@contextmanager
def clear_errors() -> Iterator[None]:
    """Within, their errors become ours."""
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
