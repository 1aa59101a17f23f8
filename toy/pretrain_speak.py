"""Trains the mini preset's speech tokenizer and speech decoder from nothing, on one synthetic voice (for pretrain.py).

    train_tokenizer(voice, folder)      # waveform -> units, together with the unit encoder that must read them back
    train_flow(voice, folder)           # units -> mel
    train_hift(voice, folder)           # mel -> waveform
    encode = unit_encoder(folder)       # (T,) samples at 16 kHz -> units, to prepare the answers with

voice is a data.Split whose rows have audio (the answer voice, all of one loudness) and "phones": [[name, start, end],
...] in seconds. The folder becomes a checkpoint's: speech_tokenizer/{config.json, model.safetensors} and
speech_decoder/{config.json, flow.safetensors, hift.safetensors}, 16-bit. Same classes as at full size, smaller sizes.

Shapes: B batch, U units (12.5 per second), F mel frames (86.13 per second), M mel bins, D width of units, K codes.
"""
from dataclasses import asdict
from functools import cache
from pathlib import Path

import soxr
import torch
import torch.nn.functional as F
from torch import nn

import weights
from data import Split
from toy.fit import fit
from flow import (HOP, SAMPLE_RATE, CFMConfig, EncoderConfig, EstimatorConfig, Flow, FlowConfig, FlowMatching,
                  MatchingConfig, mel_frames, schedule)
from hift import F0Config, HiFT, HiFTConfig, hift_losses, speech_mel
from speech_decoder import SamplingConfig, SpeechDecoderConfig
from speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from whisper import HOP as LISTENING_HOP, SAMPLE_RATE as LISTENING_RATE, log_mel

TOKENIZER = SpeechTokenizerConfig(num_mel_bins=80, d_model=128, encoder_attention_heads=4, encoder_ffn_dim=512,
                                  max_source_positions=1000, quantize_position=3, pooling_position=3,
                                  quantize_vocab_size=1024)
DECODER = SpeechDecoderConfig(
    flow=FlowConfig(
        vocab_size=1024, input_size=128,
        encoder=EncoderConfig(output_size=128, attention_heads=4, linear_units=384, num_blocks=3, dropout_rate=0.0),
        decoder=MatchingConfig(CFMConfig(training_cfg_rate=0.1), EstimatorConfig(
            channels=[96, 96], n_blocks=1, num_mid_blocks=2, num_heads=2, attention_head_dim=48))),
    hift=HiFTConfig(
        base_channels=96, resblock_kernel_sizes=[3, 7], resblock_dilation_sizes=[[1, 3]] * 2,
        source_resblock_kernel_sizes=[7, 7], source_resblock_dilation_sizes=[[1]] * 2, f0_predictor=F0Config(64)),
    # One step from no noise: a flow of this size says it clearer so than with the published settings (SamplingConfig).
    sampling=SamplingConfig(steps=1, temperature=0.0, guidance=0.0))

PHONES_PER_UNIT = 4             # one per 20 ms
WITHOUT_CODES = 0.25            # share of the steps before there is a codebook
LAST_RESTART = 0.85             # share of the steps after which dead codes stay dead
REGRESSION = 0.4                # share of the flow's steps before flow matching joins
TRUE_MEL = 0.75                 # share of the vocoder's steps on true mels; then on those that the flow makes
DECAY = 0.99                    # of the codebook's moving averages
# Not for Muon, which trains all other matrices and convolutions: tables, last layers, what begins as a copy of mu.
NO_MUON = {"flow": ("input_embedding", "spk_embed", "pos_bias", "final_block", "final_proj", "res_conv"),
           "hift": ("conv_post", "f0_predictor.classifier")}
SEGMENT = 32                    # mel frames the vocoder learns from at once


# ---- data -------------------------------------------------------------------------------------------------------

def whole_units(waveform, stride: int) -> torch.Tensor:
    """(T,) samples -> the same with silence up to whole units of `stride` samples."""
    waveform = torch.as_tensor(waveform)
    return F.pad(waveform, (0, -len(waveform) % stride))


