"""How calls are timed: in turn, by wall and processor time, with what else the machine did."""

from qcompiler.timing.machine import Machine, cpu_name
from qcompiler.timing.spread import Spread
from qcompiler.timing.turns import Timed, in_turn

__all__ = ["Machine", "Spread", "Timed", "cpu_name", "in_turn"]
