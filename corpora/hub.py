"""Downloads Hugging Face repositories, each at one commit, which is printed and recorded in the checkpoint.

    sources.json    part -> {"repository", "commit", "files": {name: bytes}} of downloads; local directories are not in
                    it
"""
import re
from pathlib import Path

import disk

# The files to download. Whisper's repository also has the same weights in other types and for other frameworks.
WANTED = ["*.json", "merges.txt", "*.tiktoken", "model.safetensors", "model-*.safetensors", "config.yaml", "*.pt"]
RECORD = "sources.json"


def revisions(given: list, parts) -> dict:
    """The values of --revision, ["llm=0123abc", ...] -> {part: revision}. Raises ValueError for anything else."""
    found = {}
    for text in given:
        name, _, revision = text.partition("=")
        part = name.replace("-", "_")
        if part not in parts or not revision:
            raise ValueError(f"--revision {text}: expected PART=COMMIT, PART being one of {', '.join(parts)}")
        found[part] = revision
    return found


def read_record(directory: Path) -> dict:
    """{part: (repository, commit)} from the sources.json of a checkpoint. Raises ValueError if it is damaged."""
    path = directory / RECORD
    values = disk.read_json(path) if path.is_file() else {}
    return {part: tuple(disk.typed(disk.typed(values, part, dict, path), name, str, path, prefix=f"{part}.")
                        for name in ("repository", "commit")) for part in values}


def fetch(part: str, source: str, revision: str | None, before: dict, record: dict, wanted=WANTED) -> Path:
    """The directory of a part: `source` itself if it is local, else a Hugging Face repository downloaded into the hub's
    cache. Files that are in the cache, even in part, are not downloaded again.

    revision: a commit, tag or branch, or None for the newest. before: `read_record` of the checkpoint that is replaced.
    record: gets this part's entry. Raises OSError with a hint if the source cannot be had, ValueError if the repository
    moved to another commit than before and there is no revision."""
    if Path(source).is_dir():
        if revision:
            raise ValueError(f"--revision {part}={revision}: {source} is a directory here, a repository has commits")
        print(f"{part:<18}{source}")
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise FileNotFoundError(f"{source} is not a directory here, nor is it named like a repository, owner/name")
    # A small file first: it gives the commit, which is checked before large files come, and is that of all files.
    commit = download(source, revision, ["config.json", "config.yaml"]).name
    old_source, old = before.get(part, (None, None))
    if source == old_source and commit != old and not revision:
        raise ValueError(f"{source} is at commit {commit} now, the checkpoint was made from {old}: give --revision "
                         f"{part}={old} to stay with it, or {part}={commit} to take the new one")
    print(f"{part:<18}{source} at commit {commit}")
    directory = download(source, commit, wanted)
    names = sorted({path for pattern in wanted for path in directory.glob(pattern)})
    record[part] = {"repository": source, "commit": commit, "files": {path.name: path.stat().st_size for path in names}}
    return directory


def download(source: str, revision: str | None, wanted: list) -> Path:
    """Download files. Returns their directory in the hub's cache, named by the commit. Raises OSError with a hint."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise OSError(f"{source} is not a directory here: `pip install huggingface_hub` to download it") from None
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(wanted)))
    except Exception as error:                  # its own classes, and those of its HTTP library, which changes
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        at = f" at {revision}" if revision else ""
        raise OSError(f"{source} is not a directory here and could not be downloaded{at} ({reason}): give a local "
                      "directory, or run again to resume") from None
