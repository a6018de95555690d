"""Removes noise from 16 kHz audio that it makes itself: whole recordings at once, and a stream as it arrives.

    python examples/denoise.py [steps] [seconds]

Writes sounds and their spectrograms into the folder denoise. Dimensions: B batch, L samples, D channels.
"""

import sys
import time
import wave
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from hyena import HyenaFilter, HyenaOperator, models, param_groups

RATE, PACKET, B, D, OUT = 16_000, 160, 4, 16, Path("denoise")
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
LENGTH = int(RATE * float(sys.argv[2] if len(sys.argv) > 2 else 3))
torch.manual_seed(0)


def sounds(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Tones of eight harmonics that glide, swell and pause, clean and in white noise; (rows, L) each."""
    t, start = torch.arange(length) / RATE, torch.rand(rows, 1)
    pitch, syllables = 100 * 4 ** torch.rand(rows, 1), 2 + 3 * torch.rand(rows, 1)
    phase = 2 * torch.pi * pitch * t + 3 * torch.sin(2 * torch.pi * (t + start))
    swell = 0.3 * torch.sin(2 * torch.pi * (syllables * t + start)).clamp_min(0)
    clean = swell * sum(torch.sin(k * phase) / k for k in range(1, 9))
    return clean, clean + 0.1 * torch.randn(rows, length)


class Denoiser(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        filters = partial(HyenaFilter, time_unit=RATE // 20)  # windows of 15 to 75 ms, however long a row is
        make = partial(HyenaOperator, D, l_max=max(LENGTH, RATE), filter=filters, causal=causal)
        self.blocks = nn.ModuleList(models.Block(make(), D, d_inner=2 * D) for _ in range(2))
        self.expand, self.reduce = nn.Linear(1, D), nn.Linear(D, 1)

    def forward(self, x: Tensor, states: tuple = (None, None)) -> Tensor:
        h = self.expand(x[..., None])  # (B, L, D)
        for block, state in zip(self.blocks, states):
            h = block(h, state=state)
        return self.reduce(h)[..., 0]  # (B, L)


heard = dict(zip(("clean", "noisy"), sounds(1, LENGTH)))
for name in ("two_sided", "streamed"):
    model = Denoiser(causal=name == "streamed")
    optimizer = torch.optim.AdamW(param_groups(model, lr=3e-3))
    for _ in range(STEPS):
        target, x = sounds(B, int(torch.randint(RATE // 8, RATE // 2, ())))  # of another length every time
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        heard[name] = whole = model.eval()(heard["noisy"])  # longer than all that it was trained on
        if name == "streamed":  # the same from states, a packet of 10 ms after the other
            states, begin = [block.mixer.init_state(batch=1) for block in model.blocks], time.perf_counter()
            heard[name] = torch.cat([model(packet, states) for packet in heard["noisy"].split(PACKET, dim=1)], dim=1)
            speed, apart = LENGTH / RATE / (time.perf_counter() - begin), (heard[name] - whole).abs().max()
            print(f"streamed {speed:.1f} times as fast as it sounds, {apart:.1e} apart from the whole at once")

OUT.mkdir(exist_ok=True)
figure, axes = plt.subplots(4, figsize=(8, 10), layout="constrained")
for axis, (name, sound) in zip(axes, heard.items()):
    ratio = 10 * torch.log10(heard["clean"].square().sum() / (heard["clean"] - sound).square().sum())
    axis.specgram((sound[0] + 1e-5 * torch.randn(LENGTH)).numpy(), Fs=RATE, vmin=-120, vmax=-30)
    axis.set(title=f"{name}, {ratio:.1f} dB", ylabel="Hz", xlabel="seconds")
    with wave.open(str(OUT / f"{name}.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((sound[0].clamp(-1, 1) * 32767).short().numpy().tobytes())
    print(f"{OUT / name}.wav: signal to noise {ratio:.1f} dB")
figure.savefig(OUT / "spectrograms.png")
print(f"{OUT / 'spectrograms.png'}: the four of them")
