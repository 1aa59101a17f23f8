"""Ex-Omni (arXiv 2602.07106): hears speech or reads text, answers with text, speech and a 3D face.

    model = ExOmni.from_pretrained("checkpoints/qwen3-8b")
    answer = model.generate([{"role": "user", "content": [{"type": "speech"}]}], waveform)
    answer.text, answer.waveform (22.05 kHz), answer.face (T, 52)

    sound -> log-mel -> speech encoder -> projector -> LLM -> text
                                                        |  hidden states
         the reply's tokens --------------> TQGF -> speech generator -> units -> speech decoder -> sound
                                                        |  hidden states |
                                                        +---> TQGF -> face decoder -> blendshapes

`ExOmni.forward` is the losses, `ExOmni.generate` the answer; both follow this figure from left to right.

Shapes: B batch, W windows of sound, M mel bins, L mel frames, S speech rows after the projector (10 per second), N text
tokens, U speech units (12.5 per second), T face frames (30 per second), D width of the module in question, V
vocabulary, K = 52 blendshape weights.
"""
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import weights
from audio import check_finite
from checkpoint import (ABLATIONS, ExOmniConfig, check_units, copy_companions, official_name, open_tokenizer, our_name,
                        write_checkpoint)
from decode import GREEDY, Decoder, RepetitionAware, TextSampler, decoder_for, seed_from
from face_decoder import CHANNELS, FaceDecoder, face_loss, frames_for_units
from qwen3 import Qwen3
from speech_decoder import SpeechDecoder
from speech_generator import IGNORE, GeneratorOutput, SpeechGenerator, gather_rows
from tokenizer import SPEECH_ID, Tokenizer
from whisper import WhisperEncoder, log_mels

LOSSES = ("text", "units", "face")


