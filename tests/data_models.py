"""Networks whose forward depends on data: experts that tokens are routed to, as models write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, EXPERTS = 16, 4


def sqnr(expected: torch.Tensor, got: torch.Tensor) -> float:
    """Signal to noise in dB."""
    assert expected.shape == got.shape
    expected, got = expected.detach(), got.detach()
    noise = (expected.double() - got.double()).square().sum().clamp(min=1e-30)
    return float(10 * torch.log10(expected.double().square().sum() / noise))


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.up(x)))


class Routed(nn.Module):
    """`way` names the method that spells the loop."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return getattr(self, self.way)(rows, self.gate(rows).softmax(-1)).reshape(x.shape)

    def where_and_index_add(self, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        weights, chosen = p.topk(2, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros((x.shape[0], x.shape[1]), dtype=x.dtype)
        mask = F.one_hot(chosen, num_classes=EXPERTS).permute(2, 1, 0)
        for expert in range(EXPERTS):
            index, top = torch.where(mask[expert])
            made = self.experts[expert](x[None, top].reshape(-1, x.shape[1])) * weights[top, index, None]
            out.index_add_(0, top, made.to(x.dtype))
        return out

    def bool_mask(self, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        weight, chosen = p.max(-1, keepdim=True)
        mask, out = F.one_hot(chosen.squeeze(-1), EXPERTS).bool(), x.clone()
        for number, expert in enumerate(self.experts):
            rows = mask[:, number]
            out[rows] = expert(x[rows]).to(x.dtype)
        return out * weight

    def if_any(self, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        weight, chosen = p.max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = chosen == number
            if mask.any():
                out[mask] = expert(x[mask]) * weight[mask].unsqueeze(-1)
        return out

    def continue_if_none(self, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        weights, chosen = p.topk(2)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            index, top = torch.where(chosen == number)
            if index.numel() == 0:
                continue
            out[index] += weights[index, top, None] * expert(x[index])
        return out

    def if_not_any(self, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        weight, chosen = p.max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = chosen == number
            if not mask.any():
                continue
            out[mask] = expert(x[mask])
        return out * weight.reshape(-1, 1)

    def assigned(self, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        weight, chosen = p.max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            index = (chosen == number).nonzero().squeeze(-1)
            if len(index) > 0:
                made = expert(x[index])
                out = out.index_add(0, index, made * weight[index][:, None])
        return out

    def counted(self, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        weights, chosen = p.topk(2)
        out = torch.zeros_like(x)
        counts = torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()
        for number in range(EXPERTS):
            if counts[number] == 0:
                continue
            index, top = torch.where(chosen == number)
            out[index] += self.experts[number](x[index]) * weights[index, top, None]
        return out

    def over_hits(self, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        weights, chosen = p.topk(2, dim=-1)
        out = torch.zeros((x.shape[0], x.shape[1]), dtype=x.dtype)
        mask = F.one_hot(chosen, num_classes=EXPERTS).permute(2, 1, 0)
        hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
        for number in hit:
            expert = self.experts[number]
            index, top = torch.where(mask[number].squeeze(0))
            made = expert(x[None, top].reshape(-1, x.shape[1])) * weights[top, index, None]
            out.index_add_(0, top, made.to(x.dtype))
        return out

    def over_a_list_of_hits(self, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        weight, chosen = p.max(-1, keepdim=True)
        mask = F.one_hot(chosen.squeeze(-1), num_classes=EXPERTS).bool()
        hit = mask.reshape(-1, mask.shape[-1]).sum(dim=0)
        out = torch.zeros_like(x)
        for number in torch.nonzero(hit, as_tuple=True)[0].tolist():
            out[mask[:, number]] = self.experts[number](x[mask[:, number]])
        return out * weight


WAYS = (
    "where_and_index_add", "bool_mask", "if_any", "continue_if_none", "if_not_any", "assigned", "counted", "over_hits",
    "over_a_list_of_hits",
)  # fmt: skip
