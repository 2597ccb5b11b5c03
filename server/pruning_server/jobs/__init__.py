"""Jobs: the state machine, the scheduler, the worker's messages, and the ports that adapters fill. Torch-free.

May import: `spec`, `errors`. Touches neither disk, clock nor network: those come in through `ports`.
"""
