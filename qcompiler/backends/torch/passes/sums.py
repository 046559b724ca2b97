"""Kernels that add pairs of products in 16 bits, where the codes of a site are too large for that."""

from __future__ import annotations

from collections.abc import Iterable

from qcompiler.backends.torch.passes.check_sites import largest_code
from qcompiler.backends.torch.site import Kernel, Site

OVERFLOWS = "its activations have 8 bits, and the kernel adds products in 16 bits: large sums would be cut off"
MOST = 127  # the largest code of an activation at which two products always fit into 16 bits


def overflowing(kernels: Iterable[Kernel], site: Site) -> dict[str, str]:
    """By label the kernels whose sums may overflow at the codes that the site's activations have, with the reason."""
    taking = (kernel for kernel in kernels if site.engine in kernel.engines and kernel.refuse(site) is None)
    labels = [kernel.label for kernel in taking if kernel.saturates(site) and largest_code(kernel, site) > MOST]
    return dict.fromkeys(labels, OVERFLOWS)
