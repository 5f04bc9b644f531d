"""Which frames are taken of a video, their true times, their sizes; and every way a video can be wrong."""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal.core.errors import BudgetError, ConfigError, InputError, MediaError, MissingExtraError
from foveal.core.media import MediaBudget
from foveal.processing import video_file
from foveal.processing.resize import PatchGrid
from foveal.processing.video import Frames, frame_size, open_video, plan_frames
from tests.helpers.videos import CONTAINERS, level, number_of, sound_only, turned, video

BUDGET = MediaBudget()
FRAMES = Frames()
GRID = PatchGrid()
SMALL = Frames(frame_min_px=784, frame_max_px=784 * 16)


def numbers(clip, expected):
    assert len(clip.frames) == len(expected)
    return [number_of(frame, near) for frame, near in zip(clip.frames, expected, strict=True)]


@pytest.mark.parametrize(("container", "codec"), CONTAINERS)
@pytest.mark.parametrize("fps", [None, 30, 7])
def test_the_right_frames_at_the_right_times(container, codec, fps):
    data = video(75, 30, container=container, codec=codec)
    clip = open_video(data, frames=FRAMES, budget=BUDGET, fps=fps)
    planned = plan_frames(2.5, 30, FRAMES, fps=fps)
    assert len(planned) == {None: 4, 30: 74, 7: 16}[fps]
    assert numbers(clip, planned) == list(planned)
    assert clip.times_s == pytest.approx([k / 30 for k in planned], abs=2e-3)
    assert clip.times_s[0] == 0
    assert clip.fps == pytest.approx(len(planned) / 2.5)
    assert clip.source_size == (64, 48)


def test_counting_finds_the_same_frames_as_jumping():
    data = video(90, 30, keyframes=12)
    import io

    reader = video_file.VideoFile(io.BytesIO(data), "v", BUDGET)
    index, counted = reader.index(), reader.counted()
    assert index.times_s == pytest.approx(counted.times_s)
    assert len(index.entries) == 8
    assert not counted.stamps
    wanted = [0, 1, 2, 30, 31, 59, 88, 89]
    for way in (index, counted):
        assert [number_of(np.asarray(p), k) for p, k in zip(reader.read(way, wanted), wanted, strict=True)] == wanted


def test_files_whose_stamps_are_useless_are_counted(monkeypatch):
    data = video(40, 20)
    expected = open_video(data, frames=FRAMES, budget=BUDGET)
    honest = video_file.VideoFile.index

    def wrong(self):
        found = honest(self)
        return video_file.FrameIndex(
            times_s=(*found.times_s, found.times_s[-1] + 1), stamps=(*found.stamps, 10**9), fps=found.fps
        )

    monkeypatch.setattr(video_file.VideoFile, "index", wrong)
    clip = open_video(data, frames=FRAMES, budget=BUDGET)
    assert np.array_equal(clip.frames, expected.frames)
    assert clip.times_s == pytest.approx(expected.times_s)


def test_variable_rate_gives_true_times():
    times = [0.0, 0.1, 0.2, 0.3, 1.0, 2.0, 2.1, 5.0, 5.04, 9.0]
    data = video(10, 10, container="matroska", times_s=times)
    clip = open_video(data, frames=FRAMES, budget=BUDGET, nframes=10)
    assert clip.times_s == pytest.approx(times, abs=1e-3)
    part = open_video(data, frames=FRAMES, budget=BUDGET, nframes=4, start_s=1.0, end_s=5.0)
    assert numbers(part, [4, 5, 6, 7]) == [4, 5, 6, 7]
    assert part.times_s == pytest.approx([1.0, 2.0, 2.1, 5.0], abs=1e-3)


