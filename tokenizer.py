"""Text <-> token ids: Qwen3's byte-level BPE on tiktoken, and the chat prompt around it.

In: text or chat messages. Out: a flat list of token ids with one SPEECH_ID per speech clip, which the model replaces by
the clip's speech rows (docs/spec/ex_omni.md 4). tokenizer_files.py reads the vocabulary.

`encode` never yields a control token, only `encode_chat` does: `<speech>` or `<|im_end|>` typed by a user is ordinary
text. The official demo formats one string and tokenizes it, so there they act as control tokens. Otherwise the
prompt is the demo's, id for id (Qwen3's chat format without its think block).
"""
import itertools
import unicodedata
from pathlib import Path

import regex
import tiktoken

from tokenizer_files import CONTROL_TOKENS, QWEN_PATTERN, added_tokens, forms

SPEECH_ID = -300        # placeholder of a speech clip in a prompt; never embedded, so not in the vocabulary
SYSTEM_PROMPT = ("You are a multimodal assistant that understands both speech and text, "
                 "and can respond using natural language or synthesized speech.")
ROLES = ("system", "user", "assistant")
PROBE = "I'll  say:\n\n 42 \u00e9\u4e2d\U0001f600,\tOK! "       # of each kind of character that patterns know


class Tokenizer:
    """Text and chat messages -> ids, and ids -> text.

    n_vocab: 1 + the largest id; the model's embedding table has at least this many rows (Qwen pads it further).
    im_start_id, im_end_id: ids of `<|im_start|>` and `<|im_end|>`, which open and close a message.
    stop_ids: ids that end a reply, `<|im_end|>` and, if it exists, `<|endoftext|>`.
    added: id -> (text, special) of the added tokens, which `encode` never yields.
    """

    def __init__(self, vocab, ranks, added, pattern=QWEN_PATTERN, nfc=True, fold_user_text=False):
        """vocab: token bytes -> id. ranks: bytes -> merge priority (low first) of the ordinary tokens, all 256 single
        bytes included. added: id -> (text, special) of the added tokens. pattern: regex that splits text before BPE.
        nfc: normalize text to NFC first. fold_user_text: apply `folded` to the user's texts in `encode_chat`.
        Raises ValueError if a byte, a chat token or an id is missing, if an id, a priority or an added token is invalid
        or occurs twice, or if an ordinary token has the id of an added one."""
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
        # tiktoken uses one number as a token's rank and id. It gets the ranks, and _id_of_rank maps them to ids: Qwen's
        # are equal, but in other vocabularies ids need not follow the merge order.
        self._id_of_rank = {rank: vocab[token] for token, rank in ranks.items()}
        clash = added.keys() & self._id_of_rank.values()
        if clash:
            raise ValueError(f"id {min(clash)} is both the added token {added[min(clash)][0]!r} and a token of plain "
                             "text, so text could forge it: give the added token an id of its own")
        try:
            self._bpe = tiktoken.Encoding("nanoExOmni", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
            pieces = [match[0] for match in regex.finditer(pattern, PROBE)]
        except (ValueError, regex.error) as error:
            problem = " ".join(str(error).split())
            raise ValueError(f"its split pattern is no regular expression ({problem}): fetch it again") from None
        if "" in pieces or "".join(pieces) != PROBE:                # tiktoken would panic, or leave text out
            raise ValueError("its split pattern matches the empty text, or leaves text out: fetch it again")
        self._nfc, self._ranks, self._fold_user_text = nfc, ranks, fold_user_text
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
        """The tokenizer stored in `directory`, in one of the forms of tokenizer_files.py.
        Raises FileNotFoundError if there is none, ValueError if one is damaged or of an unsupported kind."""
        directory = Path(directory)
        found = []
        for name, read in forms(directory):
            try:
                added = added_tokens(directory)
                found.append((name, cls(*read(directory / name, added or (found[0][1].added if found else {})))))
            except ValueError as error:
                raise ValueError(f"cannot use the tokenizer {directory / name}: {error}") from error
        if found:
            _check_equal(found, added, directory)
            return found[0][1]
        seen = ", ".join(sorted(p.name for p in directory.iterdir())) if directory.is_dir() else "no such directory"
        raise FileNotFoundError(f"no tokenizer in {directory} ({seen or 'it is empty'}): expected tokenizer.json, or "
                                "vocab.json and merges.txt, or a *.tiktoken file; copy them from the checkpoint")

    def encode(self, text):
        """Text -> list of ids without control tokens; "" -> []. A lone surrogate, which UTF-8 cannot encode, is read as
        U+FFFD."""
        if self._nfc:
            text = unicodedata.normalize("NFC", text)
        return [self._id_of_rank[rank] for rank in self._bpe.encode_ordinary(text)]

    def decode(self, ids, skip_special_tokens=True):
        """Ids -> text: `decode(encode(text))` is `text`, in NFC form if the vocabulary asks for it.

        Special tokens and SPEECH_ID are left out, or written by name if `skip_special_tokens` is False. Added tokens
        that are not special, such as Qwen's `<think>`, are always kept. Bytes that are not UTF-8 (half a character)
        become U+FFFD, and so do ids without a token, which a model can generate as its embedding table is larger."""
        tokens = (self._bytes_of_id.get(i, "\ufffd".encode()) for i in map(int, ids)
                  if not (skip_special_tokens and i in self._skipped))
        return b"".join(tokens).decode("utf-8", errors="replace")

    def encode_chat(self, messages, add_generation_prompt=True):
        """Chat messages -> list of ids: `<|im_start|>ROLE\\nCONTENT<|im_end|>\\n` for each message, then
        `<|im_start|>assistant\\n` with add_generation_prompt.

        messages: dicts with "role" (one of ROLES) and "content", a str or a list of parts `{"type": "speech"}` and
        `{"type": "text", "text": ...}`. A speech part becomes SPEECH_ID; parts are joined by a newline, empty texts
        left out. No system message is added. Raises ValueError for anything else."""
        pieces = []                                     # int: a control token or SPEECH_ID, str: text
        for message in messages:
            parts = message_parts(message)
            if self._fold_user_text and message["role"] == "user":
                parts = [part if part == SPEECH_ID else folded(part) for part in parts]
            content = [piece for part in parts for piece in ("\n", part)][1:]
            pieces += [self.im_start_id, message["role"] + "\n", *content, self.im_end_id, "\n"]
        if add_generation_prompt:
            pieces += [self.im_start_id, "assistant\n"]
        ids = []
        # Role, newline and content are tokenized as one text: a token may span their borders ("\n\n").
        for is_text, group in itertools.groupby(pieces, key=lambda piece: isinstance(piece, str)):
            ids += self.encode("".join(group)) if is_text else group
        return ids


def folded(text):
    """A text in lower case and with single spaces."""
    return " ".join(text.lower().split())


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
    """A message as it is kept in the history, without audio: one with speech becomes the text `[Speech input]`, or
    `[Speech] ` and its text. A message without speech is returned as it is."""
    parts = message_parts(message)
    if SPEECH_ID not in parts:
        return message
    text = "\n".join(part for part in parts if part != SPEECH_ID)
    return {**message, "content": f"[Speech] {text}" if text else "[Speech input]"}


def with_system(messages):
    """The messages, with the demo's system prompt in front unless they begin with one."""
    given = messages and messages[0]["role"] == "system"
    return messages if given else [{"role": "system", "content": SYSTEM_PROMPT}, *messages]


def trim_history(messages, keep=40):
    """A new list of the system message, if there is one, and the last `keep` other messages."""
    first = 1 if messages and messages[0]["role"] == "system" else 0
    return messages[:first] + messages[max(first, len(messages) - keep):]


def _check_equal(found, added, directory):
    """Raises ValueError if the tokenizers of a directory differ. found: (file name, Tokenizer) of each form in it.
    added: the added tokens of its other files."""
    (name, tokenizer), *others = found
    token_of = {i: token for i, token in tokenizer._bytes_of_id.items() if i >= 0}
    id_of = {token: i for i, token in token_of.items()}
    stated = {i: text.encode() for i, (text, special) in added.items()}
    for other, tokens, ranks in [("added_tokens.json or tokenizer_config.json", stated, {})] + [
            (other, second._bytes_of_id, second._ranks) for other, second in others]:
        wrong = [f"id {i} is {token_of.get(i)} and {token}" for i, token in tokens.items()
                 if i >= 0 and (token_of.get(i, token) != token or id_of.get(token, i) != i)]
        both = [token for token in tokenizer._ranks if len(token) > 1 and token in ranks]
        if sorted(both, key=tokenizer._ranks.get) != sorted(both, key=ranks.get):
            wrong.append("their merges have another order")
        if wrong:
            raise ValueError(f"{directory} has two tokenizers, {name} and {other} ({wrong[0]}): keep the weights' own")
