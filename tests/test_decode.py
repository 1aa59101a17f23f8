"""decode.py: the laws of the samplers, the rules of the loop, and that its step never asks the device anything."""
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import decode
from decode import GREEDY, WINDOW, Decoder, RepetitionAware, TextSampler, nucleus, sample_from, seed_from
from qwen3 import Qwen3, Qwen3Config


CONFIG = Qwen3Config(40, 32, 48, 2, 4, 2, 16, max_position_embeddings=256)
V, STOP, RESERVED = 40, 37, (38, 39)
SAMPLERS = {"greedy": GREEDY, "text": TextSampler(1.0, 0.9), "plain": TextSampler(0.7), "repetition": RepetitionAware()}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# ---------------------------------------------------------------- samplers

def chi_square(ids, probs):
    """Pearson's statistic of ids (n,) against probs; where the law holds its mean is the number of classes less one."""
    expected = probs * len(ids)
    assert (torch.bincount(ids, minlength=len(probs))[probs == 0] == 0).all(), "an impossible id was sampled"
    seen, expected = torch.bincount(ids, minlength=len(probs))[probs > 0], expected[probs > 0]
    return ((seen - expected) ** 2 / expected).sum().item()


PROBS = torch.tensor([0.35, 0.0, 0.2, 0.15, 0.15, 0.1, 0.04, 0.01])
SAMPLES = 20_000
BOUND = 22.5            # chi-square with 6 degrees of freedom exceeds this once in a thousand; the seed is fixed


def test_sample_from_follows_the_law_of_multinomial():
    torch.manual_seed(0)
    ids = sample_from(PROBS.expand(SAMPLES, -1))
    assert chi_square(ids, PROBS) < BOUND
    assert chi_square(torch.multinomial(PROBS, SAMPLES, replacement=True), PROBS) < BOUND
    assert chi_square(sample_from(7 * PROBS.expand(SAMPLES, -1)), PROBS) < BOUND, "weights need not sum to one"
    wrong = PROBS.roll(1)
    assert chi_square(ids[ids != 0], torch.where(PROBS > 0, wrong.clamp(min=0.01), 0)) > 10 * BOUND, "the test can fail"


