"""Comparing relaxed verifiers with the exact answer: bounds, verdicts and costs of many methods on the same problems.

table = mv.compare([("net.onnx", "property.vnnlib")], ["crown", "lp", "auto", "exact"], timeout=60)
print(table)
table.to_csv("rows.csv")

The function is in `comparing`, the table in `comparison`. Nothing is imported here: the command line knows of all commands at every start.
"""