@pytest.mark.parametrize(("container", "codec"), CONTAINERS)
def test_only_wanted_frames_are_decoded(monkeypatch, container, codec):
    data = video(600, 30, keyframes=10, container=container, codec=codec)
    decoded = 0
    honest = video_file.VideoFile._forward

    def counting(frames, stamp):
        nonlocal decoded

        def seen():
            nonlocal decoded
            for frame in frames:
                decoded += 1
                yield frame

        return honest(seen(), stamp)

    monkeypatch.setattr(video_file.VideoFile, "_forward", staticmethod(counting))
    clip = open_video(data, frames=FRAMES, budget=BUDGET, nframes=8)
    assert numbers(clip, plan_frames(20, 30, FRAMES, nframes=8)) == list(plan_frames(20, 30, FRAMES, nframes=8))
    assert decoded <= 8 * 10


def test_paths_urls_and_bytes(tmp_path):
    data = video(20, 10)
    path = tmp_path / "a clip.mp4"
    path.write_bytes(data)
    clips = [open_video(s, frames=FRAMES, budget=BUDGET) for s in (path, str(path), path.as_uri(), data)]
    for clip in clips[1:]:
        assert np.array_equal(clip.frames, clips[0].frames)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_videos_of_phones_are_turned_upright(turns):
    clip = open_video(turned(video(10, 10), turns), frames=FRAMES, budget=BUDGET)
    assert clip.source_size == ((64, 48) if turns == 2 else (48, 64))
    assert clip.frames.shape[1:] == (*clip.source_size[::-1], 3)


