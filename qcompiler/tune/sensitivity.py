"""How much an error of each number of a value counts in the results: squared gradients of the float model.

With a normal random number r at each number of the results, the gradient g of sum(r * results) has the mean square of what the results
change by. So sum(g^2 e^2) is the squared error of the results that errors e of the value make, where these have nothing to do with each
other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

import torch
from torch import Tensor, fx
from torch.utils.hooks import RemovableHandle

from qcompiler.debug.metrics import tensors
from qcompiler.errors import ConfigError
from qcompiler.ops.state_nodes import is_write
from qcompiler.tune.lane import Batch, Lane
from qcompiler.tune.saved import Kept, Saved
from qcompiler.tune.shares import Shares
from qcompiler.tune.shelf import Written

Take: TypeAlias = Callable[[fx.Node, Tensor | Written, Tensor], None]  # a node, its value and the gradient


class _Run(fx.Interpreter):
    """A run of a float graph whose values of these nodes are taken with their gradients, each once that is known, so that no more than
    one gradient is there at a time. `first`: those that none of the others is made of. What a model keeps between calls is not written.
    """

    def __init__(self, gm: fx.GraphModule, nodes: Collection[fx.Node], take: Take, saved: Saved) -> None:
        super().__init__(gm)
        self.watched, self.take, self.saved = set(nodes), take, saved
        self.first, self.values, self.hooks = dict[fx.Node, Tensor](), dict[fx.Node, Kept](), list[RemovableHandle]()

    def run_node(self, n: fx.Node) -> object:
        if is_write(n):
            return None
        made = super().run_node(n)
        if not isinstance(made, Tensor):
            return made
        if n.op in ("get_attr", "placeholder"):
            made = made.detach().clone() if made.is_inference() else made.detach()
        if n in self.watched and made.is_floating_point():
            if made.requires_grad:
                self.values[n] = self.saved.keep(made)
                self.hooks.append(made.register_hook(lambda gradient: self.take(n, self.saved.look(self.values.pop(n)), gradient)))
            else:
                made = self.first[n] = made.detach().requires_grad_()
        return made

    def end(self) -> None:
        """The hooks hold this run, and torch's graph of the results, which this run holds, the hooks: nothing would ever be freed."""
        for hook in self.hooks:
            hook.remove()
        self.values.clear()


def sensitivities(
    gm: fx.GraphModule, batch: tuple[Batch, int], nodes: Collection[fx.Node], take: Take, generator: torch.Generator, shares: Shares
) -> None:  # fmt: skip
    """Hands each of the nodes that counts in the results to `take`: its value and the gradient, for one batch and its number.
    `shares`: how the results are judged.

    Raises InputError as `Lane` does, and ConfigError for a model that has no gradients.
    """
    given = Lane(gm, [batch[0]], batch[1]).given[0]
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    with torch.inference_mode(False), torch.enable_grad(), Saved(gm.state_dict().values()) as saved:
        run = _Run(gm, nodes, take, saved)
        try:
            made = run.run(*(given.get(str(node.target), *node.args) for node in inputs))
            results = [x for x in shares.values([x for x in tensors(made) if x.is_floating_point()]) if x.requires_grad]
            if not results:
                return
            total = torch.stack([(x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in results]).sum()
            found = torch.autograd.grad(total, list(run.first.values()), allow_unused=True)
        except RuntimeError as error:
            Lane(gm, [batch[0]], batch[1]).advance(list(gm.graph.nodes)[-1])  # an InputError where the batch does not fit
            text = f"batch {batch[1]}: the float model has no gradients: {str(error).splitlines()[0]:.200}"
            raise ConfigError(text, code="no-gradients", hint="give ranges by hand, in Corrections(ranges=...)") from error
        finally:
            run.end()
    for (node, value), gradient in zip(run.first.items(), found, strict=True):
        if gradient is not None:
            take(node, value.detach(), gradient)
