"""The mini model's world: what it is asked and answers, in which voices, with which face; and its making from scratch.

`python -m toy` is the front door (__main__.py).

    domain.py      the questions and answers, as text          marking.py       asks a model, and marks its answers
    voices.py      the synthesizers that speak them            speaking.py      how a model says its answers
    teacher.py     the face that belongs to a sentence         augment.py       a log-mel as another voice would make it
    demo.py        all of it as prepared data                  microbatches.py  samples of like length together
    answers.py     the answers' units, and as a small file     muon.py          an optimizer that needs fewer steps

    make.py        everything in order, and what is shipped
    pretrain.py    the parts that larger presets download: pretrain_listen.py (vocabulary, language model, encoder) and
                   pretrain_speak.py (speech tokenizer, flow, vocoder; with clips.py, codebook.py), trained by fit.py
"""