def test_sample_from_repeats_with_its_generator():
    weights = PROBS.expand(100, -1)
    first, again, other = (sample_from(weights, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_nucleus_keeps_what_comes_before_the_mass():
    weights, ids = nucleus(PROBS[None], 0.8, 25)
    assert ids[0, weights[0] > 0].sort().values.tolist() == [0, 2, 3, 4]        # 0.35 + 0.2 + 0.15 = 0.7 < 0.8: one more
    assert weights.shape == (1, 8) and (weights.diff() <= 0).all()
    assert nucleus(PROBS[None], 0.8, 2)[1].tolist() == [[0, 2]]


@pytest.mark.parametrize("top_p", (0.0, 1e-6, 0.2))
def test_nucleus_always_keeps_the_first(top_p):
    weights, ids = nucleus(torch.stack([PROBS, PROBS.flip(0)]), top_p, 25)
    assert (weights > 0).sum(1).tolist() == [1, 1] and ids[:, 0].tolist() == [0, 7]
    logits = torch.randn(50, 30)
    assert torch.equal(TextSampler(1.0, top_p=1e-6)(logits), logits.argmax(-1))


def test_text_sampler_at_temperature_0_is_argmax():
    logits = torch.randn(20, 50)
    assert torch.equal(TextSampler(0)(logits), logits.argmax(-1)) and torch.equal(GREEDY(logits), logits.argmax(-1))


def test_text_sampler_follows_temperature_and_top_p():
    logits = PROBS.log().expand(SAMPLES, -1)
    assert chi_square(TextSampler(1.0)(logits, generator=torch.Generator().manual_seed(0)), PROBS) < BOUND
    cold = (PROBS.log() / 0.5).softmax(-1)
    assert chi_square(TextSampler(0.5)(logits, generator=torch.Generator().manual_seed(0)), cold) < BOUND
    kept = torch.where(PROBS >= 0.15, PROBS, 0)
    ids = TextSampler(1.0, 0.8)(logits, generator=torch.Generator().manual_seed(0))
    assert chi_square(ids, kept / kept.sum()) < BOUND


@pytest.mark.parametrize("make", (
    *(lambda value=value: TextSampler(value) for value in (float("nan"), -1.0, 1e-320, float("inf"))),
    *(lambda value=value: TextSampler(1.0, value) for value in (0, float("nan"), 2)),
    *(lambda value=value: RepetitionAware(top_p=value) for value in (0, float("nan"), 2)),
    lambda: RepetitionAware(tau=float("nan")), lambda: RepetitionAware(top_k=0)))
def test_samplers_refuse_what_is_no_temperature_or_share(make):
    with pytest.raises(ValueError, match="(temperature|top_p|tau|top_k) is .*expected"):
        make()


def test_the_coldest_temperature_is_the_likeliest():
    logits = 1e4 * torch.randn(20, 50)
    assert torch.equal(TextSampler(decode.COLDEST)(logits), logits.argmax(-1))


def test_repetition_aware_samples_again_where_the_id_was_emitted_lately():
    kept = torch.where(PROBS >= 0.15, PROBS, 0)
    kept = kept / kept.sum()
    logits, none = PROBS.log().expand(SAMPLES, -1), torch.full((SAMPLES, WINDOW), -1)
    ids = RepetitionAware()(logits, none, torch.Generator().manual_seed(0))
    assert chi_square(ids, kept) < BOUND
    recent = none.clone()
    recent[:, -1] = 0                                                           # the oldest of the window is enough
    law = kept * (torch.arange(8) != 0) + kept[0] * PROBS                       # id 0 first: then from all
    ids = RepetitionAware()(logits, recent, torch.Generator().manual_seed(0))
    assert chi_square(ids, law) < BOUND
    ids = RepetitionAware(tau=0.2)(logits, recent, torch.Generator().manual_seed(0))
    assert chi_square(ids, kept) < BOUND, "once of ten is below a share of 0.2"


def test_seed_from_follows_the_generator():
    seeds = [seed_from(torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]
    torch.manual_seed(5)
    first = seed_from(None)
    assert first != seed_from(None)


# ---------------------------------------------------------------- the loop

class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.llm, self.embed, self.head = Qwen3(CONFIG), nn.Embedding(V, 32), nn.Linear(32, V)
        self.llm.init_weights(0.2)
        nn.init.normal_(self.embed.weight)
        nn.init.normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return Parts().eval()


def begun(parts, prompts, sampler=GREEDY, steps=12, minimum=0, maximum=None, seed=1, skipped=(STOP,), **options):
    """A decoder after `begin`. prompts: a list of (N_b, D)."""
    embeds, lengths = nn.utils.rnn.pad_sequence(prompts, batch_first=True), torch.tensor([len(p) for p in prompts])
    decoder = Decoder(parts.llm, parts.embed, parts.head, sampler, len(prompts), embeds.shape[1] + steps, steps, (STOP,),
                      skipped=skipped, **options)
    each = lambda value: torch.as_tensor(value).expand(len(prompts))
    decoder.begin(embeds, lengths, each(minimum), each(steps if maximum is None else maximum), seed)
    return decoder


def finished(*args, static=False, **kwargs):
    decoder = begun(*args, **kwargs)
    if static:
        decoder.cache.limit = decoder.cache.capacity                            # what a CUDA graph sees
    decoder.run()
    return decoder


def rows(decoder):
    """[(emitted ids, states that the steps chose from)] of each row."""
    return [(ids.tolist(), states) for ids, states in zip(*decoder.emitted())]


def same_rows(seen, expected):
    for (ids, states), (other, others) in zip(seen, expected, strict=True):
        assert ids == other
        torch.testing.assert_close(states, others, atol=2e-5, rtol=1e-4)        # float32 sums in another order


def prompts():
    return [torch.randn(n, 32) for n in (4, 9, 1)]


@pytest.mark.parametrize("keep_stop", (True, False))
def test_greedy_decoding_equals_reading_everything_again_at_each_step(parts, keep_stop):
    parts.head.bias[STOP] = 5.0
    given = prompts()
    decoder = finished(parts, given, skipped=() if keep_stop else (STOP,))
    lengths = set()
    for prompt, (ids, states) in zip(given, rows(decoder)):
        expected, x = [], prompt[None]
        for _ in range(12):
            state = parts.llm(embeds=x)[0, -1]
            torch.testing.assert_close(states[len(expected)], state, atol=2e-5, rtol=1e-4)
            chosen = parts.head(state).argmax()
            if chosen != STOP or keep_stop:
                expected.append(int(chosen))
            if chosen == STOP:
                break
            x = torch.cat([x, parts.embed(chosen)[None, None]], dim=1)
        assert ids == expected
        lengths.add(len(ids))
    assert len(lengths) > 1, "all rows ended together: the test says little"


@pytest.mark.parametrize("name", SAMPLERS)
def test_reading_the_whole_cache_changes_nothing(parts, name):
    """What a GPU does (a CUDA graph reads the whole cache at every step), on a CPU."""
    parts.head.bias[STOP] = 3.0
    given, options = prompts(), dict(sampler=SAMPLERS[name], banned=RESERVED)
    same_rows(rows(finished(parts, given, static=True, **options)), rows(finished(parts, given, **options)))


def test_a_decoder_begins_anew_as_if_it_were_new(parts):
    given = prompts()
    decoder = finished(parts, given, sampler=RepetitionAware())
    first = rows(decoder)
    first = [(ids, states.clone()) for ids, states in first]
    embeds = nn.utils.rnn.pad_sequence(given, batch_first=True)
    decoder.begin(embeds, torch.tensor([4, 9, 1]), torch.zeros(3), torch.full((3,), 12), 1)
    decoder.run()
    same_rows(rows(decoder), first)


def test_a_row_ends_neither_before_its_minimum_nor_after_its_maximum(parts):
    parts.head.bias[STOP] = 100.0
    for keep_stop in (False, True):
        eager = finished(parts, prompts(), minimum=[0, 3, 7], skipped=() if keep_stop else (STOP,))
        assert eager.count.tolist() == [n + keep_stop for n in (0, 3, 7)] and eager.state_count.tolist() == [1, 4, 8]
        assert all(STOP not in ids[:n] for (ids, _), n in zip(rows(eager), (0, 3, 7)))
    parts.head.bias[STOP] = -100.0
    shy = finished(parts, prompts(), maximum=[5, 0, 12])
    assert shy.count.tolist() == shy.state_count.tolist() == [5, 0, 12]


@pytest.mark.parametrize("name", SAMPLERS)
def test_banned_ids_are_never_sampled(parts, name):
    parts.head.bias[list(RESERVED)] = 100.0
    decoder = finished(parts, prompts(), sampler=SAMPLERS[name], banned=RESERVED)
    assert decoder.count.tolist() == decoder.state_count.tolist() or (decoder.state_count - decoder.count).max() == 1
    assert not set(RESERVED) & {i for ids, _ in rows(decoder) for i in ids} and decoder.count.max() > 0


def test_skipped_ids_are_not_emitted_and_the_last_input_is_fed_again(parts):
    parts.head.bias[list(RESERVED)] = 100.0
    given = prompts()[:1]
    decoder = finished(parts, given, skipped=RESERVED, steps=3)
    assert decoder.count.tolist() == [0] and decoder.state_count.tolist() == [3]
    again = parts.llm(embeds=torch.cat([given[0], given[0][-1:], given[0][-1:]])[None])[0, -3:]
    torch.testing.assert_close(rows(decoder)[0][1], again, atol=2e-5, rtol=1e-4)


def test_rows_that_finish_early_do_not_change_the_others(parts):
    parts.head.bias[STOP] = 5.0
    given = prompts()
    maximum = torch.tensor([2, 12, 7])
    together = finished(parts, given, maximum=maximum)
    alone = [rows(finished(parts, [p], maximum=m))[0] for p, m in zip(given, maximum)]
    same_rows(rows(together), alone)
    assert len({len(ids) for ids, _ in alone}) > 1


def test_the_same_seed_samples_the_same_and_another_does_not(parts):
    given = prompts()
    first, again, other = ([ids for ids, _ in rows(finished(parts, given, sampler=TextSampler(1.0), seed=s))]
                           for s in (1, 1, 2))
    assert first == again != other


def test_each_is_called_at_every_look_and_after_the_last_step(parts):
    decoder, seen = begun(parts, prompts(), maximum=[3, 5, 4], skipped=()), []
    decoder.run(lambda d: seen.append(d.count.tolist()))
    assert seen[0] == [1, 1, 1] and seen[-1] == decoder.count.tolist()
    parts.head.bias[STOP] = -100.0
    decoder, seen = begun(parts, prompts()[:1]), []
    decoder.run(lambda d: seen.append(int(d.count)))
    assert seen == list(range(1, 13))


@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
def test_numbers_that_are_not_finite_are_known_at_the_end(parts, value):
    decoder = finished(parts, prompts(), banned=RESERVED, minimum=2)
    decoder.check("the test")
    parts.head.bias[3] = value
    with pytest.raises(ValueError, match="the test: logits are NaN or infinite"):
        finished(parts, prompts()).check("the test")


# ---------------------------------------------------------------- no host synchronisation

class NoSync(TorchDispatchMode):
    """Fails on what makes a host wait for its device: reading a value, or shapes that depend on values."""
    BANNED = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "masked_select", "unique", "_unique2", "equal",
              "bincount", "multinomial")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.BANNED or boolean:
            raise AssertionError(f"aten.{name} stops the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sync", (
    lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.nonzero(),
    lambda x: int(x[0]), lambda x: torch.multinomial(x, 1), lambda x: x.masked_select(x > 0)))
def test_the_watch_catches_a_synchronisation(sync):
    with pytest.raises(AssertionError, match="stops the device"), NoSync():
        sync(torch.ones(3))


@pytest.mark.parametrize("banned, skipped", ((RESERVED, (STOP,)), ((), (STOP, *RESERVED)), ((), ())))
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_never_asks_the_device_anything(parts, name, banned, skipped):
    decoder = begun(parts, prompts(), sampler=SAMPLERS[name], banned=banned, skipped=skipped,
                    minimum=2)
    decoder.cache.limit = decoder.cache.capacity
    with NoSync():
        for _ in range(3):
            decoder.advance()
    assert decoder.state_count.max() > 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_keeps_its_tensors_in_place(parts, name):
    """A CUDA graph replays addresses: what a step updates must stay where it is."""
    decoder = begun(parts, prompts(), sampler=SAMPLERS[name], banned=RESERVED)
    where = lambda: {n: t.data_ptr() for n, t in (vars(decoder) | vars(decoder.cache)).items()
                     if isinstance(t, torch.Tensor) and n != "slots"}           # new at every step, used within it
    before = where()
    decoder.cache.limit = decoder.cache.capacity
    decoder.advance()
    assert where() == before and len(before) >= 12


def test_samples_that_ended_may_go_on_until_the_host_looks(monkeypatch):
    """A GPU is asked every 16 steps only: what is decoded past the end fits the cache and changes nothing."""
    torch.manual_seed(0)
    llm = Qwen3(Qwen3Config(64, 32, 64, 2, 4, 2, 8, tie_word_embeddings=True))
    llm.init_weights()
    prompt, seen = llm.embed_tokens(torch.randint(0, 64, (1, 28))), []
    for poll in (1, 16):
        monkeypatch.setitem(decode.POLL, "cpu", poll)
        decoder = Decoder(llm, llm.embed_tokens, lambda states: states @ llm.embed_tokens.weight.T, GREEDY, 1, 128, 128)
        decoder.begin(prompt, torch.tensor([28]), torch.zeros(1), torch.full((1,), 100), 0)
        decoder.run()
        seen.append(decoder.emitted()[0][0].tolist())
    assert len(seen[0]) == 100 and seen[0] == seen[1]
