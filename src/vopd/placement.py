"""Where weights are, and whether they are whole: the one module that knows DDP, FSDP and DeepSpeed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vopd.errors import ConfigurationError
from vopd.kernels import Head
from vopd.models import States, last_hidden_states, read_head
from vopd.models.head_checks import check_adapters, check_logits
from vopd.models.undisturbed import evaluating, replaced

_ALONE, _DEEPSPEED = "one process", "DeepSpeed"


class Placement:
    """How accelerate has spread the models of a run.

    Args:
        accelerator: of the trainer.
        within: runs a function inside the forward of a model's wrapper, where its weights are at hand:
            (wrapped model, model, function, *arguments) -> what the function returns.
        library: TRL's ``models``, which set up a model without optimizer for DeepSpeed.

    Attributes:
        divided: weights are in parts. Forward passes gather them from every process, which must all run them equally
            often, and no two models hold the same tensors.
    """

    def __init__(self, accelerator: Any, within: Callable[..., Any], library: Any) -> None:
        self.accelerator, self._within, self._library = accelerator, within, library
        fsdp = getattr(accelerator.state, "fsdp_plugin", None)
        deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
        self._fsdp, self._deepspeed = fsdp is not None, deepspeed is not None
        self.divided = self._fsdp or (deepspeed is not None and deepspeed.zero_stage == 3)
        if self._fsdp:
            _keep_outputs(fsdp)

    @property
    def managed(self) -> bool:
        """FSDP or DeepSpeed holds the weights: those of the student once training begins."""
        return self._fsdp or self._deepspeed

    @property
    def in_an_engine(self) -> bool:
        """DeepSpeed holds the weights, perhaps in parts, and its backward pass takes the optimizer step as well."""
        return self._deepspeed

    @property
    def launcher(self) -> str:
        """What spreads the trained weights over the processes, as first lines and checkpoints name it."""
        state = self.accelerator.state
        if self._deepspeed:
            return f"{_DEEPSPEED} ZeRO-{state.deepspeed_plugin.zero_stage}"
        if self._fsdp:
            plugin, whole_files = state.fsdp_plugin, "FULL_STATE_DICT"
            saved = plugin.state_dict_type.name
            return f"FSDP{plugin.fsdp_version}" + ("" if saved == whole_files else f" with {saved}")
        return "DDP" if self.accelerator.num_processes > 1 else _ALONE

    def loading_options(self) -> dict[str, Any]:
        """What ``from_pretrained`` has to be told: no spreading over devices where every process has its own."""
        return {"device_map": None} if self.managed or self.accelerator.num_processes > 1 else {}

    def place_frozen(self, model: Any) -> Any:
        """The model wrapped as the student's backend wants it, in evaluation mode and without gradient."""
        model.requires_grad_(False)
        model.eval()
        if self._deepspeed:
            return self._library.prepare_deepspeed(model, self.accelerator)
        if self._fsdp:
            return self._sharded(model)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def _sharded(self, model: Any) -> Any:
        # accelerate's prepare_model would leave a model without optimizer as it is: whole, and on the host.
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        # The plugin keeps the layer classes of the first model that it is asked about; those are to be the student's.
        own = copy.copy(self.accelerator.state.fsdp_plugin)
        own.transformer_cls_names_to_wrap = None
        with replaced(self.accelerator.state, fsdp_plugin=own):
            prepared = fsdp2_prepare_model(self.accelerator, model)
        # Head and last norm too, which stay whole for a backward pass that never comes here: a moving average would be
        # kept in those copies, which bf16 rounds.
        prepared.set_reshard_after_forward(True)
        return prepared

    def saved_whole(self) -> AbstractContextManager[None]:
        """Within, a model is saved whole, also where FSDP's checkpoints are in parts: transformers would save none."""
        if not self._fsdp:
            return nullcontext()
        from torch.distributed.fsdp import StateDictType

        return replaced(self.accelerator.state.fsdp_plugin, state_dict_type=StateDictType.FULL_STATE_DICT)

    def unwrap(self, model: Any) -> Any:
        """The model without what DDP, FSDP, DeepSpeed or torch.compile put around it."""
        # To keep what torch.compile put around it accelerate would take DDP off, for good: no gradient were averaged.
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def release(self) -> None:
        """Let the models go. What is loaded afterwards is whole, also on one process alone."""
        self.accelerator.free_memory()  # of which DeepSpeed's engine has to be told
        if self._deepspeed:
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            unset_hf_deepspeed_config()

    def states(self, model: Any, name: str, sequence: tuple[Tensor, Tensor, int]) -> States:
        """States of an unwrapped model, from within its wrapper's forward.

        Args:
            model: its head may be sharded, and a model split over devices may end on another one than its head.
            name: "student" or "teacher", for messages.
            sequence: ids, attention mask, and how many of the last positions predict a token.
        """
        hidden = last_hidden_states(model, *sequence)
        head = read_head(model, name)
        if self.divided:
            hidden, head = self._lent(hidden, head, model.get_output_embeddings())
        # A float32 head stays float32, as does its gradient: the loss rounds it for the products alone.
        return States(_as_autocast(hidden.to(head.device)), head)

    def _lent(self, hidden: Tensor, head: Head, module: Any) -> tuple[Tensor, Head]:
        """A whole head that the forward pass of its own module gathers, as it does for a product, with the gradient
        coming back by the same way: the module is called, but gives copies of its weights instead of a product.

        All of it is copied: the weights are there for this call alone, and FSDP warns of views.
        """
        # The head under what PEFT puts around it.
        owner = next(part for part in module.modules() if any(w is head.weight for w in part.parameters(recurse=False)))

        def lend(hidden: Tensor) -> tuple[Tensor, ...]:
            return hidden.clone(), owner.weight.clone(), *(() if owner.bias is None else (owner.bias.clone(),))

        hidden, *parts = self._within(module, owner, lend, hidden)
        return hidden, replace(head, weight=parts[0], bias=parts[1] if len(parts) > 1 else None)

    @torch.no_grad()
    def frozen_states(self, model: Any, sequence: tuple[Tensor, Tensor, int], name: str = "teacher") -> States:
        """States of a placed model, through its own wrapper and in evaluation mode."""
        unwrapped = self.unwrap(model)
        with evaluating(model):
            states: States = self._within(model, unwrapped, self.states, unwrapped, name, sequence)
        return states

    @torch.no_grad()
    def check_head(self, model: Any, name: str) -> None:
        """Raises MismatchError unless the loss would compute the logits that the model computes itself, and
        ConfigurationError where it would pass over adapters.

        Args:
            model: placed, so that this is one short forward pass on its own device; a collective where it is divided.
            name: "student" or "teacher".
        """
        check_adapters(self.unwrap(model), name)
        ids = torch.arange(5, device=read_head(self.unwrap(model), name).device).unsqueeze(0)
        mask = torch.ones_like(ids)
        with self.accelerator.autocast():
            with evaluating(model):
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, 1:-1]
            states = self.frozen_states(model, (ids, mask, ids.size(1) - 2), name)
        check_logits(logits, states.hidden[0], states.head, name)


