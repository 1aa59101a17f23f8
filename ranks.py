"""Helpers for several processes started by torchrun. A single process is rank 0 of 1."""
import os
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

WATCH = 0.5                     # s between two looks at the parent process


def join(device, parent: int) -> None:
    """Initialise the process group. parent: torchrun's pid. After a restart (--max-restarts) the store still has the
    addresses of the old processes: the prefix keeps the new ones apart."""
    end_with(parent)
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    on_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world,
                            device_id=device if on_gpu else None,
                            timeout=timedelta(hours=1))             # rank 0 writes the weights while the others wait


def end_with(parent: int) -> None:
    """End this process when its parent has ended: if torchrun is killed, it would else keep the lock of --out, or wait
    for the other ranks forever."""
    def watch():
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)                                                 # the next start recovers, as after a kill
    threading.Thread(target=watch, daemon=True).start()


def rank_and_world() -> tuple:
    """Rank and world size."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: dict, device) -> dict:
    """Sum each value over the ranks. values: name -> number or scalar tensor, with the same names on every rank.
    Returns name -> float."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    tensor = torch.stack([torch.as_tensor(value, dtype=wide, device=device) for value in values.values()])
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return dict(zip(values, tensor.tolist()))


def gathered(value) -> list:
    """The value of each rank. Called by all ranks."""
    values = [value] * rank_and_world()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def stop_if_any_failed(failure: Exception | None) -> None:
    """End all ranks if one has failed. Called by all ranks. Of ranks with the same message only the first raises it,
    the others exit silently, so that it is printed once."""
    rank, messages = rank_and_world()[0], gathered(None if failure is None else str(failure))
    if failure is not None and messages[rank] not in messages[:rank]:
        raise failure
    if any(message is not None for message in messages):
        sys.exit(2)


def first_rank_first(make):
    """make() on rank 0, then on the others; returns its result. Raises ValueError or OSError on all ranks together."""
    made, (rank, world) = None, rank_and_world()
    for turn in range(min(2, world)):
        failure = None
        try:
            if turn == min(rank, 1):
                made = make()
        except (ValueError, OSError) as error:
            failure = error
        stop_if_any_failed(failure)
    return made


@contextmanager
def named_rank():
    """Put the rank in front of an error's message, where torchrun started several processes."""
    try:
        yield
    except Exception as error:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        text = f"rank {os.environ['RANK']}: {error}"
        if isinstance(error, OSError):                              # its message does not follow from its args
            raise OSError(text) from error
        error.args = (text,)
        raise
