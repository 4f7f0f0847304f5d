"""What a run is really trained by: one process, DDP, DeepSpeed ZeRO or FSDP2, behind the few verbs that the loop needs.

The launcher's config file chooses (`configs/accelerate/`); nothing here is inferred from what was asked for. Weights are fp32
and products bf16 (autocast) under every engine, so that they differ in where things lie and not in what is computed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from foundation.errors import InputError
from foundation.runstate import MOMENTS, RunState, Tensors

EngineName = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
ParameterGroups = Callable[[nn.Module], list[dict[str, Any]]]
T = TypeVar("T")

# On Hopper cuDNN's attention is the faster one; without a list torch takes the first that its own order finds.
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def make_accelerator() -> Accelerator:
    """Join the processes that the launcher started. Precision is the engine's own matter, and the same for all."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        PartialState(cpu=True)  # else every rank of a CPU launch believes that it is alone (accelerate 1.15)
    # accelerate keeps the first state of a process for ever; several runs in one process may differ in it.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision="no", kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    )


def running_engine(accelerator: Accelerator) -> EngineName:
    """The engine of this process, found from what runs and held against what the launcher was told."""
    is_told = {name: os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("DEEPSPEED", "FSDP")}
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        assert plugin is not None
        names: dict[int, EngineName] = {1: "zero1", 2: "zero2", 3: "zero3"}
        if plugin.zero_stage in names:
            return names[plugin.zero_stage]
        raise _refusal("DeepSpeed runs with ZeRO stage 1, 2 or 3", f"stage {plugin.zero_stage}")
    if is_told["DEEPSPEED"]:
        raise _refusal("the launcher's engine is the one that runs", f"DeepSpeed was asked for, {kind.value} runs")
    if is_told["FSDP"]:
        if os.environ.get("FSDP_VERSION") != "2":
            raise _refusal("FSDP runs in its second version", f"version {os.environ.get('FSDP_VERSION', '1')}")
        if not distributed.is_initialized():
            raise _refusal("the launcher's engine is the one that runs", "FSDP was asked for, a lone process runs")
        return "fsdp2"
    return "ddp" if distributed.is_initialized() and distributed.get_world_size() > 1 else "single"


def check_engine(name: EngineName, processes: int, *, wanted: str, wanted_processes: int | None) -> None:
    """One `InputError` when what runs is not what the config says."""
    if wanted not in ("any", name) or wanted_processes not in (None, processes):
        asked = f"{wanted} on {'any number of' if wanted_processes is None else wanted_processes} processes"
        raise _refusal("what runs is what the config asked for", f"{name} on {processes}, where it says {asked}")


def _refusal(rule: str, got: str) -> InputError:
    return InputError(
        rule,
        got=got,
        remedy="Launch with a file of configs/accelerate/ (docs/scaling.md), or change training.engine and training.processes.",
    )


class Crew:
    """The processes of a run. Small things that steer it travel beside the gradients, over gloo and on the CPU."""

    def __init__(self, accelerator: Accelerator):
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self._side: Any = distributed.new_group(backend="gloo") if self.world > 1 else None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def agree(self, *numbers: int) -> list[int]:
        """The largest of each over the processes, so that all of them act alike."""
        if self._side is None:
            return list(numbers)
        together = torch.tensor(numbers)
        distributed.all_reduce(together, distributed.ReduceOp.MAX, group=self._side)
        return together.tolist()

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Averages over the processes."""
        if self._side is None:
            return {name: float(value) for name, value in values.items()}
        together = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
        distributed.all_reduce(together, group=self._side)
        return dict(zip(values, (together / self.world).tolist()))

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns on the main process, on every process; its `InputError` likewise."""
        if self._side is None:
            return make()
        box: list[Any] = [None]
        if self.is_main:
            try:
                box[0] = make()
            except InputError as error:
                box[0] = error
        distributed.broadcast_object_list(box, 0, group=self._side)
        made: Any = box[0]
        if isinstance(made, InputError):
            raise made
        return made

    def state_from_main(self, read: Callable[[], RunState | None]) -> RunState | None:
        """A checkpoint that the main process read, on every process. Only its disk needs to hold it."""
        if self._side is None:
            return read()
        here: list[RunState] = []

        def about() -> tuple[dict[str, Any], dict[str, Any]] | None:
            if (state := read()) is None:
                return None
            here.append(state)
            groups = _groups(state)
            return state.notes(), {
                kind: {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}
                for kind, own in groups.items()
            }

        if (found := self.from_main(about)) is None:
            return None
        notes, shapes = found
        groups = (
            _groups(here[0])
            if here
            else {
                kind: {name: torch.empty(like[0], dtype=like[1]) for name, like in own.items()}
                for kind, own in shapes.items()
            }
        )
        for own in groups.values():
            for tensor in own.values():
                distributed.broadcast(tensor, 0, group=self._side)
        notes.pop("format")
        moments = {moment: groups[moment] for moment in MOMENTS}
        return RunState(weights=groups["weights"], moments=moments, average=groups.get("average"), **notes)


