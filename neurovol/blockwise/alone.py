"""A worker for a block that others died at: begun afresh, with the memory of all, while nothing else runs."""

from __future__ import annotations

from distributed import Client, Nanny
from distributed.core import Status

RESTART_S = 60.0  # a few seconds on an idle machine


class LargeWorker:
    """One worker of this machine, for a while with the memory of all of them.

    A job of a queue has the memory that it asked for, and workers of a scheduler that already ran have what their
    owner gave them: there is none to add, and `begin` does nothing.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._nanny: Nanny | None = None
        self._usual: int | None = None
        self._begun = False  # with more memory

    @property
    def allowed_bytes(self) -> int | None:
        """What the worker may use; None where none is begun."""
        return self._nanny.memory_manager.memory_limit if self._nanny is not None and self._begun else None

    def begin(self) -> str | None:
        """Begin the worker afresh, with more memory; its address, None where there is none to be had."""
        workers = getattr(self._client.cluster, "workers", {}).values()
        nannies = [n for n in workers if isinstance(n, Nanny) and n.status == Status.running and n.process is not None]
        if not nannies:
            return None
        self._nanny = nannies[0]
        self._usual = self._nanny.memory_manager.memory_limit
        address = self._afresh(sum(nanny.memory_manager.memory_limit or 0 for nanny in nannies))
        self._begun = address is not None
        return address

    def end(self) -> None:
        """Begin it afresh as it was, if there is one."""
        if self._nanny is not None:
            self._afresh(self._usual)
            self._nanny = None

    def _afresh(self, memory: int | None) -> str | None:
        address: str | None = self._client.sync(_begun, self._nanny, memory)
        return address


async def _begun(nanny: Nanny, memory: int | None) -> str | None:
    """The address of a nanny's next worker, which may use so many bytes: both look whether it does."""
    nanny.memory_manager.memory_limit = memory
    if nanny.process is None:  # its cluster is being closed
        return None
    nanny.process.worker_kwargs["memory_limit"] = memory
    said = await nanny.restart(timeout=RESTART_S, reason="neurovol-other-memory")
    return nanny.worker_address if said == "OK" else None