def test_turning_goes_the_right_way():
    import io

    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        track = output.add_stream("libx264", rate=10)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:24, :32] = 255  # white in the upper left
        for _ in range(4):
            output.mux(track.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(track.encode())
    frame = open_video(turned(file.getvalue(), 1), frames=FRAMES, budget=BUDGET).frames[0]
    corners = frame[4, 4, 0], frame[4, -4, 0], frame[-4, 4, 0], frame[-4, -4, 0]
    assert [c > 128 for c in corners] == [False, True, False, False]  # a quarter clockwise: upper right


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_very_short_videos(count):
    clip = open_video(video(count, 10), frames=FRAMES, budget=BUDGET)
    assert len(clip.frames) == max(2, count // 2 * 2)
    assert all(b > a for a, b in pairwise(clip.times_s))
    if count == 1:
        assert np.array_equal(clip.frames[0], clip.frames[1])


def test_frames_come_at_the_published_size():
    data = video(40, 10, size=(640, 360))
    clip = open_video(data, frames=FRAMES, budget=BUDGET, grid=GRID)
    size = frame_size(len(clip.frames), 640, 360, grid=GRID, frames=FRAMES)
    assert clip.frames.shape == (8, size[1], size[0], 3)
    assert clip.source_size == (640, 360)
    lower = open_video(data, frames=FRAMES, budget=BUDGET, grid=GRID, min_px=784, max_px=784 * 20)
    assert lower.frames.shape[1] * lower.frames.shape[2] <= 784 * 20
    fast = open_video(data, frames=FRAMES, budget=BUDGET, grid=GRID, resize="fast")
    assert np.abs(fast.frames.astype(int) - clip.frames).max() <= 2
    with pytest.raises(InputError, match="pass grid="):
        open_video(data, frames=FRAMES, budget=BUDGET, max_px=784 * 20)


# --- numbers of frames -------------------------------------------------------------------------------------------


def published_count(total, native_fps, fps=2.0, low=4, high=768):
    """Rule of qwen-vl-utils 0.0.14 in words: wish, held between the bounds and the video's length, rounded down."""
    wish = min(max(total / native_fps * fps, math.ceil(low / 2) * 2), high // 2 * 2, total)
    return math.floor(wish / 2) * 2


@given(
    total=st.integers(2, 30_000),
    native=st.sampled_from([1, 10, 12.5, 23.976, 24, 25, 29.97, 30, 50, 60]),
    fps=st.sampled_from([0.1, 0.5, 1, 2, 3.3, 10, 60]),
)
@settings(max_examples=300)
def test_planned_frames_follow_the_published_rule(total, native, fps):
    chosen = plan_frames(total / native, native, FRAMES, fps=fps)
    assert len(chosen) == published_count(total, native, fps)
    assert list(chosen) == torch.linspace(0, total - 1, len(chosen)).round().long().tolist()
    assert len(set(chosen)) == len(chosen)


@given(fps=st.floats(0.1, 60), count=st.integers(1, 768))
@settings(max_examples=60)
def test_times_rise_strictly_from_a_tenth_to_60_fps_for_1_to_768_frames(fps, count):
    frames = np.zeros((count, 2, 2, 3), np.uint8)
    clip = open_video(frames, frames=SMALL, budget=BUDGET, sample_fps=fps)
    assert len(clip.times_s) == len(clip.frames) == count + count % 2
    assert all(b > a for a, b in pairwise(clip.times_s))
    measured = (len(clip.times_s) - 1) / (clip.times_s[-1] - clip.times_s[0])
    assert clip.fps == fps == pytest.approx(measured, rel=0.01)


@given(
    duration=st.floats(0.2, 3000), native=st.floats(0.5, 60), fps=st.floats(0.1, 60), even=st.sampled_from([1, 2, 4])
)
def test_planned_frames_are_even_bounded_and_rising(duration, native, fps, even):
    chosen = plan_frames(duration, native, Frames(multiple=even), fps=fps)
    total = max(1, round(duration * native))
    assert len(chosen) % even == 0
    assert len(chosen) <= 768
    assert all(b > a for a, b in pairwise(chosen)) or total < even
    assert chosen[0] == 0
    assert chosen[-1] == total - 1 or len(chosen) == 1


def test_nframes_is_rounded_to_even():
    assert len(plan_frames(10, 10, FRAMES, nframes=7)) == 8  # 3.5 -> 4
    assert len(plan_frames(10, 10, FRAMES, nframes=5)) == 4  # 2.5 -> 2: half to even
    assert len(plan_frames(10, 10, FRAMES, max_frames=7)) == 6
    assert len(plan_frames(1000, 10, FRAMES, fps=10, max_frames=1000)) == 1000  # the cap is an option


def test_a_single_frame_is_shown_twice():
    assert plan_frames(0.1, 10, FRAMES) == plan_frames(0.1, 10, FRAMES, nframes=2) == (0, 0)
    assert plan_frames(0.3, 10, Frames(multiple=4)) == (0, 1, 2, 2)


def test_windows():
    assert plan_frames(10, 10, FRAMES, start_s=0.3, end_s=0.6, nframes=4) == (3, 4, 5, 6)
    assert plan_frames(10, 10, FRAMES, start_s=9.5)[-1] == 99
    assert plan_frames(10, 10, FRAMES, end_s=1000)[-1] == 99
    with pytest.raises(InputError, match="no frame of the video"):
        plan_frames(10, 10, FRAMES, start_s=11)
    with pytest.raises(InputError, match="no frame"):
        plan_frames(10, 10, FRAMES, start_s=3, end_s=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 2, "nframes": 4}, "give one"),
        ({"max_frames": 8, "nframes": 4}, "give one"),
        ({"nframes": 103}, "2 to 100 frames"),
        ({"nframes": 1}, "2 to 100 frames"),
        ({"nframes": -4}, "2 to 100 frames"),
        ({"fps": 0}, "above 0"),
        ({"fps": -1}, "above 0"),
        ({"fps": math.inf}, "above 0"),
        ({"fps": math.nan}, "above 0"),
        ({"max_frames": 1}, "at least 2"),
        ({"start_s": -1}, "0 or more"),
        ({"end_s": math.nan}, "0 or more"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        plan_frames(10, 10, FRAMES, **options)


# --- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "options", "processed"),
    [
        (4, (1920, 1080), {}, (1008, 560)),  # 768 tokens a frame bind
        (768, (1920, 1080), {}, (644, 336)),  # the total binds: 235,200 px a frame
        (4, (320, 240), {}, (392, 280)),  # 128 tokens a frame at least
        (4, (1920, 1080), {"max_px": 360 * 420}, (504, 280)),
        (4, (1920, 1080), {"max_px": 10**9}, (1008, 560)),  # can only lower
        (16, (1920, 1080), {"total_px": 16 * 784 * 100}, (504, 280)),
        (4, (640, 480), {"min_px": 300_000}, (644, 476)),
        (4, (640, 480), {"min_px": 700_000}, (980, 728)),  # int(min x 1.05) where it passes the maximum
    ],
)
def test_frame_sizes_follow_the_published_budgets(count, size, options, processed):
    assert frame_size(count, *size, grid=GRID, frames=FRAMES, **options) == processed


@given(count=st.integers(1, 768), width=st.integers(20, 3000), height=st.integers(20, 3000))
def test_all_frames_together_stay_within_the_budget(count, width, height):
    count += count % 2
    w, h = frame_size(count, width, height, grid=GRID, frames=FRAMES)
    thin = min(w, h) == 28
    assert thin or w * h * count / 2 <= FRAMES.total_px
    assert thin or w * h <= FRAMES.frame_max_px
    assert w % 28 == h % 28 == 0


def test_a_total_that_cannot_hold_the_frames():
    with pytest.raises(InputError, match="take fewer frames"):
        frame_size(100, 640, 480, grid=GRID, frames=FRAMES, total_px=1_000_000)


# --- lists of frames ---------------------------------------------------------------------------------------------


def test_lists_of_frames(tmp_path):
    pictures = [Image.new("RGB", (60, 40), (level(k),) * 3) for k in range(5)]
    paths = []
    for number, picture in enumerate(pictures):
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    array = np.stack([np.asarray(p) for p in pictures])
    for source in (pictures, tuple(paths), array, list(array), [paths[0], *pictures[1:]]):
        clip = open_video(source, frames=FRAMES, budget=BUDGET, sample_fps=4)
        assert numbers(clip, [0, 1, 2, 3, 4, 4]) == [0, 1, 2, 3, 4, 4]
        assert clip.times_s == (0, 0.25, 0.5, 0.75, 1.0, 1.25)
        assert clip.fps == 4
        assert clip.source_size == (60, 40)
    assert open_video(pictures, frames=FRAMES, budget=BUDGET).fps == 2


@pytest.mark.parametrize(
    ("source", "options", "kind", "message"),
    [
        ([], {}, InputError, "empty"),
        ([Image.new("RGB", (9, 9)), Image.new("RGB", (9, 8))], {}, InputError, "frame 1 is"),
        ([Image.new("RGB", (9, 9))] * 3, {"nframes": 2}, InputError, "nframes does not apply"),
        ([Image.new("RGB", (9, 9))] * 3, {"fps": 2}, InputError, "fps does not apply"),
        ([Image.new("RGB", (9, 9))] * 3, {"start_s": 1}, InputError, "start_s does not apply"),
        ([Image.new("RGB", (9, 9))] * 6, {"max_frames": 4}, InputError, "max_frames=4"),
        ([Image.new("RGB", (9, 9))] * 3, {"sample_fps": 0}, InputError, "above 0"),
        ([Image.new("RGB", (9, 9))] * 770, {}, BudgetError, "the budget is 768"),
        (["nowhere.png"], {}, MediaError, "does not exist"),
        ([b"text"], {}, MediaError, "text file"),
        (np.zeros((0, 9, 9, 3), np.uint8), {}, InputError, "empty"),
    ],
)
def test_lists_that_are_no_video(source, options, kind, message):
    with pytest.raises(kind, match=message):
        open_video(source, frames=FRAMES, budget=BUDGET, **options)


# --- bad files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"no video at all, but some text",
        b"\0\0\0\x20ftypisom" + bytes(range(256)) * 8,
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
    ],
)
def test_files_that_are_no_video(tmp_path, content):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"clip\.mp4.*(not a video|no moving picture)"):
        open_video(path, frames=FRAMES, budget=BUDGET)


