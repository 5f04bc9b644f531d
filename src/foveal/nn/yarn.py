"""YaRN (Peng et al. 2023): rotary positions stretched beyond the length that a model was trained on."""

import math

import torch
from torch import Tensor

from foveal.core.shapes import Float
from foveal.nn.rope import frequencies


def yarn_frequencies(
    size: int,
    theta: float,
    *,
    factor: float,
    trained: int,
    fast: float,
    slow: float,
    device: torch.device,
) -> Float[Tensor, "F"]:
    """size / 2 angular frequencies: slow ones divided by `factor`, fast ones kept, with a ramp between ("by parts").

    Over `trained` positions, what turns more than `fast` times is fast and what turns less than `slow` times is
    slow (section 3.2). The ramp runs over numbers of frequencies, its ends rounded outwards.
    """

    def number(turns: float) -> float:
        """The frequency, as a number of the list, that turns so often."""
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(number(fast)), 0), min(math.ceil(number(slow)), size - 1)
    span = high - low if high > low else 0.001
    stretched = ((torch.arange(size // 2, dtype=torch.float32, device=device) - low) / span).clamp(0, 1)
    own = frequencies(size, theta, device)
    return own / factor * stretched + own * (1 - stretched)
