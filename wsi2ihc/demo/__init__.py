"""A synthetic H&E slide, for the demo, the tests and the benchmarks: no patient, no licence to mind.

`make_demo_slide` writes a whole slide file; `synthetic_tissue` gives pixels of stained mucosa.

- `layout`: coarse maps of where tissue, its layers, glass and ink lie
- `crypts`, `scene`: cells and glands as polygons
- `painting`, `noise`, `staining`: from polygons to amounts of stain to colours
- `slide_file`: the pyramidal TIFF
"""

from .slide_file import make_demo_slide as make_demo_slide
from .synthetic import synthetic_tissue as synthetic_tissue
