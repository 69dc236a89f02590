"""Train a causal transformer that reads digits row by row, and decide its robustness from the torch module and from its ONNX file.

    python examples/13_causal_transformer.py

An image is a sequence of eight rows. Each row attends to itself and to those above it; the last one names the digit. Both doors lead to
the same network: softmax without what the mask hides, GELU, and layer normalisation, whose entries stay within the square root of
their number whatever their variance is.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch
from digits_files import digits, fit
from torch import Tensor, nn

import milpverify as mv

ROWS, WIDTH, HEADS = 8, 16, 2


class Layer(nn.Module):
    """Causal attention and a network of one hidden layer, each behind a layer normalisation and added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.project, self.join = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.hidden = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(self.before(x)).chunk(3, dim=-1)
        query, key, value = (part.reshape(-1, ROWS, HEADS, WIDTH // HEADS).transpose(1, 2) for part in parts)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.join(attended.transpose(1, 2).reshape(-1, ROWS, WIDTH))
        return x + self.hidden(self.between(x))


class Transformer(nn.Module):
    """Two such layers, and a score for each digit from the last row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, WIDTH), nn.Parameter(0.1 * torch.randn(ROWS, WIDTH))
        self.layers = nn.Sequential(Layer(), Layer())
        self.norm, self.score = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x.reshape(-1, ROWS, 8)) + self.place
        return self.score(self.norm(self.layers(rows)[:, -1]))


def main() -> None:
    images, labels = digits()
    torch.manual_seed(0)
    net = fit(Transformer(), images[:1500], labels[:1500], epochs=20).eval()
    right = net(torch.from_numpy(images[1500:])).argmax(1).numpy() == labels[1500:]
    print(f"{right.mean():.0%} of {len(right)} images are read right")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "transformer.onnx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates the exporter that needs no further package
            torch.onnx.export(net, (torch.zeros(1, 64),), str(path), dynamo=False, opset_version=17)
        for index in (1503, 1504):
            image, label = images[index], int(labels[index])
            for eps in (0.003, 0.01, 0.2):
                for door, network in (("torch", net), ("onnx", path)):
                    result = mv.verify(mv.robustness(network, image, label, eps, clip=(0, 1)), timeout=20)
                    seen = "" if result.counterexample is None else f", seen as {result.counterexample.y.argmax()}"
                    margin = f"margin >= {result.lower_bound:+.3f}"
                    print(f"image {index}, label {label}, eps {eps:<5}, {door:<5}: {result.verdict.name}, {margin}{seen}")


if __name__ == "__main__":
    main()
