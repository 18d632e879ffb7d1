"""Videos and pictures as files: whole, readable, and nothing left behind where it went wrong."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from worldloop.renderers import video
from worldloop.renderers.video import contact_sheet, write_picture, write_video


def moving_square(count: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    for index in range(count):
        frame = np.full((height, width, 3), 30, dtype=np.uint8)
        frame[10:30, index : index + 20] = (230, 159, 0)
        yield frame


def read_video(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """What ffmpeg says about a video, and its frames (n, height, width, 3)."""
    about, *frames = imageio_ffmpeg.read_frames(path)
    width, height = about["size"]
    return about, np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames])


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "new/folder/a.MP4"])
def test_video_decodes_to_the_frames_written(tmp_path: Path, name):
    path = write_video(tmp_path / name, moving_square(12), fps=10)
    decoded = read_video(path)[1]
    wanted = np.stack(list(moving_square(12)))
    assert decoded.shape == wanted.shape
    assert np.abs(decoded.astype(np.int64) - wanted).mean() < 4
    assert list(path.parent.iterdir()) == [path]


def test_mp4_is_what_browsers_play(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", moving_square(5, 49, 63), fps=12.5)
    about, _ = read_video(path)
    assert about["codec"] == "h264"
    assert about["pix_fmt"].startswith("yuv420p")
    assert about["size"] == (64, 50)
    assert about["fps"] == 12.5
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is loaded to the end


def test_gif_repeats_at_the_given_speed(tmp_path: Path):
    with Image.open(write_video(tmp_path / "a.gif", moving_square(5), fps=10)) as picture:
        assert picture.info["loop"] == 0
        assert picture.info["duration"] == 100


def test_frames_are_taken_while_they_come(tmp_path: Path):
    taken: list[weakref.ref[np.ndarray]] = []
    alive = []

    def frames() -> Iterator[np.ndarray]:
        for frame in moving_square(50):
            taken.append(weakref.ref(frame))
            yield frame
            alive.append(sum(reference() is not None for reference in taken))

    write_video(tmp_path / "a.mp4", frames())
    assert len(alive) == 50
    assert max(alive) <= 2  # the one in work, and the first, from which the size is read


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "there are no frames"),
        ([np.zeros((4, 4, 3))], r"frame 0: found float64 of shape \(4, 4, 3\)"),
        ([np.zeros((4, 4), dtype=np.uint8)], r"found uint8 of shape \(4, 4\)"),
        ([np.zeros((0, 4, 3), dtype=np.uint8)], r"shape \(0, 4, 3\)"),
        (["picture"], "found str"),
        ([*moving_square(3), *moving_square(1, 50)], r"frame 3 has shape \(50, 64, 3\)"),
    ],
)
def test_wrong_frames_are_named_and_leave_nothing(tmp_path: Path, frames, message):
    for name in ("a.mp4", "a.gif"):
        with pytest.raises(ValueError, match=message):
            write_video(tmp_path / name, frames)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        contact_sheet(frames)


def test_wrong_endings_and_speeds_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="unknown ending '.avi'"):
        write_video(tmp_path / "a.avi", moving_square(2))
    with pytest.raises(ValueError, match="unknown ending '.jpg'"):
        write_picture(tmp_path / "a.jpg", next(moving_square(1)))
    with pytest.raises(ValueError, match="fps: found 0"):
        write_video(tmp_path / "a.mp4", moving_square(2), fps=0)


def test_an_error_while_drawing_keeps_the_old_file(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", moving_square(3))
    before = path.read_bytes()

    def failing() -> Iterator[np.ndarray]:
        yield from moving_square(4)
        raise RuntimeError("drawing failed")

    with pytest.raises(RuntimeError, match="drawing failed"):
        write_video(path, failing())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_ffmpeg_says_is_handed_on(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(video.FORMATS, ".mp4", ["-c:v", "no_such_codec", "-f", "mp4"])
    with pytest.raises(OSError, match="ffmpeg failed: .*no_such_codec"):
        write_video(tmp_path / "a.mp4", moving_square(300))
    assert not list(tmp_path.iterdir())


def test_picture_is_lossless(tmp_path: Path):
    frame = next(moving_square(1))
    path = write_picture(tmp_path / "new" / "a.png", frame)
    assert (np.asarray(Image.open(path)) == frame).all()
    assert list(path.parent.iterdir()) == [path]


def test_contact_sheet_reads_like_a_page():
    frames = list(moving_square(5, 6, 8))
    sheet = contact_sheet(frames, columns=3, gap=2)
    assert sheet.shape == (14, 28, 3)
    assert (sheet[:6, 10:18] == frames[1]).all()
    assert (sheet[8:, 10:18] == frames[4]).all()
    assert (sheet[8:, 20:] == 255).all()
    assert contact_sheet(frames[:1]).shape == (6, 8, 3)
    with pytest.raises(ValueError, match="columns: found 0"):
        contact_sheet(frames, columns=0)
