"""Text <-> token ids: Qwen3's byte-level BPE on tiktoken, and the chat prompt around it.

In: a directory with a tokenizer, and text or chat messages. Out: a flat list of token ids in which every speech clip is
one SPEECH_ID, where the model puts the clip's speech rows (docs/spec/ex_omni.md 4). No torch here.

Three forms on disk are read, the first one found; others beside it must be the same tokenizer:
  tokenizer.json              Hugging Face; says its own split pattern, normalizer and special tokens
  vocab.json + merges.txt     special tokens from tokenizer_config.json and added_tokens.json beside them
  *.tiktoken                  a "base64(token) rank" per line; special tokens as above, else Qwen's three
The last two say neither pattern nor normalizer; Qwen's (QWEN_PATTERN and NFC) are taken, as Qwen's own code does.

`encode` never yields a control token, whatever the text says; only `encode_chat` does. The official demo formats one
string and tokenizes that, so `<speech>` or `<|im_end|>` typed by a user acts there; here it is ordinary text. Otherwise
the prompt is the demo's, id for id (Qwen3's chat format without its think block).
"""
import base64
import itertools
import json
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tiktoken

import disk

Id = Annotated[int, 0, (1 << 31) - 1]
SPEECH_ID = -300        # stands for one speech clip in a prompt; never embedded, so not a row of the vocabulary
SYSTEM_PROMPT = ("You are a multimodal assistant that understands both speech and text, "
                 "and can respond using natural language or synthesized speech.")
ROLES = ("system", "user", "assistant")
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")     # in the order of Qwen's ids

# How text is cut before merging; no merge crosses a cut. Qwen takes digits one by one, GPT-2 in runs.
QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# JSON cannot hold raw bytes, so GPT-2 and its heirs write each byte as one visible character: a byte that is
# printable Latin-1 as itself, the other 68 as U+0100, U+0101, ... in order (the space becomes U+0120).
_printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_hidden = [b for b in range(256) if b not in _printable]
BYTE_OF_CHAR = {chr(b): b for b in _printable} | {chr(0x100 + i): b for i, b in enumerate(_hidden)}