def spoken(waveform) -> torch.Tensor:
    """(T,) samples at 16 kHz -> the same at 22050 Hz."""
    return torch.from_numpy(soxr.resample(waveform.numpy(), LISTENING_RATE, SAMPLE_RATE))


def waveforms(voice: Split, stride: int) -> list:
    """[(row, (T,) samples)] of a split in whole units, the shortest first, without the rows marked `held`, on which it is
    measured. Raises ValueError where there is none."""
    rows = [(row, whole_units(row["audio"], stride)) for row in map(voice.__getitem__, range(len(voice)))
            if row["audio"] is not None and not row.get("held")]
    if not rows:
        raise ValueError(f"{voice.directory} has no sound: expected the answer voice, run prepare.py demo again")
    return sorted(rows, key=lambda row: len(row[1]))


def batches(lengths: list, total: int) -> list:
    """Lengths in units, in rising order -> slices of about `total` units each, of nearly one length (within 10 %)."""
    groups, first = [], 0
    for i, length in enumerate(lengths):
        if i > first and ((i + 1 - first) * lengths[first] > total or length > 1.1 * lengths[first]):
            groups.append(slice(first, i))
            first = i
    return [*groups, slice(first, len(lengths))]


def group_at(step: int, groups: list) -> slice:
    """The group of a step: each once per epoch, in another order."""
    epoch, n = divmod(step, len(groups))
    return groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(epoch))[n]]


def stack(arrays: list) -> torch.Tensor:
    """Arrays (..., time) -> (B, ..., time), cut to the shortest: no padding, no masks."""
    shortest = min(array.shape[-1] for array in arrays)
    return torch.stack([array[..., :shortest] for array in arrays])


def phone_ids(spans: list, names: list, count: int) -> torch.Tensor:
    """[[name, start, end], ...] in seconds -> (count,) ids, one per 20 ms: the phone in its middle, else the last."""
    ends = torch.tensor([end for _, _, end in spans])
    middles = (torch.arange(count) + 0.5) / (12.5 * PHONES_PER_UNIT)
    return torch.tensor([names.index(name) for name, _, _ in spans])[
        torch.searchsorted(ends, middles, right=True).clamp(max=len(spans) - 1)]


def pitch(waveform, low=60.0, high=300.0) -> torch.Tensor:
    """(S,) samples at 22050 Hz -> pitch (S // 256,) in Hz, 0 where unvoiced: the autocorrelation's first high peak."""
    window, margin = torch.hann_window(1024), (1024 - HOP) // 2
    frames = F.pad(waveform, (margin, margin)).unfold(0, 1024, HOP) * window                    # those of speech_mel

    def correlation(x):
        return torch.fft.irfft(torch.fft.rfft(x, 2048).abs().square())[..., :1024]

    r, shape = correlation(frames), correlation(window)
    power = r[:, 0]
    r = r / power.clamp(min=1e-9)[:, None] / (shape / shape[0])
    first, last = int(SAMPLE_RATE / high), int(SAMPLE_RATE / low)
    r = r[:, first - 1:last + 2]
    r, before, after = r[:, 1:-1], r[:, :-2], r[:, 2:]
    best = r.max(1, keepdim=True).values
    peak = (r >= 0.9 * best) & (r >= before) & (r >= after)     # a later one is a multiple of the period
    f0 = SAMPLE_RATE / (first + peak.int().argmax(1))
    f0 = f0 * (best[:, 0] > 0.5) * (power > 1e-4 * power.max())
    return F.pad(f0[None], (2, 2), mode="replicate")[0].unfold(0, 5, 1).median(1).values


# ---- speech tokenizer -------------------------------------------------------------------------------------------

class Detail(nn.Module):
    """What the unit encoder knows (B, U, D) -> mel (B, M, F), 7 slots a unit: a shorter way for gradients than mu."""

    def __init__(self, dim: int, n_mels: int, slots=7, channels=96):
        super().__init__()
        self.slots, self.spread = slots, nn.Linear(dim, slots * channels)
        self.model = nn.Sequential(nn.Conv1d(channels, channels, 5, padding=2), nn.Mish(),
                                   nn.Conv1d(channels, n_mels, 5, padding=2))

    def forward(self, x, frames: int):
        x = self.spread(x).unflatten(2, (self.slots, -1)).flatten(1, 2).transpose(1, 2)         # (B, channels, 7 U)
        return self.model(F.mish(F.interpolate(x, size=frames, mode="nearest")))


