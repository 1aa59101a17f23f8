"""What others have published, and how it becomes ours; `prepare.py` is the front door.

    glm4_voice.py   GLM-4-Voice's speech tokenizer and speech decoder -> speech_tokenizer/, speech_decoder/
    published.py    Qwen3, Whisper and the two above, or the official Ex-Omni release -> one checkpoint directory
    hub.py          Hugging Face repositories: fetched at one commit, which the checkpoint remembers
    tally.py        what became of every tensor

    adding.py       arrays put into finished prepared data: units.py, label.py, speak.py are `prepare.py units` ...
    audio2face.py   NVIDIA's Audio2Face-3D as teacher; blendshapes.py: its skin -> 52 weights
    readers.py      `prepare.py corpus NAME`: asr.py, dialogues.py, faces.py and table.py read the layouts, corpus.py
                    does the rest with sound.py and files.py
"""
