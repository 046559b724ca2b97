"""The models of timm for `python -m tests.sweep --zoo timm`: small members of every family, weights seeded. timm is no dependency."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.errors import ConfigError
from qcompiler.vision import import_torchvision
from tests import zoo

SIZES = (128, 112, 160)  # pixels a side, the first that the model takes; else its own
# One line a file of timm/models, in the order of the alphabet.
LINES = """
beit_base_patch16_224 beitv2_base_patch16_224
botnet26t_256 eca_botnext26ts_256 halonet26t lambda_resnet26t
gernet_s mobileone_s0 repvgg_a0 regnetz_b16 gcresnext26ts bat_resnext26ts resnet50_mlp
cait_xxs24_224
coat_lite_tiny coat_tiny
convit_tiny
convmixer_768_32
convnext_atto convnextv2_atto convnext_zepto_rms
cpubone_nano
crossvit_9_240
csatv2
cs3darknet_focus_s cspresnet50 darknetaa53
cspnext_tiny
davit_tiny
deit_tiny_distilled_patch16_224 deit3_small_patch16_224
densenet121 densenetblur121d
dla46_c dla60_res2net
dpn48b
edgenext_xx_small
efficientformer_l1
efficientformerv2_s0
efficientnet_b0 tf_efficientnet_b0 efficientnet_lite0 mixnet_s mobilenetv2_050 tinynet_e fbnetc_100 efficientnet_cc_b0_4e efficientnet_b0_gn
efficientvim_m1
efficientvit_b0 efficientvit_l1
efficientvit_m0
eva02_tiny_patch14_224 vit_small_patch16_rope_224
fasternet_t0
fastvit_t8
focalnet_tiny_srf
gcvit_xxtiny
gemma4_vit_167m
ghostnet_050 ghostnetv2_100 ghostnetv3_050
hardcorenas_a
hgnet_tiny hgnetv2_b0
hiera_tiny_224
sam2_hiera_tiny
hrnet_w18_small
iformer_t
inception_next_atto
inception_resnet_v2
inception_v3
inception_v4
lcnetv2_small
levit_128s levit_conv_128s
lowformer_b0
mambaout_femto
coatnet_nano_rw_224 maxvit_pico_rw_256 test_coatnet test_maxvit
poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18
mixer_s32_224 gmlp_ti16_224 resmlp_12_224 gmixer_12_224
mobilenetv3_small_050 tf_mobilenetv3_small_minimal_100 lcnet_035 mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium
mobilenetv5_300m_enc
mobilevit_xxs mobilevitv2_050
mvitv2_tiny
naflexvit_base_patch16_gap
nest_tiny
nextvit_small
test_nfnet nf_resnet26 eca_nfnet_l0
pit_ti_224
pvt_v2_b0 pvt_v2_b2_li
qwen3_vit_88m
rdnet_tiny
regnetx_002 regnety_002 regnetz_005
repghostnet_050
repvit_m0_9
res2net50_14w_8s
resnest14d
resnet10t resnet18 ecaresnet26t seresnext26d_32x4d resnetaa34d resnetblur18
resnetv2_18 resnetv2_50d_gn resnetv2_50x1_bit resnetv2_50d_frn
rexnet_100
selecsls42
legacy_seresnet18
sequencer2d_s
shvit_s1
skresnet18
starnet_s050
swiftformer_xs
swin_tiny_patch4_window7_224
swinv2_tiny_window8_256
swinv2_cr_tiny_224
tiny_vit_5m_224
tnt_s_patch16_224
tresnet_m
twins_svt_small twins_pcpvt_small
vgg11_bn
visformer_tiny
vit_tiny_patch16_224 test_vit test_vit3 flexivit_small vit_wee_patch16_reg1_gap_256
vit_tiny_r_s16_p8_224
vit_relpos_small_patch16_224
samvit_base_patch16_224
vitamin_small_224
volo_d1_224
ese_vovnet19b_slim_dw
legacy_xception
xception41p
xcit_nano_12_p16_224
"""
NAMES = LINES.split()


def import_timm() -> Any:
    """timm, once torchvision is there, which it imports. Raises ConfigError where timm is not installed."""
    import_torchvision()
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ConfigError("timm is not installed", code="no-timm", hint="pip install --no-deps timm huggingface_hub safetensors") from error
    return timm


def names() -> list[str]:
    known = set(import_timm().list_models())
    return [name for name in NAMES if name in known]


def build(name: str, pixels: int | None = None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model at the smallest size that it takes (`pixels` and up), and one example."""
    timm = import_timm()
    own = timm.get_pretrained_cfg(name).input_size[-1]
    for size in (*(s for s in (pixels, *SIZES) if s and s < own), own):
        with contextlib.suppress(Exception):  # windows, heads and position embeddings that want another size
            model = signalling(zoo.seeded(created(timm, name, size)))
            x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
            with torch.no_grad():
                model(x)
            return model, (x,)
    raise ConfigError(f"{name} runs at none of {SIZES} and {own} pixels", code="example")


def created(timm: Any, name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, img_size=size)
    except TypeError:  # a convolutional model takes any size
        model = timm.create_model(name, pretrained=False)
    return model


def signalling(model: nn.Module) -> nn.Module:
    """Parameters that start at (nearly) zero get values as after training: residual branches, layer scales, heads."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if float(parameter.abs().max()) > 1e-3 or name.endswith("bias"):
                continue
            if parameter.dim() == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.5 + 0.25)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model
