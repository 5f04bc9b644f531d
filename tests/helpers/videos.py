"""Small videos made on the fly: frame k shows the grey level `level(k)`, so a test knows which frame it got."""

import io
from fractions import Fraction

import av
import numpy as np

CONTAINERS = [
    ("mp4", "libx264"), ("mov", "mpeg4"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"),
    ("mpegts", "libx264"),
]  # fmt: skip


def level(number):
    """Grey level of a frame: 16 to 235 in steps that survive lossy coding, again from 16 every 37 frames."""
    return 16 + (number % 37) * 6


def number_of(frame, near=0):
    """The frame number that a picture shows, the one nearest to `near`."""
    shown = round((float(np.median(frame)) - 16) / 6)
    return shown + 37 * round((near - shown) / 37)


def video(count, fps=30, size=(64, 48), container="mp4", codec="libx264", keyframes=10, times_s=None, noise=False):
    """Bytes of a video. `times_s` gives each frame's own time (variable rate); `noise` makes it hard to compress."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        track = output.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        track.width, track.height = size
        track.pix_fmt = "yuv420p"
        track.gop_size = keyframes
        if codec == "libx264":
            track.options = {"preset": "ultrafast", "bf": "2", "qp": "10"}
        if codec == "mpeg4":
            track.bit_rate = 20_000_000
        if codec == "libvpx-vp9":
            track.options = {"cpu-used": "8", "deadline": "realtime"}
        if times_s is not None:
            track.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), level(number), np.uint8)
            if noise:
                pixels = np.random.default_rng(number).integers(0, 256, pixels.shape, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times_s is not None:
                frame.pts, frame.time_base = round(times_s[number] * 1000), Fraction(1, 1000)
            output.mux(track.encode(frame))
        output.mux(track.encode())
    return file.getvalue()


def sound_only():
    """Bytes of a file with a sound track and nothing to see."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        track = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(track.encode(frame))
        output.mux(track.encode())
    return file.getvalue()


def turned(data, quarter_turns):
    """An MP4's bytes with its display matrix set to some quarter turns clockwise, as phones write it."""
    one = 1 << 16
    a, b, c, d = {1: (0, one, -one, 0), 2: (-one, 0, 0, -one), 3: (0, -one, one, 0)}[quarter_turns]
    matrix = b"".join(v.to_bytes(4, "big", signed=True) for v in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    plain = b"".join(v.to_bytes(4, "big") for v in (one, 0, 0, 0, one, 0, 0, 0, 1 << 30))
    at = data.index(plain, data.index(b"tkhd"))
    return data[:at] + matrix + data[at + len(plain) :]
