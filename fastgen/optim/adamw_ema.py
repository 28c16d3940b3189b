"""AdamW that clips the gradient, keeps averages of the weights and skips steps that are not finite, in one pass over memory."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fastgen.errors import expect, is_number
from fastgen.optim.profiles import Profile, constant
from fastgen_kernels.adamw_ema import Settings, adamw_ema_, clipping, same_layout

HALVES = (torch.float16, torch.bfloat16)


class AdamWEMA(torch.optim.AdamW):
    """torch.optim.AdamW's numbers, after torch.nn.utils.clip_grad_norm_ and followed by the averages' lerp.

    params, lr, betas, eps, weight_decay: as torch.optim.AdamW takes them; lr may be a tensor on the device.
    clip: the largest norm of the gradient over all parameters; inf only checks that it is finite, 0 does neither. A step whose
    norm is not finite, or in which torch.amp.GradScaler found an inf, changes nothing but `skipped`.
    ema: a decay, which is warmed up as `constant` says, or a `Profile`, or two of these. All parameters of the groups have
    averages, also the frozen ones.

    Parameters in fp16 or bf16 are copies of fp32 masters, which are made of them at the first step, or loaded by
    `load_master_state_dict`; states and averages are fp32.
    DTensors, which FSDP2 makes of parameters, are stepped by what lies on each rank, and clipped by the norm over all ranks. The
    gradients may be scaled in place. Nothing waits for the device; lr may be a tensor on it. A step can be captured in a CUDA
    graph after one has been made outside.

    The state_dict is torch.optim.AdamW's, with averages, masters and counts beside: each loads the other's.

    Raises ValueError for settings out of range, also of a group, more than two averages, no parameters or such that are not
    floating, and, at the first step, for parameters with gaps or overlaps in memory.
    """

    _step_supports_amp_scaling = True
    _lr: Tensor | None = None
    _known: Sequence[float | Tensor] = ()
    _before: tuple[list[Tensor], list[Any]] | None = None

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        clip: float = 0.0,
        ema: float | Profile | Sequence[float | Profile] = (),
    ) -> None:
        expect("clip", clip, is_number(clip, 0) or clip == math.inf, "a number from 0 on")
        decays = tuple(ema) if isinstance(ema, Sequence) and not isinstance(ema, str | Profile) else (ema,)
        known = len(decays) <= 2 and all(isinstance(d, Profile) or (is_number(d, 0, 1) and d != 1) for d in decays)
        expect("ema", ema, known, "at most two decays in [0, 1) or profiles")
        params = [params] if isinstance(params, Tensor | str) or not isinstance(params, Iterable) else list(params)
        expect(
            "params", params, params and not any(isinstance(p, int | float | str) for p in params), "parameters or groups of them"
        )
        _expect_settings(lr, betas, eps, weight_decay)
        self.clip = clip
        self.profiles = [decay if isinstance(decay, Profile) else constant(decay) for decay in decays]
        self._averages: list[dict[Tensor, Tensor]] = [{} for _ in self.profiles]
        self._masters: dict[Tensor, Tensor] = {}
        self._counts: Tensor | None = None
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim.Optimizer's. Raises ValueError for settings out of range and for parameters that are not floating."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _expect_settings(*(group[name] for name in ("lr", "betas", "eps", "weight_decay")))
        for p in group["params"]:
            expect("params", str(p.dtype), p.is_floating_point(), "floating parameters")

    @property
    def updates(self) -> Tensor:
        """How many steps were made: 0-dim int64, on the device."""
        return self._device_counts()[0]

    @property
    def skipped(self) -> Tensor:
        """How many steps were skipped: 0-dim int64, on the device."""
        return self._device_counts()[1]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step of the parameters that have gradients, and of the averages of all.

        closure: computes the loss and its gradients; what it returns is returned. Raises ValueError for parameters with gaps or
        overlaps in memory, at the first step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        trained, groups, frozen = self._divided()
        params = [*trained, *frozen]
        halves = [p for p in params if p.dtype in HALVES]
        states = [self.state[p] or self._new_state(p) for p in trained]
        grads = [p.grad for p in trained if p.grad is not None]
        clip, grad_scale, found_inf = self.clip, getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        here = local if any(isinstance(p, DTensor) for p in params) else list[Tensor]
        if clip > 0 and here is local:  # what lies on this rank has another norm than all
            # In fp32 also of fp16 and bf16, whose own would have three digits.
            norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in grads]
            norm = torch.linalg.vector_norm(torch.stack(norms))
            assert isinstance(norm, DTensor)
            grad_scale, found_inf = clipping(norm.full_tensor(), clip, grad_scale, found_inf)
            clip = 0.0
        stepped = here([self._master(p) for p in params] if halves else params)
        exp_avgs = here([state["exp_avg"] for state in states])
        exp_avg_sqs = here([state["exp_avg_sq"] for state in states])
        averages = [here(self._averages_of(params, i)) for i in range(len(self.profiles))]
        copies = here([p for p in halves if p.grad is not None])
        adamw_ema_(
            stepped,
            here(grads),
            exp_avgs,
            exp_avg_sqs,
            [state["step"] for state in states],
            self._device_counts(),
            self._learning_rates(),
            [Settings(group["betas"][0], group["betas"][1], group["eps"], group["weight_decay"]) for group in self.param_groups],
            groups,
            averages=averages,
            profiles=self.profiles,
            copies=copies,
            clip=clip,
            grad_scale=grad_scale,
            found_inf=found_inf,
            checked=self._as_before(stepped, [*exp_avgs, *exp_avg_sqs, *chain(*averages), *copies]),
        )
        return loss

    def ema_state_dict(self, model: nn.Module, index: int = 0) -> dict[str, Tensor]:
        """The model's state_dict with the averages, of the first or the second profile, for the parameters: copies, fp32 for fp16
        and bf16."""
        known = self._masters | self._averages[index]
        return {name: known.get(value, value).detach().clone() for name, value in model.state_dict(keep_vars=True).items()}

    @torch.no_grad()
    def load_ema_state_dict(self, model: nn.Module, tensors: dict[str, Tensor], index: int = 0) -> None:
        """Puts the averages back that `ema_state_dict` gave. Raises KeyError for one that is not there."""
        ours = {p for group in self.param_groups for p in group["params"]}
        for name, value in model.state_dict(keep_vars=True).items():
            if value in ours:
                self._averages[index][value] = copy_like(tensors[name], self._master(value))

    def master_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state_dict with the masters, where there are some, for the parameters in fp16 and bf16: no copies."""
        return {name: self._masters.get(value, value).detach() for name, value in model.state_dict(keep_vars=True).items()}

    @torch.no_grad()
    def load_master_state_dict(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        """model.load_state_dict, which rounds for the parameters in fp16 and bf16: their masters are the tensors as given."""
        model.load_state_dict(tensors)
        ours = {p for p in self._params() if p.dtype in HALVES}
        for name, value in model.state_dict(keep_vars=True).items():
            if value in ours:
                self._masters[value] = copy_like(tensors[name], value, torch.float32)

    @contextmanager
    def averaged(self, index: int = 0) -> Iterator[None]:
        """Inside, the parameters hold their averages, of the first or the second profile."""
        params = list(self._averages[index])
        kept = [p.detach().clone() for p in params]
        with torch.no_grad():
            torch._foreach_copy_(local(params), local(self._averages[index].values()))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(local(params), local(kept))

    def state_dict(self) -> dict[str, Any]:
        """torch.optim.AdamW's, with `averages`, by the numbers of their parameters, `masters`, likewise, and `counts`, int64
        (2,): the steps made and skipped."""
        number = {p: i for i, p in enumerate(self._params())}
        beside = {
            "averages": [{number[p]: x for p, x in averages.items()} for averages in self._averages],
            "masters": {number[p]: x for p, x in self._masters.items()},
            "counts": self._device_counts(),
        }
        return super().state_dict() | beside

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also torch.optim.AdamW's; the averages then begin with the weights as they are at the next step, and the counts at 0.

        Raises ValueError for one of amsgrad or maximize, of other parameters or of another number of averages."""
        for group in state_dict["param_groups"]:
            for name in ("amsgrad", "maximize"):
                expect(name, group.get(name, False), not group.get(name, False), "False in the state_dict")
        averages = state_dict.get("averages") or [{} for _ in self.profiles]
        expect("averages", len(averages), len(averages) == len(self.profiles), f"{len(self.profiles)} of them in the state_dict")
        super().load_state_dict(state_dict | {"param_groups": [group | {"fused": True} for group in state_dict["param_groups"]]})

        params = self._params()
        self._masters = {params[i]: copy_like(x, params[i], x.dtype) for i, x in state_dict.get("masters", {}).items()}
        self._averages = [{params[i]: copy_like(x, self._master(params[i])) for i, x in each.items()} for each in averages]
        self._counts = self._before = None
        if "counts" in state_dict:
            self._device_counts().copy_(state_dict["counts"])
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, p in zip(numbers, params, strict=True):  # torch.optim casts them to p's dtype and keeps their strides
            if number in state_dict["state"]:
                saved, master = state_dict["state"][number], self._master(p)
                self.state[p] = {"step": torch.as_tensor(saved["step"], dtype=torch.float32).to(p.device, copy=True)}
                self.state[p] |= {name: copy_like(saved[name], master) for name in ("exp_avg", "exp_avg_sq")}

    def __getstate__(self) -> dict[str, Any]:
        ours = ("clip", "profiles", "_averages", "_masters", "_counts")
        return super().__getstate__() | {name: self.__dict__[name] for name in ours}

    def _as_before(self, stepped: list[Tensor], beside: list[Tensor]) -> bool:
        """Whether all are the tensors of the last step, and those stepped lie in memory as they did, so that they need not be
        checked again: that costs a CPU more than starting the operations does."""
        before, layouts = self._before, [(p.dtype, p.device, p.shape, p.stride()) for p in stepped]
        now = self._before = [*stepped, *beside], layouts
        return before is not None and layouts == before[1] and len(now[0]) == len(before[0]) and all(map(is_, now[0], before[0]))

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _divided(self) -> tuple[list[Tensor], list[int], list[Tensor]]:
        """Parameters with gradients, those in fp16 and bf16 first, the numbers of their groups, and parameters without gradients
        that have averages."""
        trained, frozen = [], []
        for number, group in enumerate(self.param_groups):
            for p in group["params"]:
                if p.grad is not None:
                    trained.append((p, number))
                elif self.profiles:
                    frozen.append(p)
        trained.sort(key=lambda of: of[0].dtype not in HALVES)  # copies are of the first
        return [p for p, _ in trained], [number for _, number in trained], frozen

    def _new_state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(self._master(p)) for _ in range(2))
        expect("params", p.stride(), same_layout(state["exp_avg"], p), "strides without gaps or overlaps in memory")
        return state

    def _master(self, p: Tensor) -> Tensor:
        """What is stepped: p, or for fp16 and bf16 what p is a copy of."""
        if p.dtype not in HALVES:
            return p
        if p not in self._masters:
            self._masters[p] = p.detach().float()
        return self._masters[p]

    def _averages_of(self, params: list[Tensor], index: int) -> list[Tensor]:
        averages = self._averages[index]
        if len(averages) < len(params):
            averages.update({p: self._master(p).detach().clone() for p in params if p not in averages})
        return [averages[p] for p in params]

    def _device_counts(self) -> Tensor:
        if self._counts is None:
            self._counts = torch.zeros(2, dtype=torch.int64, device=self._params()[0].device)
        return self._counts

    def _learning_rates(self) -> Tensor:
        """fp64 (G,), in memory of its own, which a captured step reads again; written where an lr is a tensor or changed."""
        values = [group["lr"] for group in self.param_groups]
        if self._lr is None or len(self._lr) != len(values):
            self._lr, self._known = torch.empty(len(values), dtype=torch.float64, device=self._params()[0].device), []
        for i, (value, known) in enumerate(zip_longest(values, self._known)):
            if isinstance(value, Tensor):
                self._lr[i].copy_(value, non_blocking=True)
            elif value != known:
                self._lr[i].fill_(value)
        self._known = values
        return self._lr


def _expect_settings(lr: Any, betas: Any, eps: Any, weight_decay: Any) -> None:
    expect("lr", lr, isinstance(lr, Tensor) or is_number(lr, 0), "a finite number >= 0, or a tensor of one")
    two = isinstance(betas, tuple | list) and len(betas) == 2
    expect("betas", betas, two and all(is_number(b, 0, 1) and b != 1 for b in betas), "two numbers in [0, 1)")
    expect("eps", eps, is_number(eps, 0), "a finite number >= 0")
    expect("weight_decay", weight_decay, is_number(weight_decay, 0), "a finite number >= 0")


def copy_like(value: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of `value` on the device of `like`, in its memory format and, where FSDP2 made it a DTensor, in its shards.

    value: of the shape of `like`, whole and the same on every rank, or a DTensor. dtype: that of `like` when None."""
    if isinstance(like, DTensor) and not isinstance(value, DTensor):
        value = distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return torch.empty_like(like, dtype=dtype).copy_(value)


def local(parameters: Iterable[Tensor]) -> list[Tensor]:
    """What of each parameter lies on this rank."""
    return [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
