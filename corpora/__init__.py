"""What others have published, and how it becomes ours; `prepare.py` is the front door.

    glm4_voice.py   GLM-4-Voice's speech tokenizer and speech decoder -> speech_tokenizer/, speech_decoder/
    published.py    Qwen3, Whisper and the two above, or the official Ex-Omni release -> one checkpoint directory
    hub.py          Hugging Face repositories: fetched at one commit, which the checkpoint remembers
    tally.py        what became of every tensor

Readers of public speech and face corpora belong here too, one file per corpus layout: from the files as their authors
publish them to prepared data (data.py). There is none yet.
"""
