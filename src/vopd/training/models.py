"""The models of a trainer, as they were given or loaded from their paths, and the errors of loading them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

from torch import Tensor, nn

from vopd.errors import ConfigurationError, MismatchError, TeacherServerError, VOPDError, one_line
from vopd.hub import hub_refusal, is_refusal
from vopd.models import load_model, load_tokenizer
from vopd.models.undisturbed import replaced
from vopd.network import bypass_proxies
from vopd.secrets import without_passwords


@contextmanager
def student_loaded(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of TRL's trainer with the student and its tokenizer loaded, if the student is a path.

    TRL loads no adapter, and leaves missing weights random. It would warn of arguments for loading that remain.

    Raises:
        MismatchError: the student cannot be loaded.
    """
    model, args = arguments["model"], arguments["args"]
    if not isinstance(model, str | PathLike):
        yield arguments
        return
    source, options = str(model), _options(args, {"dtype": "float32", **(args.model_init_kwargs or {})})
    if (quantization := arguments.get("quantization_config")) is not None:
        options["quantization_config"] = quantization
    with _naming("student"):
        student = load_model(source, trainable=True, **options)
        tokenizer = arguments.get("processing_class") or load_tokenizer(
            source, revision=options.get("revision"), trust_remote_code=args.trust_remote_code
        )
    with replaced(args, model_init_kwargs=None):
        yield {**arguments, "model": student, "processing_class": tokenizer, "quantization_config": None}


def teacher_of(teacher: Any, args: Any, revision: str | None, placed: dict[str, Any]) -> Any:
    """The teacher on the host; a path is loaded in the dtype it was saved in.

    Args:
        teacher: a model, a folder or a hub id.
        args: the trainer's configuration.
        revision: of a hub id, unless teacher_model_init_kwargs has one.
        placed: arguments of ``from_pretrained`` that the launcher needs.

    Raises:
        ConfigurationError: there are arguments for loading a model that is loaded.
        MismatchError: the teacher cannot be loaded.
    """
    given = args.teacher_model_init_kwargs
    if not isinstance(teacher, str):
        if given is not None:
            raise ConfigurationError(
                "teacher_model_init_kwargs has no effect when teacher_model is a model; remove it or pass the "
                "teacher's path"
            )
        return teacher
    with _naming("teacher"):
        return load_model(teacher, **_options(args, {"dtype": "auto", "revision": revision, **(given or {})}) | placed)


def check_trained(student: nn.Module) -> None:
    """Raises ConfigurationError if no weight of the student requires gradient."""
    if not any(weight.requires_grad for weight in student.parameters()):
        raise ConfigurationError(
            "no weight of the student requires gradient, so nothing would be trained; load an adapter with "
            "PeftModel.from_pretrained(base, folder, is_trainable=True), or pass its folder as model"
        )


def adapters_of_quantized(model: Any) -> dict[nn.Parameter, Tensor]:
    """The trained weights of a model whose other weights are quantized, with their values; none of another model."""
    if getattr(model, "quantization_method", None) is None:
        return {}
    return {weight: weight.data for weight in model.parameters() if weight.requires_grad}


def _options(args: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `load_model`. As in TRL a single process uses all devices."""
    alone = args.distributed_state.distributed_type not in ("MULTI_GPU", "DEEPSPEED")
    spread = {"device_map": "auto"} if alone and args.device.type not in ("cpu", "mps") else {}
    return {"trust_remote_code": args.trust_remote_code, **spread, **given}


@contextmanager
def _naming(model: str) -> Iterator[None]:
    """Errors of loading say which model it was."""
    try:
        yield
    except MismatchError as error:
        raise MismatchError(f"the {model} cannot be loaded: {error}") from error


@contextmanager
def clear_errors(args: Any) -> Iterator[None]:
    """Turn errors of TRL and transformers during setup into vopd's own errors."""
    if rollout_server(args):
        bypass_proxies(rollout_server(args))
    try:
        with rollout_errors(args):
            yield
    except VOPDError:
        raise
    except Exception as error:
        if isinstance(error, ConnectionError) or (args.push_to_hub and is_refusal(error)):
            raise VOPDError(f"the Hub does not answer: {hub_refusal(error)}; set push_to_hub=false") from error
        if isinstance(error, OSError):
            raise MismatchError(f"the student cannot be loaded: {hub_refusal(error)}") from error
        if isinstance(error, ValueError | TypeError):
            raise ConfigurationError(one_line(error)) from error
        raise


@contextmanager
def rollout_errors(args: Any) -> Iterator[None]:
    """Turn errors of TRL's client of a vLLM server, which have no type of their own, into TeacherServerError."""
    try:
        yield
    except Exception as error:
        of_client = type(error).__module__.startswith(("requests", "urllib3")) or isinstance(error, ConnectionError)
        text = one_line(error)
        if not rollout_server(args) or not (of_client or text.startswith(("Request failed: ", "The vLLM server"))):
            raise
        raise TeacherServerError(
            f"the vLLM server for rollouts, {rollout_server(args)}, does not answer ({text[:300]}); start it with vllm "
            "serve, or use vllm_mode=colocate"
        ) from error


def rollout_server(args: Any) -> str:
    """The address of the vLLM server for rollouts; empty if there is none."""
    if not args.use_vllm or args.vllm_mode != "server":
        return ""
    return without_passwords(args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}")
