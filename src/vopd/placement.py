"""Where weights are and whether they are sharded: the only module that knows DDP, FSDP and DeepSpeed."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vopd.errors import ConfigurationError, require
from vopd.kernels import Head
from vopd.models import Padded, States, last_hidden_states, read_head
from vopd.models.head_checks import check_adapters, check_logits
from vopd.models.undisturbed import evaluating, replaced

_ALONE, _DEEPSPEED = "one process", "DeepSpeed"


class Placement:
    """How accelerate distributes the models of a run over the processes.

    Args:
        accelerator: the trainer's accelerator.
        within: runs a function inside the forward pass of a model's wrapper, where its weights are gathered:
            (wrapped model, model, function, *arguments) -> result of the function.
        library: TRL's ``models``, which prepares a model without optimizer for DeepSpeed.

    Attributes:
        divided: whether weights are sharded. Forward passes then gather them from all processes, so every process must
            run the same number of them, and no two models may share tensors.
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
        """Whether FSDP or DeepSpeed manages the weights; the student's from the start of training."""
        return self._fsdp or self._deepspeed

    @property
    def in_an_engine(self) -> bool:
        """Whether DeepSpeed manages the weights. Its backward pass also runs the optimizer step."""
        return self._deepspeed

    @property
    def launcher(self) -> str:
        """What distributes the trained weights, as it is called in logs and checkpoints."""
        state = self.accelerator.state
        if self._deepspeed:
            return f"{_DEEPSPEED} ZeRO-{state.deepspeed_plugin.zero_stage}"
        if self._fsdp:
            plugin, whole_files = state.fsdp_plugin, "FULL_STATE_DICT"
            saved = plugin.state_dict_type.name
            return f"FSDP{plugin.fsdp_version}" + ("" if saved == whole_files else f" with {saved}")
        return "DDP" if self.accelerator.num_processes > 1 else _ALONE

    def loading_options(self) -> dict[str, Any]:
        """Arguments of ``from_pretrained``: no device map where every process has its own device."""
        return {"device_map": None} if self.managed or self.accelerator.num_processes > 1 else {}

    def most(self, count: int) -> int:
        """The largest `count` of all processes if weights are sharded, where all must run as many forward passes."""
        if not self.divided:
            return count
        return int(self.accelerator.gather(torch.tensor([count], device=self.accelerator.device)).max())

    def place_frozen(self, model: Any) -> Any:
        """Wrap a model for the student's backend, in evaluation mode and without gradient."""
        model.requires_grad_(False)
        model.eval()
        if self._deepspeed:
            return self._library.prepare_deepspeed(model, self.accelerator)
        if self._fsdp:
            return self._sharded(model)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def _sharded(self, model: Any) -> Any:
        # accelerate's prepare_model would leave a model without optimizer unsharded and on the host.
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        # The plugin keeps the layer classes of the first model that it prepares, which must be the student.
        own = copy.copy(self.accelerator.state.fsdp_plugin)
        own.transformer_cls_names_to_wrap = None
        with replaced(self.accelerator.state, fsdp_plugin=own):
            prepared = fsdp2_prepare_model(self.accelerator, model)
        # Reshard head and last norm too. They stay gathered for a backward pass that a frozen model never has, and a
        # moving average would be kept in those copies, which are rounded to bf16.
        prepared.set_reshard_after_forward(True)
        return prepared

    @contextmanager
    def accumulating(self, model: Any, more: bool) -> Iterator[None]:
        """Context of a micro-batch's backward pass: with `more` of them before the optimizer step, gradients of the
        processes are not averaged yet."""
        if not more or not self.accelerator.sync_gradients:  # transformers has a context around those
            yield
            return
        apart = nullcontext() if self._deepspeed else self.accelerator.no_sync(model)
        with apart, replaced(self.accelerator, sync_gradients=False):
            yield

    def saved_whole(self) -> AbstractContextManager[None]:
        """Context in which a model is saved unsharded. With sharded FSDP checkpoints transformers saves nothing."""
        if not self._fsdp:
            return nullcontext()
        from torch.distributed.fsdp import StateDictType

        return replaced(self.accelerator.state.fsdp_plugin, state_dict_type=StateDictType.FULL_STATE_DICT)

    def unwrap(self, model: Any) -> Any:
        """Return the model without the wrappers of DDP, FSDP, DeepSpeed or torch.compile."""
        # To keep the wrapper of torch.compile, accelerate would remove that of DDP for good, and average no gradients.
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def check_placed(self, optimizer: Any) -> None:
        """Raises ConfigurationError before training, if the student is placed together with its `optimizer`."""
        if self.managed and optimizer is None:
            raise ConfigurationError(
                f"{self.launcher} places the student when training starts; set eval_on_start=true to evaluate before "
                "the first step, or run vopd eval"
            )

    def release(self) -> None:
        """Free the models. A model that is loaded afterwards is not sharded, even on one process."""
        self.accelerator.free_memory()  # DeepSpeed's engine has to be released by accelerate
        if self._deepspeed:
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            unset_hf_deepspeed_config()

    def states(self, model: Any, name: str, sequence: Padded) -> States:
        """Compute the states of an unwrapped model inside the forward pass of its wrapper.

        Args:
            model: its head may be sharded; if the model is split over devices, the head may be on another device than
                the last layer.
            name: "student" or "teacher", for messages.
            sequence: ids, attention mask, the number of last tokens to predict, and the longest row's length if known.
                Without rows the model runs on a dummy row, for processes that have some.
        """
        hidden = last_hidden_states(model, *_with_rows(sequence))[: len(sequence[0])]
        head = read_head(model, name)
        if self.divided:
            hidden, head = self._lent(hidden, head, model.get_output_embeddings())
        # A float32 head stays float32, and so does its gradient: the loss rounds it for the matrix products only.
        return States(_as_autocast(hidden.to(head.device)), head)

    def _lent(self, hidden: Tensor, head: Head, module: Any) -> tuple[Tensor, Head]:
        """Return the unsharded head, gathered by the forward pass of its own module.

        The module is called, but returns copies of its weights instead of logits, and gradients flow back through it.
        Copies, because the weights are gathered during this call only, and FSDP warns about views.
        """
        # The head inside the wrapper that PEFT may have put around it.
        owner = next(part for part in module.modules() if any(w is head.weight for w in part.parameters(recurse=False)))

        def lend(hidden: Tensor) -> tuple[Tensor, ...]:
            return hidden.clone(), owner.weight.clone(), *(() if owner.bias is None else (owner.bias.clone(),))

        hidden, *parts = self._within(module, owner, lend, hidden)
        return hidden, replace(head, weight=parts[0], bias=parts[1] if len(parts) > 1 else None)

    @torch.no_grad()
    def frozen_states(self, model: Any, sequence: Padded, name: str = "teacher") -> States:
        """Compute the states of a placed model through its wrapper, in evaluation mode and without gradient."""
        unwrapped = self.unwrap(model)
        with evaluating(model):
            states: States = self._within(model, unwrapped, self.states, unwrapped, name, sequence)
        return states

    @torch.no_grad()
    def check_head(self, model: Any, name: str) -> None:
        """Check with one short forward pass that the loss computes the same logits as the model itself.

        Args:
            model: a placed model; if it is sharded, all processes must call this together.
            name: "student" or "teacher", for messages.

        Raises:
            MismatchError: the logits differ.
            ConfigurationError: the loss would ignore adapters of the model.
        """
        check_adapters(self.unwrap(model), name)
        ids = torch.arange(5, device=read_head(self.unwrap(model), name).device).unsqueeze(0)
        mask = torch.ones_like(ids)
        with self.accelerator.autocast():
            with evaluating(model):
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, 1:-1]
            states = self.frozen_states(model, (ids, mask, ids.size(1) - 2, None), name)
        check_logits(logits, states.hidden[0], states.head, name)


