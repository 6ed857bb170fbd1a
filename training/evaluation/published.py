"""Published metrics on the test split of BCI."""

from __future__ import annotations

from collections.abc import Mapping

OVERALL = ""
"""Level of values over all images."""


def _by_level(*values: float, overall: float) -> Mapping[str, float]:
    return dict(zip(("0", "1+", "2+", "3+"), values, strict=True)) | {OVERALL: overall}


PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "pix2pix (study)": {
        "psnr": _by_level(19.6, 22.22, 20.9, 19.2, overall=20.74),
        "ssim": _by_level(0.52, 0.47, 0.44, 0.39, overall=0.44),
        "fid": _by_level(914, 606, 474, 733, overall=472.6),
    },
    "pyramid pix2pix (study)": {
        "psnr": _by_level(19.2, 21.07, 20.4, 19.4, overall=21.15),
        "ssim": _by_level(0.46, 0.44, 0.42, 0.38, overall=0.43),
        "fid": _by_level(921, 643, 527, 759, overall=516.75),
    },
    "variance (study)": {
        "psnr": _by_level(20.48, 21.65, 21.3, 19.5, overall=22.16),
        "ssim": _by_level(0.55, 0.48, 0.46, 0.42, overall=0.47),
        "fid": _by_level(890, 472, 395, 508, overall=346.37),
    },
    "pyramid pix2pix (its authors)": {"psnr": {OVERALL: 21.16}, "ssim": {OVERALL: 0.477}},
    "BCIStainer (7-fold averaging)": {"psnr": {OVERALL: 23.39}, "ssim": {OVERALL: 0.583}},
    "UNIStainNet (512 px)": {"ssim": {OVERALL: 0.541}, "fid": {OVERALL: 34.6}},
}
"""Values by method with its source, metric and HER2 level."""

REMARKS = (
    "Published on BCI's test split; not comparable with values on other datasets.",
    "The study's overall PSNRs of pyramid pix2pix and of its own method lie above their levels' values weighted by the "
    "numbers of test images, which give 20.25 and 20.88 dB; its own, 22.16, lies above every one of its levels.",
    "Its FIDs per level follow the number of images (correlation with 1/N: 0.98), so they do not rank levels.",
    "On facades the study reports 12.91 dB, 0.24 and FID 611 for pyramid pix2pix, 12.80 dB, 0.25 and 549 for its own.",
    "What holds is the difference between methods under one budget: the study's method beats pyramid pix2pix by about "
    "0.6 dB (weighted as above) and 0.04 in SSIM, most on 3+.",
)
