"""A process that tracks queries in an embedded file without a pause, until its input ends."""

import asyncio
import sys
from pathlib import Path

from benchmarks.engines import looked_up
from fiml.core.config import Settings
from fiml.sessions.store import SessionStore

WRITERS = 5
QUERIES = 200  # in each session


async def main(folder: Path) -> None:
    """Write a line when the writers begin."""
    async with SessionStore(Settings(data_dir=folder)) as store:
        writers = [asyncio.create_task(_write(store)) for _ in range(WRITERS)]
        print("writing", flush=True)
        ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait([ended, *writers], return_when=asyncio.FIRST_COMPLETED)
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)
        for writer in writers:
            if not writer.cancelled():
                writer.result()  # raises what it failed with


async def _write(store: SessionStore) -> None:
    while True:
        session = await store.create_session(["S1"], "equity")
        for number in range(QUERIES):
            await store.record_query(session.id, looked_up(number))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
