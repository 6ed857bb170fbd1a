"""Synthetic H&E slides for the demo, the tests and the benchmarks, without patients or licenses.

`make_demo_slide` writes a slide file, `make_demo_pair` a slide and its IHC partner, `make_demo_study` two such pairs
and a manifest; `synthetic_tissue` returns pixels of stained mucosa. Coarse maps of the tissue (`layout`) are populated
with glands and nuclei as polygons (`histology`), which are painted as amounts of stain and converted to colors
(`render`).
"""

from .demo_slide import make_demo_slide as make_demo_slide
from .ihc_pair import make_demo_pair as make_demo_pair
from .ihc_pair import make_demo_study as make_demo_study
from .render import synthetic_tissue as synthetic_tissue
