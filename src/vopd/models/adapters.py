"""The weights of a student with its adapters merged in, for a rollout engine that does not load adapters.

PEFT's own merge adds an adapter to the base in place and subtracts it again. In bf16 both steps round: a base that is
merged at every step would drift from the one that was loaded, and that the saved adapter belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from vopd.errors import ConfigurationError

QUANTIZED = (
    "a quantized student cannot be sent to vLLM, which keeps the scales of the weights that it was started with; set "
    "use_vllm=false or remove quantization"
)

_REPLACED = re.compile(r"\.(original_module|modules_to_save)\.")
"""Marks, in a plain name, a module that another one is trained in place of, or one of an unused adapter."""

Gather = Callable[[Tensor], Tensor]
"""All of a weight on this process, without gradient: a collective where weights are divided among the processes."""


def check_sendable(model: Any) -> None:
    """Raises ConfigurationError if vLLM could not sample from the weights that `model` has with its adapters.

    If the configuration ties output head and embedding, vLLM keeps one weight for both and ignores a separate head.
    """
    if getattr(model, "quantization_method", None) is not None or hasattr(model.config, "quantization_config"):
        raise ConfigurationError(QUANTIZED)
    if any(config.peft_type == "ADAPTION_PROMPT" for config in getattr(model, "peft_config", {}).values()):
        raise ConfigurationError("adaption prompts cannot be merged for vLLM; set use_vllm=false or use LoRA")
    if tied_and_trained_apart(model):
        raise ConfigurationError(
            "vLLM has one weight for the student's output head and its embedding, which are trained apart here; leave "
            "both out of target_modules and modules_to_save, or set use_vllm=false"
        )


def check_mergeable(model: Any) -> None:
    """Merge one adapted layer of each kind, on a copy.

    Raises:
        ConfigurationError: PEFT cannot merge it, so that vLLM could not sample from the model.
    """
    for layer in {type(layer): layer for layer in _adapted(model)}.values():
        _merged(layer, (), Tensor.detach)


def tied_and_trained_apart(model: Any) -> bool:
    """Whether the configuration ties output head and embedding, and an adapter makes them two different weights."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return bool(model.config.get_text_config().tie_word_embeddings) and _ids(embedding) != _ids(head)


def _ids(module: nn.Module) -> set[int]:
    """The ids of the weights in `module`, those that PEFT has added included, without biases."""
    return {id(weight) for name, weight in module.named_parameters() if not name.endswith("bias")}


def whole_weights(model: nn.Module, whole: Gather) -> Iterator[tuple[str, Tensor]]:
    """Yield name and weight of every parameter of `model`, a tied one once. `whole` as in `merged_weights`."""
    return ((name, whole(weight)) for name, weight in model.named_parameters())


@torch.no_grad()
def merged_weights(model: Any, whole: Gather) -> Iterator[tuple[str, Tensor]]:
    """Yield name and weight of every parameter of the model without adapters, with the adapters merged in.

    A merged weight is base plus adapter in float32, rounded once to the base's dtype. One layer is merged at a time, on
    copies, by PEFT's own merge for that kind of adapter: the weights of the model are only read.

    Args:
        model: a PEFT model; not wrapped, but its weights may be divided among processes.
        whole: called for the same weights in the same order on every process.
    """
    holders, added = _holders(model), _added(model)
    named = ((_plain(name, model.active_adapters), weight) for name, weight in model.named_parameters())
    kept = ((name, weight) for name, weight in named if not (id(weight) in added or _REPLACED.search(name)))
    for layer, run in groupby(kept, key=lambda item: holders.get(id(item[1]))):
        names, weights = zip(*run, strict=True)
        yield from zip(names, map(whole, weights) if layer is None else _merged(layer, weights, whole), strict=True)


def _plain(name: str, adapters: Sequence[str]) -> str:
    """The name in the model without adapters. A module that is trained whole gets the name of the one it replaces, if
    its adapter is in use."""
    name = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".token_adapter", "")
    for adapter in adapters:
        name = name.replace(f".modules_to_save.{adapter}.", ".")
    return name


def _added(model: nn.Module) -> set[int]:
    """The ids of the adapters' own parameters: those of an adapted layer that are not in its base layer."""
    named = (item for layer in _adapted(model) for item in layer.named_parameters())
    return {id(weight) for name, weight in named if not name.startswith("base_layer.")}


def _holders(model: nn.Module) -> dict[int, nn.Module]:
    """The outermost layer with adapters around each parameter, by the parameter's id."""
    found: dict[int, nn.Module] = {}
    for layer in _adapted(model):  # outer layers first
        for weight in layer.parameters():
            found.setdefault(id(weight), layer)
    return found


def _adapted(module: nn.Module) -> Iterator[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (part for part in module.modules() if isinstance(part, BaseTunerLayer))


def _merged(layer: nn.Module, weights: tuple[Tensor, ...], whole: Gather) -> list[Tensor]:
    """The base's `weights`, all in `layer`, with its adapters merged into them."""
    names = {id(weight): f"layer.{name}" for name, weight in layer.named_parameters()}
    copies: dict[str, Tensor] = {names[id(weight)]: _copied(whole(weight)) for weight in layer.parameters()}
    dtypes = {names[id(weight)]: weight.dtype for weight in weights}
    found: list[Tensor] = torch.func.functional_call(_Merge(layer), copies, (dtypes,))
    return found


def _copied(weight: Tensor) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return nn.Parameter(weight.detach().to(wide, copy=True), requires_grad=False)


class _Merge(nn.Module):
    """Merges the adapters of a layer whose weights are replaced by copies during the call."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, dtypes: dict[str, torch.dtype]) -> list[Tensor]:
        """The parameters of these names, merged and rounded once."""
        layers = list(_adapted(self.layer))
        try:
            for layer in layers:
                layer.merge()
            found = [self.get_parameter(name).detach().to(dtype, copy=True) for name, dtype in dtypes.items()]
            for layer in layers:
                if layer.merged:  # only resets PEFT's own state: it subtracts from the copies
                    layer.unmerge()
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"vLLM needs the student's adapters merged, which PEFT cannot do for this kind ({error}); set "
                "use_vllm=false or use LoRA"
            ) from error
        finally:  # a merged adapter would be skipped in training, and not every kind can be unmerged
            for layer in layers:
                layer.merged_adapters.clear()
        return found