def test_no_file_leaves_and_nothing_else_is_opened(tmp_path):
    with pytest.raises(MediaError, match="does not exist"):
        open_video(tmp_path / "a.mp4", frames=FRAMES, budget=BUDGET)
    with pytest.raises(MediaError, match="is a folder"):
        open_video(tmp_path, frames=FRAMES, budget=BUDGET)
    with pytest.raises(InputError, match="remote media are off"):
        open_video("https://example.org/a.mp4", frames=FRAMES, budget=BUDGET)
    with pytest.raises(MediaError, match="is empty"):
        open_video(b"", frames=FRAMES, budget=BUDGET)


def test_sound_without_pictures():
    with pytest.raises(MediaError, match="no moving picture"):
        open_video(sound_only(), frames=FRAMES, budget=BUDGET)


def test_video_without_frames():
    with pytest.raises(MediaError):
        open_video(video(0, 10, container="matroska"), frames=FRAMES, budget=BUDGET)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_cut_mp4(part):
    data = video(60, 30, size=(160, 120))
    # Where the cut leaves a readable index without its streams, the file looks like one that never had any.
    with pytest.raises(MediaError, match=r"damaged, cut off|no moving picture"):
        open_video(data[: int(len(data) * part)], frames=FRAMES, budget=BUDGET)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("avi", "mpeg4")])
