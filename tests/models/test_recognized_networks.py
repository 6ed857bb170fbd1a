"""Checkpoints as the world has them: compared with networks that are written here independently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsi2ihc.errors import ModelError
from wsi2ihc.models.fused_resnet import FusedResnet, to_network, to_pixels
from wsi2ihc.models.import_weights import import_checkpoint
from wsi2ihc.models.inference import TorchTranslator
from wsi2ihc.models.model_file import load_checkpoint, save_checkpoint
from wsi2ihc.models.networks import ResnetGenerator

State = dict[str, Tensor]


class Block(nn.Module):
    def __init__(self, channels: int, pad: str, dropout: bool, normalized: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(2):
            layers += [nn.ReflectionPad2d(1)] if pad == "reflect" else []
            padding = 0 if pad == "reflect" else 1
            layers.append(normalized(nn.Conv2d(channels, channels, 3, padding=padding, bias=False)))
            layers.append(nn.BatchNorm2d(channels))
            if number == 0:
                layers += [nn.ReLU(), *([nn.Dropout(0.5)] if dropout else [])]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Resnet(nn.Module):
    """A ResNet generator with two blocks, 4 channels wide."""

    def __init__(
        self, pad: str = "reflect", dropout: bool = False, normalized: Callable[[Any], Any] = lambda layer: layer
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), normalized(nn.Conv2d(3, 4, 7, bias=False)), nn.BatchNorm2d(4)]
        layers.append(nn.ReLU())
        for channels in (4, 8):
            layers.append(normalized(nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False)))
            layers += [nn.BatchNorm2d(2 * channels), nn.ReLU()]
        layers += [Block(16, pad, dropout, normalized) for _ in range(2)]
        for channels in (16, 8):
            layers.append(normalized(nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, 1, bias=False)))
            layers += [nn.BatchNorm2d(channels // 2), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), normalized(nn.Conv2d(4, 3, 7)), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output


class Level(nn.Module):
    """One level of a U-Net."""

    def __init__(self, outer: int, inner: int, below: nn.Module | None, outermost: bool, normalized: Any) -> None:
        super().__init__()
        self.outermost = outermost
        down = normalized(nn.Conv2d(outer, inner, 4, 2, 1, bias=False))
        up = normalized(nn.ConvTranspose2d(inner if below is None else 2 * inner, outer, 4, 2, 1, bias=outermost))
        if outermost:
            layers = [down, below, nn.ReLU(), up, nn.Tanh()]
        elif below is None:
            layers = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, nn.BatchNorm2d(outer)]
        else:
            layers = [nn.LeakyReLU(0.2), down, nn.BatchNorm2d(inner), below, nn.ReLU(), up, nn.BatchNorm2d(outer)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output if self.outermost else torch.cat([x, output], 1)


class Unet(nn.Module):
    """A U-Net of depth 5, 2 channels wide."""

    def __init__(self, normalized: Any = lambda layer: layer) -> None:
        super().__init__()
        level = Level(16, 16, None, False, normalized)
        for outer, inner in ((8, 16), (4, 8), (2, 4)):
            level = Level(outer, inner, level, False, normalized)
        self.model = Level(3, 2, level, True, normalized)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output


def trained(network: nn.Module, seed: int = 3) -> nn.Module:
    """The network in evaluation mode, with weights and statistics unlike the initial ones."""
    torch.manual_seed(seed)
    with torch.inference_mode():
        network.train()(torch.rand(2, 3, 64, 64))  # moves the vectors of spectral normalization
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return network.eval()


def imported(content: object, folder: Path, key: str | None = None) -> tuple[nn.Module, Any]:
    path = folder / "net.pth"
    torch.save(content, path)
    return import_checkpoint(path, mpp=0.5, stain="HER2", key=key)


def assert_equal_images(network: nn.Module, expected: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 64, 96) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(network(x), expected(x), rtol=0, atol=0)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("pad", ["reflect", "zero"])
def test_padding_and_dropout_follow_from_the_names(pad: str, dropout: bool, tmp_path: Path) -> None:
    network = trained(Resnet(pad, dropout))
    found, spec = imported(network.state_dict(), tmp_path)
    assert (spec.padding, spec.dropout, spec.depth, spec.width) == (pad, dropout, 2, 4)
    assert_equal_images(found, network)
    save_checkpoint(tmp_path / "net.safetensors", found, spec)
    assert_equal_images(load_checkpoint(tmp_path / "net.safetensors")[0], network)


class Blur(nn.Module):
    """CUT's down- and upsampling layers, written out pixel by pixel: a filter of size 3 or 4 at every second pixel."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3, 3, 1] if up else [1.0, 2, 1])
        square = torch.outer(row, row)
        square = square / square.sum() * (4 if up else 1)
        self.register_buffer("filt", square.repeat(channels, 1, 1, 1))
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        filt = self.filt[0, 0]  # type: ignore[index]
        if not self.up:
            x = nn.ReflectionPad2d(1)(x)
            height, width = x.shape[2] - 2, x.shape[3] - 2
            total = sum(filt[i, j] * x[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3))
            assert isinstance(total, Tensor)
            return total[:, :, ::2, ::2]
        x = nn.ReplicationPad2d(1)(x)
        n, channels, height, width = x.shape
        canvas = torch.zeros(n, channels, 2 * height + 2, 2 * width + 2)
        for i in range(4):
            for j in range(4):
                canvas[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2] += filt[i, j] * x
        return canvas[:, :, 3:-3, 3:-3]