class Tokenizer:
    """Plain text and chat messages to ids, and ids back to text.

    n_vocab: 1 + the largest id; the model's embedding table has at least this many rows (Qwen pads it further).
    im_start_id, im_end_id: ids of `<|im_start|>` and `<|im_end|>`, which open and close a message.
    stop_ids: ids that end an answer, `<|im_end|>` and, where it exists, `<|endoftext|>`.
    added: id -> (text, special) of the tokens that text never becomes.
    """

    def __init__(self, vocab, ranks, added, pattern=QWEN_PATTERN, nfc=True):
        """vocab: token bytes -> id. ranks: token bytes -> priority, low merges first, of each token that text may
        become; all 256 bytes among them. added: id -> (text, special) of the tokens that text never becomes.
        pattern: regex that cuts text into pieces. nfc: whether text is normalized to NFC first.
        Raises ValueError if a byte, a chat token or an id below them is missing, if an id, a priority or an added token
        is none or stands twice, or if text could become an added token."""
        for what, numbers in (("id", vocab), ("priority", ranks)):
            odd = [i for i in numbers.values() if type(i) is not int or not 0 <= i < 1 << 31]
            if odd or len(set(numbers.values())) < len(numbers):
                raise ValueError(f"a token has the {what} {odd[0]!r}, expected a whole number from 0" if odd else
                                 f"two tokens have the same {what}: fetch it again")
        id_of = {text: i for i, (text, special) in added.items()}
        twice = [f"{text!r} is {id_of[text]} and {i}" for i, (text, special) in added.items() if id_of[text] != i]
        if twice:
            raise ValueError(f"an added token has two ids, {twice[0]}: fetch it again")
        missing = [name for name in ("<|im_start|>", "<|im_end|>") if name not in id_of]
        if missing:
            raise ValueError(f"the vocabulary lacks {' and '.join(missing)}, a chat model's tokenizer has "
                             "<|im_start|> and <|im_end|> as added tokens: use the one that came with the weights")
        lost = [b for b in range(256) if bytes([b]) not in ranks]
        if lost:
            raise ValueError(f"{len(lost)} of the 256 byte tokens are missing, the first is byte {lost[0]:#04x}: "
                             "fetch it again")
        # tiktoken takes one number for both a token's rank and its id. Ranks go in, _id_of_rank turns them into
        # ids: for Qwen both are equal, in other vocabularies ids need not follow the merge order.
        self._id_of_rank = {rank: vocab[token] for token, rank in ranks.items()}
        clash = added.keys() & self._id_of_rank.values()
        if clash:
            raise ValueError(f"id {min(clash)} is both the added token {added[min(clash)][0]!r} and a token of plain "
                             "text, so text could forge it: give the added token an id of its own")
        try:
            self._bpe = tiktoken.Encoding("nanoExOmni", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        except ValueError as error:
            problem = " ".join(str(error).split())
            raise ValueError(f"its split pattern is no regular expression ({problem}): fetch it again") from None
        self._nfc, self._ranks = nfc, ranks
        self._bytes_of_id = {i: token for token, i in vocab.items()}
        self._bytes_of_id |= {i: text.encode() for i, (text, special) in added.items()}
        ordinary = max(max(vocab.values()), *(id_of[name] for name in CONTROL_TOKENS if name in id_of))
        gap = next((i for i in range(ordinary) if i not in self._bytes_of_id), None)
        if gap is not None:
            raise ValueError(f"no token has the id {gap}, expected one for each from 0 to {ordinary}: was it cut off "
                             "or edited? Fetch it again")
        self.n_vocab = 1 + max(self._bytes_of_id)
        self._bytes_of_id[SPEECH_ID] = b"<speech>"
        self._skipped = {SPEECH_ID} | {i for i, (text, special) in added.items() if special}
        self.added = added
        self.im_start_id, self.im_end_id = id_of["<|im_start|>"], id_of["<|im_end|>"]
        self.stop_ids = tuple(id_of[name] for name in ("<|im_end|>", "<|endoftext|>") if name in id_of)

    @classmethod
    def from_pretrained(cls, directory):
        """The tokenizer stored in `directory`, see the top of this file for the forms.
        Raises FileNotFoundError if there is none, ValueError if one is damaged or of an unsupported kind."""
        directory = Path(directory)
        forms = [("tokenizer.json", _read_tokenizer_json)] * os.path.lexists(directory / "tokenizer.json")
        forms += [("vocab.json", _read_vocab_and_merges)] * all(
            os.path.lexists(directory / name) for name in ("vocab.json", "merges.txt"))
        forms += [(path.name, _read_tiktoken) for path in sorted(directory.glob("*.tiktoken"))]
        found = []
        for name, read in forms:
            try:
                added = _added_tokens(directory)
                found.append((name, cls(*read(directory / name, added or (found[0][1].added if found else {})))))
            except ValueError as error:
                raise ValueError(f"cannot use the tokenizer {directory / name}: {error}") from error
        if found:
            return _the_same(found, added, directory)
        seen = ", ".join(sorted(p.name for p in directory.iterdir())) if directory.is_dir() else "no such directory"
        raise FileNotFoundError(f"no tokenizer in {directory} ({seen or 'it is empty'}): expected tokenizer.json, or "
                                "vocab.json and merges.txt, or a *.tiktoken file; copy them from the checkpoint")

    def encode(self, text):
        """Plain text -> list of ids, never a control token; "" -> []. Nothing is put before or after it.
        A lone surrogate, which UTF-8 cannot hold, counts as U+FFFD."""
        if self._nfc:
            text = unicodedata.normalize("NFC", text)
        return [self._id_of_rank[rank] for rank in self._bpe.encode_ordinary(text)]

    def decode(self, ids, skip_special_tokens=True):
        """Ids -> text: `decode(encode(text))` is `text`, or its NFC form if the vocabulary asks for NFC.

        Special tokens and SPEECH_ID give nothing, or their names if `skip_special_tokens` is False. Added tokens
        that are not special, such as Qwen's `<think>`, are always kept. Bytes that are not UTF-8 (half a character)
        and ids without a token (the embedding table is taller than the vocabulary, so an untrained model may
        generate them) become U+FFFD."""
        tokens = (self._bytes_of_id.get(i, "\ufffd".encode()) for i in map(int, ids)
                  if not (skip_special_tokens and i in self._skipped))
        return b"".join(tokens).decode("utf-8", errors="replace")

    def encode_chat(self, messages, add_generation_prompt=True):
        """Chat messages -> list of ids: `<|im_start|>ROLE\\nCONTENT<|im_end|>\\n` for each message, then
        `<|im_start|>assistant\\n` if the model is to answer.

        messages: dicts with "role" (one of ROLES) and "content", a str or a list of parts `{"type": "speech"}` and
        `{"type": "text", "text": ...}`. A speech part becomes SPEECH_ID; parts are joined by a newline, empty texts
        left out. No system message is added. Raises ValueError for anything else."""
        pieces = []                                     # int: a control token or SPEECH_ID, str: text
        for message in messages:
            parts = message_parts(message)
            content = [piece for part in parts for piece in ("\n", part)][1:]
            pieces += [self.im_start_id, message["role"] + "\n", *content, self.im_end_id, "\n"]
        if add_generation_prompt:
            pieces += [self.im_start_id, "assistant\n"]
        ids = []
        # Role, newline and content are tokenized as one text: a token may span their borders ("\n\n").
        for is_text, group in itertools.groupby(pieces, key=lambda piece: isinstance(piece, str)):
            ids += self.encode("".join(group)) if is_text else group
        return ids


def message_parts(message):
    """A message's content as a list of texts and SPEECH_IDs. Raises ValueError if the message is malformed."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise ValueError(f"message is {message!r}, expected a dict whose role is one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    parts = []
    for part in content if isinstance(content, list) else [None]:
        match part:
            case {"type": "speech"}:
                parts.append(SPEECH_ID)
            case {"type": "text", "text": str(text)}:
                parts += [text] if text else []
            case _:
                raise ValueError(f"content of the {message['role']} message is {content!r}, expected a str, or a list "
                                 'of {"type": "speech"} and {"type": "text", "text": ...}')
    return parts


def past_turn(message):
    """A finished turn as the history keeps it: a message with speech becomes the text `[Speech input]`, or
    `[Speech] ` + its text, because past audio is not sent again. A message without speech is returned as it is."""
    parts = message_parts(message)
    if SPEECH_ID not in parts:
        return message
    text = "\n".join(part for part in parts if part != SPEECH_ID)
    return {**message, "content": f"[Speech] {text}" if text else "[Speech input]"}


def with_system(messages):
    """The messages, after the demo's system prompt unless they begin with one; in training and in use."""
    given = messages and messages[0]["role"] == "system"
    return messages if given else [{"role": "system", "content": SYSTEM_PROMPT}, *messages]


def trim_history(messages, keep=40):
    """A leading system message, if there is one, and the last `keep` of the other messages, as a new list."""
    first = 1 if messages and messages[0]["role"] == "system" else 0
    return messages[:first] + messages[max(first, len(messages) - keep):]


@dataclass
class AddedToken:
    """One of added_tokens."""
    id: Id
    content: str
    special: bool = False


def _read_lines(path):
    try:
        return disk.read_bytes(path, "a text file").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 ({error}): fetch it again") from None


def _the_same(found, added, directory):
    """found: (file, Tokenizer) of each form in a directory; added: what the files beside them say -> the first one.
    Raises ValueError where another one, or an added token, is not the same."""
    (name, tokenizer), *others = found
    token_of = {i: token for i, token in tokenizer._bytes_of_id.items() if i >= 0}
    id_of = {token: i for i, token in token_of.items()}
    said = {i: text.encode() for i, (text, special) in added.items()}
    for other, tokens, ranks in [("added_tokens.json or tokenizer_config.json", said, {})] + [
            (other, theirs._bytes_of_id, theirs._ranks) for other, theirs in others]:
        wrong = [f"id {i} is {token_of.get(i)} and {token}" for i, token in tokens.items()
                 if i >= 0 and (token_of.get(i, token) != token or id_of.get(token, i) != i)]
        both = [token for token in tokenizer._ranks if len(token) > 1 and token in ranks]
        if sorted(both, key=tokenizer._ranks.get) != sorted(both, key=ranks.get):
            wrong.append("their merges have another order")
        if wrong:
            raise ValueError(f"{directory} has two tokenizers, {name} and {other} ({wrong[0]}): keep the weights' own")
    return tokenizer


def _read_tokenizer_json(path, _):
    """The arguments of Tokenizer.__init__; the next two readers likewise, which are given the added tokens."""
    spec, name = disk.read_json(path), path.name
    model, normalizer = disk.typed(spec, "model", dict, name), spec.get("normalizer")
    disk.typed(model, "type", Literal["BPE"], name, prefix="model.")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            raise ValueError(f"its model has {key} = {model[key]!r}, expected none: tiktoken has no such setting")
    if normalizer not in (None, {"type": "NFC"}):
        raise ValueError(f"its normalizer is {json.dumps(normalizer)}, expected null or NFC: add it to encode")
    tokens = disk.typed(spec, "added_tokens", list[AddedToken] | None, name, None) or []
    added = {token.id: (token.content, token.special) for token in tokens}
    if len(added) < len(tokens):
        raise ValueError(f"{name}: two of the added_tokens have the same id: fetch it again")
    merges = disk.typed(model, "merges", list, name, [], prefix="model.")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    vocab, ranks = _byte_level(disk.typed(model, "vocab", dict, name, prefix="model."), merges, added)
    return vocab, ranks, added, _split_pattern(spec.get("pre_tokenizer")), normalizer is not None


def _split_pattern(pre_tokenizer):
    """The regex that cuts text into pieces, from the `pre_tokenizer` of a tokenizer.json."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}:
            # Text between matches is a piece too ("Isolated"); tiktoken would drop it.
            return rf"{pattern}|(?:(?!{pattern})[\s\S])+"
        case {"type": "ByteLevel", "add_prefix_space": False, **options} if options.get("use_regex", True):
            return GPT2_PATTERN
    raise ValueError(f"its pre_tokenizer is {json.dumps(pre_tokenizer)}, expected ByteLevel without prefix space, "
                     "alone or after one isolating Split by Regex: add the case to _split_pattern")


def _read_vocab_and_merges(path, added):
    lines = [line for line in _read_lines(path.with_name("merges.txt")) if line and not line.startswith("#version")]
    return *_byte_level(disk.read_json(path), [line.split(" ") for line in lines], added), added


def _read_tiktoken(path, added):
    """Each token of several bytes is two earlier ones put together: what is not, and ranks that do not rise, are
    damage."""
    ranks, last = {}, -1
    for number, line in enumerate(_read_lines(path), start=1):
        try:
            text, rank = line.split()
            token, rank = base64.b64decode(text, validate=True), int(rank)
            if base64.b64encode(token).decode() != text:
                raise ValueError("bits beyond the last byte")
        except ValueError as error:
            raise ValueError(f'line {number} is {line[:40]!r}, expected "base64 rank": fetch it again') from error
        wrong = (f"has the rank {rank} after {last}, expected rising ranks" if not last < rank < 1 << 31 else
                 f"has {token!r} once more" if token in ranks else
                 f"has {token!r}, which no two earlier tokens make" if len(token) != 1 and not any(
                     token[:cut] in ranks and token[cut:] in ranks for cut in range(1, len(token))) else "")
        if wrong:
            raise ValueError(f"line {number} {wrong}: fetch it again")
        ranks[token] = last = rank
    first_free = 1 + max(ranks.values(), default=-1)
    return ranks, ranks, added or {first_free + i: (text, True) for i, text in enumerate(CONTROL_TOKENS)}


def _added_tokens(directory):
    """id -> (text, special) from added_tokens.json and tokenizer_config.json; {} without them.
    added_tokens.json does not say which are special; all count as special unless tokenizer_config.json knows."""
    added = {}
    name = "added_tokens.json"
    if (directory / name).is_file():
        tokens = disk.read_json(directory / name)
        added |= {disk.typed(tokens, text, Id, name): (text, True) for text in tokens}
    name = "tokenizer_config.json"
    if (directory / name).is_file():
        tokens = disk.typed(disk.read_json(directory / name), "added_tokens_decoder", dict | None, name, None) or {}
        for i in tokens:
            fields = disk.typed(tokens, i, dict, name, prefix="added_tokens_decoder.")
            token = disk.checked(AddedToken, fields | {"id": int(i) if i.isdecimal() else i}, name,
                                 f"added_tokens_decoder.{i}.")
            added[token.id] = token.content, token.special
    return added


def _byte_level(vocab, merges, added):
    """Byte-level vocabulary and merges as text -> (token bytes -> id, token bytes -> rank)."""
    added_texts = {text for text, special in added.values()}
    try:
        token_of = {text: bytes(map(BYTE_OF_CHAR.__getitem__, text)) for text in vocab if text not in added_texts}
    except KeyError as error:
        raise ValueError(f"a token has the character {error}, which stands for no byte: expected a byte-level BPE, "
                         "not one over characters (SentencePiece)") from error
    broken = [merge for merge in merges if not isinstance(merge, list) or list(map(type, merge)) != [str, str]]
    if broken:
        raise ValueError(f"the merge {broken[0]} is not of two tokens: fetch it again")
    try:
        ranks = _merge_ranks([(token_of[left], token_of[right]) for left, right in merges])
    except KeyError as error:
        raise ValueError(f"a merge uses {error}, which is no token of the vocabulary: fetch it again") from error
    vocab = {token: vocab[text] for text, token in token_of.items()}
    made = {left + right for left, right in merges}
    unmade = [text for text, token in token_of.items() if len(token) > 1 and text not in made]
    if unmade:
        raise ValueError(f"{len(unmade)} tokens of the vocabulary, {unmade[0]!r} first, are made by no merge: were "
                         "merges lost? Fetch it again")
    nameless = next((token for token in ranks if token not in vocab), None)
    if nameless:
        raise ValueError(f"{nameless!r}, a single byte or made by a merge, is no ordinary token of the vocabulary: "
                         "expected all 256 bytes and every merge in it; fetch it again")
    return vocab, ranks


def _merge_ranks(merges):
    """Merges in order of priority -> token bytes -> rank, with which tiktoken gives the same tokens as the merges.

    merges: list of (left, right) bytes. The two algorithms differ: a merge rule joins one pair of tokens, a rank any
    two neighbours that spell the token. They agree if each token's rule joins the pair that the token's own bytes come
    to under the earlier rules. Training makes only such rules; any other can never fire and is left out here. A rule
    that stands before the rules of its parts would fire out of order: ValueError."""
    ranks = {bytes([b]): b for b in range(256)}
    parts, early = {}, []

    def stays_apart(left, right):
        """Whether the bytes of left + right come to be left, right. Walk back from these two to single bytes along
        their border, undoing the later merge first: was there a merge across the border that comes before it?
        Of two merges with the same rank the left one comes first, in both algorithms."""
        while len(left) > 1 or len(right) > 1:
            if ranks[left] > ranks[right]:
                limit, left = ranks[left], parts[left][1]
            else:
                limit, right = ranks[right] + 1, parts[right][0]
            if ranks.get(left + right, limit) < limit:
                return False
        return True

    for rank, (left, right) in enumerate(merges, start=256):
        if left not in ranks or right not in ranks:
            early.append((left, right))
        elif left + right not in ranks and stays_apart(left, right):
            ranks[left + right], parts[left + right] = rank, (left, right)
    for left, right in early:
        if left in ranks and right in ranks and left + right not in ranks:
            raise ValueError(f"the merge of {left!r} and {right!r} stands before those that make its parts, expected "
                             "merges in the order of training: fetch it again")
    return ranks


def write_tiny(directory):
    """Write the smallest tokenizer.json that works into `directory`: id = byte value for the 256 bytes, no merges,
    the three control tokens as ids 256 to 258, and Qwen's pattern and normalizer. For tiny random checkpoints."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    spec = {
        "version": "1.0", "normalizer": {"type": "NFC"}, "post_processor": None, "decoder": byte_level,
        "added_tokens": [{"id": 256 + i, "content": text} | flags for i, text in enumerate(CONTROL_TOKENS)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "model": {"type": "BPE", "vocab": BYTE_OF_CHAR, "merges": []}}
    disk.write_json(Path(directory) / "tokenizer.json", spec)
