import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.box import ImageView
from foveal.core.errors import ConfigError, InputError
from foveal.core.packed import Medium
from foveal.processing.native import NativeSize
from foveal.processing.patches import HALF
from foveal.processing.resize import PatchGrid
from foveal.processing.sampling import Frames, choose_frames, frame_size
from foveal.processing.segments import MediumSegment, SpecialSegment, TextSegment, as_text
from foveal.processing.stamps import TimeStamps

VIEW = ImageView(original=(32, 32), processed=(32, 32))
STAMPS = TimeStamps()
START, END = (SpecialSegment(name=name) for name in STAMPS.around)
GRID = PatchGrid(patch=16, min_px=65536, max_px=16777216)
FRAMES = Frames(frame_max_px=768 * 32 * 32, multiple=1, volume_px=(4096, 25165824))


def video(times, steps):
    return Medium(kind="video", sequence=0, view=VIEW, grid=(steps, 2, 2), tokens=steps, times_s=tuple(times))


IMAGE = Medium(kind="image", sequence=0, view=VIEW, grid=(1, 2, 2), tokens=1)


def test_each_step_gets_its_time_and_its_own_markers():
    place = MediumSegment(medium=1, pad="V", role="user", turn=3)
    picture = MediumSegment(medium=0, pad="I")
    segments = [TextSegment(text="a"), START, picture, END, START, place, END, TextSegment(text="b")]
    arranged = STAMPS(segments, [IMAGE, video([0.0, 0.5, 1.0], 2)])
    assert as_text(arranged) == (
        "a<|vision_start|>I<|vision_end|>"
        "<0.2 seconds><|vision_start|>V<|vision_end|><1.0 seconds><|vision_start|>V<|vision_end|>b"
    )
    assert [s.parts for s in arranged if isinstance(s, MediumSegment)] == [1, 2, 2]
    assert {(s.role, s.turn) for s in arranged[4:-1]} == {("user", 3)}


def test_a_video_without_markers_gets_them():
    place = MediumSegment(medium=0, pad="V")
    for segments in ([place], [place, END], [START, place], [place, TextSegment(text="x")]):
        arranged = STAMPS(segments, [video([1.5, 2.0], 1)])
        text = as_text(arranged)
        assert "<1.8 seconds><|vision_start|>V<|vision_end|>" in text


def test_neighbouring_videos():
    places = [MediumSegment(medium=i, pad="V") for i in (0, 1)]
    arranged = STAMPS([START, places[0], END, START, places[1], END], [video([0.0, 1.0], 1), video([7.0], 1)])
    assert as_text(arranged) == (
        "<0.5 seconds><|vision_start|>V<|vision_end|><7.0 seconds><|vision_start|>V<|vision_end|>"
    )


@given(
    st.integers(1, 400), st.integers(1, 3000), st.integers(1, 3000),
    st.sampled_from([(4096, 25165824), (65536, 300000), (1000, 5_000_000)]),
)  # fmt: skip
def test_sizes_of_frames_are_those_of_transformers(count, width, height, volume):
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    frames = Frames(multiple=1, volume_px=volume)
    try:
        high, wide = smart_resize(max(2, count), height, width, 2, 32, *volume)
    except ValueError:
        with pytest.raises(InputError, match="side ratio above 200"):
            frame_size(count, width, height, grid=GRID, frames=frames)
        return
    assert frame_size(count, width, height, grid=GRID, frames=frames) == (wide, high)


def test_a_cap_on_each_frame():
    capped = Frames(multiple=1, frame_max_px=100_000, volume_px=(4096, 10_000_000), capped=True)
    width, height = frame_size(4, 2000, 1000, grid=GRID, frames=capped)
    assert 75_000 < width * height <= 100_000
    width, height = frame_size(500, 2000, 1000, grid=GRID, frames=capped)  # an even share is less than the cap
    assert 13_000 < width * height <= 20_000


def test_limits_of_the_user():
    assert frame_size(10, 640, 480, grid=GRID, frames=FRAMES) == (640, 480)
    for limit in ({"max_px": 100_000}, {"total_px": 500_000}):
        width, height = frame_size(10, 640, 480, grid=GRID, frames=FRAMES, **limit)
        assert 75_000 < width * height <= 100_000
    width, height = frame_size(10, 64, 48, grid=GRID, frames=FRAMES, min_px=20_000)
    assert 20_000 <= width * height < 30_000
    with pytest.raises(InputError, match="at least 30,000,000 px and at most 25,165,824 px"):
        frame_size(10, 64, 48, grid=GRID, frames=FRAMES, min_px=3_000_000)
    with pytest.raises(ConfigError, match="volume_px"):
        Frames(volume_px=(5, 4))


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 7, 30, 31, 100, 301, 1000, 9999])
@pytest.mark.parametrize("native", [0.5, 7.0, 24.0, 29.97, 60.0])
def test_chosen_frames_are_those_of_transformers(total, native):
    """The rule of its processor: an odd number is allowed, and places are spread in double precision."""
    count = min(max(int(total / native * 2), 4), 768, total)
    expected = np.linspace(0, total - 1, count).round().astype(int)
    times = [k / native for k in range(total)]
    chosen, rate = choose_frames(
        times, native, FRAMES, "it", fps=None, nframes=None, max_frames=None, start_s=None, end_s=None
    )
    assert list(chosen) == expected.tolist()
    assert rate == count / total * native


def test_the_range_of_sizes_that_matter():
    vision = NativeSize(resize=GRID, normalize=HALF, video=FRAMES)
    assert vision.pixel_range(images=False, videos=True) == (1024, 25165824 // 2)
    assert vision.pixel_range(images=True, videos=False) == (65536, 16777216)
