"""The DonkeyCar reader: tubs of known records, every kind of gap, everything that it refuses, and the real tubs."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from worldloop.worldmodel.data import DataError, Skipped
from worldloop.worldmodel.data.clips import Clip, ClipDataset
from worldloop.worldmodel.data.donkeycar import read_file
from worldloop.worldmodel.data.importing import import_clips

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
INPUTS = ["cam/image_array", "user/angle", "user/throttle", "user/mode"]
TYPES = ["image_array", "float", "float", "str"]


def picture(value: int = 0, size: tuple[int, int] = (8, 6)) -> bytes:
    """A grey JPEG."""
    content = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(content, "JPEG", quality=95)
    return content.getvalue()


def records(count: int) -> list[dict]:
    return [
        {
            "_index": n,
            "_session_id": "24-01-25_0",
            "_timestamp_ms": 1000 + 50 * n,
            "cam/image_array": f"{n}_cam_image_array_.jpg",
            "user/angle": n / 100,
            "user/mode": "user",
            "user/throttle": 0.5,
        }
        for n in range(count)
    ]


def manifest(deleted: list | None = None, inputs: list | None = None, types: list | None = None) -> str:
    last = {"paths": ["catalog_0.catalog"], "current_index": 9, "max_len": 1000, "deleted_indexes": deleted or []}
    return "\n".join(json.dumps(line) for line in (inputs or INPUTS, types or TYPES, {}, {"created_at": 1.5}, last)) + "\n"


def tub(made: list[dict], **changes: bytes | str | None) -> dict[str, bytes]:
    """The files of a tub by name; `changes` puts others in their place, None takes one away (`/` and `.` are `__` and `_`)."""
    files = {"manifest.json": manifest().encode(), "catalog_0.catalog": "\n".join(map(json.dumps, made)).encode() + b"\n"}
    files |= {f"images/{record['cam/image_array']}": picture(record["_index"]) for record in made}
    for name, content in changes.items():
        name = {"manifest": "manifest.json", "catalog": "catalog_0.catalog"}[name]
        if content is None:
            del files[name]
        else:
            files[name] = content.encode() if isinstance(content, str) else content
    return files


def folder(place: Path, files: dict[str, bytes]) -> Path:
    """Write a tub as a folder; return its manifest."""
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place / "manifest.json"


def archive(file: Path, files: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
        for member in more:
            packed.addfile(member, io.BytesIO(b"\0" * member.size))
    return file


def clips_of(file: Path, **options) -> tuple[list[Clip], list[Skipped]]:
    found = list(read_file(file, **options))
    return [one.validate() for one in found if isinstance(one, Clip)], [one for one in found if isinstance(one, Skipped)]


def lengths(made: list[dict], place: Path, **changes: bytes | str | None) -> list[tuple[int, int]]:
    """First record and length of each clip."""
    return [(clip.first, len(clip)) for clip in clips_of(folder(place / "tub", tub(made, **changes)))[0]]


def test_a_tub_becomes_a_clip(tmp_path: Path):
    (clip,), skipped = clips_of(folder(tmp_path / "tub", tub(records(30))))
    assert skipped == []
    assert (clip.id, clip.rate, clip.action_names, clip.first) == ("tub/0000", 20, ("steering", "throttle"), 0)
    assert clip.frames.shape == (30, 6, 8, 3)
    assert (clip.frames.float().mean(dim=(1, 2, 3)) - torch.arange(30)).abs().max() <= 1.5  # JPEG rounds
    assert torch.allclose(clip.action[:, 0], torch.arange(30) / 100)
    assert (clip.action[:, 1] == 0.5).all()


def test_an_archive_is_read_as_the_folder_is(tmp_path: Path):
    files = tub(records(25))
    (plain,), _ = clips_of(folder(tmp_path / "tub", files))
    for number, prefix in enumerate(("", "tub/", "./tub/", "a/b/tub/")):
        (tmp_path / str(number)).mkdir()
        packed = archive(tmp_path / str(number) / "tub.tar", {prefix + name: content for name, content in files.items()})
        (clip,), _ = clips_of(packed)
        assert clip.id == plain.id
        assert torch.equal(clip.frames, plain.frames)
        assert torch.equal(clip.action, plain.action)


def test_frames_are_resized_by_area_and_long_runs_are_cut_evenly(tmp_path: Path):
    made, _ = clips_of(folder(tmp_path / "tub", tub(records(50))), size=(3, 4), longest=20)
    assert [(clip.id, clip.first, len(clip)) for clip in made] == [
        ("tub/0000", 0, 16),
        ("tub/0001", 16, 17),
        ("tub/0002", 33, 17),
    ]
    assert made[0].frames.shape == (16, 3, 4, 3)


def test_nuls_and_empty_lines_are_nothing(tmp_path: Path):
    lines = [json.dumps(record).encode() for record in records(25)]
    catalog = b"\n".join(lines[:10]) + b"\n\n\0\0\0\n" + b"\n".join(lines[10:]) + b"\n" + b"\0" * 500
    assert lengths(records(25), tmp_path, catalog=catalog) == [(0, 25)]


def test_a_clip_ends_where_records_are_not_neighbours(tmp_path: Path):
    def changed(name: str, at: int, change) -> list[dict]:
        made = records(50)
        for record in made[at:]:
            record[name] = change(record[name])
        return made

    assert lengths(changed("_session_id", 25, lambda _: "later"), tmp_path / "a") == [(0, 25), (25, 25)]
    assert lengths(changed("_timestamp_ms", 25, lambda time: time - 51), tmp_path / "b") == [(0, 25), (25, 25)]
    assert lengths(changed("_timestamp_ms", 25, lambda time: time + 51), tmp_path / "c") == [(0, 25), (25, 25)]
    assert lengths(changed("_timestamp_ms", 25, lambda time: time + 50), tmp_path / "d") == [(0, 50)]
    assert lengths(changed("_timestamp_ms", 0, lambda time: 1000 + time // 100), tmp_path / "e") == [(0, 50)]
    assert lengths([record for record in records(50) if record["_index"] != 24], tmp_path / "f") == [(0, 24), (25, 25)]
    assert lengths(records(50), tmp_path / "g", manifest=manifest(deleted=[24, 99])) == [(0, 24), (25, 25)]


def test_what_is_left_out_is_told(tmp_path: Path):
    made = records(80)
    made[70]["user/mode"] = "local"
    files = tub(made, manifest=manifest(deleted=[20, 21, 22]))
    del files["images/45_cam_image_array_.jpg"]
    clips, skipped = clips_of(folder(tmp_path / "tub", files))
    assert [(clip.first, len(clip)) for clip in clips] == [(0, 20), (23, 22), (46, 24)]
    place = tmp_path / "tub"
    assert [(one.source, one.reason) for one in skipped] == [
        (f"{place}: records 20 to 22", "deleted by the driver"),
        (f"{place}: records 45 to 45", "their pictures are not there"),
        (f"{place}: records 70 to 70", "driven in mode 'local', whose actions are not the user's"),
        (f"{place}: records 71 to 79", "9 frames between two gaps, wanted at least 20"),
    ]


def test_catalogs_that_the_manifest_forgot_are_read_in_order(tmp_path: Path):
    files = tub(records(60))
    lines = files["catalog_0.catalog"].splitlines(keepends=True)
    files |= {f"catalog_{name}.catalog": b"".join(lines[20 * n : 20 * n + 20]) for n, name in enumerate((0, 9, 10))}
    assert [(clip.first, len(clip)) for clip in clips_of(folder(tmp_path / "tub", files))[0]] == [(0, 60)]


def bad_record(**changes) -> str:
    made = records(25)
    for name, value in changes.items():
        key = {"index": "_index", "time": "_timestamp_ms", "picture": "cam/image_array"}.get(name, f"user/{name}")
        made[3] |= {key: value}
        if value is None:
            del made[3][key]
    return "\n".join(map(json.dumps, made))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"manifest": None}, "holds no manifest.json, so it is no tub"),
        ({"manifest": "{"}, "manifest.json: is no JSON"),
        ({"manifest": "[]"}, "manifest.json: has 1 lines, wanted 5"),
        (
            {"manifest": manifest(inputs=["cam/image_array", "imu/x"])},
            "has no input user/angle of type float, but cam/image_array",
        ),
        ({"manifest": manifest(types=["image_array", "str", "float", "str"])}, "has no input user/angle of type float"),
        ({"manifest": manifest(deleted=["3"])}, "found deleted_indexes"),
        ({"manifest": manifest().replace("catalog_0", "../catalog_0")}, "found paths"),
        ({"manifest": manifest().replace("catalog_0", "catalog_7")}, "names catalog_7.catalog, which is not there"),
        ({"catalog": "{"}, "catalog_0.catalog: record on line 1: "),
        ({"catalog": "[" * 100_000}, "catalog_0.catalog: record on line 1: "),
        ({"catalog": "[1]"}, "record on line 1: found [1], wanted an object"),
        ({"catalog": bad_record(angle=None)}, "record on line 4: lacks 'user/angle'"),
        ({"catalog": bad_record(angle=float("nan"))}, "record on line 4: found user/angle nan, wanted a number from -1 to 1"),
        ({"catalog": bad_record(angle=1.5)}, "found user/angle 1.5"),
        ({"catalog": bad_record(throttle="full")}, "found user/throttle 'full'"),
        ({"catalog": bad_record(throttle=True)}, "found user/throttle True"),
        ({"catalog": bad_record(index=2)}, "the record 2 stands twice"),
        ({"catalog": bad_record(index=-3)}, "found _index -3"),
        ({"catalog": bad_record(time=1.5)}, "_timestamp_ms 1.5"),
        ({"catalog": bad_record(picture="../3.jpg")}, "found the picture '../3.jpg', wanted the name of a file in images/"),
        ({"catalog": bad_record(picture="/etc/passwd")}, "found the picture '/etc/passwd'"),
        ({"catalog": bad_record(picture=7)}, "found the picture 7"),
        ({"catalog": bad_record(mode=7)}, "found user/mode 7"),
    ],
)
def test_what_is_no_tub_is_refused(tmp_path: Path, changes: dict, message: str):
    files = tub(records(25), **changes)
    for file in (folder(tmp_path / "tub", files), archive(tmp_path / "tub.tar", files)):
        with pytest.raises(DataError) as refused:
            list(read_file(file))
        assert message in str(refused.value)
        assert str(file).removesuffix("/manifest.json") in str(refused.value)


def test_an_old_tub_is_told_how_to_be_converted(tmp_path: Path):
    with pytest.raises(DataError, match=r"tub of DonkeyCar 3: convert it with DonkeyCar's convert_to_tub_v2\.py"):
        list(read_file(archive(tmp_path / "tub.tar", {"record_1.json": b"{}"})))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (picture()[:-40], "is no whole PNG or JPEG picture"),
        (b"", "is no whole PNG or JPEG picture"),
        (b"GIF89a" + b"\0" * 50, "is no whole PNG or JPEG picture"),
        (picture(size=(16, 12)), "has 16 x 12 pixels, those before it 8 x 6"),
        (picture(size=(5000, 4000)), "has 5000 x 4000 pixels, wanted at most"),
    ],
)
def test_a_broken_picture_is_named(tmp_path: Path, content: bytes, message: str):
    files = tub(records(25)) | {"images/3_cam_image_array_.jpg": content}
    with pytest.raises(DataError, match=rf"tub: (images/)?3_cam_image_array_\.jpg.*{message}|tub: images/3_cam.*{message}"):
        list(read_file(folder(tmp_path / "tub", files)))


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, link
    return made


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (member("../outside"), "leads out of the archive"),
        (member("tub/../../outside"), "leads out of the archive"),
        (member("/etc/passwd"), "leads out of the archive"),
        (member("a\\..\\b"), "leads out of the archive"),
        (member("images/x.jpg", tarfile.SYMTYPE, link="/etc/passwd"), "is a link, a device"),
        (member("images/x.jpg", tarfile.LNKTYPE, link="manifest.json"), "is a link, a device"),
        (member("images/x.jpg", tarfile.CHRTYPE), "is a link, a device"),
        (member("images/x.jpg", tarfile.FIFOTYPE), "is a link, a device"),
        (member("manifest.json"), "stands twice"),
        (member("images/x.jpg", size=2**26 + 1), "more than 67108864"),
        (member("other/manifest.json"), "holds 2 tubs"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, hostile: tarfile.TarInfo, message: str):
    packed = archive(tmp_path / "tub.tar", tub(records(25)), hostile)
    with pytest.raises(DataError, match=message):
        list(read_file(packed))
    assert [path.name for path in tmp_path.iterdir()] == ["tub.tar"]


def test_a_damaged_archive_is_refused(tmp_path: Path):
    file = archive(tmp_path / "tub.tar", tub(records(25)))
    content = file.read_bytes()
    middle = 512 * 20
    while content[middle : middle + 7] != b"images/":
        middle += 512
    for damaged in (
        content[:middle],
        content[: middle + 100],
        content[: middle + 600],
        content[:middle] + b"x" * 512 + content[middle + 512 :],
        b"no archive",
        b"",
    ):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"tub\.tar: is (no whole \.tar archive|damaged or cut short)"):
            list(read_file(file))


def test_tubs_and_archives_are_imported_together(tmp_path: Path):
    folder(tmp_path / "in" / "a", tub(records(25)))
    archive(tmp_path / "in" / "b.tar", tub(records(45)))
    told = []
    done = import_clips(
        "donkeycar", tmp_path / "in", tmp_path / "set", size=(4, 4), longest=30, progress=lambda *s: told.append(s)
    )
    assert (done.files, done.counts) == (2, {"clips": 3, "frames": 70})
    assert told[0] == (0, 2, "manifest.json")
    assert told[-1] == (2, 2, "")
    assert (1, 2, "b/0001, 70 frames") in told
    dataset = ClipDataset(tmp_path / "set")
    assert dataset.ids == ("a/0000", "b/0000", "b/0001")
    assert [entry["source"] for entry in dataset.entries] == ["a", "b.tar", "b.tar"]


def test_a_bad_tub_leaves_nothing_behind(tmp_path: Path):
    archive(tmp_path / "a.tar", tub(records(25)))
    archive(tmp_path / "b.tar", tub(records(25), catalog="{"))
    with pytest.raises(DataError, match=r"b\.tar"):
        import_clips("donkeycar", tmp_path, tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


@pytest.mark.parametrize("options", [{"size": (0, 8)}, {"longest": 1}, {"rate": 0.0}, {"rate": float("nan")}])
def test_arguments_out_of_range_are_refused(tmp_path: Path, options: dict):
    with pytest.raises(ValueError, match="wanted sides of 1 pixel, 2 frames and more than 0 Hz at least"):
        import_clips("donkeycar", tmp_path, tmp_path / "set", **options)


@pytest.mark.skipif(not (REAL / "donkey.tar").is_file(), reason="needs ../shared/data/donkey.tar")
def test_the_real_tubs_are_read_whole(tmp_path: Path):
    """18,116 records, of which 1,260 in three runs have no picture; 78 more stand in 13 runs of less than a second."""
    made = clips_of(REAL / "donkey.tar", size=(8, 8))
    assert sum(map(len, made[0])) == 16_856 - 78
    assert len(made[0]) == 44
    assert len(made[1]) == 3 + 13
    assert [one.reason for one in made[1][:3]] == ["their pictures are not there"] * 3
    assert max(map(len, made[0])) == 787
    (marked,), skipped = clips_of(REAL / "donkey_marked_track.tar", size=(8, 8))
    assert (len(marked), skipped) == (1000, [])
    assert marked.action[0].tolist() == pytest.approx([0.29860398, 0.5391259])
