"""Comparing relaxed verifiers with the exact answer: bounds, verdicts and costs of many methods on the same problems.

table = mv.compare([("net.onnx", "property.vnnlib")], ["crown", "lp", "auto", "exact"], timeout=60)
print(table)
table.to_csv("rows.csv")
"""

from milpverify.compare.comparing import compare
from milpverify.compare.comparison import Comparison
from milpverify.compare.rows import Row
from milpverify.compare.sources import Instance
from milpverify.compare.tools import Tool

__all__ = ["compare", "Comparison", "Instance", "Row", "Tool"]
