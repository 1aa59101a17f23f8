"""Published weights -> a checkpoint, public corpora -> prepared data. The command is `prepare.py`.

`prepare.py weights`
    published.py    Qwen3, Whisper and GLM-4-Voice, or the official Ex-Omni release -> one checkpoint directory
    glm4_voice.py   GLM-4-Voice's speech tokenizer and speech decoder -> speech_tokenizer/, speech_decoder/
    hub.py          downloads Hugging Face repositories at one commit, which the checkpoint records
    tally.py        counts of the tensors that were loaded, ignored or initialised

`prepare.py corpus NAME`
    readers.py      the list of readers; asr.py, dialogues.py, faces.py and table.py hold them, one per layout
    corpus.py       what all readers share; sound.py decodes a clip, files.py reads json, tars and folders

`prepare.py units`, `label` and `speak`
    units.py, label.py, speak.py    add speech units, face tracks or speech to prepared data
    adding.py       what these three share
    audio2face.py   the teacher of `label`, NVIDIA's Audio2Face-3D; blendshapes.py: its skin -> 52 weights
"""
