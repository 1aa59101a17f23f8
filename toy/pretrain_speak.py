"""Trains the mini preset's speech tokenizer and speech decoder from scratch on one synthetic voice (pretrain.py).

    train_tokenizer(voice, folder)      # waveform -> units, together with the unit encoder of the flow
    train_flow(voice, folder)           # units -> mel
    train_hift(voice, folder)           # mel -> waveform
    encode = unit_encoder(folder)       # waveform at 16 kHz -> units, for the prepared answers

voice is a data.Split whose rows have audio (the answer voice, at constant loudness) and "phones": [[name, start, end],
...] in seconds. The files are those of a checkpoint, in 16 bit: speech_tokenizer/{config.json, model.safetensors} and
speech_decoder/{config.json, flow.safetensors, hift.safetensors}. The classes are those of the full size.

Shapes: B batch, U units (12.5 per second), L mel frames (86.13 per second), M mel bins, D width of units, C channels. A
waveform is (samples,).
"""
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import disk
import weights
from data import Split
from flow import (OUTPUT_HOP, CFMConfig, EncoderConfig, EstimatorConfig, Flow, FlowConfig, FlowMatching, MatchingConfig,
                  cosine_time, mel_frames)
from hift import LINES, F0Config, HiFT, HiFTConfig, hift_losses, speech_mel
from speech_decoder import SamplingConfig, SpeechDecoderConfig
from speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from toy.clips import (PHONES_PER_UNIT, at_output_rate, batches, group_at, phone_ids, pitch, stack, waveforms,
                       whole_units)
from toy.codebook import Quantised
from toy.fit import fit
from whisper import HOP, log_mel

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
    # One step without noise: with a flow of this size it sounds clearer than the published settings.
    sampling=SamplingConfig(steps=1, temperature=0.0, guidance=0.0))

WITHOUT_CODES = 0.25            # share of the steps before the states are quantised
LAST_RESTART = 0.85             # share of the steps after which unused codes are no longer replaced
REGRESSION = 0.4                # share of the flow's steps with the regression loss alone, before flow matching
TRUE_MEL = 0.75                 # share of the vocoder's steps on true mels; then it gets those of the flow
# Muon trains all matrices and convolutions except these: embeddings, last layers, those that begin as a copy of mu.
NO_MUON = {"flow": ("input_embedding", "spk_embed", "pos_bias", "final_block", "final_proj", "res_conv"),
           "hift": ("conv_post", "f0_predictor.classifier")}
SEGMENT = 32                    # mel frames of a training segment of the vocoder


# ---- speech tokenizer -------------------------------------------------------------------------------------------

