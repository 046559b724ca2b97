"""Networks as users prepare them by hand: stubs, FloatFunctional, a list of what to fuse. The classes are parameters, so that
the same text runs on torch.ao's and on ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import qcompiler.nn.quantized as nnq
import qcompiler.quantization as quantization

OURS = SimpleNamespace(nnq=nnq, q=quantization)


def theirs() -> SimpleNamespace:
    import torch.ao.nn.quantized
    import torch.ao.quantization

    return SimpleNamespace(nnq=torch.ao.nn.quantized, q=torch.ao.quantization)


class ConvBNReLU(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs, momentum=0.1),
            nn.ReLU(inplace=False),
        )


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int, api: Any = OURS) -> None:
        super().__init__()
        hidden = inputs * expand
        self.use_res_connect = stride == 1 and inputs == outputs
        layers: list[nn.Module] = [ConvBNReLU(inputs, hidden, kernel=1)] if expand != 1 else []
        layers += [ConvBNReLU(hidden, hidden, stride=stride, groups=hidden)]
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.skip_add = api.nnq.FloatFunctional()  # in every block, used or not

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip_add.add(x, self.conv(x)) if self.use_res_connect else self.conv(x)


class SmallMobileNetV2(nn.Module):
    """The network of the well-known tutorial, with fewer layers."""

    def __init__(self, num_classes: int = 10, api: Any = OURS) -> None:
        super().__init__()
        self.fusers = api.q.fuse_modules, api.q.fuse_modules_qat
        self.features = nn.Sequential(
            ConvBNReLU(3, 16, stride=2), InvertedResidual(16, 16, 1, 1, api), InvertedResidual(16, 24, 2, 4, api),
            InvertedResidual(24, 24, 1, 4, api), ConvBNReLU(24, 64, kernel=1),
        )  # fmt: skip
        self.quant = api.q.QuantStub()
        self.dequant = api.q.DeQuantStub()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.quant(x)
        x = self.features(x)
        x = x.mean([2, 3])
        x = self.classifier(x)
        return self.dequant(x)

    def fuse_model(self, is_qat: bool = False) -> None:
        fuse = self.fusers[is_qat]
        for m in self.modules():
            if type(m) is ConvBNReLU:
                fuse(m, ["0", "1", "2"], inplace=True)
            if type(m) is InvertedResidual:
                for index in range(len(m.conv)):
                    if type(m.conv[index]) is nn.Conv2d:
                        fuse(m.conv, [str(index), str(index + 1)], inplace=True)


class BasicBlock(nn.Module):
    """A residual block whose ReLUs are two modules, and whose sum is a FloatFunctional."""

    def __init__(self, channels: int, api: Any = OURS) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.add_relu = api.nnq.FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.add_relu.add_relu(self.bn2(self.conv2(out)), x)


class SmallResNet(nn.Module):
    def __init__(self, api: Any = OURS) -> None:
        super().__init__()
        self.quant, self.dequant = api.q.QuantStub(), api.q.DeQuantStub()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(16, api), BasicBlock(16, api))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.quant(x)))))
        x = self.avgpool(self.layer1(x))
        return self.dequant(self.fc(torch.flatten(x, 1)))

    @staticmethod
    def chains() -> list[list[str]]:
        blocks = [f"layer1.{i}" for i in range(2)]
        inner = [chain for b in blocks for chain in ([f"{b}.conv1", f"{b}.bn1", f"{b}.relu1"], [f"{b}.conv2", f"{b}.bn2"])]
        return [["conv1", "bn1", "relu"], *inner]


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, with BatchNorm statistics that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not name.endswith("bias") and parameter.dim() == 1:
            continue  # BatchNorm's gamma
        scale = (2 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


def images(count: int = 2, size: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def sqnr(expected: torch.Tensor, got: torch.Tensor) -> float:
    return (10 * torch.log10((expected**2).sum() / ((expected - got) ** 2).sum())).item()
