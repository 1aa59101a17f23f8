"""Several processes that train as one, started by torchrun; one process alone is rank 0 of 1."""
import os
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

WATCH = 0.5                     # s


def join(device, parent: int) -> None:
    """One of torchrun's processes meets the others; parent: torchrun's pid. After a restart (--max-restarts) the
    addresses of those that ended are still in the store: the prefix keeps them apart."""
    end_with(parent)
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    on_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world,
                            device_id=device if on_gpu else None,
                            timeout=timedelta(hours=1))             # rank 0 writes the weights while the others wait


def end_with(parent: int) -> None:
    """End this process soon after the one that started it: were torchrun killed, it would keep --out taken, or wait for
    the others forever."""
    def watch():
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)                                                 # as a kill: the next start finishes what it left
    threading.Thread(target=watch, daemon=True).start()


def rank_and_world() -> tuple:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: dict, device) -> dict:
    """name -> number or scalar tensor, the same names on every rank -> the sums over the ranks, floats."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    tensor = torch.stack([torch.as_tensor(value, dtype=wide, device=device) for value in values.values()])
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return dict(zip(values, tensor.tolist()))


def gathered(value) -> list:
    """Called by all ranks: the value of each of them."""
    values = [value] * rank_and_world()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def agree(failure: Exception | None) -> None:
    """Called by all ranks: where something failed on any of them, all end. Of ranks with the same message the first
    raises it, the others leave without a word."""
    rank, messages = rank_and_world()[0], gathered(None if failure is None else str(failure))
    if failure is not None and messages[rank] not in messages[:rank]:
        raise failure
    if any(message is not None for message in messages):
        sys.exit(2)


def first_rank_first(make):
    """make() on rank 0, then on the others: what it returns. Raises ValueError or OSError on all ranks together."""
    made, (rank, world) = None, rank_and_world()
    for turn in range(min(2, world)):
        failure = None
        try:
            if turn == min(rank, 1):
                made = make()
        except (ValueError, OSError) as error:
            failure = error
        agree(failure)
    return made


@contextmanager
def named_rank():
    """An error of one of torchrun's processes says whose it is."""
    try:
        yield
    except Exception as error:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        text = f"rank {os.environ['RANK']}: {error}"
        if isinstance(error, OSError):                              # its text is not its arguments
            raise OSError(text) from error
        error.args = (text,)
        raise
