"""The command `prune`: one module per group of commands, thin over the SDK."""
