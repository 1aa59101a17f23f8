"""Optional, not run by pytest: Blender plays answer.glb as answer.json says. Blender as a module takes 0.8 GB.

    pip install bpy
    python tests/blender_check.py answer/answer.glb answer/answer.json
"""
import json
import sys

import bpy

glb, face = sys.argv[1:]
with open(face, encoding="utf-8") as file:
    face = json.load(file)
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.context.scene.render.fps = face["exportFps"]        # before the import, which turns seconds into frames
bpy.ops.import_scene.gltf(filepath=glb)
keys = next(thing.data.shape_keys for thing in bpy.data.objects if thing.type == "MESH")
basis, *shapes = keys.key_blocks
action = keys.animation_data.action
assert [shape.name for shape in shapes] == face["facsNames"], [shape.name for shape in shapes]
assert tuple(action.frame_range) == (0, face["numFrames"] - 1), tuple(action.frame_range)
for frame, row in enumerate(face["weightMat"]):
    bpy.context.scene.frame_set(frame)
    for shape, weight in zip(shapes, row):
        assert abs(shape.value - weight) < 1e-4, (frame, shape.name, shape.value, weight)     # json has 5 digits
print(f"Blender {bpy.app.version_string}: {len(shapes)} shape keys and {basis.name}, {face['numFrames']} frames agree")
