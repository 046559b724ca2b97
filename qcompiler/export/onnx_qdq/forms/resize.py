"""Resizes: by torch's rules for where a result's pixel lies in the input."""

from __future__ import annotations

import onnx_ir as ir
import torch
import torch.nn.functional as F

from qcompiler.export.onnx_qdq.forms.pools import adaptive
from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Site

LINEAR = ("linear", "bilinear", "trilinear")


def _settings(mode: str, aligned: bool) -> dict[str, str | float]:
    if mode == "nearest":
        return {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if mode == "nearest-exact":
        return {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}
    where = "align_corners" if aligned else "half_pixel"
    if mode in LINEAR:
        return {"mode": "linear", "coordinate_transformation_mode": where}
    if mode == "bicubic":
        return {"mode": "cubic", "coordinate_transformation_mode": where, "cubic_coeff_a": -0.75}
    raise NoForm(f"the mode {mode!r} has no op")


def interpolate(site: Site) -> ir.Value:
    x, mode = site.x, site.text("mode")
    if mode == "area":
        return adaptive("avg", x.rank - 2)(site)  # type: ignore[return-value]
    if site.flag("antialias"):
        return _smoothed(site, mode)
    settings = _settings(mode, site.flag("align_corners"))
    value, old, new, flat = x.value, x.sizes, site.shape, x.rank == 3 and mode in LINEAR
    if flat:  # runtimes know images
        old, new = (*old[:2], 1, *old[2:]), (*new[:2], 1, *new[2:])
        value = site.extents.reshaped(value, x.sizes, old)
    factors = site.get("scale_factor")
    if factors is None or site.flag("recompute_scale_factor"):
        value = site.call("Resize", value, None, None, site.extents.vector(new), **settings)
    else:
        given = factors if isinstance(factors, list) else [factors] * (x.rank - 2)
        if not all(isinstance(f, (int, float)) for f in given):
            raise NoForm("its scale_factor is no fixed number")
        scales = [*[1.0] * (2 + flat), *map(float, given)]  # type: ignore[arg-type]
        value = site.call("Resize", value, None, site.constant(scales, torch.float32), **settings)  # type: ignore[arg-type]
    return site.extents.reshaped(value, new, site.shape) if flat else value


def _smoothed(site: Site, mode: str) -> ir.Value:
    """Rows and columns times the weights that torch gives them: the op Resize weighs the pixels of antialias otherwise."""
    rows, columns = (_weights(site, axis, mode) for axis in (0, 1))
    return site.call("MatMul", site.constant(rows), site.call("MatMul", site.x.value, site.constant(columns.t().contiguous())))


def _weights(site: Site, axis: int, mode: str) -> torch.Tensor:
    """What each pixel along a dimension of an image (0 or 1) is of those of the input: (new, old), float32."""
    old, new = site.x.sizes[2 + axis], site.shape[2 + axis]
    if not isinstance(old, int) or not isinstance(new, int):
        raise NoForm(f"the weights of antialias are constants, and the size {old} changes: dynamic_shapes={{}} holds the sizes")
    factors, aligned = site.get("scale_factor"), site.flag("align_corners")
    pixels = torch.eye(old)[None, None]
    if factors is not None and not site.flag("recompute_scale_factor"):
        factor = factors[axis] if isinstance(factors, (list, tuple)) else factors
        if not isinstance(factor, (int, float)):
            raise NoForm("its scale_factor is no fixed number")
        made = F.interpolate(pixels, None, (float(factor), 1.0), mode, aligned, antialias=True)
    else:
        made = F.interpolate(pixels, (new, old), None, mode, aligned, antialias=True)
    return made[0, 0]


def pixel_shuffle(site: Site) -> ir.Value:
    return site.call("DepthToSpace", site.x.value, blocksize=int(site.number("upscale_factor")), mode="CRD")


def pixel_unshuffle(site: Site) -> ir.Value:
    """(N, C, H r, W r) -> (N, C r r, H, W)."""
    r, (n, c) = int(site.number("downscale_factor")), site.x.sizes[:2]
    rows, columns = site.shape[2:]
    apart = site.extents.reshaped(site.x.value, None, (n, c, rows, r, columns, r))
    return site.extents.reshaped(site.call("Transpose", apart, perm=[0, 1, 3, 5, 2, 4]), None, site.shape)


def channel_shuffle(site: Site) -> ir.Value:
    groups, (n, c, *rest) = int(site.number("groups")), site.x.sizes
    if not isinstance(c, int):
        raise NoForm("the number of its channels changes")
    apart = site.extents.reshaped(site.x.value, None, (n, groups, c // groups, *rest))
    return site.extents.reshaped(site.call("Transpose", apart, perm=[0, 2, 1, *range(3, 3 + len(rest))]), None, site.shape)


FORMS: dict[str, Form] = {
    "interpolate": interpolate, "pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle, "channel_shuffle": channel_shuffle,
}  # fmt: skip
