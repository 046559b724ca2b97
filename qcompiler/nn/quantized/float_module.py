"""FloatModule: a module that takes or gives floats and holds quantized tensors; what it computes is a function of scripted.py."""

from __future__ import annotations

import inspect
import types
import weakref
from typing import Any

from qcompiler.nn.quantized import scripted
from qcompiler.nn.quantized.base import QuantizedModule


class FloatModule(QuantizedModule):
    """Base of dynamic modules and of embeddings. `_infer` is forward with its checks; `rebuild` ends in `_computes`."""

    def __init__(self) -> None:
        super().__init__(None)

    def _computes(self, name: str, attributes: dict[str, Any]) -> None:
        """Makes `scripted.<name>` what the module computes, with these attributes."""
        self._forget()
        ignored = [*self._buffers, "reduce_range"]  # for torch.jit: what is computed with has what the buffers hold
        made = {**attributes, "_script": name, "__jit_ignored_attributes__": ignored}
        made["forward"] = types.MethodType(scripted.FORMS[name], weakref.proxy(self))
        self.__dict__.update(made)
        self.__dict__["_built"] = tuple(made)

    def _run(self, *inputs: Any) -> Any:
        """What TorchScript compiles, called from Python."""
        return getattr(scripted, self.__dict__["_script"])(self, *inputs)

    @property
    def code(self) -> str:
        """The source of what computes."""
        return inspect.getsource(getattr(scripted, self.__dict__["_script"]))

    def _infer(self, *inputs: Any) -> Any:
        raise NotImplementedError
