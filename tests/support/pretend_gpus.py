"""`python -m rio` as torchrun's child on a machine with two pretend GPUs: says which one its rank takes."""

import os
import sys

import torch

from rio.cli.parser import main
from tests.support.pretend_cuda import pretend_cuda

join = torch.distributed.init_process_group


def init_process_group(backend: str, **given: object) -> None:
    assert backend == "nccl", backend
    join("gloo", **given)


with pretend_cuda():
    torch.cuda.device_count = lambda: 2
    # One write a line: both ranks' go into one pipe.
    torch.cuda.set_device = lambda number: os.write(1, f"rank {os.environ['RANK']}: cuda:{number}\n".encode())
    torch.distributed.init_process_group = init_process_group
    sys.exit(main(sys.argv[1:]))