def part() -> None:
    """Let the other processes go, once nothing refers to the models: a connection that is open at the end may abort."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def whole(weight: Tensor) -> Tensor:
    """All of a weight on this process, without gradient; a collective where it is in parts."""
    if isinstance(weight, DTensor):
        return weight.full_tensor().detach()
    if not hasattr(weight, "ds_id"):
        return weight.detach()
    with _gathered(weight):
        return weight.detach().clone()


def whole_on(device: torch.device, weight: Tensor) -> Tensor:
    """The same, gathered on `device` where FSDP left shards on the host."""
    return whole(weight.detach().to(device) if isinstance(weight, DTensor) else weight)


def head_rows(model: Any, name: str) -> int:
    """Rows of the output head, wherever its parts are."""
    weight = read_head(model, name).weight
    rows: int = getattr(weight, "ds_shape", weight.shape)[0]  # ZeRO-3 leaves a weight without elements
    return rows


def _gathered(weight: Any) -> AbstractContextManager[Any]:
    """While ZeRO-3's partitions of a weight are together."""
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    # A forward pass that has gathered it, as of a tied embedding, is the one to let it go.
    together = weight.ds_status == ZeroParamStatus.AVAILABLE
    return nullcontext() if together else deepspeed.zero.GatheredParameters([weight])


