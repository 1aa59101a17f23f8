"""Saves a training's checkpoint atomically: whenever a process is killed, a complete checkpoint is on the disk.

    OUT/config.json, ...   the checkpoint, as `ExOmni.from_pretrained` opens it
    OUT/trainer/           more for --resume: state.json, optimizer/ (see progress.py), and files.json, the names of all
                           files of the checkpoint (others in OUT are never touched), with cheap checksums of those that
                           --resume reads
    OUT/previous/          the checkpoint before it, complete too
    OUT/.saving/           a checkpoint that is being written: removed at the next start
    OUT/.saved/            a complete one whose files are being moved to OUT: finished at the next start

Everything happens inside OUT, which may be a mount point or a symbolic link. Renaming .saving to .saved is the commit:
before it the old checkpoint counts, after it the new one.

The training stops only while each rank copies its part to CPU memory (`Saver.start`): its shard of the optimizer's
state, on rank 0 also all weights. A thread on each rank then writes the copy to .saving and flushes it, while the steps
go on. `Saver.finish` commits on rank 0 and raises a thread's error. It is called in the first step in which no rank's
thread is still writing, and before the next save and at the end, where it waits for the threads.
"""
import io
import os
import pickle
import shutil
import time
import warnings
import zipfile
import zlib
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path, PurePath
from threading import Thread

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

import disk
from ranks import gathered, rank_and_world, stop_if_any_failed

FILES = "trainer/files.json"
MARKED = ("model*.safetensors", "config.json", "trainer/state.json", "trainer/optimizer/*.distcp")
PATIENCE = 60                   # s that a network file system may take to show a file


def commit(out: Path) -> None:
    """Make the checkpoint in OUT/.saving the one of OUT, and the one before OUT/previous. Raises OSError."""
    new = out / ".saving"
    names = [path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()]
    disk.write_json(new / FILES, {"files": sorted(names), "marks": marks(new)})
    flush(new)
    os.replace(new, out / ".saved")
    flush_directory(out)
    put_in_place(out)


def put_in_place(out: Path) -> None:
    """Move the files of OUT/.saved into OUT, those that were there to OUT/previous, and remove what was there. Killed
    at any moment, it may be called again: a file in .saved is a move that is still to be done, and lists of files go
    last (where OUT has none, all that was in it is in OUT/previous)."""
    new, previous = out / ".saved", out / "previous"
    if (new / FILES).exists():
        names = files_of(new)
        for name in [*files_of(previous), FILES] if (out / FILES).exists() else ():
            (previous / name).unlink(missing_ok=True)
        previous.mkdir(exist_ok=True)
        for name in [name for name in files_of(out) if name not in names]:
            move(name, out, previous)
        folders = {parent.as_posix() for name in names for parent in PurePath(name).parents}
        for name in sorted(name for name in folders if (out / name).is_symlink() and name != "."):
            move(name, out, previous)                       # a reader's link: what it leads to is not ours
        for name in [*names, FILES]:
            if (new / name).exists():
                move(name, out, previous)
                move(name, new, out)
        flush_directory(out)
    remove_empty(new)
    remove_empty(previous)


def recover(out: Path) -> None:
    """Finish or undo a save that was killed. Raises OSError, ValueError where something else is in the place of one."""
    new, done = out / ".saving", out / ".saved"
    if done.is_dir():
        put_in_place(out)
    if new.is_dir() and not new.is_symlink():
        shutil.rmtree(new)
    for path in filter(os.path.lexists, (new, done)):
        raise ValueError(f"{path} is in the way, and nothing that this program wrote: move it elsewhere")


def holds_training(out: Path) -> bool:
    """Whether something was saved there, be it in the middle of the move to its place."""
    return any((out / folder / "trainer" / "state.json").is_file() for folder in (".", ".saved"))


def files_of(directory: Path) -> list:
    """Names of the files of the checkpoint in a directory; none where it has no list. Raises ValueError."""
    path = directory / FILES
    if not path.exists():
        return []
    names = disk.typed(disk.read_json(path), "files", list[str], path)
    for name in names:
        pure = PurePath(name)
        if pure.is_absolute() or ".." in pure.parts or pure.as_posix() != name or name == "." or "\0" in name:
            raise ValueError(f"{path} names {name!r}, which is no file in {directory}: was it changed by hand?")
    return names


def marks(directory: Path) -> dict:
    """name -> [bytes, a cheap checksum] of each of the files that a resumed training reads. The checksum is of 64 bytes
    in 4096 places of a file, evenly apart: another training, or another step of it, has changed some of them. Raises
    OSError, ValueError where one is no file."""
    found = {}
    for path in sorted(path for pattern in MARKED for path in directory.glob(pattern)):
        with open(disk.regular(path, "what a training saved"), "rb") as file:
            size, crc = path.stat().st_size, 0
            for at in range(0, size, max(64, size // 4096)):
                file.seek(at)
                crc = zlib.crc32(file.read(64), crc)
        found[path.relative_to(directory).as_posix()] = [size, crc]
    return found


def check_saved(out: Path) -> None:
    """Raises ValueError where the files in OUT are not those that were saved there, or the next save could not take
    their place."""
    path = out / FILES
    saved = disk.typed(disk.read_json(path), "marks", dict, path, {}) if path.exists() else {}
    before = f", or go on with --out {out / 'previous'}" if files_of(out / "previous") else ""
    now, _ = marks(out), files_of(out)
    changed = sorted(name for name in saved if saved[name] != now.get(name))
    if changed:
        raise ValueError(f"{out / changed[0]} is not the file that this training saved: put that back, or start "
                         f"another training with --init-from {out}{before}")


def move(name: str, source: Path, target: Path) -> None:
    """Move a file from one directory to the same name in another, if it is there."""
    if os.path.lexists(source / name):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, target / name)


def remove_empty(directory: Path) -> None:
    """Remove the empty directories below a directory, and it too if nothing is left."""
    for folder, *_ in os.walk(directory, topdown=False):
        with suppress(OSError):                             # not empty
            os.rmdir(folder)


def flush(directory: Path) -> None:
    """Wait until all files below a directory are on the disk: a rename must not get there before what it renames."""
    for folder, _, names in os.walk(directory):
        for name in names:
            with open(Path(folder) / name, "rb+" if os.name == "nt" else "rb") as file:
                os.fsync(file.fileno())
        flush_directory(Path(folder))


def flush_directory(directory: Path) -> None:
    with suppress(OSError):                                 # Windows and some network file systems know no such thing
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def shared(lock: Path) -> bool:
    """Whether all processes see the file of rank 0: otherwise each would save its part of a checkpoint on another disk.
    A network file system may need a while to show it. On all of them together."""
    if not dist.is_initialized():
        return True
    text, until = [lock.read_text() if dist.get_rank() == 0 else None], time.monotonic() + PATIENCE
    dist.broadcast_object_list(text)
    while not (seen := lock.is_file() and lock.read_text() == text[0]) and time.monotonic() < until:
        time.sleep(1)
    return seen


# ---------------------------------------------------------------- a save, while the training goes on

class Saver:
    """The saves of a training, one at a time; on all ranks together. (torch's `async_save` does not fit: its thread
    calls collectives, which on the ranks may run in another order than those of the steps.)"""

    def __init__(self, out: Path, model, tensors: dict, step: int):
        """tensors: name -> tensor, `progress.optimizer_tensors`; step: the one that was saved last."""
        self.out, self.model, self.tensors, self.saved, self.thread = out, model, tensors, step, None

    def start(self, state: dict) -> None:
        """Copy all that is to be saved to CPU memory, then let a thread of each rank write it to OUT/.saving. Raises as
        `finish` does, of the save before."""
        self.finish()
        self.step, self.written, self.failure = state["step"], None, None
        rank, world = rank_and_world()
        state, whole = deepcopy(state), whole_weights(self.model, getattr(torch, state["dtype"]))
        self.writer = dcp.FileSystemWriter(self.out / ".saving" / "trainer" / "optimizer", per_thread_copy_ahead=0)
        planner = dcp.DefaultSavePlanner()                  # as dcp.save has it: which rank writes what
        planner.set_up_planner(self.tensors, is_coordinator=rank == 0)
        plans, self.metadata = planner.create_global_plan(gathered(planner.create_local_plan()))
        plan = planner.finish_plan(self.writer.prepare_global_plan(plans)[rank])
        copies = {item.index: planner.resolve_data(item).detach().to("cpu", copy=True) for item in plan.items}
        planner.resolve_data = lambda item: copies[item.index]

        def write():
            try:
                self.writer.path.mkdir(parents=True, exist_ok=True)
                if rank == 0:
                    write_checkpoint(self.out / ".saving", self.model, state, whole)
                written = self.writer.write_data(plan, planner).wait()
                if rank == 0:
                    flush(self.out / ".saving")             # the others' parts are flushed by themselves
                self.written = written
            except BaseException as error:                  # `finish` raises it, whatever it is
                self.failure = behind(error)
        self.thread = Thread(target=write)
        self.thread.start()

    def writing(self) -> bool:
        """Whether this rank's thread is at work."""
        return self.thread is not None and self.thread.is_alive()

    def finish(self) -> None:
        """Wait for the threads of all ranks, then put what they have written in its place. Raises OSError on all ranks
        together (`ranks.stop_if_any_failed`), with the old checkpoint untouched."""
        if self.thread is None:
            return
        self.thread.join()
        self.thread, parts = None, gathered(self.written)
        if rank_and_world()[0] == 0:
            try:
                if None not in parts:
                    self.writer.finish(self.metadata, parts)
                    commit(self.out)
            except (OSError, ValueError) as error:
                self.failure = error
            shutil.rmtree(self.out / ".saving", ignore_errors=True)     # of one that failed
        failed = self.failure and OSError(f"step {self.step} could not be saved in {self.out} ({self.failure}): " + (
            "it is whole in .saved there, --resume puts it in its place" if (self.out / ".saved").exists() else
            "the last checkpoint is untouched, --resume goes on from there" if (self.out / "config.json").exists() else
            "nothing was saved before"))
        stop_if_any_failed(failed)
        self.model.directory, self.saved = self.out, self.step

    def close(self) -> None:
        """At the end, whatever ends it: no thread still writes, and what one process alone has written counts."""
        if rank_and_world()[1] == 1:
            self.finish()
        elif self.thread is not None:
            self.thread.join()


def whole_weights(model, dtype: torch.dtype) -> dict:
    """name -> a copy on the CPU, on rank 0; each gathered from all ranks in turn."""
    whole = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if rank_and_world()[0] == 0:
            whole[name] = tensor.to("cpu", dtype, copy=True)
    return whole


def write_checkpoint(directory: Path, model, state: dict, whole: dict) -> None:
    """A checkpoint without the optimizer."""
    done = {name: state[name] for name in ("step", "steps", "recipe", "rates", "batch", "seed", "ablate", "best")}
    model.save_pretrained(directory, whole)
    disk.write_json(directory / "stages.json", state["earlier"] | {str(state["stage"]): done})
    disk.write_json(directory / "trainer" / "state.json", state)


def behind(error: BaseException) -> BaseException:
    """The OSError behind an error, if there is one: torch's own words for a full disk are about positions."""
    cause = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause or error


# ---------------------------------------------------------------- the optimizer

# What the pickled list of its tensors may name: no other class or function is ever called.
ALLOWED = {(kind.__module__, kind.__name__): kind for kind in (
    metadata.Metadata, metadata.MetadataIndex, metadata.StorageMeta, metadata.TensorStorageMetadata,
    metadata.TensorProperties, metadata.ChunkStorageMetadata, metadata.BytesStorageMetadata,
    metadata._MEM_FORMAT_ENCODING, filesystem._StorageInfo, torch.Size, torch.serialization._get_layout)}
ALLOWED |= {(module, name): PurePath for module in ("pathlib", "pathlib._local")    # the latter is Python 3.13's
            for name in ("PosixPath", "WindowsPath")}
ALLOWED |= {("torch", str(dtype).removeprefix("torch.")): dtype for dtype in vars(torch).values()
            if isinstance(dtype, torch.dtype)}


class Restricted(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return ALLOWED[module, name]


class Reader(dcp.FileSystemReader):
    """torch's, without its free pickle.load, and with a look at each tensor's checksum, which torch only writes."""

    def _slice_file(self, file, stored):
        part = io.BytesIO(super()._slice_file(file, stored).read())
        with zipfile.ZipFile(part) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"{stored.relative_path} is damaged, the checksum of {damaged} differs")
        part.seek(0)
        return part

    def read_metadata(self, *_, **__):
        path = Path(self.path) / ".metadata"
        try:
            with open(disk.regular(path, "what torch.distributed.checkpoint wrote"), "rb") as file:
                found = Restricted(file).load()
            found.storage_meta = found.storage_meta or metadata.StorageMeta()
            found.storage_meta.load_id = self.load_id
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:                          # a damaged pickle ends in any of them
            why = str(error) or type(error).__name__
            raise ValueError(f"{path} is not what torch.distributed.checkpoint writes ({why})") from None
        return found


def load_optimizer(out: Path, tensors: dict) -> None:
    """Fill name -> tensor, as `Saver` was given it. Raises ValueError on every rank."""
    directory = out / "trainer" / "optimizer"
    reader = Reader(directory)
    try:
        reader.read_metadata()                              # torch, which reads it again, would print a traceback
        with warnings.catch_warnings(), collective_errors():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")      # there is one process: we know
            dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except Exception as error:                              # torch's own words for a cut file, a missing name, a size
        why = " ".join(str(error).split())[:300] or type(error).__name__
        other = out / "previous"
        before = f": go on with --out {other}, the checkpoint before it" if (other / FILES).exists() else ""
        raise ValueError(f"{directory} cannot be read ({why}){before}") from error


@contextmanager
def collective_errors():
    """CheckpointException, which is no Exception, has what went wrong on which rank: the first of it as an OSError, but
    for an interrupt."""
    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if not isinstance(cause, Exception):
            raise cause from None
        raise OSError(str(cause) or type(cause).__name__) from cause
