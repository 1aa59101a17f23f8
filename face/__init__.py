"""Face tracks, (T, 52) ARKit weights at 30 frames per second, outside the model. The command is `python -m face`.

    arkit.py                    the 52 names, other systems' names for them, and writers of tracks: json, csv, npy
    captures.py                 reads captures of other tools: tables.py the files, words.py and evidence.py what they
                                say about time, timing.py the times of their rows
    metrics.py, measure.py      metrics that compare two tracks; those that evaluate.py prints for a checkpoint
    head.py, head_mesh.py, mesh.py      our head: a mesh made by numpy, with the 52 shapes
    gltf.py, template.py        the .glb format; other heads, from .glb and .npz files
    render.py                   pictures and videos without a GPU
    viewer.py and viewer.html, viewer.css, viewer_head.js, viewer.js    the page that plays an answer in a browser
    export.py                   a track as any of these files, chosen by the ending

Used from outside: what is imported below, `export` (sample.py), `measure` (evaluate.py), `captures` (corpora/), `arkit`
and `metrics` (toy/).
"""
import cli      # noqa: F401   before torch, which takes seconds
from face.arkit import ARKIT_NAMES
from face.export import EXPORTS, export, formats, gallery, write_answers
from face.head import make_head
from face.template import load_template
