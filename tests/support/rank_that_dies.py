"""`rio train` under torchrun, in which one rank dies once: rank_that_dies.py MARKER RANK ITERATION HOW WORDS...

HOW is "killed" (SIGKILL) or "error" (an exception). Once the file MARKER exists, no rank dies.
"""

import os
import signal
import sys
from pathlib import Path

from rio.cli.parser import main
from rio.engine.errors import TrainingError
from rio.trainer import Trainer

marker, rank, iteration, how = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
step = Trainer.run_step


def run_step(self: Trainer) -> None:
    if os.environ["RANK"] == rank and self.iter == iteration and not marker.exists():
        marker.touch()
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise TrainingError("rank 1 has had enough")
    step(self)


Trainer.run_step = run_step
sys.exit(main(sys.argv[5:]))
