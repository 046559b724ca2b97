"""FloatModule: a module that takes or gives floats and holds quantized tensors; what it computes is a function of scripted.py."""

from __future__ import annotations

import inspect
import types
import weakref
from typing import Any

from qcompiler.backends.torch.runtime.by_shape import PacksByShape, PackSet, shapes_of
from qcompiler.nn.quantized import scripted
from qcompiler.nn.quantized.base import QuantizedModule


class OnPacks:
    """A module as the functions of scripted.py see it, with other packs in place of its own."""

    def __init__(self, module: object, packs: PackSet) -> None:
        self._module = module
        held = [getattr(packs, name) for name in module.__dict__["_pack_names"]]
        self._pack, self._packs = held[0], held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class FloatModule(QuantizedModule):
    """Base of dynamic modules and of embeddings. `_infer` is forward with its checks; `rebuild` ends in `_computes`."""

    def __init__(self) -> None:
        super().__init__(None)

    def _computes(self, name: str, attributes: dict[str, Any]) -> None:
        """Makes `scripted.<name>` what the module computes, with these attributes."""
        self._forget()
        # for torch.jit: what is computed with has what the buffers hold
        ignored = [*self._buffers, "reduce_range", "_by_shape", "_pack_names"]
        made = {**attributes, "_script": name, "__jit_ignored_attributes__": ignored}
        packs = attributes.get("_packs", [attributes["_pack"]] if "_pack" in attributes else [])
        if packs and self.engine == "onednn":
            named = {f"pack_{k}": pack for k, pack in enumerate(packs)}
            made |= {"_by_shape": PacksByShape(named, self.engine), "_pack_names": tuple(named)}
        made["forward"] = types.MethodType(scripted.FORMS[name], weakref.proxy(self))
        self.__dict__.update(made)
        self.__dict__["_built"] = tuple(made)

    def _run(self, *inputs: object) -> Any:
        """What TorchScript compiles, called from Python."""
        by_shape: PacksByShape | None = self.__dict__.get("_by_shape")
        module = self if by_shape is None else OnPacks(self, by_shape(*map(shapes_of, inputs)))
        return getattr(scripted, self.__dict__["_script"])(module, *inputs)

    @property
    def code(self) -> str:
        """The source of what computes."""
        return inspect.getsource(getattr(scripted, self.__dict__["_script"]))

    def _infer(self, *inputs: Any) -> object:
        raise NotImplementedError
