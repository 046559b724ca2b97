"""A detector as a whole: a list of images of any sizes in, a dict of boxes, scores and labels for each out."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc

Size = tuple[int, int]
SIDE, LONGEST, MULTIPLE = 32, 48, 8


def resized(image: Tensor) -> Tensor:
    """The shorter side has SIDE pixels, but the longer one LONGEST at most."""
    shape = image.shape[-2:]
    scale = min(SIDE / min(shape), LONGEST / max(shape))
    return F.interpolate(image[None], scale_factor=scale, mode="bilinear", recompute_scale_factor=True)[0]


def batched(images: list[Tensor]) -> Tensor:
    """All in the upper left corners of a canvas whose sides are multiples."""
    sides = list(images[0].shape)
    for image in images[1:]:
        for i, side in enumerate(image.shape):
            sides[i] = max(sides[i], side)
    height, width = (int(math.ceil(float(side) / MULTIPLE) * MULTIPLE) for side in sides[1:])
    canvas = images[0].new_full([len(images), 3, height, width], 0)
    for i in range(canvas.shape[0]):
        canvas[i, :, : images[i].shape[1], : images[i].shape[2]].copy_(images[i])
    return canvas


def without_overlaps(boxes: Tensor, scores: Tensor) -> Tensor:
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(bool((boxes[i, :2] >= boxes[j, 2:]).any() or (boxes[j, :2] >= boxes[i, 2:]).any()) for j in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.down = nn.Conv2d(16, 16, 3, 2, 1)
        self.scores, self.boxes = nn.Conv2d(16, 3, 3, 1, 1), nn.Conv2d(16, 4, 3, 1, 1)

    def heads(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        fine = self.backbone(images)
        levels = (fine, F.relu(self.down(fine)))
        return [(self.scores(y).flatten(2).transpose(1, 2), self.boxes(y).flatten(2).transpose(1, 2)) for y in levels]

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        small = [resized(image) for image in images]
        results = []
        heads = self.heads(batched(small))
        for i, image in enumerate(images):
            found: list[tuple[Tensor, Tensor, Tensor]] = []
            for logits, codes in heads:
                scores = torch.sigmoid(logits[i] * 4).flatten()
                hits = torch.where(scores > 0.4)[0]
                best, order = scores[hits].topk(min(12, hits.size(0)))
                place = torch.div(hits[order], 3, rounding_mode="floor")
                corner = codes[i][place][:, :2].sigmoid() * 30
                found.append((torch.cat([corner, corner + 4], 1), best, hits[order] % 3))
            boxes, scores, labels = (torch.cat(each) for each in zip(*found, strict=True))
            keep = without_overlaps(boxes, scores)[:8]
            ratio = torch.tensor([image.shape[-1] / small[i].shape[-1], image.shape[-2] / small[i].shape[-2]]).repeat(2)
            results.append({"boxes": boxes[keep] * ratio, "scores": scores[keep], "labels": labels[keep]})
        return results


def images(seed: int, *sizes: Size) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=g) for size in sizes]


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_any_images(backend: str) -> None:
    model = Detector().eval()
    example = images(0, (40, 60), (50, 44))
    with torch.no_grad():
        model(example)  # a float call before is no matter
    module = qc.quantize(model, [(images(i, (40, 60), (50, 44)),) for i in range(3)], progress=False, backend=backend)
    assert qc.explain(module).int8_mac_share == 1
    assert not [remark for remark in qc.remarks(module) if remark.code == "leaf"]
    copied = pickle.loads(pickle.dumps(module))
    for sizes in (((40, 60), (50, 44)), ((60, 40), (33, 90)), ((20, 20), (21, 64)), ((100, 90), (16, 17))):
        given = images(7, *sizes)
        with torch.no_grad():
            due, results = model(given), module(given)
        for one, other, again, third in zip(due, results, module(given), copied(given), strict=True):
            assert list(one) == list(other)
            assert all(torch.equal(other[key], value) and torch.equal(third[key], value) for key, value in again.items())
            # Scores on the other side of a threshold move boxes: what the best scores are is what stays.
            count = min(len(one["scores"]), len(other["scores"]), 4)
            assert abs(len(one["scores"]) - len(other["scores"])) <= 2
            assert torch.allclose(one["scores"][:count], other["scores"][:count], atol=0.05)
            assert float(other["boxes"].max()) < 30 * max(3, max(max(size) for size in sizes) / SIDE * 2)
    with pytest.raises(qc.InputError, match="number of values in 'images'"):
        module(images(7, (40, 60)))
