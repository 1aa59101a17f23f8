"""The face, outside the model: names, captures, metrics, the head, pictures, files for other tools, the page.

`python -m face` is its front door for people (see __main__.py). What other files of this project use of it:
"""
from face.arkit import ARKIT_NAMES, write_json
from face.export import EXPORTS, NEEDS, export, gallery
from face.gltf import load_template
from face.head import make_head
