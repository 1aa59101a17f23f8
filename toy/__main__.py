"""Makes the mini model.

    python -m toy                           # everything from scratch: data, pretrained parts, four stages (toy/make.py)
    python -m toy --from mini               # data and the four stages, with the pretrained parts of mini/
    python -m toy pretrain llm encoder      # some of the parts that larger presets download (toy/pretrain.py)

Run it in the repository's root; `--help` lists the options of each command.
"""
import sys

import cli      # noqa: F401   first: an interrupt while torch is imported, which takes seconds, then gives one line
from toy import make, pretrain

if __name__ == "__main__":
    command = pretrain.main if sys.argv[1:2] == ["pretrain"] else make.main
    command(sys.argv[2:] if command is pretrain.main else sys.argv[1:])