class ExOmni(nn.Module):
    """The whole system. Frozen or not, every part is a plain module: see `forward` for how they connect."""

    def __init__(self, config: ExOmniConfig):
        super().__init__()
        self.config, D = config, config.llm.hidden_size
        self.speech_encoder = WhisperEncoder(config.speech_encoder)
        self.speech_projector = SpeechProjector(config.speech_encoder.d_model, config.projector_hidden, D,
                                                config.projector_stride)
        self.llm = Qwen3(config.llm)
        self.lm_head = None if config.llm.tie_word_embeddings else nn.Linear(D, config.llm.vocab_size, bias=False)
        self.speech_generator = SpeechGenerator(config.generator, D)
        self.face_decoder = FaceDecoder(config.face)
        self.speech_decoder: SpeechDecoder | None = None            # GLM-4-Voice's, frozen always
        self.tokenizer: Tokenizer | None = None
        self.directory: Path | None = None                          # where it was opened

    # ---------------------------------------------------------------- the figure

    def forward(self, batch: dict, counts: dict | None = None) -> dict:
        """A right-padded batch -> its losses, scalars: "text", and "units" and "face" where the batch has them.

        input_ids (B, N), SPEECH_ID (-300) once per clip; mask (B, N) bool; labels (B, N), -100 = no loss;
        mel (W, M, L), the windows of all clips in reading order, or a single one where there is no clip; windows
        (clips,), how many a clip has, by default one; units (B, U) padded with -100; face (B, T, K) with frames (B,).
        A part whose input is in the batch always runs, and a sample that has none of it counts with weight zero
        (text-only samples do so in the paper; several processes must run the same modules).
        What frozen parts made may take their place (frozen.py): encoded (W, S, D), or reply_states (B, N, D) or
        unit_states (B, U + 1, D) with their mask.
        counts: the losses wanted, and what to divide each by; by default all, by `loss_counts(batch)`.
        """
        if counts is None:
            counts = {name: n.clamp(min=1) for name, n in loss_counts(batch).items() if name in LOSSES}
        losses, labels, units, known = {}, batch["labels"], batch.get("units"), batch.keys()
        # The sound, as vectors among the embedded text: (W, S, D) -> (B, N + S, D).
        speech = None if batch.get("mel") is None else self.encode_speech(batch["mel"])
        speech = self.speech_projector(batch["encoded"]) if "encoded" in known else speech
        if "windows" in known:
            speech = [part.flatten(0, 1) for part in speech.split(batch["windows"].tolist())]
        if not known & {"reply_states", "unit_states"}:
            embeds, labels, _ = self.splice(batch["input_ids"], batch["mask"], labels, speech)
            # What the LLM thinks at each position; it has seen this position and all before.
            states = self.llm(embeds=embeds)                                                # (B, N + S, D)
        # The crux: the state at a position *predicts* the next token: the states of a reply begin one position early.
        #     position       6      7        8      9      10
        #     token          user   <assist> The    sky    <|im_end|>
        #     next token     ...    The      sky    <|im_end|>
        #     reply                 x        x      x                   states that predicted the reply: context of TQGF
        #     spoken                x        x                          tokens to be said, without the end: its query
        next_token = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        reply = next_token != IGNORE
        spoken = reply & ~self.stops(labels.device)[next_token.clamp(min=0)]
        if "text" in counts:
            logits, targets = self.logits(states[reply]).float(), next_token[reply]
            losses["text"] = F.cross_entropy(logits, targets, reduction="sum") / counts["text"]
            if "text_accuracy" in counts:
                losses["text_accuracy"] = (logits.argmax(-1) == targets).sum() / counts["text_accuracy"]
        if units is None or not counts.keys() & {"units", "face"}:
            return losses
        # How the reply sounds: (B, U) units, and the generator's states on the units' clock.
        if "unit_states" in known:
            context, out = None, GeneratorOutput(None, batch["unit_states"], batch["unit_states_mask"], None)
        else:
            context, context_mask = ((batch["reply_states"], batch["reply_states_mask"]) if "reply_states" in known else
                                     gather_rows(states, reply))
            out = self.speech_generator(context, context_mask, gather_rows(next_token, spoken, fill=IGNORE)[0], units)
        if "units" in counts:
            speaks = (units >= 0).any(1)
            losses["units"] = (out.losses * speaks).sum() / counts["units"]
            if "units_accuracy" in counts:
                losses["units_accuracy"] = (out.correct * speaks).sum() / counts["units_accuracy"]
        # How the face moves to it: units and those states, (B, T, K).
        if batch.get("face") is not None and "face" in counts:
            meaning = (context, context_mask) if self.config.face.ablate == "speech-context" else (out.states, out.mask)
            pred = self.face_decoder(units, *meaning, batch["frames"])
            loss = face_loss(pred, batch["face"], batch["frames"], self.config.face.velocity_weight)
            losses["face"] = loss * len(units) / counts["face"]
        return losses

    @torch.no_grad()
    def generate(self, messages, speech=None, max_new_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0,
                 unit_sampler=None, generator: torch.Generator | None = None, release_quirks=False, on_text=None):
        """Answer one prompt or a batch of them: an `Answer`, or a list.

        messages: a chat, [{"role", "content"}], or its token ids (-300 for speech); a list of either is a batch.
        speech: what each -300 stands for, a waveform (samples,) at 16 kHz of any length or a log-mel (W, M, L); one
        clip, or for a batch one per prompt (None where it has none), or a list of several.
        temperature 0 takes the likeliest text; unit_sampler: decode.RepetitionAware() or GREEDY, by default what the
        checkpoint says, or else repetition-aware. generator: where the randomness comes from. release_quirks: the
        official numbers instead of the right ones (docs/spec/ex_omni.md 8.2). on_text(b, piece): the text as it comes.

        Raises ValueError for clips that do not match the prompts, broken waveforms, prompts beyond the context, more
        new tokens than can be spoken (2 to 20 units each, 7,500 in all), and NaN or infinite numbers: the first part
        that makes such is named.
        """
        self.speech_generator.check_length(max_new_tokens)
        begun, seconds = time.perf_counter(), {}
        note = lambda name: seconds.setdefault(name, time.perf_counter() - begun)
        single = isinstance(messages, torch.Tensor) or not messages or isinstance(messages[0], (dict, int))
        # The sound, as vectors among the embedded text.
        ids, mask, clips = self.prompts([messages] if single else messages, [speech] if single else speech)
        embeds, _, lengths = self.splice(ids, mask, None, self.encode_clips(clips))
        # The reply, token by token, and the state that predicted each.
        sampler = TextSampler(temperature, top_p)
        text = self.write_text(embeds, lengths, max_new_tokens, sampler, generator,
                               self.on_step(on_text, lambda: note("first_text")))
        note("text")
        # How it sounds: unit by unit, and the generator's state at each.
        context, context_mask, spoken = self.reply_of(text, release_quirks)
        unit_sampler = unit_sampler or (GREEDY if self.config.greedy_units else RepetitionAware())
        out = self.speech_generator.generate(context, context_mask, spoken, unit_sampler, generator, release_quirks,
                                             lambda _: note("first_unit"))
        units, states = out.emitted()
        note("units")
        # How the face moves to it, all frames at once.
        rows, text_states = text.emitted()
        confidence = text.log_probability.exp().tolist()
        meaning = text_states if self.config.face.ablate == "speech-context" else states
        faces = self.animate(units, meaning, release_quirks)
        faces = [check_finite(face.cpu(), "the face") for face in faces]
        note("face")
        answers = []
        for b, row in enumerate(rows):
            waveform = None if self.speech_decoder is None else self.speech_decoder.decode(units[b]).cpu()
            note("waveform")
            own = [t.clone().cpu() for t in (text_states[b], units[b], states[b])]          # not the decoder's memory
            text_ids = row.tolist()
            answers.append(Answer(self.read(text_ids), text_ids, *own, faces[b], waveform, confidence[b], seconds))
        return answers[0] if single else answers

    # ---------------------------------------------------------------- its pieces: sound and text in

    def encode_speech(self, mel):
        """Log-mel (W, M, L) -> speech rows (W, S, D) in the LLM's space (docs/spec/ex_omni.md 1, 2)."""
        return self.speech_projector(self.speech_encoder(mel.to(self.speech_projector.linear1.weight.dtype)))

    def encode_clips(self, clips: list) -> list:
        """Waveforms (samples,) at 16 kHz or log-mels (W, M, L) -> speech rows (W S, D) of each; long ones take several
        windows. All windows go through the encoder together. Raises ValueError for a clip longer than the context,
        before anything is computed, and for numbers that are not finite."""
        if not clips:
            return []
        rows = max(1, self.config.speech_encoder.max_source_positions // self.config.projector_stride)      # a window's
        mels = log_mels(clips, self.config.speech_encoder, self.config.llm.max_position_embeddings // rows)
        rows = self.encode_speech(torch.cat(mels).to(self.llm.norm.weight.device))
        check_finite(rows, "the speech encoder")
        return [part.flatten(0, 1) for part in rows.split([len(mel) for mel in mels])]

    def prompts(self, messages: list, speech) -> tuple:
        """Chats or ids, with their speech -> ids (B, N), mask (B, N), clips: a list of log-mels or waveforms in reading
        order. Raises ValueError where the two do not match."""
        rows, size = [], self.config.llm.vocab_size
        for row in messages:
            if len(row) and isinstance(row[0], dict):
                if self.tokenizer is None:
                    raise ValueError(f"{self.directory} has no tokenizer files: give token ids, or add tokenizer.json")
                row = self.tokenizer.encode_chat(row)
            ids = torch.as_tensor(row, dtype=torch.long)
            if ids.ndim != 1 or ((ids != SPEECH_ID) & ((ids < 0) | (ids >= size))).any():
                raise ValueError(f"a prompt of shape {tuple(ids.shape)} is not a row of token ids: expected (N,) with "
                                 f"ids from 0 to {size - 1}, or {SPEECH_ID} for speech; a batch is a list of rows")
            if not len(ids):
                raise ValueError("a prompt is empty: give at least one message or token id")
            rows.append(ids)
        speech = [None] * len(rows) if speech is None else speech
        speech = [[] if clip is None else clip if isinstance(clip, list) else [clip] for clip in speech]
        wanted = [int((row == SPEECH_ID).sum()) for row in rows]
        if wanted != [len(clips) for clips in speech]:
            raise ValueError(f"the prompts ask for {wanted} clips of speech, given were {[len(c) for c in speech]}: "
                             "give one clip per speech part")
        device, real = self.llm.norm.weight.device, [torch.ones(len(row), dtype=torch.bool) for row in rows]
        return pad_sequence(rows, True).to(device), pad_sequence(real, True).to(device), sum(speech, [])

    def splice(self, ids, mask, labels, speech) -> tuple:
        """Put the speech rows of each clip where ids (B, N) has SPEECH_ID, in reading order, and pad on the right.
        speech: tensors (S_i, D), as many as placeholders, or one more where there is none: it enters with weight zero.
        labels (B, N) or None. Returns embeds (B, N', D), labels (B, N'), -100 at speech and padding, and lengths (B,)
        (docs/spec/ex_omni.md 4). Raises ValueError for a wrong count, or a prompt longer than the context.
        """
        embedded, clips = self.llm.embed_tokens(ids.clamp(min=0)), [] if speech is None else list(speech)
        placeholders = int((ids == SPEECH_ID).sum())
        if placeholders == 0 and len(clips) == 1:
            embedded, clips = embedded + 0 * clips[0].sum(), []
        if placeholders != len(clips):
            raise ValueError(f"the prompts have {placeholders} speech placeholders, {len(clips)} clips were given: "
                             "give one clip per placeholder")
        labels, clips = torch.full_like(ids, IGNORE) if labels is None else labels, iter(clips)
        embeds, targets = [], []
        for b, length in enumerate(mask.sum(1).tolist()):
            row, target, start = [], [], 0
            for i in (ids[b, :length] == SPEECH_ID).nonzero()[:, 0].tolist():
                clip = next(clips).to(embedded.dtype)
                row += [embedded[b, start:i], clip]
                target += [labels[b, start:i], labels.new_full((len(clip),), IGNORE)]
                start = i + 1
            embeds.append(torch.cat([*row, embedded[b, start:length]]))
            targets.append(torch.cat([*target, labels[b, start:length]]))
        lengths, limit = [len(row) for row in embeds], self.config.llm.max_position_embeddings
        if max(lengths) > limit:
            raise ValueError(f"a prompt has {max(lengths)} tokens with its speech, the context holds {limit}: "
                             "shorten it")
        return pad_sequence(embeds, True), pad_sequence(targets, True, padding_value=IGNORE), torch.tensor(lengths)

    # ---------------------------------------------------------------- text, units and face out

    def logits(self, states):
        """States (..., D) -> logits (..., V); the output matrix is the embedding where the model is tied."""
        return F.linear(states, (self.lm_head or self.llm.embed_tokens).weight)

    def stops(self, device):
        """(V,) bool, True at the ids that end a reply."""
        flags = torch.zeros(self.config.llm.vocab_size, dtype=torch.bool)
        flags[[i for i in self.config.stop_ids if i < len(flags)]] = True
        return flags.to(device)

    def write_text(self, embeds, lengths, max_new_tokens, sampler, generator=None, each=None) -> Decoder:
        """Prompts (B, N, D) of lengths (B,) -> the finished text decoder: ids and states of each sample."""
        (B, N), limit = embeds.shape[:2], self.config.llm.max_position_embeddings
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
        if N + max_new_tokens > limit:
            raise ValueError(f"a prompt of {N} tokens and {max_new_tokens} new ones are longer than the context of "
                             f"{limit}: shorten the prompt or lower max_new_tokens")
        decoder = decoder_for(self.llm, self.llm.embed_tokens, self.logits, sampler, B, N + max_new_tokens,
                              max_new_tokens, stop=self.config.stop_ids)
        decoder.begin(embeds, lengths, torch.zeros(B), torch.full((B,), max_new_tokens), seed_from(generator))
        decoder.run(each)
        decoder.check("the language model")
        return decoder

    def reply_of(self, text: Decoder, release_quirks=False) -> tuple:
        """What the generator is given of the finished text: states (B, N, D), mask (B, N), ids (B, N) padded with -100.

        The context is the state of every id, the query all ids but the one that stopped; the release drops the last
        one whatever it is (docs/spec/ex_omni.md 5.5 and 8.2, item 3).
        """
        rows, states = text.emitted()
        spoken = [row[:-1] if release_quirks else row[~self.stops(row.device)[row]] for row in rows]
        real = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
        return pad_sequence(states, True), pad_sequence(real, True), pad_sequence(spoken, True, padding_value=IGNORE)

    def animate(self, units: list, states: list, release_quirks=False) -> list:
        """units (U_b,) and states (S_b, D) of each sample -> face (T_b, 52) of each. A model of 51 channels lacks
        tongueOut (docs/spec/ex_omni.md 6.4)."""
        if release_quirks:                                  # one at a time: its frame counts are of the whole batch
            faces = [self.face_decoder(u[None], s[None], release_quirks=True)[0] for u, s in zip(units, states)]
        else:
            mask = [torch.ones(len(s), dtype=torch.bool, device=s.device) for s in states]
            face = self.face_decoder(pad_sequence(units, True, padding_value=IGNORE), pad_sequence(states, True),
                                     pad_sequence(mask, True) if len(units) > 1 else None)
            faces = [row[:frames_for_units(len(u))] for row, u in zip(face, units)]
        return [F.pad(face, (0, CHANNELS - face.shape[-1])) for face in faces]

    def read(self, ids: list) -> str:
        """Token ids -> text, without what ends a reply."""
        return "" if self.tokenizer is None else self.tokenizer.decode(i for i in ids if i not in self.config.stop_ids)

    def on_step(self, on_text, first):
        """A callback for Decoder.run that gives on_text(b, piece) what is new and complete: half a character waits."""
        known = {}

        def each(decoder):
            first()
            if on_text is None:
                return
            for b, row in enumerate(decoder.emitted()[0]):
                text, shown = self.read(row.tolist()), known.get(b, "")
                if decoder.unfinished[b]:
                    text = text.rstrip("\ufffd")
                if text.startswith(shown) and text != shown:
                    on_text(b, text[len(shown):])
                    known[b] = text
        return each

    # ---------------------------------------------------------------- checkpoints and ablations

    @classmethod
    def from_pretrained(cls, directory, device="cpu", dtype: torch.dtype | None = None) -> "ExOmni":
        """Open a checkpoint directory: ours or the official release's. dtype: by default the one it was saved in.

        The speech decoder, where there is one, runs in float32. Raises OSError or ValueError; every tensor is accounted
        for, and parts of different models are refused."""
        directory = Path(directory)
        config = ExOmniConfig.from_dir(directory)
        check_units(directory, config)
        model = weights.skeleton(lambda: cls(config), dtype or getattr(torch, config.dtype), directory / "config.json")
        model.tokenizer = open_tokenizer(directory, config)
        paths, rename = weights.files(directory), lambda name: our_name(name, model.lm_head is None)
        if model.lm_head is None:
            weights.check_tied(paths, rename)
        model.summary, model.directory = weights.load(model, paths, rename, device), directory
        if (directory / "speech_decoder").is_dir():
            model.speech_decoder = SpeechDecoder.from_pretrained(directory / "speech_decoder", device=device)
        return model

    def save_pretrained(self, directory, state: dict | None = None) -> None:
        """Write a checkpoint that `from_pretrained` opens, with the tokenizer, speech tokenizer and speech decoder of
        the directory this model came from. state: the weights, where this process does not hold them whole."""
        state = self.state_dict() if state is None else state
        write_checkpoint(directory, self.config, {official_name(name): tensor for name, tensor in state.items()
                                                  if not name.startswith("speech_decoder.")})
        if self.directory is not None:
            copy_companions(self.directory, directory)

    def ablate(self, name: str) -> None:
        """Leave out what ABLATIONS[name] says. The part is built anew; tensors of the same name and shape are kept."""
        self.config, weight = self.config.ablated(name), self.llm.norm.weight
        part, new = ("face_decoder", FaceDecoder(self.config.face)) if ABLATIONS[name] == "face" else (
            "speech_generator", SpeechGenerator(self.config.generator, self.config.llm.hidden_size))
        old, tensors = getattr(self, part), new.state_dict()
        new.load_state_dict(tensors | {key: tensor for key, tensor in old.state_dict().items()
                                       if key in tensors and tensors[key].shape == tensor.shape})
        setattr(self, part, new.to(weight.device, weight.dtype).train(old.training))


class SpeechProjector(nn.Module):
    """Encoder states (W, L / 2, D) -> speech rows (W, S, D_llm): k states end to end, Linear, ReLU, Linear
    (docs/spec/ex_omni.md 2)."""

    def __init__(self, d: int, hidden: int, width: int, stride: int = 5):
        super().__init__()
        self.stride = stride
        self.linear1, self.linear2 = nn.Linear(stride * d, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        k = self.stride
        x = rearrange(x[:, :x.shape[1] // k * k], "w (s k) d -> w s (k d)", k=k)
        return self.linear2(F.relu(self.linear1(x)))


@dataclass
class Answer:
    """One reply. Tensors are on the CPU; what the checkpoint cannot make is None."""
    text: str
    text_ids: list                 # with the id that stopped it, if one did
    text_states: torch.Tensor      # (N, D) the state that predicted each text id
    units: torch.Tensor            # (U,) speech units, 12.5 per second
    unit_states: torch.Tensor      # (U + 1, D) one per decoding step; U where the limit ended it
    face: torch.Tensor             # (T, 52) blendshape weights, 30 per second, not clipped
    waveform: torch.Tensor | None  # (samples,) at 22050 Hz
    confidence: float              # product of the text ids' probabilities, at temperature 1
    seconds: dict                  # since generate began: first_text, text, first_unit, units, face, waveform


def loss_counts(batch: dict) -> dict:
    """What each loss of `ExOmni.forward` is the mean over in this batch, integer tensors: "text" supervised tokens
    that a state predicts, "units" samples with units, "face" samples with frames; "..._accuracy" targets."""
    mask, predicted = batch["mask"], batch["mask"].cumsum(1) > 1
    text = ((batch["labels"] != IGNORE) & mask & predicted & (batch["input_ids"] != SPEECH_ID)).sum()
    counts = {"text": text, "text_accuracy": text}
    if batch.get("units") is not None:
        lengths = (batch["units"] >= 0).sum(1)
        counts |= {"units": (lengths > 0).sum(), "units_accuracy": (lengths + (lengths > 0)).sum()}     # with the end
        if batch.get("face") is not None:
            counts["face"] = (batch["frames"] > 0).sum()
    return counts
