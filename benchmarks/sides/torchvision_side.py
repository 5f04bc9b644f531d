"""transformers' torchvision processor, in build/peers/torchvision: JPEG bytes to patches.

There is no build of torchvision for CPUs on PyPI. Of its CUDA build only the Python part works beside torch for CPUs,
once it does not register shapes of operators that are not there; the resize is torch's own."""

import base64
import io
import time
from typing import Any

from protocol import serve


def build() -> dict[str, Any]:
    import torch

    register = torch.library.register_fake

    def skipping(name: Any, *rest: Any, **options: Any) -> Any:
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return register(name, *rest, **options)

    torch.library.register_fake = skipping
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    torch.library.register_fake = register

    def preprocess(data: str, limit: int, repeats: int) -> list[float]:
        processor = Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": limit})
        content, found = base64.b64decode(data), []
        for _ in range(repeats):
            begun = time.perf_counter()
            processor(Image.open(io.BytesIO(content)), return_tensors="pt")
            found.append(time.perf_counter() - begun)
        return found

    return {"preprocess": preprocess}


serve(build)