def part() -> None:
    """Leave the process group, after the models were freed: a connection that is open at exit may abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def loaded_apart() -> Iterator[None]:
    """Context in which this process loads models for itself alone, whole, as without a launcher."""
    sharding = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        with replaced(require("transformers.integrations.deepspeed", "train"), _hf_deepspeed_config_weak_ref=None):
            yield
    finally:
        if sharding is not None:
            os.environ["ACCELERATE_USE_FSDP"] = sharding


def whole(weight: Tensor) -> Tensor:
    """Return the full weight on this process, without gradient; if it is sharded, all processes must call this."""
    if isinstance(weight, DTensor):
        return weight.full_tensor().detach()
    if not hasattr(weight, "ds_id"):
        return weight.detach()
    with _gathered(weight):
        return weight.detach().clone()


def whole_on(device: torch.device, weight: Tensor) -> Tensor:
    """Like ``whole``, gathered on `device` if FSDP left the shards on the host."""
    return whole(weight.detach().to(device) if isinstance(weight, DTensor) else weight)


def head_rows(model: Any, name: str) -> int:
    """Return the number of rows of the output head, sharded or not."""
    weight = read_head(model, name).weight
    rows: int = getattr(weight, "ds_shape", weight.shape)[0]  # under ZeRO-3 the weight itself is empty
    return rows


def _gathered(weight: Any) -> AbstractContextManager[Any]:
    """Context in which the ZeRO-3 partitions of a weight are gathered."""
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    # If a forward pass has gathered it, such as that of a tied embedding, that pass also releases it.
    together = weight.ds_status == ZeroParamStatus.AVAILABLE
    return nullcontext() if together else deepspeed.zero.GatheredParameters([weight])


def _keep_outputs(plugin: Any) -> None:
    """Keep float32 outputs of forward passes, such as the loss, in float32.

    Raises:
        ConfigurationError: FSDP version 1 is configured.
    """
    if plugin.fsdp_version != 2:
        raise ConfigurationError("FSDP version 1 is not supported; set fsdp_version: 2 in accelerate's fsdp_config")
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def divided_like(weight: Tensor, like: Tensor) -> Tensor:
    """Return a weight sharded like `like`, on its device and in its dtype: the full weight or this process's shard."""
    if isinstance(weight, DTensor) != isinstance(like, DTensor):
        weight = whole(weight)
        if isinstance(like, DTensor):
            weight = distribute_tensor(weight.to(like.device, like.dtype), like.device_mesh, like.placements)
    return weight.to(like.device, like.dtype)


