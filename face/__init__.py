"""The face outside the model. For people its front door is `python -m face` (see __main__.py).

    arkit.py                    the 52 ARKit names, what other systems call them, and tracks written to json, csv, npy
    captures.py, timing.py      captures of other tools read, and the times of their rows found
    metrics.py, measure.py      metrics that compare two tracks, and those that evaluate.py prints of a checkpoint
    head.py, head_mesh.py, mesh.py      our head: a mesh made by numpy with the 52 shapes
    gltf.py, template.py        the .glb format, and other people's heads from .glb and .npz files
    render.py                   pictures and videos without a GPU
    viewer.py and viewer.html, viewer.css, viewer_head.js, viewer.js    the page that plays an answer in a browser
    export.py                   a track as any of these files, chosen by its ending

The street uses what is imported below (sample.py), `measure` (evaluate.py), and `arkit`, `head` and `metrics` in its
tests and in toy/.
"""
import cli      # noqa: F401   before torch, which takes seconds
from face.arkit import ARKIT_NAMES
from face.export import EXPORTS, export, formats, gallery, write_answers
from face.head import make_head
from face.template import load_template
