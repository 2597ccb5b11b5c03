"""Networks of the package monai, 2-D and 3-D, narrow and at few pixels."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from zoo.entries import BOTH, SCRIPT, TRACE, Entry, Form, Inputs, Source, floats, numbers, uniform

_FLAT = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
_SOLID = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
_CLASSES = {"spatial_dims": 2, "in_channels": 3, "num_classes": 5}


class Called(nn.Module):
    """A net whose forward draws random numbers, by another of its methods."""

    def __init__(self, net: nn.Module, method: str) -> None:
        super().__init__()
        self.net = net
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the method returns."""
        made: Tensor = getattr(self.net, self.method)(x)
        return made


def entries() -> tuple[Entry, ...]:
    """All of them; nothing is imported yet."""
    return (*_classifiers(), *_segmenters(), *_transformers(), *_generators())


def _classifiers() -> list[Entry]:
    image, volume = floats(3, 64, 64), floats(1, 32, 32, 32)
    narrow = {"block_inplanes": [16, 32, 64, 128], "n_input_channels": 3, "num_classes": 5, "spatial_dims": 2}
    dense = {"init_features": 16, "growth_rate": 8, "block_config": (2, 4, 4, 2)}
    se = {"layers": [1, 1, 1, 1], "num_classes": 5, "spatial_dims": 2, "in_channels": 3, "inplanes": 64}
    return [
        _entry("monai-densenet", "dense", "DenseNet", {**_FLAT, **dense}, floats(1, 64, 64)),
        _entry("monai-densenet-3d", "dense", "DenseNet", {**_SOLID, **dense}, volume),
        _entry("monai-densenet121", "dense", "DenseNet121", {**_FLAT, "in_channels": 3}, floats(3, 96, 96)),
        _entry("monai-resnet-basic", "residual", "ResNet", {**narrow, "block": "basic", "layers": [1, 2, 1, 1]}, image),
        _entry(
            "monai-resnet-option-a",
            "residual",
            "ResNet",
            {**narrow, "block": "basic", "layers": [1, 1, 1, 1], "shortcut_type": "A"},
            image,
            TRACE,
            (2,),
        ),
        _entry(
            "monai-resnet-bottleneck",
            "residual",
            "ResNet",
            {**narrow, "block": "bottleneck", "layers": [1, 2, 1, 1]},
            image,
        ),
        _entry(
            "monai-resnet-3d",
            "residual",
            "ResNet",
            {**narrow, "n_input_channels": 1, "spatial_dims": 3, "block": "basic", "layers": [1, 1, 1, 1]},
            volume,
        ),
        _entry(
            "monai-senet",
            "SE",
            "SENet",
            {**se, "block": "se_bottleneck", "groups": 4, "reduction": 16, "dropout_prob": 0.2},
            image,
        ),
        _entry("monai-se-resnet50", "SE", "SEResNet50", {**_CLASSES, "layers": [1, 1, 1, 1]}, image),
        _entry("monai-se-resnext50", "grouped", "SEResNext50", {**_CLASSES, "layers": [1, 1, 1, 1]}, image),
        _entry(
            "monai-efficientnet-b0",
            "SE",
            "EfficientNetBN",
            {**_CLASSES, "model_name": "efficientnet-b0", "pretrained": False},
            image,
        ),
        _entry(
            "monai-classifier",
            "plain",
            "Classifier",
            {"in_shape": (1, 32, 32), "classes": 5, "channels": (16, 32), "strides": (2, 2)},
            floats(1, 32, 32),
        ),
        _entry(
            "monai-fully-connected",
            "MLP",
            "FullyConnectedNet",
            {"in_channels": 16, "out_channels": 4, "hidden_channels": [64, 64]},
            floats(16),
        ),
    ]


def _segmenters() -> list[Entry]:
    image, volume = floats(1, 64, 64), floats(1, 32, 32, 32)
    unet = {"channels": (16, 32, 64), "strides": (2, 2), "num_res_units": 2}
    dyn = {
        **_FLAT,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [16, 32, 64],
    }
    return [
        _entry("monai-unet", "U-Net", "UNet", {**_FLAT, **unet}, image),
        _entry("monai-unet-3d", "U-Net", "UNet", {**_SOLID, **unet}, volume),
        _entry("monai-unet-batch-norm", "U-Net", "UNet", {**_FLAT, **unet, "norm": "batch"}, image),
        _entry("monai-basic-unet", "U-Net", "BasicUNet", {**_FLAT, "features": (16, 16, 32, 64, 128, 16)}, image),
        _entry("monai-unet-plus-plus", "U-Net", "BasicUNetPlusPlus", {**_FLAT, "features": (16, 16, 32, 64, 128, 16)}, image),
        _entry("monai-attention-unet", "U-Net", "AttentionUnet", {**_FLAT, "channels": (16, 32, 64), "strides": (2, 2)}, image),
        _entry("monai-dynunet", "U-Net", "DynUNet", dyn, image),
        _entry("monai-dynunet-residual", "U-Net", "DynUNet", {**dyn, "res_block": True}, image),
        _entry("monai-segresnet", "segmentation", "SegResNet", {**_FLAT, "init_filters": 16, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}, image, stuck=_METHODS, stuck_forms=SCRIPT),
        _entry("monai-segresnet-3d", "segmentation", "SegResNet", {**_SOLID, "init_filters": 16, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}, volume, stuck=_METHODS, stuck_forms=SCRIPT),
        _entry("monai-segresnet-ds", "segmentation", "SegResNetDS", {**_FLAT, "init_filters": 16, "blocks_down": (1, 1, 1)}, image),
        _entry("monai-vnet", "U-Net", "VNet", {**_SOLID, "out_channels": 2}, volume),
        _entry("monai-highresnet", "segmentation", "HighResNet", {**_FLAT}, image),
        _entry("monai-flexible-unet", "U-Net", "FlexibleUNet", {**_FLAT, "in_channels": 3, "backbone": "efficientnet-b0"}, floats(3, 64, 64)),
        _entry("monai-ahnet", "segmentation", "AHNet", {**_FLAT, "layers": (1, 1, 1, 1), "spatial_dims": 2, "upsample_mode": "bilinear"}, floats(1, 128, 128)),
        _entry("monai-mednext", "ConvNeXt", "MedNeXt", {**_FLAT, "init_filters": 8}, image, TRACE),
        _entry("monai-regunet", "U-Net", "RegUNet", {**_FLAT, "num_channel_initial": 8, "depth": 2}, image),
        _entry("monai-voxelmorph", "U-Net", "VoxelMorphUNet", {"spatial_dims": 2, "in_channels": 2, "unet_out_channels": 8, "channels": (8, 16, 16, 16, 16, 16), "final_conv_channels": (8,)}, floats(2, 64, 64)),
    ]  # fmt: skip


