"""The mini model's world: what it is asked and answers, in which voices, with which face; and its making from scratch.

`python -m toy` is the front door (__main__.py).

    domain.py      the questions and answers, as text          plan.py          what is said by whom and typed, by split
      facts.py     what is known, as tables                    demo.py          all of it as prepared data
      forms.py     how one asks for it                         answers.py       the answers' units, and as a small file
      outside.py   questions without an answer                 teacher.py       the face that belongs to a sentence
    talks.py       conversations                               augment.py       a log-mel as another voice would make it
    keyboard.py    how people type                             microbatches.py  samples of like length together
    voices.py      the synthesizers that speak them            muon.py          an optimizer that needs fewer steps
      neural.py, held_voices.py   more of them                 marking.py       asks a model, and marks its answers
      said.py      what they give: a clip                      speaking.py      how a model says its answers
    rooms.py       rooms, telephones, noise around a voice

    strangers.jsonl   160 typed questions by somebody who had seen neither this code nor its phrasings, written before
                      the model was trained: to mark with, never to train or tune with (marking.py)

    make.py        everything in order, and what is shipped
    pretrain.py    the parts that larger presets download: pretrain_listen.py (vocabulary, language model, encoder) and
                   pretrain_speak.py (speech tokenizer, flow, vocoder; with clips.py, codebook.py), trained by fit.py
"""
