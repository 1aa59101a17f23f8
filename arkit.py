"""A face is a list of named curves: the 52 ARKit names, once, and the files that carry them.

A face track is a float array (F, 52) in this order, 30 frames per second, frame t shown at t / 30 s; left and right are
the face's own. Spec face 2 and 3.
"""
import numpy as np

# Alphabetical with tongueOut last: the order of the release's output, of EmoTalk, and of this project (spec face 2, E).
ARKIT_NAMES = [
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight", "tongueOut"]


def audio2face(track, fps: int, audio: str) -> dict:
    """Face track (F, 52) -> the json object that Audio2Face writes and its readers expect (spec face 3.1).

    Weights are clipped to [0, 1]. audio: path of the sound that belongs to it.
    """
    track = np.clip(np.asarray(track, dtype=np.float32), 0, 1)
    return {"exportFps": fps, "trackPath": str(audio), "numPoses": len(ARKIT_NAMES), "numFrames": len(track),
            "facsNames": ARKIT_NAMES, "weightMat": np.round(track.astype(np.float64), 5).tolist()}