class Quantised(nn.Module):
    """Speech tokenizer -> code vectors -> the flow's unit encoder, and what only their training needs.

    The codebook follows the states by moving averages; the flow's table of units is a linear map of it, worked out at
    the end (`table`), so that both files are of the real form.
    """

    def __init__(self, config: SpeechTokenizerConfig, flow: FlowConfig, phones: int):
        super().__init__()
        D, K = config.d_model, config.quantize_vocab_size
        self.tokenizer, self.flow = SpeechTokenizer(config), Flow(flow)
        self.tokenizer.init_weights(0.1)        # larger ones would be most of what the codebook sees
        self.tokenizer.codebook.weight.requires_grad_(False)
        self.embed = nn.Linear(D, flow.input_size)
        self.phones = nn.Linear(D, PHONES_PER_UNIT * phones)
        self.detail = Detail(flow.encoder.output_size, flow.output_size)
        self.register_buffer("count", torch.zeros(K))           # moving average of how often a batch uses a code,
        self.register_buffer("total", torch.zeros(K, D))        # and of the sum of the states there

    def forward(self, codes, frames: int):
        """Code vectors (B, U, D) -> mu and the detail head's mel, (B, M, F) each, and phone scores (B, 4 U, phones)."""
        h = self.flow.encoder(self.embed(codes))
        mu = self.flow.length_regulator(self.flow.encoder_proj(h), frames).transpose(1, 2)
        return mu, self.detail(h, frames), self.phones(codes).unflatten(2, (PHONES_PER_UNIT, -1)).flatten(1, 2)

    @torch.no_grad()
    def follow(self, states, ids) -> None:
        """Moving averages of one batch: states (N, D) and their codes (N,)."""
        self.count.mul_(DECAY).index_add_(0, ids, torch.ones(len(ids)), alpha=1 - DECAY)
        self.total.mul_(DECAY).index_add_(0, ids, states, alpha=1 - DECAY)
        self.tokenizer.codebook.weight.copy_(self.total / self.count.clamp(min=1e-9)[:, None])

    @torch.no_grad()
    def place(self, codes, at, count) -> None:
        """Put codes (n, D) in the places `at` of the codebook, as if each were used `count` times a batch."""
        self.tokenizer.codebook.weight[at], self.count[at] = codes, count
        self.total[at] = codes * self.count[at, None]

    @torch.no_grad()
    def restart(self, states, generator, least=0.05) -> int:
        """Codes used less than `least` times a batch become states (N, D) of this batch; how many."""
        dead = (self.count < least).nonzero()[:, 0][:len(states)]
        if len(dead):
            chosen = torch.randperm(len(states), generator=generator)[:len(dead)]
            self.place(states[chosen], dead, self.count.mean())
        return len(dead)

    def perplexity(self) -> float:
        """How many codes are in use, were all used alike; 0 before there is a codebook."""
        share = self.count / self.count.sum().clamp(min=1e-9)
        return torch.special.entr(share).sum().exp().item() if self.count.any() else 0.0

    def table(self) -> torch.Tensor:
        """(K, input_size): what the flow's unit encoder reads for each unit."""
        return self.embed(self.tokenizer.codebook.weight).detach()


def k_means(states, count: int, generator, rounds=12):
    """States (N, D) -> centres (count, D) and how many states each has (count,)."""
    centres = states[torch.randperm(len(states), generator=generator)[:count]]
    for _ in range(rounds):
        nearest = (centres.square().sum(1) - 2 * states @ centres.T).argmin(1)
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, states)
        spare = states[torch.randperm(len(states), generator=generator)[:count]]
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], spare)
    return centres, sizes


