"""Pure: access to the TorchScript IR and what is read off it. Only `graph/ir.py` touches `torch._C`.

May import: `spec`, `errors`.
"""
