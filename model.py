"""Ex-Omni (arXiv 2602.07106): speech or text in; text, speech and a 3D face out.

    model = ExOmni.from_pretrained("checkpoints/qwen3-8b")
    answer = model.generate([{"role": "user", "content": [{"type": "speech"}]}], waveform)
    answer.text, answer.waveform (22.05 kHz), answer.face (T, 52)

    sound -> log-mel -> speech encoder -> projector -> LLM -> text
                                                        |  hidden states
         the reply's tokens --------------> TQGF -> speech generator -> units -> speech decoder -> sound
                                                        |  hidden states |
                                                        +---> TQGF -> face decoder -> blendshapes

`ExOmni.forward` computes the training losses, `ExOmni.generate` an answer. Both follow this figure from left to right.

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
    """The whole system. Its parts are plain modules; `forward` shows how they connect."""

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
        self.directory: Path | None = None                          # the checkpoint it was loaded from

    # ---------------------------------------------------------------- the figure

    def forward(self, batch: dict, counts: dict | None = None) -> dict:
        """A right-padded batch -> its losses, scalars: "text", and "units" and "face" where the batch has them.

        input_ids (B, N), with one SPEECH_ID (-300) per clip; mask (B, N) bool; labels (B, N), -100 = no loss;
        mel (W, M, L), the windows of all clips in reading order, or one window of silence where there is no clip;
        windows (clips,), the number of windows of each clip, by default one;
        units (B, U) padded with -100; face (B, T, K) with its lengths, frames (B,).
        Every part whose input is in the batch runs. A sample without that input gets loss weight zero, as text-only
        samples do in the paper: with several processes, all of them must run the same modules.
        Outputs of frozen parts may be given instead of being computed (frozen.py): encoded (W, S, D), or
        reply_states (B, N, D) or unit_states (B, U + 1, D) with their masks.
        counts: loss name -> what its sum is divided by, for the losses wanted. Default: all, by `loss_counts(batch)`.
        """
        if counts is None:
            counts = {name: n.clamp(min=1) for name, n in loss_counts(batch).items() if name in LOSSES}
        losses, labels, units = {}, batch["labels"], batch.get("units")
        # Sound in: speech rows (W, S, D), spliced into the embedded prompt, go through the LLM.
        speech = None if batch.get("mel") is None else self.encode_speech(batch["mel"])
        speech = self.speech_projector(batch["encoded"]) if "encoded" in batch else speech
        if "windows" in batch:
            speech = [part.flatten(0, 1) for part in speech.split(batch["windows"].tolist())]
        if not batch.keys() & {"reply_states", "unit_states"}:
            embeds, labels, _ = self.splice(batch["input_ids"], batch["mask"], labels, speech)
            states = self.llm(embeds=embeds)                                                # (B, N + S, D)
        # Text out. The state at a position predicts the *next* token: the states of a reply begin one position early.
        #     position       6      7        8      9      10
        #     token          user   <assist> The    sky    <|im_end|>
        #     next token     ...    The      sky    <|im_end|>
        #     reply                 x        x      x                   states that predicted the reply: TQGF's context
        #     spoken                x        x                          tokens to speak, without the end: TQGF's query
        next_token = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        reply = next_token != IGNORE
        spoken = reply & ~self.is_stop(next_token)
        if "text" in counts:
            logits, targets = self.logits(states[reply]).float(), next_token[reply]
            losses["text"] = F.cross_entropy(logits, targets, reduction="sum") / counts["text"]
            if "text_accuracy" in counts:
                losses["text_accuracy"] = (logits.argmax(-1) == targets).sum() / counts["text_accuracy"]
        if units is None or not counts.keys() & {"units", "face"}:
            return losses
        # Speech: the loss of the units (B, U), and the generator's states (B, U + 1, D).
        if "unit_states" in batch:
            out = GeneratorOutput(None, batch["unit_states"], batch["unit_states_mask"], None)
        else:
            context, context_mask = ((batch["reply_states"], batch["reply_states_mask"]) if "reply_states" in batch else
                                     gather_rows(states, reply))
            out = self.speech_generator(context, context_mask, gather_rows(next_token, spoken, fill=IGNORE)[0], units)
        if "units" in counts:
            speaks = (units >= 0).any(1)
            losses["units"] = (out.losses * speaks).sum() / counts["units"]
            if "units_accuracy" in counts:
                losses["units_accuracy"] = (out.correct * speaks).sum() / counts["units_accuracy"]
        # Face: units and the generator's states -> (B, T, K).
        if batch.get("face") is not None and "face" in counts:
            if self.config.face.ablate != "speech-context":
                context, context_mask = out.states, out.mask
            pred = self.face_decoder(units, context, context_mask, batch["frames"])
            loss = face_loss(pred, batch["face"], batch["frames"], self.config.face.velocity_weight)
            losses["face"] = loss * len(units) / counts["face"]
        return losses

    @torch.no_grad()
    def generate(self, messages, speech=None, max_new_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0,
                 unit_sampler=None, generator: torch.Generator | None = None, release_quirks=False, on_text=None):
        """Answer one prompt or a batch of them: returns an `Answer`, or a list of them.

        messages: a chat, [{"role", "content"}], or its token ids (-300 for speech). A batch is a list of either.
        speech: the clip that -300 stands for, a waveform (samples,) at 16 kHz of any length or a log-mel (W, M, L), or
        a list of clips; for a batch a list with one such entry, or None, per prompt.
        temperature 0 takes the most likely token. unit_sampler: decode.RepetitionAware() or GREEDY; by default greedy
        where the checkpoint's config says so, else repetition-aware. generator: source of all randomness.
        release_quirks: reproduce the release's numbers, errors included (docs/spec/ex_omni.md 8.2).
        on_text(b, piece) is called with new text of sample b as it is written.

        Raises ValueError for clips that do not match the prompts, broken waveforms, prompts longer than the context,
        more new tokens than can be spoken (2 to 20 units each, 7,500 in all), and NaN or infinite numbers, naming the
        first part that produced them.
        """
        self.speech_generator.check_length(max_new_tokens)
        start, seconds = time.perf_counter(), {}
        note = lambda name: seconds.setdefault(name, time.perf_counter() - start)
        single = isinstance(messages, torch.Tensor) or not messages or isinstance(messages[0], (dict, int))
        # Sound in: speech rows, spliced into the embedded prompt.
        ids, mask, clips = self.prompts([messages] if single else messages, [speech] if single else speech)
        embeds, _, lengths = self.splice(ids, mask, None, self.encode_clips(clips))
        # Text out: the reply token by token, and the state that predicted each.
        text = self.write_text(embeds, lengths, max_new_tokens, TextSampler(temperature, top_p), generator,
                               self.on_step(on_text, lambda: note("first_text")))
        note("text")
        # Speech: unit by unit, and the generator's state that predicted each.
        context, context_mask, spoken = self.reply_of(text, release_quirks)
        unit_sampler = unit_sampler or (GREEDY if self.config.greedy_units else RepetitionAware())
        out = self.speech_generator.generate(context, context_mask, spoken, unit_sampler, generator, release_quirks,
                                             lambda _: note("first_unit"))
        units, states = out.emitted()
        note("units")
        # Face: all frames at once.
        rows, text_states = text.emitted()
        face_context = text_states if self.config.face.ablate == "speech-context" else states
        faces = self.animate(units, face_context, release_quirks)
        faces = [check_finite(face.cpu(), "the face") for face in faces]
        note("face")
        confidence, answers = text.log_probability.exp().tolist(), []
        for b, row in enumerate(rows):
            waveform = None if self.speech_decoder is None else self.speech_decoder.decode(units[b]).cpu()
            note("waveform")
            # Copies: the decoders overwrite their buffers at the next call.
            copies, text_ids = [t.clone().cpu() for t in (text_states[b], units[b], states[b])], row.tolist()
            answers.append(Answer(self.read(text_ids), text_ids, *copies, faces[b], waveform, confidence[b], seconds))
        return answers[0] if single else answers

    # ---------------------------------------------------------------- sound and text in

    def encode_speech(self, mel):
        """Log-mel (W, M, L) -> speech rows (W, S, D) in the LLM's space (docs/spec/ex_omni.md 1, 2)."""
        return self.speech_projector(self.speech_encoder(mel.to(self.speech_projector.linear1.weight.dtype)))

    def encode_clips(self, clips: list) -> list:
        """Waveforms (samples,) at 16 kHz or log-mels (W, M, L) -> speech rows (W S, D) of each. A long clip has several
        windows; the windows of all clips are one batch of the encoder. Raises ValueError for a clip longer than the
        context, before anything is computed, and for numbers that are not finite."""
        if not clips:
            return []
        rows = max(1, self.config.speech_encoder.max_source_positions // self.config.projector_stride)      # per window
        mels = log_mels(clips, self.config.speech_encoder, self.config.llm.max_position_embeddings // rows)
        rows = self.encode_speech(torch.cat(mels).to(self.llm.norm.weight.device))
        check_finite(rows, "the speech encoder")
        return [part.flatten(0, 1) for part in rows.split([len(mel) for mel in mels])]

    def prompts(self, messages: list, speech) -> tuple:
        """Chats or token ids, with their speech -> ids (B, N), mask (B, N), and one list of the clips (log-mels or
        waveforms) in reading order. Raises ValueError where clips and placeholders do not match."""
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
        """Embed ids (B, N), replace each SPEECH_ID by the speech rows of its clip, and pad on the right.
        speech: one tensor (S_i, D) per placeholder. A single tensor without a placeholder is added with weight zero, so
        that the projector gets gradients on every process. labels (B, N) or None. Returns embeds (B, N', D), labels
        (B, N') with -100 at speech and padding, and lengths (B,) (docs/spec/ex_omni.md 4).
        Raises ValueError for a wrong number of clips, or a prompt longer than the context.
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
        """States (..., D) -> logits (..., V). A model with tied embeddings has no output matrix of its own."""
        return F.linear(states, (self.lm_head or self.llm.embed_tokens).weight)

    def is_stop(self, ids):
        """Token ids of any shape -> bool, True at those that end a reply."""
        return torch.isin(ids, torch.tensor(self.config.stop_ids, dtype=torch.long, device=ids.device))

    def write_text(self, embeds, lengths, max_new_tokens, sampler, generator=None, each=None) -> Decoder:
        """Prompts (B, N, D) of lengths (B,) -> the decoder after its last step, with the ids and states of replies."""
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
        """The speech generator's input: states (B, N, D) with mask (B, N), and ids to speak (B, N) padded with -100.

        The context has the states of all ids of the reply, the query leaves out the stop token. The release drops the
        last id even if it is none (docs/spec/ex_omni.md 5.5 and 8.2, item 3).
        """
        rows, states = text.emitted()
        spoken = [row[:-1] if release_quirks else row[~self.is_stop(row)] for row in rows]
        real = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
        return pad_sequence(states, True), pad_sequence(real, True), pad_sequence(spoken, True, padding_value=IGNORE)

    def animate(self, units: list, states: list, release_quirks=False) -> list:
        """units (U_b,) and states (S_b, D) of each sample -> face (T_b, 52) of each. Models with 51 channels lack
        tongueOut, the last: it becomes 0 (docs/spec/ex_omni.md 6.4)."""
        if release_quirks:                                  # one at a time: the release counts frames per batch
            faces = [self.face_decoder(u[None], s[None], release_quirks=True)[0] for u, s in zip(units, states)]
        else:
            mask = [torch.ones(len(s), dtype=torch.bool, device=s.device) for s in states]
            face = self.face_decoder(pad_sequence(units, True, padding_value=IGNORE), pad_sequence(states, True),
                                     pad_sequence(mask, True) if len(units) > 1 else None)
            faces = [row[:frames_for_units(len(u))] for row, u in zip(face, units)]
        return [F.pad(face, (0, CHANNELS - face.shape[-1])) for face in faces]

    def read(self, ids: list) -> str:
        """Token ids -> text, without stop tokens."""
        return "" if self.tokenizer is None else self.tokenizer.decode(i for i in ids if i not in self.config.stop_ids)

    def on_step(self, on_text, first):
        """A callback for Decoder.run: calls first(), then on_text(b, piece) with new text. Half a character waits."""
        shown = {}

        def each(decoder):
            first()
            if on_text is None:
                return
            for b, row in enumerate(decoder.emitted()[0]):
                text, old = self.read(row.tolist()), shown.get(b, "")
                if decoder.unfinished[b]:
                    text = text.rstrip("\ufffd")
                if text.startswith(old) and text != old:
                    on_text(b, text[len(old):])
                    shown[b] = text
        return each

    # ---------------------------------------------------------------- checkpoints and ablations

    @classmethod
    def from_pretrained(cls, directory, device="cpu", dtype: torch.dtype | None = None) -> "ExOmni":
        """Open a checkpoint directory: ours or the official release's. dtype: by default the one it was saved in.

        The speech decoder, if there is one, runs in float32. Raises OSError or ValueError, also for tensors that are
        missing or left over and for parts of different models."""
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
        """Write a checkpoint that `from_pretrained` opens. Tokenizer, speech tokenizer and speech decoder are copied
        from the directory this model was loaded from. state: the gathered weights of a model that is sharded."""
        state = self.state_dict() if state is None else state
        write_checkpoint(directory, self.config, {official_name(name): tensor for name, tensor in state.items()
                                                  if not name.startswith("speech_decoder.")})
        if self.directory is not None:
            copy_companions(self.directory, directory)

    def ablate(self, name: str) -> None:
        """Rebuild the part that ABLATIONS[name] changes. Tensors of the same name and shape keep their values."""
        self.config, weight = self.config.ablated(name), self.llm.norm.weight
        part, new = ("face_decoder", FaceDecoder(self.config.face)) if ABLATIONS[name] == "face" else (
            "speech_generator", SpeechGenerator(self.config.generator, self.config.llm.hidden_size))
        old, tensors = getattr(self, part), new.state_dict()
        new.load_state_dict(tensors | {key: tensor for key, tensor in old.state_dict().items()
                                       if key in tensors and tensors[key].shape == tensor.shape})
        setattr(self, part, new.to(weight.device, weight.dtype).train(old.training))


class SpeechProjector(nn.Module):
    """Encoder states (W, L / 2, D) -> speech rows (W, S, D_llm): k neighbouring states concatenated, Linear, ReLU,
    Linear (docs/spec/ex_omni.md 2)."""

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
    """One reply. Tensors are on the CPU."""
    text: str
    text_ids: list                 # with the stop token, unless max_new_tokens ended the reply
    text_states: torch.Tensor      # (N, D) the state that predicted each text id
    units: torch.Tensor            # (U,) speech units, 12.5 per second
    unit_states: torch.Tensor      # (U + 1, D) one per decoding step; (U, D) if a limit ended the decoding
    face: torch.Tensor             # (T, 52) blendshape weights, 30 per second, not clipped
    waveform: torch.Tensor | None  # (samples,) at 22050 Hz; None for a checkpoint without a speech decoder
    confidence: float              # product of the text ids' probabilities, at temperature 1
    seconds: dict                  # since the start of generate: first_text, text, first_unit, units, face, waveform


def loss_counts(batch: dict) -> dict:
    """The number of terms that each loss of `ExOmni.forward` averages over, integer tensors: "text" labelled tokens
    after the first, "units" samples with units, "face" samples with frames; "..._accuracy" targets."""
    mask, predicted = batch["mask"], batch["mask"].cumsum(1) > 1
    text = ((batch["labels"] != IGNORE) & mask & predicted & (batch["input_ids"] != SPEECH_ID)).sum()
    counts = {"text": text, "text_accuracy": text}
    if batch.get("units") is not None:
        lengths = (batch["units"] >= 0).sum(1)
        counts |= {"units": (lengths > 0).sum(), "units_accuracy": (lengths + (lengths > 0)).sum()}     # with the end
        if batch.get("face") is not None:
            counts["face"] = (batch["frames"] > 0).sum()
    return counts
