"""The table of contents of the contract: what each stage allows, in the order in which it is checked."""

from __future__ import annotations

from qcompiler.stages import graph_rules, int8_rules, weight_rules

RULES = (*graph_rules.RULES, *int8_rules.RULES, *weight_rules.RULES)