def train_tokenizer(voice: Split, folder, steps=1200, config=TOKENIZER, decoder=DECODER, total=540) -> None:
    """Tokenizer and unit encoder: L1 of two mels, phones, commitment. total: units per batch.

    Writes speech_tokenizer/ and begins speech_decoder/: its flow has a trained unit encoder. Raises ValueError for data
    without phones or with fewer units than codes.
    """
    rows = waveforms(voice, config.samples_per_unit)
    lengths = [len(waveform) // config.samples_per_unit for _, waveform in rows]
    lacking = [f"sample {row['id']} has no phones" for row, _ in rows if not row.get("phones")]
    if lacking or sum(lengths) < config.quantize_vocab_size:
        lacking.append(f"{sum(lengths)} units for {config.quantize_vocab_size} codes")
        raise ValueError(f"{voice.directory}: {lacking[0]}: expected an hour of the answer voice, run prepare.py demo")
    names = sorted({name for row, _ in rows for name, _, _ in row["phones"]})
    heard = [log_mel(waveform, config.num_mel_bins, len(waveform) // LISTENING_HOP) for _, waveform in rows]
    mels = [speech_mel(spoken(waveform), decoder.flow.output_size) for _, waveform in rows]
    phones = [phone_ids(row["phones"], names, n * PHONES_PER_UNIT) for (row, _), n in zip(rows, lengths)]
    groups = batches(lengths, total)

    torch.manual_seed(0)
    model = Quantised(config, decoder.flow, len(names))
    average = torch.cat(mels, dim=1).mean(1)
    with torch.no_grad():
        model.tokenizer.embed_positions2.weight.zero_()         # of the published decoder to text, which is not here
        model.flow.length_regulator.model[-1].bias.copy_(average)
        model.detail.model[-1].bias.copy_(average)

    def start_codes(units: int, generator) -> None:
        """The codebook at the first step that has one, by k-means; units per batch."""
        with torch.no_grad():
            some = [model.tokenizer.hidden(h[None])[0] for h in heard[::-(-len(heard) // 500)]]
        centres, sizes = k_means(torch.cat(some), config.quantize_vocab_size, generator)
        model.place(centres, slice(None), sizes / sizes.sum() * units)

    def loss(step, generator):
        group = group_at(step, groups)
        mel, states = stack(mels[group]), model.tokenizer.hidden(stack(heard[group]))           # (B, M, F), (B, U, D)
        codes, commitment = states, states.new_zeros(())
        if step >= WITHOUT_CODES * steps:
            flat = states.detach().flatten(0, 1)
            if not model.count.any():
                start_codes(len(flat), generator)
            ids = model.tokenizer.quantise(states.detach())
            codes = model.tokenizer.codebook(ids)
            commitment = F.mse_loss(states, codes)
            codes = states + (codes - states).detach()          # gradients pass by the quantiser
            model.follow(flat, ids.flatten())
            if step % 20 == 0 and step < LAST_RESTART * steps:
                model.restart(flat, generator)
        mu, detail, scores = model(codes, mel.shape[2])
        parts = {"mu": F.l1_loss(mu, mel), "detail": F.l1_loss(detail, mel),
                 "phones": F.cross_entropy(scores.transpose(1, 2), stack(phones[group])), "commitment": commitment}
        value = parts["mu"] + parts["detail"] + 0.3 * parts["phones"] + 0.25 * commitment
        return value, parts | {"perplexity": model.perplexity()}

    fit("speech_tokenizer", model, loss, steps, 2e-3, folder, warmup=min(100, steps // 10))
    with torch.no_grad():
        model.flow.input_embedding.weight.copy_(model.table())
    weights.write_json(Path(folder) / "speech_tokenizer" / "config.json", asdict(config))
    write_half(Path(folder) / "speech_tokenizer" / "model.safetensors", model.tokenizer)
    weights.write_json(Path(folder) / "speech_decoder" / "config.json", asdict(decoder))
    weights.write_tensors(Path(folder) / "speech_decoder" / "flow.safetensors", model.flow.state_dict())


def write_half(path, module: nn.Module) -> None:
    """A module's tensors in float16, as shipped: weights this small lose less in it than in bfloat16."""
    weights.write_tensors(path, {name: tensor.half() for name, tensor in module.state_dict().items()})


def for_muon(part: str, module: nn.Module) -> list:
    """The parameters of a part of the decoder that Muon trains."""
    return [p for name, p in module.named_parameters() if p.ndim > 1 and not any(no in name for no in NO_MUON[part])]


def unit_encoder(folder):
    """The trained tokenizer as a function: (T,) samples at 16 kHz -> (ceil(T / 1280),) int64 units."""
    tokenizer = SpeechTokenizer.from_pretrained(Path(folder) / "speech_tokenizer")
    return lambda waveform: tokenizer.encode(whole_units(waveform, tokenizer.config.samples_per_unit))


# ---- flow -------------------------------------------------------------------------------------------------------

def train_flow(voice: Split, folder, steps=1800, decoder=DECODER, total=270) -> None:
    """The whole flow on the units of the trained tokenizer; rewrites speech_decoder/flow.safetensors.

    First as a regression: one step from no noise shall land on the mel. Then flow matching joins. mu stays near it.
    total: units per batch.
    """
    encode = unit_encoder(folder)
    rows = [waveform for _, waveform in waveforms(voice, TOKENIZER.samples_per_unit)]
    units = [encode(waveform) for waveform in rows]
    mels = [speech_mel(spoken(waveform), decoder.flow.output_size) for waveform in rows]
    groups = batches([len(ids) for ids in units], total)
    flow, path = Flow(decoder.flow), Path(folder) / "speech_decoder" / "flow.safetensors"
    weights.load(flow, [path])
    torch.manual_seed(1)
    flow.decoder = FlowMatching(decoder.flow.output_size, decoder.flow.decoder)
    begin_as_copy(flow.decoder.estimator, torch.cat(mels, dim=1).mean(1))

    def loss(step, generator):
        group = group_at(step, groups)
        mel, ids = stack(mels[group]), stack(units[group])
        if torch.rand((), generator=generator) < 0.3:           # a beginning, as streaming decodes it
            n = int(torch.randint(min(10, ids.shape[1]), ids.shape[1] + 1, (), generator=generator))
            mel, ids = mel[:, :, :mel_frames(n)], ids[:, :n]
        B, frames = len(mel), mel.shape[2]
        n = B if step < REGRESSION * steps else -(-B * 5 // 8)  # rows from no noise at time 0; others match the flow
        matching = torch.arange(B) >= n

        def chance(share):
            return (torch.rand(B, generator=generator) < share)[:, None, None]

        prompt = 0.8 * frames * torch.rand(B, 1, 1, generator=generator) * chance(0.3)
        cond, mu, spk = mel * (torch.arange(frames) < prompt), flow.mu(ids), flow.speaker().expand(B, -1)
        noise = torch.randn(mel.shape, generator=generator) * matching[:, None, None]
        time = schedule(torch.rand(B, generator=generator)) * matching
        keep = ~chance(decoder.flow.decoder.cfm_params.training_cfg_rate) | ~matching[:, None, None]
        y, target = flow.decoder.noisy(mel, noise, time)
        velocity = flow.decoder.estimator(y, None, mu * keep, time, spk * keep[:, 0], cond * keep)
        parts = {"mu": F.l1_loss(mu, mel), "landed": F.l1_loss(velocity[:n], target[:n]),
                 "matching": F.mse_loss(velocity[n:], target[n:]) if n < B else mel.new_zeros(())}
        return parts["mu"] + 2 * parts["landed"] + 0.3 * parts["matching"], parts

    fit("flow", flow, loss, steps, 1.5e-3, folder, warmup=min(100, steps // 10), matrices=for_muon("flow", flow))
    write_half(path, flow)


@torch.no_grad()
def begin_as_copy(estimator, average) -> None:
    """Set a new U-Net such that it begins as a copy of mu: from random weights it stays worse than mu for long.

    No path leads around its normalisations (8 groups of channels, over time), and they take each clip's loudness away.
    So the last one gets, beside the mel bins of its group and relative to their average (M,), a large constant
    minus their sum, and minus the constant: its mean is 0, its spread hardly moves. Branches off the copy start at 0.
    """
    M, C = len(average), estimator.final_proj.in_channels
    conv, norm, _ = estimator.final_block.block
    bins, channels = M // norm.num_groups, C // norm.num_groups
    assert M % norm.num_groups == 0 and channels >= bins + 2, (M, C)
    for level in [*estimator.down_blocks, *estimator.mid_blocks, *estimator.up_blocks]:
        nn.init.zeros_(level[0].block2.block[1].weight)
        for block in level[1]:
            for layer in (block.attn1.to_out[0], block.ff.net[2]):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
    copied, last = torch.arange(M), estimator.up_blocks[-1]
    for layer, first in ((estimator.down_blocks[0][0].res_conv, M), (last[0].res_conv, C)):     # in (x, mu, spk, cond)
        nn.init.zeros_(layer.bias)                                                              # and in (x, skip)
        layer.weight[copied] = 0
        layer.weight[copied, first + copied] = 1
    nn.init.dirac_(last[2].weight)
    nn.init.zeros_(last[2].bias)

    constant, shrink, shift = 100.0, 4.0, 5.0                   # mish is a line, but for 1 in 1000, from 3.5 on
    group = copied // bins
    place = group * channels + copied % bins                    # of a bin among the channels
    for tensor in (conv.weight, conv.bias, estimator.final_proj.weight):
        nn.init.zeros_(tensor)
    conv.weight[place, copied, 1], conv.bias[place] = 1, -average
    rest = torch.arange(norm.num_groups) * channels + bins
    conv.weight[rest[group], copied, 1], conv.bias[rest] = -1, average.view(-1, bins).sum(1) + constant
    conv.bias[rest + 1] = -constant
    spread = constant * (2 / channels) ** 0.5
    norm.weight.fill_(spread / shrink)
    norm.bias.fill_(shift)
    estimator.final_proj.weight[copied, place, 0] = shrink
    estimator.final_proj.bias.copy_(average - shrink * shift)


# ---- vocoder ----------------------------------------------------------------------------------------------------

def train_hift(voice: Split, folder, steps=3600, decoder=DECODER, rows=8) -> None:
    """The vocoder, on true mels, then on those that the trained tokenizer and flow make. rows: segments per batch.

    The waveform is made with the true pitch, the predictor learns it beside. Writes speech_decoder/hift.safetensors.
    """
    encode, flow = unit_encoder(folder), Flow(decoder.flow).eval()
    weights.load(flow, [Path(folder) / "speech_decoder" / "flow.safetensors"])
    heard = [w for _, w in waveforms(voice, TOKENIZER.samples_per_unit)]
    said = [spoken(w) for w in heard]
    mels = [speech_mel(w, decoder.flow.output_size) for w in said]
    f0 = [pitch(w) for w in said]
    clips = [i for i, mel in enumerate(mels) if mel.shape[1] >= SEGMENT]

    @cache
    def made(i: int):
        """The mel that the flow makes of clip i (M, F)."""
        with torch.no_grad():
            mu = flow.mu(encode(heard[i])[None])
            zero, sampling = torch.zeros_like(mu), decoder.sampling
            return flow.decoder.sample(zero, mu, flow.speaker(), zero, sampling.steps, sampling.guidance)[0]

    torch.manual_seed(2)
    hift = HiFT(decoder.hift)
    pitches = torch.cat(f0)
    nn.init.constant_(hift.f0_predictor.classifier.bias, pitches[pitches > 0].median().item())

    def loss(step, generator):
        mel, sound, hertz = [], [], []
        for n in torch.randint(len(clips), (rows,), generator=generator).tolist():
            i = clips[n]
            source = mels[i] if step < TRUE_MEL * steps else made(i)
            first = int(torch.randint(source.shape[1] - SEGMENT + 1, (), generator=generator))
            mel.append(source[:, first:first + SEGMENT])
            sound.append(said[i][HOP * first:HOP * (first + SEGMENT)])
            hertz.append(f0[i][first:first + SEGMENT])
        parts = hift_losses(hift, torch.stack(mel), torch.stack(sound), torch.stack(hertz), generator=generator)
        return parts["stft"] + 2 * parts["mel"] + parts["f0"] / 50, parts

    fit("hift", hift, loss, steps, 2e-3, folder, warmup=min(100, steps // 10), betas=(0.8, 0.99), clip=5.0,
        matrices=for_muon("hift", hift))
    write_half(Path(folder) / "speech_decoder" / "hift.safetensors", hift)
