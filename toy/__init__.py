"""The mini model's world: its questions and answers, its synthetic voices, its face, and its training from scratch.

Start with `python -m toy` (__main__.py). In the order of the work:

    1. text: domain.py (all questions and answers), from facts.py (tables), forms.py (wordings), outside.py (questions
       without an answer); talks.py (conversations); casual.py, keyboard.py (how people type)
    2. plan.py: which sample is in which split, asked by which voice
    3. sound: voices.py (espeak-ng, flite), neural.py, held_voices.py (for tests alone); said.py (the Clip that they
       return); rooms.py (reverberation, noise, telephones); teacher.py (phones -> face)
    4. demo.py: writes 1 to 3 as prepared data; answers.py: adds speech units, and packs all answers into one file
    5. pretrain.py: trains what larger presets download, with the loop of fit.py: pretrain_listen.py (vocabulary,
       language model, encoder) and pretrain_speak.py (speech tokenizer, flow, vocoder; with clips.py, codebook.py)
    6. train.py at the top level trains the four stages; for the toy with muon.py (optimizer), augment.py (log-mels in
       other voices) and microbatches.py (samples of similar length together)
    7. make.py: runs 4 to 6 and writes mini/, the checkpoint that comes with the code

evaluate.py measures the result with marking.py (are the answers right?) and speaking.py (how well are they spoken?).
strangers.jsonl: 160 typed questions by somebody who had seen neither this code nor its wordings, written before the
model was trained. They are for marking only, never for training or tuning.
"""
