"""Reads and checks the files of a tokenizer, for tokenizer.py.

Three formats are supported. The first one found is used; any others in the directory must be the same tokenizer:
  tokenizer.json              Hugging Face; has its own split pattern, normalizer and special tokens
  vocab.json + merges.txt     special tokens from tokenizer_config.json and added_tokens.json in the same directory
  *.tiktoken                  a "base64(token) rank" per line; special tokens as above, else Qwen's three
The last two have neither pattern nor normalizer: Qwen's (QWEN_PATTERN and NFC) are used, as in Qwen's own code. With a
*.tiktoken, tokenizer_config.json may have `"fold_user_text": true`, a setting of the mini model: the user's text is
converted to lower case and single spaces (`tokenizer.folded`).
"""
import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import disk

Id = Annotated[int, 0, (1 << 31) - 1]
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")     # in the order of Qwen's ids

# Regex that splits text into pieces before merging. Qwen splits off each digit, GPT-2 runs of digits.
QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# JSON cannot hold raw bytes, so byte-level BPE as of GPT-2 writes each byte as one visible character: printable Latin-1
# as itself, the other 68 bytes as U+0100, U+0101, ... in order (the space becomes U+0120).
_printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_hidden = [b for b in range(256) if b not in _printable]
BYTE_OF_CHAR = {chr(b): b for b in _printable} | {chr(0x100 + i): b for i, b in enumerate(_hidden)}


@dataclass
class AddedToken:
    """An entry of added_tokens."""
    id: Id
    content: str
    special: bool = False


def forms(directory):
    """[(file, its reader)] for each format in `directory`. A reader takes the file's path and `added_tokens`, and
    returns the arguments of Tokenizer.__init__."""
    found = [("tokenizer.json", _read_tokenizer_json)] * os.path.lexists(directory / "tokenizer.json")
    found += [("vocab.json", _read_vocab_and_merges)] * all(
        os.path.lexists(directory / name) for name in ("vocab.json", "merges.txt"))
    return found + [(path.name, _read_tiktoken) for path in sorted(directory.glob("*.tiktoken"))]


def _read_lines(path):
    try:
        return disk.read_bytes(path, "a text file").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 ({error}): fetch it again") from None


def _read_tokenizer_json(path, _):
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
            # "Isolated" keeps the text between matches as pieces; tiktoken would drop it.
            return rf"{pattern}|(?:(?!{pattern})[\s\S])+"
        case {"type": "ByteLevel", "add_prefix_space": False, **options} if options.get("use_regex", True):
            return GPT2_PATTERN
    raise ValueError(f"its pre_tokenizer is {json.dumps(pre_tokenizer)}, expected ByteLevel without prefix space, "
                     "alone or after one isolating Split by Regex: add the case to _split_pattern")


def _read_vocab_and_merges(path, added):
    lines = [line for line in _read_lines(path.with_name("merges.txt")) if line and not line.startswith("#version")]
    return *_byte_level(disk.read_json(path), [line.split(" ") for line in lines], added), added


def _read_tiktoken(path, added):
    """Raises ValueError for ranks that do not rise, and for a token of several bytes that is not two earlier tokens
    joined: the file is damaged."""
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
    added = added or {first_free + i: (text, True) for i, text in enumerate(CONTROL_TOKENS)}
    return ranks, ranks, added, QWEN_PATTERN, True, _folds(path.parent)


def added_tokens(directory):
    """id -> (text, special) from added_tokens.json and tokenizer_config.json; {} without them. Tokens of
    added_tokens.json are special unless tokenizer_config.json says otherwise."""
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


def _folds(directory):
    """fold_user_text of tokenizer_config.json, False without it."""
    name = "tokenizer_config.json"
    if not (directory / name).is_file():
        return False
    return disk.typed(disk.read_json(directory / name), "fold_user_text", bool, name, False)


def _byte_level(vocab, merges, added):
    """Vocabulary {text: id} and merges [[left, right]] of a byte-level BPE, with texts in BYTE_OF_CHAR's characters ->
    ({token bytes: id}, {token bytes: rank})."""
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
    """Merges (left, right) of bytes, in order of priority -> {token bytes: rank} with which tiktoken gives the same
    tokens as BPE with these merges.

    The two algorithms differ: a merge joins one pair of tokens, a rank any two neighbours whose bytes are the token.
    They agree if each merge joins the two tokens into which the earlier merges turn its own bytes. Trained merges are
    all like this. Any other merge never applies and is left out here. A merge listed before those that make its parts
    would apply out of order: ValueError."""
    ranks = {bytes([b]): b for b in range(256)}
    parts, early = {}, []

    def stays_apart(left, right):
        """Whether the earlier merges turn the bytes left + right into the tokens left and right. Undo the merges next
        to the border, later ones first, down to single bytes: none across the border may come before the one undone. Of
        two merges with the same rank the left one comes first, in both algorithms."""
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
    """Write a minimal tokenizer.json for tiny random checkpoints: 256 bytes with their values as ids, no merges, the
    control tokens as ids 256 to 258, Qwen's pattern and normalizer."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    spec = {
        "version": "1.0", "normalizer": {"type": "NFC"}, "post_processor": None, "decoder": byte_level,
        "added_tokens": [{"id": 256 + i, "content": text} | flags for i, text in enumerate(CONTROL_TOKENS)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "model": {"type": "BPE", "vocab": BYTE_OF_CHAR, "merges": []}}
    disk.write_json(Path(directory) / "tokenizer.json", spec)
