"""A tiny `ExOmni` with random weights and decisive choices, prompts with and without speech: for the tests of the model."""
import pytest
import torch

from checkpoint import PRESETS
from decode import GREEDY
from model import ExOmni
from tokenizer import SPEECH_ID
from whisper import windows

CONFIG = PRESETS["tiny"]
STOP, END = CONFIG.stop_ids[0], CONFIG.generator.unit_vocab
RATE = 16_000
# float32 sums in another order through at most six layers; seen below 1e-5 on values of order 1
CLOSE = {"atol": 1e-4, "rtol": 1e-3}


def build(seed=4, config=CONFIG) -> ExOmni:
    """Random weights that keep the size of what passes through them, so that the likeliest id is clearly so. The stop
    ids' rows are larger than the others: replies end at different times."""
    model = ExOmni(config).eval()
    torch.manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        if p.ndim == 1:
            torch.nn.init.normal_(p, mean=float(name.endswith("weight")), std=0.1)
        else:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    for table in (model.llm.embed_tokens, model.speech_generator.llm.embed_tokens, model.speech_generator.llm_embedding,
                  model.speech_generator.speech_embedding, model.face_decoder.speech_token_embedding):
        torch.nn.init.normal_(table.weight)
    model.speech_encoder.init_weights()
    if model.lm_head is not None:
        torch.nn.init.normal_(model.lm_head.weight, std=0.4)
        model.lm_head.weight.data[STOP] *= 2.5
    model.speech_generator.llm_decoder.weight.data[END] *= 2
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def fresh():
    return build()


def windows_of(waveform):
    return windows(waveform, CONFIG.speech_encoder)


def noise(seconds, seed):
    return 0.1 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


# Prompts of different lengths, with speech (one clip, two clips) and without, and their clips.
PROMPTS = [[1, 2, SPEECH_ID, 3], [4, 5, 6], [7, SPEECH_ID, 8, 9, SPEECH_ID], list(range(10, 30)), [SPEECH_ID], [31, 32]]
CLIPS = [noise(1, 0), None, [noise(2, 1), noise(0.3, 2)], None, noise(3, 3), None]
LIMIT = 8


def answer_all(model, which=range(len(PROMPTS)), **options):
    options = dict(max_new_tokens=LIMIT, unit_sampler=GREEDY) | options
    return model.generate([PROMPTS[i] for i in which], [CLIPS[i] for i in which], **options)


def answer_one(model, i, **options):
    return model.generate(PROMPTS[i], CLIPS[i], **(dict(max_new_tokens=LIMIT, unit_sampler=GREEDY) | options))


@pytest.fixture(scope="module")
def answers(model):
    """The batch that several tests look at; rows end at different times, by stop id and by limit."""
    answers = answer_all(model)
    lengths, units = [len(a.text_ids) for a in answers], [len(a.units) for a in answers]
    assert len(set(lengths)) > 2 and len(set(units)) > 2, (lengths, units)
    stopped = [a.text_ids[-1] in CONFIG.stop_ids for a in answers]
    assert any(stopped) and not all(stopped), "some replies stop, some reach the limit"
    ended = [len(a.unit_states) == len(a.units) + 1 for a in answers if len(a.units)]
    assert any(ended) and not all(ended), "some rows of units end by themselves, some reach the limit"
    assert min(units) == 0, "an empty reply in the middle of the company"
    return answers


def same_answer(seen, expected):
    assert seen.text_ids == expected.text_ids
    assert seen.units.tolist() == expected.units.tolist()
    for name in ("text_states", "unit_states", "face"):
        torch.testing.assert_close(getattr(seen, name), getattr(expected, name), **CLOSE, msg=lambda text: f"{name}: {text}")


def near(value):
    return pytest.approx(value, rel=1e-4)              # float32 sums in another order
