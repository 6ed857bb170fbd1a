"""A synthetic H&E slide, for the demo, the tests and the benchmarks: no patient, no licence to mind.

`make_demo_slide` writes a whole slide file, `make_demo_pair` one and its IHC partner, `make_demo_study` two such pairs
and a manifest of them; `synthetic_tissue` gives pixels of stained mucosa.

- `layout`: coarse maps of where tissue, its layers, glass and ink lie
- `crypts`, `scene`: cells and glands as polygons
- `painting`, `noise`, `staining`: from polygons to amounts of stain to colours
- `slide_file`: the pyramidal TIFF
- `restained`, `pair`: the same section in another stain, turned and warped in a way that is known
"""

from .pair import make_demo_pair as make_demo_pair
from .pair import make_demo_study as make_demo_study
from .slide_file import make_demo_slide as make_demo_slide
from .synthetic import synthetic_tissue as synthetic_tissue
