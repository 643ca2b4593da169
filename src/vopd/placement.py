"""Where weights are, and whether they are whole: the one module that knows DDP, FSDP and DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vopd.kernels import Head
from vopd.models import States, last_hidden_states, read_head

_ALONE, _DEEPSPEED = "one process", "DeepSpeed"


class Placement:
    """How accelerate has spread the models of a run.

    Args:
        accelerator: of the trainer.
        within: runs a function inside the forward of a model's wrapper, where its weights are at hand:
            (wrapped model, model, function, *arguments) -> what the function returns.
        library: TRL's ``models``, which set up a model without optimizer for DeepSpeed.
    """

    def __init__(self, accelerator: Any, within: Callable[..., Any], library: Any) -> None:
        self.accelerator, self._within, self._library = accelerator, within, library
        self._fsdp = getattr(accelerator.state, "fsdp_plugin", None) is not None
        self._deepspeed = getattr(accelerator.state, "deepspeed_plugin", None) is not None

    @property
    def divided(self) -> bool:
        """Forward passes gather weights from every process, which must all run them equally often."""
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

    @property
    def may_share_weights(self) -> bool:
        """Two models may hold the same tensors; FSDP cuts up those of each."""
        return not self._fsdp

    def loading_options(self) -> dict[str, Any]:
        """What ``from_pretrained`` has to be told: no spreading over devices where every process has its own."""
        from accelerate import PartialState  # whose type is that of the processes, whatever is done with the weights

        return {"device_map": None} if PartialState().distributed_type in ("MULTI_GPU", "DEEPSPEED") else {}

    def place_frozen(self, model: Any) -> Any:
        """The model wrapped as the student's backend wants it, in evaluation mode and without gradient."""
        model.requires_grad_(False)
        model.eval()
        if self._deepspeed:
            return self._library.prepare_deepspeed(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def unwrap(self, model: Any) -> Any:
        """The model without what DDP, FSDP, DeepSpeed or torch.compile put around it."""
        return self.accelerator.unwrap_model(model)

    def states(self, model: Any, name: str, sequence: tuple[Tensor, Tensor, int]) -> States:
        """States of an unwrapped model, from within its wrapper's forward.

        Args:
            model: its head may be sharded, and a model split over devices may end on another one than its head.
            name: "student" or "teacher", for messages.
            sequence: ids, attention mask, and how many of the last positions predict a token.
        """
        return _states(last_hidden_states(model, *sequence), model, name)

    @torch.no_grad()
    def frozen_states(self, model: Any, sequence: tuple[Tensor, Tensor, int]) -> States:
        """States of a model that ``place_frozen`` made, through its own wrapper."""
        unwrapped = self.unwrap(model)
        model.eval()
        # The head is read after the forward: within it FSDP lends weights that it then takes back.
        hidden = self._within(model, unwrapped, last_hidden_states, unwrapped, *sequence)
        return _states(hidden, unwrapped, "teacher")


def _states(hidden: Tensor, model: Any, name: str) -> States:
    head = whole_head(model, name)
    return States(_as_autocast(hidden.to(head.device)), head.map(_as_autocast))


def whole_head(model: Any, name: str) -> Head:
    """The output head with all of its weight on this process, gathered where FSDP sharded it."""
    return read_head(model, name).map(whole)


def whole(weight: Tensor) -> Tensor:
    """All of a weight on this process; a collective where it is sharded."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


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
        facts.append(f"{'all' if trained == total else _number(trained)} trained")
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


def _as_autocast(tensor: Tensor) -> Tensor:
    """Under autocast the dtype a linear head would compute in, so the loss sees the logits that were sampled from."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor
