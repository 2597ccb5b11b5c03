"""The kernel's walls around a process that touches a caller's bytes. Torch-free; knows no other room of the server.

`python -m pruning_server.sandbox POLICY COMMAND ...` puts itself inside and then becomes the command; nothing but Python's
own library runs before that. What a policy is: `policy.py`. Why it is built so: docs/adr/0021-sandbox.md.
"""
