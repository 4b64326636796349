"""Small networks written by hand, as people write them: none follows a library."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in (inputs, outputs):
        layers += [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net with concatenated skips."""

    def __init__(self, width: int = 16, levels: int = 4, classes: int = 5) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(levels)]
        self.down = nn.ModuleList(_double(i, o) for i, o in zip([3, *widths], widths))
        pairs = list(zip(widths[:0:-1], widths[-2::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairs)
        self.merge = nn.ModuleList(_double(2 * o, o) for _, o in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.up, self.merge):
            x = block(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        split = (*x.shape[:2], self.heads, -1)
        q, k, v = (f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class GPTLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.act = nn.Linear(width, 4 * width), nn.GELU()
        self.down, self.drop = nn.Linear(4 * width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))
        return x + self.drop(self.down(self.act(self.up(self.ln2(x)))))


class GPT(nn.Module):
    """A small language model with learned positions."""

    def __init__(self, width: int = 96, depth: int = 6, heads: int = 4, words: int = 1000) -> None:
        super().__init__()
        self.words, self.pos_embed = nn.Embedding(words, width), nn.Embedding(64, width)
        self.layers = nn.ModuleList(GPTLayer(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if getattr(module, 'bias', None) is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.words(tokens) + self.pos_embed(places)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Scale(nn.Module):
    """Root mean square norm, written with elementary operations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class LlamaNorm(Scale):
    pass


class LlamaLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = LlamaNorm(width), LlamaNorm(width)
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.wqkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """A small language model with RMS norms and gated units."""

    def __init__(self, width: int = 96, depth: int = 6, heads: int = 4, words: int = 1000) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.layers = nn.ModuleList(LlamaLayer(width, heads) for _ in range(depth))
        self.norm, self.head = LlamaNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class PlainBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.b = nn.Conv2d(outputs, outputs, 3, 1, 1)
        for conv in (self.a, self.b):
            nn.init.kaiming_normal_(conv.weight, nonlinearity='relu')
            nn.init.zeros_(conv.bias)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.b(self.relu1(self.a(x))))


class PlainNet(nn.Module):
    """A network without norms and without shortcuts, initialised after He."""

    def __init__(
        self, width: int = 32, depth: int = 6, channels: int = 3, classes: int = 1000
    ) -> None:
        super().__init__()
        widths = [width * 2 ** (i // 2) for i in range(depth)]
        strides = [1 + (i % 2) for i in range(depth)]
        self.blocks = nn.ModuleList(
            PlainBlock(i, o, s) for i, o, s in zip([channels, *widths], widths, strides)
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class GroupNormBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_a, self.conv_b = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.gn_a, self.gn_b = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.act = nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.gn_b(self.conv_b(self.act(self.gn_a(self.conv_a(x))))))


class GroupNormNet(nn.Module):
    """A residual network with group norms after the convolutions."""

    def __init__(self, width: int = 32, depth: int = 6, channels: int = 3, patch: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, patch, patch)
        self.body = nn.Sequential(*(GroupNormBlock(width) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))