class FilteredResnet(nn.Module):
    """CUT's ResNet generator with anti-aliasing, two blocks, 4 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, 4, 7, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
        for channels in (4, 8):
            layers += [nn.Conv2d(channels, 2 * channels, 3, 1, 1, bias=False), nn.BatchNorm2d(2 * channels), nn.ReLU()]
            layers += [Blur(2 * channels, up=False)]
        layers += [Block(16, "reflect", False, lambda layer: layer) for _ in range(2)]
        for channels in (16, 8):
            layers += [Blur(channels, up=True), nn.Conv2d(channels, channels // 2, 3, 1, 1, bias=False)]
            layers += [nn.BatchNorm2d(channels // 2), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(4, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output


def test_anti_aliasing_filters_are_read_and_translate_slides_exactly(tmp_path: Path) -> None:
    network = trained(FilteredResnet())
    found, spec = imported(network.state_dict(), tmp_path)
    assert (spec.antialiasing, spec.norm, spec.depth, spec.width) == (True, "batch", 2, 4)
    save_checkpoint(tmp_path / "net.safetensors", found, spec)
    module, read, _ = load_checkpoint(tmp_path / "net.safetensors")
    assert read == spec
    torch.manual_seed(0)
    window = torch.randint(0, 256, (1, 192, 160, 3), dtype=torch.uint8)
    x = to_network(window)
    with torch.inference_mode():
        torch.testing.assert_close(module(x), network(x), rtol=0, atol=2e-6)
        whole = to_pixels(module(x)).numpy()
    translator = TorchTranslator(module, "cpu", "fp32", exact=True)
    halo = translator.halo_px
    core = translator(window.numpy()[:, :160])
    assert np.abs(core.astype(int) - whole[:, halo : 160 - halo, halo:-halo]).max() <= 1


def test_a_network_with_zero_padding_translates_slides_exactly(tmp_path: Path) -> None:
    network = trained(Resnet("zero"))
    found, _ = imported(network.state_dict(), tmp_path)
    assert isinstance(found, ResnetGenerator)
    fused = FusedResnet(found)
    window = torch.randint(0, 256, (1, 160, 160, 3), dtype=torch.uint8)
    with torch.inference_mode():
        whole = to_pixels(network(to_network(window)))
        halo = fused.halo_px
        difference = fused(window).int() - whole[:, halo:-halo, halo:-halo].int()
    assert int(difference.abs().max()) <= 1


@pytest.mark.parametrize(
    "normalized", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm], ids=["hook", "parametrization"]
)
@pytest.mark.parametrize("kind", [Resnet, Unet])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_spectral_normalization_is_folded_into_the_weights(kind: Any, normalized: Any, tmp_path: Path) -> None:
    network = trained(kind(normalized=normalized))
    found, spec = imported(network.state_dict(), tmp_path)
    assert not [name for name in found.state_dict() if "weight_" in name or "parametrizations" in name]
    assert_equal_images(found, network)
    assert spec.norm == "batch"


def test_spectral_normalization_without_its_vectors_is_refused(tmp_path: Path) -> None:
    state = trained(Resnet(normalized=nn.utils.spectral_norm)).state_dict()
    del state["model.4.weight_v"]
    with pytest.raises(ModelError, match=r"lacks the vectors of the spectral normalization of model\.4"):
        imported(state, tmp_path)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_normalization_is_named_in_the_error(tmp_path: Path) -> None:
    state = dict(Resnet().state_dict()) | {
        "model.4.weight_g": torch.ones(8, 1, 1, 1),
        "model.4.weight_v": torch.ones(8),
    }
    with pytest.raises(ModelError, match="weight normalization"):
        imported(state, tmp_path)


def _bare(state: State) -> Any:
    return state


def _training(state: State) -> Any:
    parameters = [nn.Parameter(value.clone()) for value in state.values() if value.is_floating_point()]
    optimizer = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "epoch": 200,
        "best": np.float64(0.4),
        "losses": np.arange(3.0),
        "netG": state,
        "netD": {"model.0.weight": torch.zeros(4, 6, 4, 4)},
        "netF": {"mlp_0.0.weight": torch.zeros(4, 4)},
        "optimizer_G": optimizer.state_dict(),
    }


def _lightning(state: State) -> Any:
    inside = {f"generator.{name}": value for name, value in state.items()}
    return {"state_dict": inside | {"discriminator.model.0.weight": torch.zeros(4, 3, 4, 4)}, "hyper_parameters": {}}


def _deep(state: State) -> Any:
    return {"checkpoint": {"models": {"gen": {f"_orig_mod.module.{name}": value for name, value in state.items()}}}}


def _averaged(state: State) -> Any:
    return {"n_averaged": torch.tensor(5)} | {f"module.{name}": value for name, value in state.items()}


def _bfloat16(state: State) -> Any:
    return {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}


@pytest.mark.parametrize("kind", [Resnet, Unet])
@pytest.mark.parametrize("wrap", [_bare, _training, _lightning, _deep, _averaged, _bfloat16])
def test_the_generator_is_found_in_any_nesting(kind: Any, wrap: Any, tmp_path: Path) -> None:
    network = trained(kind())
    if wrap is _bfloat16:
        network.bfloat16().float()
    assert_equal_images(imported(wrap(network.state_dict()), tmp_path)[0], network)


def test_bare_safetensors_are_read(tmp_path: Path) -> None:
    network = trained(Resnet())
    path = tmp_path / "bare.safetensors"
    save_file(network.state_dict(), path, {"format": "pt"})
    found, spec = import_checkpoint(path, mpp=0.5, stain="")
    assert_equal_images(found, network)
    save_checkpoint(path, found, spec)
    with pytest.raises(ModelError, match="is already a model file"):
        import_checkpoint(path, mpp=0.5, stain="")


def _prefixed(one: State, other: State) -> Any:
    return {f"netG_A.{name}": value for name, value in one.items()} | {
        f"netG_B.{name}": value for name, value in other.items()
    }


@pytest.mark.parametrize(
    ("wrap", "keys"),
    [
        (lambda a, b: {"G_AB": a, "G_BA": b, "D_A": {}}, ("G_AB", "G_BA")),
        (lambda a, b: {"state_dict": _prefixed(a, b)}, ("state_dict.netG_A", "netG_B")),
        (lambda a, b: {"g": a, "g_ema": b}, ("g", "g_ema")),
        (lambda a, b: dict(a) | {"ema": b}, ("(top level)", "ema")),
    ],
)  # fmt: skip
def test_one_of_several_generators_is_chosen_by_key(wrap: Any, keys: tuple[str, str], tmp_path: Path) -> None:
    networks = trained(Resnet(), 3), trained(Resnet(), 4)
    content = wrap(*(network.state_dict() for network in networks))
    with pytest.raises(ModelError, match="holds 2 generators; choose one of them with --key: ") as caught:
        imported(content, tmp_path)
    assert all(key in str(caught.value) for key in keys)
    for key, network in zip(keys, networks, strict=True):
        found, spec = imported(content, tmp_path, key)
        assert_equal_images(found, network)
        assert spec.training.get("imported_key", "(top level)").endswith(key)
    with pytest.raises(ModelError, match="no generator named 'netG'"):
        imported(content, tmp_path, "netG")


def test_generators_with_shared_weights_are_two_candidates(tmp_path: Path) -> None:
    state = Resnet().state_dict()
    with pytest.raises(ModelError, match="holds 2 generators"):
        imported({"netG_A": state, "netG_B": state}, tmp_path)


def test_recursive_checkpoints_are_refused_or_read(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    content["again"] = content
    with pytest.raises(ModelError, match="holds no weights"):
        imported(content, tmp_path)


def _global_generator() -> State:
    """pix2pixHD: four halvings."""
    state = {"model.1.weight": torch.zeros(4, 3, 7, 7), "model.1.bias": torch.zeros(4)}
    for i in range(4):
        state[f"model.{4 + 3 * i}.weight"] = torch.zeros(8 << i, 4 << i, 3, 3)
    state["model.16.conv_block.1.weight"] = torch.zeros(64, 64, 3, 3)
    return state


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (_global_generator(), "pix2pixHD's global generator"),
        (_global_generator() | {"model1_1.1.weight": torch.zeros(4, 3, 7, 7)}, "pix2pixHD's local enhancer"),
        ({"model1_1.1.weight": torch.zeros(4, 3, 7, 7)}, "pix2pixHD's local enhancer"),
        (Resnet().state_dict() | {"model.7.filt": torch.zeros(8, 1, 3, 3)}, "filters in some places only"),
        ({"model.1.weight": torch.zeros(4, 3, 7, 7), "model.10.block.1.weight": torch.zeros(1)}, "PyTorch-GAN"),
        ({"model.0.weight": torch.zeros(4, 6, 4, 4)}, r"PatchGAN, net_D\); import the generator"),
        ({"net.0.weight": torch.zeros(4, 6, 1, 1)}, "pixel-wise discriminator"),
        ({"mlp_0.0.weight": torch.zeros(4, 4)}, "net_F"),
        ({"features.0.weight": torch.zeros(4, 3, 3, 3)}, "classification network"),
        ({"time_embed.0.weight": torch.zeros(4, 4)}, "diffusion model"),
        ({"encoder.layer.weight": torch.zeros(4, 4)}, "encoder and decoder"),
    ],
)  # fmt: skip
def test_unsupported_variants_are_named_in_the_error(state: State, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        imported(state, tmp_path)
    assert "\n" not in str(caught.value)


def test_gray_outputs_are_named_in_the_error(tmp_path: Path) -> None:
    state = Resnet().state_dict()
    last = max(name for name, value in state.items() if value.ndim == 4 and value.shape[2] == 7 and value.shape[0] == 3)
    state[last] = torch.zeros(1, 4, 7, 7)
    with pytest.raises(ModelError, match="makes images of 1 channel instead"):
        imported(state, tmp_path)
