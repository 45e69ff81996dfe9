"""A way between two processes that can be cut: nothing gets through then, and no one is told; the ends stay open.

python -m tests.blockwise.proxy PORT: says the port that it listens at, and passes on what comes to PORT of this
machine; a line "cut" or "mend" on its standard input does that.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress


class Way:
    """Such a process."""

    def __init__(self, to_port: int) -> None:
        command = [sys.executable, "-m", "tests.blockwise.proxy", str(to_port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def say(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


async def _meet(to_port: int, whole: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await whole.wait()  # while it is cut, who comes is let in and told nothing
    try:
        there, to_there = await asyncio.open_connection("127.0.0.1", to_port)
    except OSError:  # no one is there yet
        writer.close()
        return
    await asyncio.gather(_pass_on(reader, to_there, whole), _pass_on(there, writer, whole))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, whole: asyncio.Event) -> None:
    with suppress(OSError):
        while data := await reader.read(2**16):
            await whole.wait()
            writer.write(data)
            await writer.drain()
    await whole.wait()  # nor is an end told
    writer.close()


async def _serve(to_port: int) -> None:
    whole = asyncio.Event()
    whole.set()
    server = await asyncio.start_server(lambda r, w: _meet(to_port, whole, r, w), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while order := await orders.readline():
        whole.clear() if order == b"cut\n" else whole.set()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