def _transformers() -> list[Entry]:
    image = floats(1, 64, 64)
    vit = {
        "img_size": (64, 64),
        "patch_size": (16, 16),
        "hidden_size": 64,
        "mlp_dim": 128,
        "num_layers": 2,
        "num_heads": 4,
    }
    unetr = {"img_size": 64, "feature_size": 16, "hidden_size": 64, "mlp_dim": 128, "num_heads": 4}
    swin = {"feature_size": 24, "depths": (1, 1, 1, 1), "num_heads": (2, 4, 8, 16), "window_size": 4}
    return [
        _entry("monai-vit", "ViT", "ViT", {**vit, "in_channels": 1, "classification": True, "spatial_dims": 2, "num_classes": 5}, image),
        _entry("monai-vit-autoencoder", "ViT", "ViTAutoEnc", {**vit, "in_channels": 1, "spatial_dims": 2}, image, TRACE),
        _entry("monai-unetr", "ViT", "UNETR", {**_FLAT, **unetr}, image),
        _entry("monai-swin-unetr", "Swin", "SwinUNETR", {**_FLAT, **swin}, image, TRACE),
        _entry("monai-decoder-only", "GPT", "DecoderOnlyTransformer", {"num_tokens": 97, "max_seq_len": 16, "attn_layers_dim": 64, "attn_layers_depth": 2, "attn_layers_heads": 4}, _text),
        _entry("monai-restormer", "segmentation", "restormer.Restormer", {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "dim": 16, "num_blocks": (1, 1, 1), "heads": (1, 1, 1), "num_refinement_blocks": 1}, image, TRACE),
    ]  # fmt: skip


def _generators() -> list[Entry]:
    image = floats(1, 64, 64)
    steps = {"channels": (16, 32, 64), "strides": (2, 2, 2)}
    return [
        _entry("monai-autoencoder", "autoencoder", "AutoEncoder", {**_FLAT, **steps, "num_res_units": 1}, image),
        _entry("monai-autoencoder-kl", "autoencoder", "AutoencoderKL", {**_FLAT, "out_channels": 1, "channels": (16, 32, 32), "num_res_blocks": 1, "norm_num_groups": 4, "latent_channels": 3, "attention_levels": (False, False, True)}, image, TRACE, method="reconstruct"),
        _entry("monai-vqvae", "autoencoder", "VQVAE", {**_FLAT, "out_channels": 1, "channels": (16, 32), "num_res_channels": (16, 32), "num_res_layers": 1, "downsample_parameters": ((2, 4, 1, 1), (2, 4, 1, 1)), "upsample_parameters": ((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)), "num_embeddings": 16, "embedding_dim": 16}, image, TRACE),
        _entry("monai-generator", "autoencoder", "Generator", {"latent_shape": (32,), "start_shape": (32, 8, 8), "channels": (32, 16, 1), "strides": (2, 2, 1)}, floats(32)),
        _entry("monai-patch-discriminator", "plain", "PatchDiscriminator", {"spatial_dims": 2, "channels": 16, "in_channels": 1, "num_layers_d": 3}, image, stuck=_ALL_OUTPUTS),
        _entry("monai-diffusion-unet", "U-Net", "DiffusionModelUNet", {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (16, 32, 32), "attention_levels": (False, True, True), "num_head_channels": (0, 8, 8), "num_res_blocks": 1, "norm_num_groups": 4}, _noisy, TRACE),
    ]  # fmt: skip


_METHODS = (
    "its exported methods encode and decode hand over every level, and what a method returns or takes never changes"
)
_ALL_OUTPUTS = "it returns what every layer gives, and outputs of a model never change"


def _text(batch: int) -> Inputs:
    return (numbers(batch, 12, below=90),)


def _noisy(batch: int) -> Inputs:
    return uniform(batch, 1, 32, 32), numbers(batch, below=100)


def _entry(  # noqa: PLR0917
    name: str,
    family: str,
    net: str,
    settings: dict[str, Any],
    inputs: Callable[[int], Inputs],
    forms: tuple[Form, ...] = BOTH,
    batches: tuple[int, ...] = (2, 3),
    stuck: str = "",
    method: str = "forward",
    stuck_forms: tuple[Form, ...] = BOTH,
) -> Entry:
    def build() -> nn.Module:
        from monai.networks import nets

        made: nn.Module = attrgetter(net)(nets)(**settings)
        return made if method == "forward" else Called(made, method)

    return Entry(name, family, Source.MONAI, build, inputs, forms, batches, stuck, stuck_forms)
