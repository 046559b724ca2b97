"""LOWERED graph -> Program (plain data) -> CompiledModule, TorchScript, a Python file. Public names are imported from the modules."""
