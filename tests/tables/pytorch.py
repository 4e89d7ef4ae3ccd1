"""Make `pytorch_*.npz`: state dicts of PyTorch, and when its own training left the plateau.

    pip install torch && python tests/tables/pytorch.py

Each file holds the state dict of a `torch.nn.Sequential` under PyTorch's own names, the data `x`
and `y`, the learning rate `rate`, the plateau's loss `plateau`, and `crossing`: the first iteration
of full-batch `torch.optim.SGD` with a loss at or below 0.9 of it. `version` is the PyTorch that
made it.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
CASES = {
    "mse": ((4, 40, 40, 1), nn.Tanh, True, nn.MSELoss(), 0.05, 1e-3),
    "softmax": ((4, 30, 30, 30, 3), nn.Tanh, True, nn.CrossEntropyLoss(), 0.2, 0.02),
    "logistic": ((4, 40, 40, 1), nn.GELU, False, nn.BCEWithLogitsLoss(), 0.2, 2e-3),
}


def made(name: str) -> dict[str, np.ndarray]:
    sizes, activation, bias, loss_of, rate, std = CASES[name]
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=bias), activation()]
    model = nn.Sequential(*layers[:-1]).double()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=std)
        else:
            nn.init.zeros_(parameter)
    x = torch.randn(80, sizes[0], dtype=torch.float64)
    signal = torch.sin(x[:, 0]) - 0.5 * x[:, 1]
    if name == "softmax":
        y = torch.bucketize(signal, torch.tensor([-0.4, 0.6], dtype=torch.float64))
        shares = torch.bincount(y) / len(y)
        plateau = float(-(shares.double() * shares.double().log()).sum())
    elif name == "logistic":
        y = (signal > 0).double()[:, None]
        plateau = float(np.log(2))
    else:
        y = signal[:, None] + 0.4
        plateau = float(y.var(correction=0))
    state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    crossing = -1
    for iteration in range(100_000):
        optimiser.zero_grad()
        loss = loss_of(model(x), y)
        if float(loss.detach()) <= 0.9 * plateau:
            crossing = iteration
            break
        loss.backward()
        optimiser.step()
    print(name, crossing, plateau)
    return {**state, "x": x.numpy(), "y": y.numpy(), "rate": rate, "plateau": plateau} | {
        "crossing": crossing,
        "version": torch.__version__,
    }


if __name__ == "__main__":
    for name in CASES:
        np.savez_compressed(HERE / f"pytorch_{name}.npz", **made(name))