def _keep_outputs(plugin: Any) -> None:
    """Refuse what is not FSDP2, and let its forward passes return float32 where they compute it, as the loss is.

    Raises:
        ConfigurationError: FSDP of version 1.
    """
    if plugin.fsdp_version != 2:
        raise ConfigurationError("FSDP of version 1 is not supported; set fsdp_version: 2 in accelerate's fsdp_config")
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def divided_like(weight: Tensor, like: Tensor) -> Tensor:
    """A weight cut up as `like` is, on its device and in its dtype: whole, or this process's shard."""
    if isinstance(weight, DTensor) != isinstance(like, DTensor):
        weight = whole(weight)
        if isinstance(like, DTensor):
            weight = distribute_tensor(weight.to(like.device, like.dtype), like.device_mesh, like.placements)
    return weight.to(like.device, like.dtype)


def unreadable(saved: str, processes: int, now: str, processes_now: int) -> str | None:
    """Why weights and optimizer of a checkpoint cannot be read, and what can read them; None where they can.

    One process and DDP write the same files, and FSDP's are for any number of processes. Other launchers write files of
    their own, and DeepSpeed those of each process.

    Args:
        saved, processes: `Placement.launcher` and number of processes of the run that saved it.
        now, processes_now: those of the run that is to go on from it.
    """
    if {saved, now} <= {_ALONE, "DDP"}:
        return None
    if saved != now:
        return f"it holds the files of {saved}, which {now} cannot read: start the run with {saved} again"
    if saved.startswith(_DEEPSPEED) and processes != processes_now:
        return (
            f"{saved} saved the optimizer in parts for {processes} processes, and there are {processes_now}: start the "
            f"run with {processes} again"
        )
    return None


def described(model: Any, home: torch.device, processes: int = 1) -> str:
    """Size, dtype and spread of a model's weights in a few words, counted once however they are cut up.

    Args:
        model: unwrapped.
        home: the device of this process; that of the weights is told where it is of another kind.
        processes: of the run.
    """
    weights = list(model.parameters())
    trained = sum(_size(weight) for weight in weights if weight.requires_grad)
    total = sum(map(_size, weights))
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})
    facts = [f"{_number(total)} in {' and '.join(dtypes)}"]
    if trained:
        share = "all" if trained == total else f"{_number(trained)} ({trained / total:.2%})"
        facts.append(f"{share} trained")
    if any(_cut_up(weight) for weight in weights):
        facts.append("divided among the processes")
    elif processes > 1:
        facts.append("whole on every process")
    facts += [f"on {kind}" for kind in sorted({weight.device.type for weight in weights} - {home.type})]
    return ", ".join(facts)


def _size(weight: Tensor) -> int:
    """Parameters of a weight: all of a shard's, and those that 4 bits are packed from."""
    packed = getattr(weight, "quant_state", None)
    return int(packed.shape.numel() if packed is not None else getattr(weight, "ds_numel", weight.numel()))


def _cut_up(weight: Tensor) -> bool:
    return isinstance(weight, DTensor) or hasattr(weight, "ds_numel")


def _number(count: int) -> str:
    if count < 10**6:
        return f"{count:,}"
    return f"{count / 10**9:.2f} billion" if count >= 10**9 else f"{count / 10**6:.2f} million"


def _as_autocast(hidden: Tensor) -> Tensor:
    """Under autocast hidden states in the dtype that a linear head would take them in: half the memory."""
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden
