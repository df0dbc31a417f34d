"""Draw the pictures of these pages anew: ``python docs/pictures/draw.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import groups
import nodes
import path
import rows

PICTURES = {"groups": groups, "nodes": nodes, "path": path, "rows": rows}

if __name__ == "__main__":
    for name, picture in PICTURES.items():
        picture.draw()
        print(f"docs/pictures/{name}.svg")
