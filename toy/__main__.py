"""Makes the mini model.

    python -m toy                           # everything from scratch: data, pretrained parts, four stages (toy/make.py)
    python -m toy --from mini               # data and the four stages, from what mini/ ships
    python -m toy pretrain llm encoder      # some of the parts that larger presets download (toy/pretrain.py)

From the repository's root. `--help` after either says more.
"""
import sys

import cli      # noqa: F401   before torch, which takes seconds: it says what an interrupt then is
from toy import make, pretrain

if __name__ == "__main__":
    command = pretrain.main if sys.argv[1:2] == ["pretrain"] else make.main
    command(sys.argv[2:] if command is pretrain.main else sys.argv[1:])
