"""Fold spectral normalization (Miyato et al. 2018) into the weights, as networks compute it in evaluation mode.

torch stores the weight before normalization and two vectors, whose product with it is the spectral norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..errors import ModelError

_FORMS = (
    ("weight_orig", "weight_u", "weight_v"),
    ("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v"),
)
"""Names of the weight and the two vectors in ``nn.utils.spectral_norm`` and ``nn.utils.parametrizations``."""


def plain_names(names: Iterable[str], source: str) -> dict[str, str]:
    """Map the names of the weights without spectral normalization to those in the file.

    Raises
    ------
    ModelError
        If they have weight normalization.
    """
    names = list(names)
    plain = {}
    for name in names:
        if name.endswith((".weight_g", "weight.original0")):
            raise ModelError(
                f"{source} holds a generator with weight normalization ({name!s:.80}), which is not supported; "
                "call nn.utils.remove_weight_norm on its layers, and save the state_dict again"
            )
        weight = next((form[0] for form in _FORMS if name.endswith(f".{form[0]}")), None)
        if weight is not None:
            plain[f"{name.removesuffix(weight)}weight"] = name
        elif not any(name.endswith(f".{vector}") for form in _FORMS for vector in form[1:]):
            plain[name] = name
    return plain


def fold(state: Mapping[str, Tensor], network: nn.Module, source: str) -> dict[str, Tensor]:
    """Replace weights and vectors by the normalized weights of ``network``'s layers.

    Raises
    ------
    ModelError
        If a vector is missing or has another size.
    """
    folded = dict(state)
    for layer_name, layer in network.named_modules():
        for form in _FORMS:
            weight_name, *vector_names = (f"{layer_name}.{part}" for part in form)
            if weight_name not in folded:
                continue
            weight = folded.pop(weight_name)
            vectors = [folded.pop(name, None) for name in vector_names]
            # torch normalizes transposed convolutions over their outputs, which are their second dimension
            matrix = (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1)
            left, right = vectors
            if left is None or right is None or (len(left), len(right)) != tuple(matrix.shape):
                raise ModelError(f"{source} lacks the vectors of the spectral normalization of {layer_name}")
            norm = torch.dot(left, torch.mv(matrix, right))
            folded[f"{layer_name}.weight"] = weight / norm
    return folded
