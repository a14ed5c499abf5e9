"""Parts of a source whose process is killed, or that take long, the first time they are read."""

import dataclasses
import os
import signal
import time
from pathlib import Path

from lit_llm.data.sources import Part, Source


@dataclasses.dataclass(frozen=True)
class RoughPart:
    part: Part
    mark: Path
    sleep: bool

    def files(self):
        if not self.mark.exists():
            self.mark.write_text(str(os.getpid()))
            time.sleep(0 if not self.sleep else 300)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.part.files()


def rough(source: Source, number: int, mark: Path, sleep: bool = False) -> Source:
    """The source with one part that kills the process which reads it first, after a long sleep if asked for."""
    parts = [*source.parts]
    parts[number] = RoughPart(parts[number], mark, sleep)
    return dataclasses.replace(source, parts=parts)
