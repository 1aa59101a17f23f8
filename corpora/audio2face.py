"""NVIDIA's Audio2Face-3D as teacher: sound -> face track, by onnxruntime. `label.py` runs it over prepared data.

A directory as NVIDIA publishes it (nvidia/Audio2Face-3D-v2.3-Mark on Hugging Face; the v2.3 family, not v3):

    network.onnx            `input` (B, 1, 8320) sound and `emotion` (B, 1, 26) -> `result` (B, 1, 301), of which the
                            first 272 are coefficients of the skin
    network_info.json       the meaning of these numbers
    model_data.npz          the skin: its mean (X, 3), and the offsets of each coefficient (272, X, 3)
    bs_skin.npz             the 52 shapes by name as vertex offsets (X, 3), and the vertices that are compared
    bs_skin_config.json     strengths of the regularisation; shapes that are not solved for, by index
    model_config.json       how strongly the skin moves
    implicit_emo_db.npz     the 16 implicit emotion values; the other 10 have names, such as joy

The network sees a window of 0.52 s around a frame, at any time, so we run it at 30 frames per second directly.
blendshapes.py turns its skin into weights. Left out of NVIDIA's own program: the tongue, the eyeballs, random blinks,
and its smoothing over some milliseconds.

Shapes: T face frames, K = 52 blendshapes, B windows, C coefficients, X vertices.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

import disk
from corpora.blendshapes import WHAT, Shapes, Style, read_npz, texts
from disk import Size
from face_decoder import FPS
from whisper import SAMPLE_RATE

FILES = ("network.onnx", "network_info.json", "model_data.npz", "bs_skin.npz", "bs_skin_config.json",
         "model_config.json", "implicit_emo_db.npz")
BATCH = 64                          # windows per call of the network


@dataclass
class Params:
    """params of network_info.json."""
    implicit_emotion_len: Annotated[int, 0, 4096]
    explicit_emotions: list[str]
    default_emotion: list[float]
    num_shapes_skin: Size


@dataclass
class Window:
    """audio_params of network_info.json."""
    buffer_len: Size                            # samples of a window
    buffer_ofs: Annotated[int, 0, 1 << 20]      # the sample at the time of its frame
    samplerate: Annotated[int, SAMPLE_RATE, SAMPLE_RATE]


class Audio2Face:
    """The teacher: call `track`. emotion: name -> 0 to 1; missing ones have the network's default.

    Raises ValueError or OSError if the directory holds anything else, or for an unknown emotion."""

    def __init__(self, directory, emotion: dict | None = None, device="cpu"):
        directory = Path(directory)
        path = directory / "network_info.json"
        info = disk.read_json(disk.regular(path, WHAT))
        if "identities" in disk.typed(info, "params", dict, path):
            raise ValueError(f"{directory} is the diffusion network of v3: expected {WHAT}")
        self.params = disk.typed(info, "params", Params, path)
        self.window = disk.typed(info, "audio_params", Window, path)
        self.style = disk.typed(disk.read_json(directory / "model_config.json"), "config", Style,
                                directory / "model_config.json")
        self.emotion = np.concatenate([self.implicit(directory / "implicit_emo_db.npz"),
                                       self.explicit(emotion or {})]).astype(np.float32)
        self.solver = Shapes(directory, self.style, self.params.num_shapes_skin)
        self.session = self.open(directory / "network.onnx", device)

    def implicit(self, path: Path) -> np.ndarray:
        """The implicit emotion values of the recording that model_config.json names."""
        db = read_npz(path, "emo_db", "emo_spec_names", "emo_spec_start", "emo_spec_size")
        shot, frame, names = self.style.source_shot, self.style.source_frame, texts(db["emo_spec_names"])
        first, size = ([*map(int, db[key])][names.index(shot)] if shot in names else 0
                       for key in ("emo_spec_start", "emo_spec_size"))
        values = db["emo_db"][first:first + size][frame:frame + 1]
        if values.shape != (1, self.params.implicit_emotion_len):
            raise ValueError(f"{path} has no frame {frame} of {shot}, which model_config.json names, with "
                             f"{self.params.implicit_emotion_len} values")
        return values[0]

    def explicit(self, emotion: dict) -> np.ndarray:
        """The emotion values that have names. Raises ValueError for an unknown name."""
        names = self.params.explicit_emotions
        unknown = [name for name in emotion if name not in names]
        if unknown:
            raise ValueError(f"emotion {unknown[0]!r} is unknown, expected some of {', '.join(names)}")
        return np.array([emotion.get(name, value) for name, value in zip(names, self.params.default_emotion)])

    def open(self, path: Path, device):
        """Open the network. device: a torch.device or its name."""
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise ValueError("Audio2Face-3D needs onnxruntime: `pip install onnxruntime` (on a GPU onnxruntime-gpu)"
                             ) from None
        kind, _, index = str(device).partition(":")
        providers = [("CUDAExecutionProvider", {"device_id": index or "0"})] if kind == "cuda" else []
        if providers and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ValueError("this onnxruntime computes on the CPU alone: --device cpu, or install onnxruntime-gpu")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(str(disk.regular(path, WHAT)), options,
                                                   [*providers, "CPUExecutionProvider"])
        except FileNotFoundError:
            raise
        except Exception as error:                          # onnxruntime has its own classes
            raise ValueError(f"{path} cannot be opened by onnxruntime ({error})") from None
        seen = {port.name: port.shape[1:] for port in [*session.get_inputs(), *session.get_outputs()]}
        expected = {"input": [1, self.window.buffer_len], "emotion": [1, len(self.emotion)]}
        width = seen.get("result", [0])[-1]
        if seen != expected | {"result": [1, width]} or not width >= self.params.num_shapes_skin:
            raise ValueError(f"{path} has {seen}, expected {expected} and result of {self.params.num_shapes_skin} or "
                             "more values")
        self.batch = 1 if isinstance(session.get_inputs()[0].shape[0], int) else BATCH
        return session

    def track(self, sound, frames: int) -> np.ndarray:
        """Sound (samples,) at 16 kHz -> track (T, K) float32 in [0, 1], T = frames. Raises ValueError if it fails."""
        return self.solver.track(self.coefficients(sound, frames))

    def coefficients(self, sound, frames: int) -> np.ndarray:
        """Sound (samples,) -> coefficients (T, C) of each frame. The sound is padded with zeros."""
        centres = np.round(np.arange(frames) * SAMPLE_RATE / FPS).astype(int)
        length, before = self.window.buffer_len, self.window.buffer_ofs
        padded = np.pad(sound.astype(np.float32) * np.float32(self.style.input_strength),
                        (before, max(0, centres[-1] + length - before - len(sound))))
        windows = np.lib.stride_tricks.sliding_window_view(padded, length)[centres]
        parts = []
        for start in range(0, frames, self.batch):
            batch = windows[start:start + self.batch, None]
            emotion = np.broadcast_to(self.emotion, (len(batch), 1, len(self.emotion)))
            try:
                result = self.session.run(["result"], {"input": batch, "emotion": emotion})[0]
            except Exception as error:
                raise ValueError(f"onnxruntime failed ({error})") from None
            parts.append(result[:, 0, :self.params.num_shapes_skin])
        return np.concatenate(parts)
