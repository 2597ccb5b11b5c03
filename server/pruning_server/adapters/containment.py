"""What stands around the processes of a run, as the composition root decided it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pruning_server.adapters.cgroups import Cgroups, RunGroup
from pruning_server.adapters.usage import Allowance
from pruning_server.sandbox.policy import Policy


@dataclass(frozen=True)
class Containment:
    """Walls around a run.

    Attributes:
        is_sandboxed: whether its processes go into the sandbox.
        cgroups: where each gets a control group; None: there are none.
    """

    is_sandboxed: bool = False
    cgroups: Cgroups | None = None

    def policy(self, allowance: Allowance, *, is_cuda: bool = False) -> Policy | None:
        """What a process with this allowance may do; None without a sandbox."""
        if not self.is_sandboxed:
            return None
        write = () if allowance.folder is None else (str(allowance.folder),)
        return Policy(write=write, is_cuda=is_cuda, file_bytes=allowance.disk_bytes)

    @contextmanager
    def group(self, allowance: Allowance) -> Iterator[RunGroup | None]:
        """The control group of one process; what is left in it dies at the end."""
        group = None if self.cgroups is None else self.cgroups.make(allowance.memory_bytes)
        try:
            yield group
        finally:
            if group is not None:
                group.close()


NO_WALLS = Containment()