def train_tokenizer(voice: Split, folder, steps=1200, config=TOKENIZER, decoder=DECODER, total=540) -> None:
    """Train tokenizer and unit encoder with four losses: L1 of two mels, cross-entropy of phones, commitment.

    total: units per batch. Writes speech_tokenizer/, and speech_decoder/ with a flow whose unit encoder is trained.
    Raises ValueError for data without phones or with fewer units than codes.
    """
    rows = checked(voice, config)
    lengths = [len(waveform) // config.samples_per_unit for _, waveform in rows]
    names = sorted({name for row, _ in rows for name, _, _ in row["phones"]})
    inputs = [log_mel(waveform, config.num_mel_bins, len(waveform) // HOP) for _, waveform in rows]
    mels = [speech_mel(at_output_rate(waveform), decoder.flow.output_size) for _, waveform in rows]
    phones = [phone_ids(row["phones"], names, n * PHONES_PER_UNIT) for (row, _), n in zip(rows, lengths)]
    groups = batches(lengths, total)

    torch.manual_seed(0)
    model = Quantised(config, decoder.flow, len(names))
    average = torch.cat(mels, dim=1).mean(1)
    with torch.no_grad():
        model.tokenizer.embed_positions2.weight.zero_()         # an input of the published text decoder, unused here
        model.flow.length_regulator.model[-1].bias.copy_(average)
        model.detail.model[-1].bias.copy_(average)

    def loss(step, generator):
        group = group_at(step, groups)
        mel, states = stack(mels[group]), model.tokenizer.hidden(stack(inputs[group]))          # (B, M, L), (B, U, D)
        codes, commitment = states, states.new_zeros(())
        if step >= WITHOUT_CODES * steps:
            flat = states.detach().flatten(0, 1)
            if not model.count.any():
                with torch.no_grad():
                    some = [model.tokenizer.hidden(x[None])[0] for x in inputs[::-(-len(inputs) // 500)]]
                model.start(torch.cat(some), len(flat), generator)
            codes, commitment = model.quantise(states)
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
    disk.write_json(Path(folder) / "speech_tokenizer" / "config.json", asdict(config))
    write_half(Path(folder) / "speech_tokenizer" / "model.safetensors", model.tokenizer)
    disk.write_json(Path(folder) / "speech_decoder" / "config.json", asdict(decoder))
    weights.write_tensors(Path(folder) / "speech_decoder" / "flow.safetensors", model.flow.state_dict())


def checked(voice: Split, config: SpeechTokenizerConfig) -> list:
    """`waveforms` of a split. Raises ValueError if a row has no phones, or if there are fewer units than codes."""
    rows = waveforms(voice, config.samples_per_unit)
    lacking = [f"sample {row['id']} has no phones" for row, _ in rows if not row.get("phones")]
    units = sum(len(waveform) // config.samples_per_unit for _, waveform in rows)
    if units < config.quantize_vocab_size:
        lacking.append(f"{units} units for {config.quantize_vocab_size} codes")
    if lacking:
        raise ValueError(f"{voice.directory}: {lacking[0]}: expected an hour of the answer voice, run prepare.py demo")
    return rows


def write_half(path, module: nn.Module) -> None:
    """Write a module's tensors in float16, which is more precise than bfloat16 for small weights."""
    weights.write_tensors(path, {name: tensor.half() for name, tensor in module.state_dict().items()})


def for_muon(part: str, module: nn.Module) -> list:
    """The parameters that Muon trains. part: a key of NO_MUON."""
    return [p for name, p in module.named_parameters() if p.ndim > 1 and not any(no in name for no in NO_MUON[part])]


def unit_encoder(folder):
    """The trained tokenizer as a function: (samples,) at 16 kHz -> (U,) int64 units, U = ceil(samples / 1280)."""
    tokenizer = SpeechTokenizer.from_pretrained(Path(folder) / "speech_tokenizer")
    return lambda waveform: tokenizer.encode(whole_units(waveform, tokenizer.config.samples_per_unit))


# ---- flow ---------------------------------------------------------------------------------------------------------

def train_flow(voice: Split, folder, steps=1800, decoder=DECODER, total=270) -> None:
    """Train the whole flow on the units of the trained tokenizer; rewrites speech_decoder/flow.safetensors.

    First with a regression loss: one step without noise must give the mel. Then flow matching is added. An L1 loss
    keeps mu near the mel. total: units per batch.
    """
    encode = unit_encoder(folder)
    inputs = [waveform for _, waveform in waveforms(voice, TOKENIZER.samples_per_unit)]
    units = [encode(waveform) for waveform in inputs]
    mels = [speech_mel(at_output_rate(waveform), decoder.flow.output_size) for waveform in inputs]
    groups = batches([len(ids) for ids in units], total)
    flow, path = Flow(decoder.flow), Path(folder) / "speech_decoder" / "flow.safetensors"
    weights.load(flow, [path])
    torch.manual_seed(1)
    flow.decoder = FlowMatching(decoder.flow.output_size, decoder.flow.decoder)
    begin_as_copy(flow.decoder.estimator, torch.cat(mels, dim=1).mean(1))

    def loss(step, generator):
        group = group_at(step, groups)
        mel, ids = stack(mels[group]), stack(units[group])
        if torch.rand((), generator=generator) < 0.3:           # a prefix, as in streaming
            n = int(torch.randint(min(10, ids.shape[1]), ids.shape[1] + 1, (), generator=generator))
            mel, ids = mel[:, :, :mel_frames(n)], ids[:, :n]
        B, frames = len(mel), mel.shape[2]
        n = B if step < REGRESSION * steps else -(-B * 5 // 8)  # rows without noise, at time 0; others: flow matching
        matching = torch.arange(B) >= n

        def chance(share):
            return (torch.rand(B, generator=generator) < share)[:, None, None]

        prompt = 0.8 * frames * torch.rand(B, 1, 1, generator=generator) * chance(0.3)
        cond, mu, spk = mel * (torch.arange(frames) < prompt), flow.mu(ids), flow.speaker().expand(B, -1)
        noise = torch.randn(mel.shape, generator=generator) * matching[:, None, None]
        time = cosine_time(torch.rand(B, generator=generator)) * matching
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
    """Initialise a U-Net such that it returns mu: from random weights it stays worse than mu for long.

    Every path leads through group norms (8 groups of channels, over time), which remove the loudness of a clip. So each
    group of the last one gets its mel bins relative to their average (M,), a large constant minus their sum, and minus
    the constant: its mean is 0, its variance almost constant. All residual branches start at 0.
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

    constant, shrink, shift = 100.0, 4.0, 5.0                   # from 3.5 on mish is linear, within 1 in 1000
    group = copied // bins
    channel = group * channels + copied % bins                  # of each bin
    for tensor in (conv.weight, conv.bias, estimator.final_proj.weight):
        nn.init.zeros_(tensor)
    conv.weight[channel, copied, 1], conv.bias[channel] = 1, -average
    rest = torch.arange(norm.num_groups) * channels + bins
    conv.weight[rest[group], copied, 1], conv.bias[rest] = -1, average.view(-1, bins).sum(1) + constant
    conv.bias[rest + 1] = -constant
    spread = constant * (2 / channels) ** 0.5
    norm.weight.fill_(spread / shrink)
    norm.bias.fill_(shift)
    estimator.final_proj.weight[copied, channel, 0] = shrink
    estimator.final_proj.bias.copy_(average - shrink * shift)


# ---- vocoder ------------------------------------------------------------------------------------------------------

def train_hift(voice: Split, folder, steps=3000, decoder=DECODER, rows=8) -> None:
    """Train the vocoder on true mels, then on those of the trained tokenizer and flow. rows: segments per batch.

    The waveform is made with the true pitch, while the pitch predictor is trained. Writes
    speech_decoder/hift.safetensors.
    """
    encode, flow = unit_encoder(folder), Flow(decoder.flow).eval()
    weights.load(flow, [Path(folder) / "speech_decoder" / "flow.safetensors"])
    inputs = [waveform for _, waveform in waveforms(voice, TOKENIZER.samples_per_unit)]
    targets = [at_output_rate(waveform) for waveform in inputs]
    mels = [speech_mel(waveform, decoder.flow.output_size) for waveform in targets]
    f0 = [pitch(waveform) for waveform in targets]
    clips = [i for i, mel in enumerate(mels) if mel.shape[1] >= SEGMENT]

    @cache
    def made(i: int):
        """The flow's mel of clip i (M, L)."""
        with torch.no_grad():
            mu = flow.mu(encode(inputs[i])[None])
            zero, sampling = torch.zeros_like(mu), decoder.sampling
            return flow.decoder.sample(zero, mu, flow.speaker(), zero, sampling.steps, sampling.guidance)[0]

    torch.manual_seed(2)
    hift = HiFT(decoder.hift)
    begin_smooth(hift)
    pitches = torch.cat(f0)
    nn.init.constant_(hift.f0_predictor.classifier.bias, pitches[pitches > 0].median().item())

    def loss(step, generator):
        even_phases(hift)
        mel, sound, hertz = [], [], []
        for n in torch.randint(len(clips), (rows,), generator=generator).tolist():
            i = clips[n]
            source = mels[i] if step < TRUE_MEL * steps else made(i)
            first = int(torch.randint(source.shape[1] - SEGMENT + 1, (), generator=generator))
            mel.append(source[:, first:first + SEGMENT])
            sound.append(targets[i][OUTPUT_HOP * first:OUTPUT_HOP * (first + SEGMENT)])
            hertz.append(f0[i][first:first + SEGMENT])
        lines = LINES | {64: LINES[64] * (1 + 4 * step / steps)}     # late: from the start it would dominate
        parts = hift_losses(hift, torch.stack(mel), torch.stack(sound), torch.stack(hertz), generator, lines)
        return parts["energy"] + parts["f0"] / 50, parts

    fit("hift", hift, loss, steps, 1e-3, folder, warmup=min(100, steps // 10), betas=(0.8, 0.99), clip=5.0,
        matrices=for_muon("hift", hift))
    even_phases(hift)
    write_half(Path(folder) / "speech_decoder" / "hift.safetensors", hift)


@torch.no_grad()
def begin_smooth(hift: HiFT) -> None:
    """Initialise a vocoder's upsampling as interpolation with a Hann window, at the same scale. Random taps would turn
    a constant into a tone."""
    for up in hift.ups:
        window = torch.hann_window(up.kernel_size[0])
        scale = up.weight.std() / window.square().mean().sqrt()
        up.weight.copy_(torch.randn(*up.weight.shape[:2], 1) * scale * window)
        nn.init.zeros_(up.bias)


@torch.no_grad()
def even_phases(hift: HiFT) -> None:
    """Shift the taps of the upsampling, (in, out, kernel), such that their sums are equal for all `stride` phases. Then
    a constant stays a constant; else it gets lines at multiples of the input rate, which training removes slowly.
    """
    for up in hift.ups:
        taps = up.weight.unflatten(2, (-1, up.stride[0]))                               # (in, out, taps, stride)
        sums = taps.sum(2, keepdim=True)
        taps -= (sums - sums.mean(3, keepdim=True)) / taps.shape[2]