def unreadable(saved: str, processes: int, now: str, processes_now: int) -> str | None:
    """Say why weights and optimizer of a checkpoint cannot be loaded, and how they can; None if they can be loaded.

    A single process and DDP write the same files. FSDP files work with any number of processes. DeepSpeed writes one
    file per process.

    Args:
        saved: `Placement.launcher` of the run that saved the checkpoint.
        processes: number of processes of that run.
        now: `Placement.launcher` of the run that resumes from it.
        processes_now: number of processes of the run that resumes from it.
    """
    if {saved, now} <= {_ALONE, "DDP"}:
        return None
    if saved != now:
        return f"it was saved with {saved}, and {now} cannot read it: start the run with {saved} again"
    if saved.startswith(_DEEPSPEED) and processes != processes_now:
        return (
            f"{saved} saved the optimizer sharded over {processes} processes, and now there are {processes_now}: start "
            f"the run with {processes} processes again"
        )
    return None


def described(model: Any, home: torch.device, processes: int = 1) -> str:
    """Describe the size, dtype and sharding of a model's weights in a few words; shards are counted once.

    Args:
        model: an unwrapped model.
        home: the device of this process; the device of the weights is named if it is of another type.
        processes: number of processes of the run.
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
        facts.append("sharded over the processes")
    elif processes > 1:
        facts.append("full copy on every process")
    facts += [f"on {kind}" for kind in sorted({weight.device.type for weight in weights} - {home.type})]
    return ", ".join(facts)


def _size(weight: Tensor) -> int:
    """Number of parameters of a weight: of the full weight for a shard, unpacked for 4-bit weights."""
    packed = getattr(weight, "quant_state", None)
    return int(packed.shape.numel() if packed is not None else getattr(weight, "ds_numel", weight.numel()))


def _cut_up(weight: Tensor) -> bool:
    return isinstance(weight, DTensor) or hasattr(weight, "ds_numel")


def _number(count: int) -> str:
    if count < 10**6:
        return f"{count:,}"
    return f"{count / 10**9:.2f} billion" if count >= 10**9 else f"{count / 10**6:.2f} million"


def _with_rows(sequence: Padded) -> Padded:
    """The sequence itself, or a dummy row of its length if it has no rows."""
    ids, mask, count, width = sequence
    return sequence if len(ids) else (ids.new_zeros(1, ids.size(1)), mask.new_ones(1, mask.size(1)), count, width)


def _as_autocast(hidden: Tensor) -> Tensor:
    """Under autocast, cast hidden states to the dtype that a linear head would use: half the memory."""
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden
