"""What several test files share: one tiny random checkpoint, made once by the README's first command."""
import signal

import pytest
import torch

import prepare

torch.set_num_threads(1)        # the models are tiny: a second thread costs more than it brings


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The directory of `prepare.py weights --preset tiny`: complete, random weights. Copy it before changing it."""
    out = tmp_path_factory.mktemp("checkpoints") / "tiny"
    prepare.main(["weights", "--preset", "tiny", "--out", str(out)])
    return out

# Started in the background of a shell without job control, a process ignores Ctrl-C, and so does all that it starts: the
# tests of interrupts would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