def test_damage_in_the_middle_is_noticed(container, codec):
    rng = np.random.default_rng(0)
    data = bytearray(video(60, 30, size=(160, 120), container=container, codec=codec, noise=True))
    at = len(data) // 2
    data[at : at + 300] = rng.integers(0, 256, 300, dtype=np.uint8).tobytes()
    with pytest.raises(MediaError, match="damaged"):
        open_video(bytes(data), frames=FRAMES, budget=BUDGET, fps=30)


def test_damage_anywhere_never_hangs_or_leaks_a_foreign_error():
    rng = np.random.default_rng(0)
    for container, codec in CONTAINERS:
        data = video(20, 10, container=container, codec=codec)
        for _ in range(6):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 8):
                damaged[at] = rng.integers(256)
            try:
                clip = open_video(bytes(damaged), frames=FRAMES, budget=MediaBudget(image_px=10**6))
                assert len(clip.frames) % 2 == 0
                assert all(b > a for a, b in pairwise(clip.times_s))
            except MediaError:
                pass


def test_budgets():
    data = video(40, 10, size=(64, 48))
    with pytest.raises(BudgetError, match="is 4"):
        open_video(data, frames=FRAMES, budget=MediaBudget(video_s=3.5))
    with pytest.raises(BudgetError, match="64 x 48 px"):
        open_video(data, frames=FRAMES, budget=MediaBudget(image_px=64 * 48 - 1))
    with pytest.raises(BudgetError, match="the budget is 6"):
        open_video(data, frames=FRAMES, budget=MediaBudget(frames=6))
    with pytest.raises(BudgetError, match="bytes"):
        open_video(data, frames=FRAMES, budget=MediaBudget(file_bytes=100))


def test_options_of_lists_and_files_are_not_mixed_up():
    with pytest.raises(InputError, match="sample_fps is for lists"):
        open_video(video(10, 10), frames=FRAMES, budget=BUDGET, sample_fps=2)


def test_without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"foveal\[video\]"):
        open_video(b"anything", frames=FRAMES, budget=BUDGET)
    assert len(open_video([np.zeros((9, 9, 3), np.uint8)], frames=FRAMES, budget=BUDGET).frames) == 2


@pytest.mark.parametrize("fields", [{"fps": 0}, {"min_frames": 0}, {"max_frames": 2}, {"frame_min_px": 10**9}])
def test_bad_declarations(fields):
    with pytest.raises(ConfigError):
        Frames(**fields)