def _groups(state: RunState) -> dict[str, Tensors]:
    average = {} if state.average is None else {"average": state.average}
    return {"weights": state.weights, **state.moments, **average}


class Engine:
    """One process, or DDP: every process holds everything.

    `objective` is the caller's module. An engine that takes modules apart trains a copy and `finish` brings the weights home.
    """

    takes_apart = False

    def __init__(
        self,
        accelerator: Accelerator,
        name: EngineName,
        objective: nn.Module,
        *,
        groups: ParameterGroups,
        bf16: bool,
        clip_norm: float,
        per_process: int,
        accumulate: int,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        compile_blocks: bool = False,
    ):
        self.accelerator, self.objective = accelerator, objective
        self.name: EngineName = name
        self.device, self.rank, self.world = accelerator.device, accelerator.process_index, accelerator.num_processes
        self.bf16, self.clip_norm, self.accumulate = bf16, clip_norm, accumulate
        self.per_process = per_process
        self._host: Tensors = {}
        self.module = copy.deepcopy(objective) if self.takes_apart else objective
        if compile_blocks:
            compile_regions(self.module)
        self._prepare(groups, optimizer)

    def _prepare(self, groups: ParameterGroups, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        self.module.to(self.device)
        self.optimizer = optimizer(groups(self.module))
        self.model = self.accelerator.prepare_model(self.module)

    # ---------------------------------------------------------------------------------------- a step

    def learn(self, batch: Any, *, last: bool) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; gradients are exchanged after the `last`."""
        with self._exchange(last):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                losses = self.model(batch.to(self.device))
            self._backward(losses["loss"], last)
        return {name: value.detach().float() / self.accumulate for name, value in losses.items()}

    def _exchange(self, last: bool) -> Any:
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def _backward(self, loss: Tensor, last: bool) -> None:
        (loss / self.accumulate).backward()

    def gradient_norm(self) -> float:
        """Over all weights and processes, before clipping."""
        self._norm = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        return float(self._norm)

    def step(self) -> None:
        """Clip, update, forget the gradients."""
        with_gradient = [p for p in self.module.parameters() if p.grad is not None]
        nn.utils.clip_grads_with_norm_(with_gradient, self.clip_norm, self._norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def discard(self) -> None:
        """Forget the gradients; weights and moments stay as they were."""
        self.optimizer.zero_grad()

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The AdamW itself, whose groups a schedule sets."""
        return self.optimizer

    # ---------------------------------------------------------------------------------------- state
    #
    # Everything is spoken of by parameter name. `part` is what this process holds of a tensor, `whole` all of it; `whole` is
    # called by all processes together. In this class the two are the same.

    def part(self, parameter: Tensor) -> Tensor:
        return parameter.data

    def whole(self, parameter: Tensor, part: Tensor) -> Tensor:
        return part

    def cut(self, parameter: Tensor, whole: Tensor) -> Tensor:
        return whole

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.module.named_parameters() if p.requires_grad)

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        """The whole moment."""
        return self.whole(parameter, self._local(self.optimizer.state[parameter][moment]))

    def _local(self, tensor: Tensor) -> Tensor:
        return tensor

    def _count(self, parameter: nn.Parameter) -> float | None:
        """How often AdamW has stepped this weight; None before the first time."""
        state = self.optimizer.state.get(parameter)
        return float(state["step"]) if state else None

    def set_moments(self, state: RunState) -> None:
        for name, parameter in self.trained():
            if name in state.counts:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(state.counts[name], device=self.device),
                    **{key: self._like(parameter, state.moments[key][name]) for key in MOMENTS},
                }

    def _like(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """A whole tensor as this engine's optimiser keeps one beside `parameter`."""
        return whole.to(self.device, copy=True)

    def snapshot(self, step: int) -> RunState | None:
        """Everything as it is now, on the main process's own memory, which later steps do not touch; None elsewhere.

        All processes call it. The memory is used again by the next snapshot, so the writer must have finished by then.
        """
        state = RunState(step, weights={})
        for name, parameter in self.module.named_parameters():
            self._keep(state.weights, "weights", name, self.whole(parameter, self.part(parameter)))
        for name, buffer in saved_buffers(self.module):
            self._keep(state.weights, "weights", name, buffer)
        for name, parameter in self.trained():
            if (count := self._count(parameter)) is not None:
                state.counts[name] = count
                for moment in MOMENTS:
                    self._keep(state.moments[moment], moment, name, self._moment(parameter, moment))
        return self._kept(state)

    def keep_average(self, state: RunState | None, parts: Tensors) -> None:
        """Add an averaged copy of the weights to a snapshot; `parts` is what this process holds of it."""
        average: Tensors = {}
        parameters = dict(self.module.named_parameters())
        for name, part in parts.items():
            whole = self.whole(parameters[name], part) if name in parameters else part
            self._keep(average, "average", name, whole)
        if state is not None:
            state.average = average
        self._kept(state)

    def _keep(self, into: Tensors, kind: str, name: str, tensor: Tensor) -> None:
        if self.rank == 0:
            key = f"{kind}/{name}"
            if key not in self._host:
                self._host[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            into[name] = self._host[key].copy_(tensor, non_blocking=True)

    def _kept(self, state: RunState | None) -> RunState | None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return state if self.rank == 0 else None

    def bring_home(self, average: Tensors | None = None) -> None:
        """Put the weights as they are now, or an average of them, into the caller's module. All processes call it together."""
        if self.takes_apart and average is None:
            average = {name: self.whole(p, self.part(p)) for name, p in self.module.named_parameters()}
            average |= dict(saved_buffers(self.module))
        if average is not None:
            put_tensors(self.objective, average)
        self.objective.to(self.device)

    def finish(self, average: Tensors | None) -> None:
        """Leave the trained (or averaged) weights in the caller's module; the engine is of no use afterwards."""
        self.bring_home(average)


class ShardedEngine(Engine):
    """FSDP2: weights, gradients and moments are cut along their first axis over the processes (`DTensor`)."""

    takes_apart = True

    def _prepare(self, groups: ParameterGroups, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        from timm.models.eva import EvaBlock
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.module.to(self.device)
        mesh = init_device_mesh(self.device.type, (self.world,))
        again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
        for block in [module for module in self.module.modules() if isinstance(module, EvaBlock)]:
            fully_shard(block, mesh=mesh, reshard_after_forward=again)
        self.model = fully_shard(self.module, mesh=mesh, reshard_after_forward=again)
        self.optimizer = optimizer(groups(self.module))

    def _exchange(self, last: bool) -> Any:
        self.model.set_requires_gradient_sync(last)
        return nullcontext()

    def gradient_norm(self) -> float:
        norm: Any = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        self._norm = norm.full_tensor()
        return float(self._norm)

    def part(self, parameter: Tensor) -> Tensor:
        return self._local(parameter.data)

    def _local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local()  # pyright: ignore[reportAttributeAccessIssue]

    def whole(self, parameter: Any, part: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        shape = {"shape": parameter.shape, "stride": parameter.stride()}
        return DTensor.from_local(part, parameter.device_mesh, parameter.placements, **shape).full_tensor()

    def cut(self, parameter: Any, whole: Tensor) -> Tensor:
        return self._like(parameter, whole).to_local()  # pyright: ignore[reportAttributeAccessIssue]

    def _like(self, parameter: Any, whole: Tensor) -> Tensor:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole.to(self.device), parameter.device_mesh, parameter.placements)


class ZeroEngine(Engine):
    """DeepSpeed: moments are cut over the processes (ZeRO-1), gradients too (2), weights too (3)."""

    takes_apart = True

    def _prepare(self, groups: ParameterGroups, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        plugin = self.accelerator.state.deepspeed_plugin
        assert plugin is not None
        self.accelerator.gradient_accumulation_steps = self.accumulate
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": self.per_process // self.accumulate,
            "gradient_accumulation_steps": self.accumulate,
            "gradient_clipping": self.clip_norm,
            "steps_per_print": 2**31,
            "zero_allow_untested_optimizer": True,
            # Its own autocast, because it turns ours off; an empty list keeps gradients fp32 on the wire, as under DDP.
            "torch_autocast": {"enabled": self.bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        }
        self.optimizer = optimizer(groups(self.module))
        self.model, wrapped = self.accelerator.prepare(self.module, self.optimizer)
        self.zero = wrapped.optimizer
        # DeepSpeed asks for the norm inside its step. It is told what we found before, or infinity, upon which it drops
        # the step with its own cleaning up: no bad gradient reaches the optimiser, and no norm is computed twice.
        if self.name == "zero3":
            self._groups_norm = self.zero._get_norm_groups
            self.zero._get_norm_groups = lambda: [self._told]
        else:
            self._total_norm = self.zero.scaled_global_norm
            self.zero.scaled_global_norm = lambda norm_type=2: self._told

    def _exchange(self, last: bool) -> Any:
        self.model.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def _backward(self, loss: Tensor, last: bool) -> None:
        self.model.backward(loss)  # divides by the number of micro-batches itself

    def gradient_norm(self) -> float:
        if self.name == "zero3":
            from deepspeed.runtime.utils import combine_grad_norm_groups

            self._told = combine_grad_norm_groups(self._groups_norm())
        else:
            self._told = self._total_norm()
        return float(self._told)

    def step(self) -> None:
        self.model.step()

    def discard(self) -> None:
        self._told = torch.full_like(self._told, float("inf"))
        self.model.step()

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        return self.zero.optimizer

    def part(self, parameter: Any) -> Tensor:
        return parameter.ds_tensor.data if self.name == "zero3" else parameter.data

    def whole(self, parameter: Any, part: Tensor) -> Tensor:
        if self.name != "zero3":
            return part
        parts = part.new_empty(self.world * part.numel())  # the last one is padded
        distributed.all_gather_single(parts, part.contiguous().flatten())
        return parts[: parameter.ds_numel].view(parameter.ds_shape)

    def cut(self, parameter: Any, whole: Tensor) -> Tensor:
        if self.name != "zero3":
            return whole.to(self.device)
        size = parameter.ds_tensor.numel()
        padded = whole.new_zeros(self.world * size)
        padded[: whole.numel()] = whole.flatten()
        return padded[self.rank * size : (self.rank + 1) * size].to(self.device)

    def _flat(self) -> list[Tensor]:
        """The flattened fp32 weights of this process, which the AdamW inside sees as its parameters."""
        zero = self.zero
        return list(zero.fp32_partitioned_groups_flat if self.name == "zero3" else zero.single_partition_of_fp32_groups)

    def _link_states(self) -> None:
        """Let each weight find its moments in the flat ones. DeepSpeed 0.19 does so after its first step's first group of
        weights, when those of the other groups are not there yet, and never again."""
        if self.name != "zero3":
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()

    def snapshot(self, step: int) -> RunState | None:
        self._link_states()
        return super().snapshot(step)

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        whole = safe_get_full_optimizer_state(parameter, moment)
        assert whole is not None
        return whole

    def _count(self, parameter: nn.Parameter) -> float | None:
        counts = {float(state["step"]) for flat in self._flat() if (state := self.zero.optimizer.state.get(flat))}
        assert len(counts) <= 1, counts  # ZeRO steps all weights together
        return counts.pop() if counts else None

    def set_moments(self, state: RunState) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not state.counts:
            return
        for flat in self._flat():
            self.zero.optimizer.state[flat] = {
                "step": torch.tensor(max(state.counts.values()), device=flat.device),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        self._link_states()
        for name, parameter in self.trained():
            for moment in MOMENTS:
                if (whole := state.moments[moment].get(name)) is None:
                    continue
                if self.name == "zero3":  # its setter of whole tensors trips over the padding of the last part
                    safe_set_local_optimizer_state(parameter, self.cut(parameter, whole), moment)
                else:
                    safe_set_full_optimizer_state(parameter, whole.to(self.device), moment)

    def finish(self, average: Tensors | None) -> None:
        super().finish(average)
        self.model.destroy()


def engine_class(name: EngineName) -> type[Engine]:
    return {"fsdp2": ShardedEngine, "zero1": ZeroEngine, "zero2": ZeroEngine, "zero3": ZeroEngine}.get(name, Engine)


# ------------------------------------------------------------------------------------------------ averaged weights


class Average:
    """An exponential moving average of the weights, each process's own part of it.

    Decay warms up as 1 - step^(-2/3) to its final value (timm's `ModelEmaV3`, which cannot average what is cut apart).
    """

    def __init__(self, engine: Engine, decay: float, start: Tensors | None):
        self.engine, self.decay = engine, decay
        parameters = dict(engine.module.named_parameters())
        self.parts = {name: part.clone() for name, part in self._now()}
        for name, whole in (start or {}).items():
            part = engine.cut(parameters[name], whole) if name in parameters else whole
            self.parts[name].copy_(part)

    def _now(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.engine.module.named_parameters():
            yield name, self.engine.part(parameter)
        yield from saved_buffers(self.engine.module)

    @torch.no_grad()
    def update(self, step: int) -> None:
        warming = 1 - max(1, step) ** (-2 / 3)
        weight = 1 - min(warming, self.decay)
        floats, news = [], []
        for (name, new), part in zip(self._now(), self.parts.values()):
            if new.is_floating_point():
                floats.append(part)
                news.append(new)
            else:
                self.parts[name].copy_(new)
        torch._foreach_lerp_(floats, news, weight=weight)  # pyright: ignore[reportPrivateImportUsage]

    def wholes(self) -> Tensors:
        """All processes call it together."""
        parameters = dict(self.engine.module.named_parameters())
        return {
            name: self.engine.whole(parameters[name], part) if name in parameters else part
            for name, part in self.parts.items()
        }


# ------------------------------------------------------------------------------------------------ small things


@torch.no_grad()
def put_tensors(module: nn.Module, tensors: Tensors) -> None:
    """Set every weight and every saved buffer, each by its first name: a module that several others share is named once."""
    own = dict(module.named_parameters()) | dict(saved_buffers(module))
    assert own.keys() == tensors.keys(), own.keys() ^ tensors.keys()
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def saved_buffers(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Buffers that a state dict holds."""
    transient = {
        f"{prefix}.{name}" if prefix else name
        for prefix, owner in module.named_modules()
        for name in owner._non_persistent_buffers_set
    }
    return [(name, buffer) for name, buffer in module.named_buffers() if name not in transient]


def compile_regions(module: nn.Module) -> None:
    """Compile each transformer block by itself: one small graph, reused for all of them, instead of one large one."""
    from timm.models.eva import EvaBlock

    for block in module.modules():
        if isinstance(block, EvaBlock):
            block.compile(dynamic=None)


@contextmanager
def preferred_attention(device: torch.device) -> Iterator[str]:
    """Fix the order in which attention kernels are tried on a GPU; gives what to print."""
    if device.type != "cuda":
        yield "torch's own for the CPU"
        return
    with sdpa_kernel(ATTENTION, set_priority=True):
        yield " > ".join(backend.name.lower().replace("_attention", "") for backend in ATTENTION)
