"""`worldloop fidelity camera` and `worldloop card camera`: the figures by hand, and the whole way on a tiny camera."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cameras import NEARNESS, TINY, VEHICLE, moving_square
from rich.console import Console
from worldloop.agents.camera_card import CameraCard, run_camera_card
from worldloop.agents.camera_fidelity import (
    CameraFidelity,
    Films,
    choose,
    correlation,
    drift_figures,
    follow,
    found_share,
    joined,
    print_table,
    run_camera_fidelity,
    vehicles,
)
from worldloop.worldmodel.camera import load_camera
from worldloop.worldmodel.data.clips import ClipDataset, ClipWriter
from worldloop.worldmodel.frame_readers import LAGS, ActionReader, VehicleFinder, train_reader
from worldloop.worldmodel.perspective import LAYOUT_CHANNELS
from worldloop.worldmodel.train_camera import Args, main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips `train` and `held`, and a camera trained on them for a few steps."""
    folder = tmp_path_factory.mktemp("camera")
    for side, count in (("train", 2), ("held", 2)):
        with ClipWriter(folder / side) as writer:
            for number in range(count):
                writer.add(moving_square(f"{side}/{number}", frames=220 if side == "held" else 24))
    short = {"autoencoder_steps": 2, "steps": 2, "batch": 2, "model": TINY}
    main(Args(data=(str(folder / "train"),), validation=(str(folder / "held"),), out=folder / "run", **short))  # pyright: ignore
    return folder


def asked(folder: Path, out: Path) -> CameraFidelity:
    return CameraFidelity(
        data=(str(folder / "train"),),
        validation=(str(folder / "held"),),
        weights=folder / "run" / "model",
        films=2,
        frames=8,
        long_films=1,
        long_frames=210,
        steps=1,
        reader_steps=3,
        out=out,
    )


class Finder(torch.nn.Module):
    """Finds whatever is bright."""

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        return frame[..., 0].float() - 128


def test_vehicles_are_found_where_half_of_their_pixels_are() -> None:
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[0, :3, :4], mask[0, 6:9, 6:10], mask[0, 11, 11] = True, True, True  # the last is too small to be asked for
    frame = torch.zeros(1, 12, 12, 3, dtype=torch.uint8)
    frame[0, :3, :2], frame[0, 6:9, 6:7] = 255, 255  # 6 of 12 pixels, and 3 of 12
    assert found_share(Finder(), frame, mask) == (0.5, 2)  # pyright: ignore[reportArgumentType]


def test_the_finder_learns_what_is_asked_and_nothing_else() -> None:
    """Red squares are vehicles, blue ones nobody asks for: it finds all of the red and may say anything of the blue."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    def batch(draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        frame, wanted = torch.zeros(8, 16, 32, 3, dtype=torch.uint8), torch.zeros(8, 16, 32, dtype=torch.int8)
        for n in range(8):
            row, column = torch.randint(0, 8, (2,), generator=draw).tolist()
            frame[n, row : row + 6, column : column + 8, 0], wanted[n, row : row + 6, column : column + 8] = 255, 1
            frame[n, row : row + 6, column + 12 : column + 16, 2], wanted[n, row : row + 6, column + 12 : column + 16] = 255, -1
        return frame, wanted

    finder = VehicleFinder()
    train_reader(finder, batch, 60, generator, lambda: None)
    frame, wanted = batch(generator)
    with torch.no_grad():
        found = finder(frame) > 0
    assert found[wanted == 1].float().mean() > 0.9
    assert found[wanted == 0].float().mean() < 0.02
    assert finder.loss(frame, torch.full_like(wanted, -1)).item() == 0.0


def test_only_near_vehicles_are_asked_for() -> None:
    """The layout's own code of depths of 29 and 31 m: 255 sqrt(2 / depth)."""
    layout = torch.zeros(1, 2, 2, len(LAYOUT_CHANNELS), dtype=torch.uint8)
    layout[0, :, 0, VEHICLE] = 255
    for row, depth in enumerate((29.0, 31.5)):
        layout[0, row, 0, NEARNESS] = round(255 * math.sqrt(2 / depth))
    assert vehicles(layout).tolist() == [[[True, False], [False, False]]]


def test_actions_are_read_at_the_frame_that_they_lead_to(tmp_path: Path) -> None:
    """An oracle: the grey of frame t + 1 is the action of frame t; a reader that sees it is right if nothing is shifted."""
    torch.manual_seed(0)
    done = torch.rand(2, 40, 2)
    clips = [replace(moving_square(f"a/{n}", frames=40), action=done[n]) for n in range(2)]
    past = 3
    led = torch.stack([clip.action[past - 1 : -1] for clip in clips])
    frames = (led[..., :1, None, None] * 255).round().to(torch.uint8).expand(-1, -1, 16, 32, 3)

    class Reader(ActionReader):
        def features(self, frames: torch.Tensor) -> torch.Tensor:
            return frames[:, :, 0, 0, 0].float() / 255

        def read(self, features: torch.Tensor) -> torch.Tensor:
            return features[:, 1:].flip(1)[..., None].expand(-1, -1, 2)  # the last frame first

    films = Films(frames, frames, led, torch.empty(0))
    results = follow(Reader(2, 16, 32), films, films, films, ("steering", "throttle"), tmp_path)
    assert results["steering"]["frames late"] in range(LAGS)
    for name in ("painted", "recorded", "shuffled"):
        assert results["steering"][name] == pytest.approx(1.0, abs=1e-4)
        assert abs(results["throttle"][name]) < 0.5
    assert results["steering"]["error"] < 0.01
    shifted = replace(films, action=led.roll(1, 1))
    assert (
        abs(follow(Reader(2, 16, 32), shifted, shifted, shifted, ("steering", "throttle"), tmp_path)["steering"]["painted"]) < 0.5
    )
    still = replace(films, action=torch.full_like(led, 0.3))
    assert follow(Reader(2, 16, 32), still, still, still, ("steering", "throttle"), tmp_path)["steering"]["painted"] is None


def test_drift_is_nothing_for_the_recording_itself() -> None:
    frames = torch.randint(0, 256, (2, 6, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    same = drift_figures(frames, frames, features, features)
    assert same == pytest.approx({"sharpness": 0, "colour": 0, "features": 0}, abs=1e-6)
    darker = drift_figures(frames // 2, frames, features, features + 1)
    assert darker["sharpness"] == pytest.approx(torch.tensor(2.0).log().item(), abs=0.02)
    assert darker["colour"] > 30
    assert darker["features"] == pytest.approx(4.0, abs=1e-4)


def test_correlation_and_joined_clips(trained: Path) -> None:
    assert correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, -2.0, -3.0])) == pytest.approx(-1.0)
    dataset = ClipDataset(trained / "train")
    clip = joined([dataset], 100, torch.Generator().manual_seed(0))
    assert clip.frames.shape[0] == clip.action.shape[0] == 100
    with pytest.raises(ValueError, match="no clip has 50 frames, the longest has 24"):
        choose([dataset], 1, 50, torch.Generator())


def test_the_table_has_each_figure_under_its_name() -> None:
    told = {"painted": 0.91, "told otherwise": None, "action hidden": 0.12, "error": 3.4, "frames late": 2}
    drift = {"frames": 300, "colour": {"first": 1.0, "last": 2.0, "ratio": 2.0}}
    other = {name: 0.25 for name in told}
    console = Console(width=80, record=True, file=io.StringIO())
    actions = {"steering": told, "yaw_rate": other}
    print_table({"actions": actions, "distance": {"painted to recorded": 1.5}, "drift": drift}, console)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["steering", "yaw", "rate"] in lines
    for row in (["painted", "0.91", "0.25"], ["told", "otherwise", "none", "0.25"], ["action", "hidden", "0.12", "0.25"]):
        assert row in lines
    assert "drift of colour: first 1.000, last 2.000 (2.00 x)".split() in lines


def test_the_whole_way_to_a_shipped_camera(trained: Path, tmp_path: Path) -> None:
    out = run_camera_fidelity(asked(trained, tmp_path / "fidelity"))
    assert {"run.json", "actions.csv", "films.png", "film.mp4", "long_films.png", "drift.png"} <= {f.name for f in out.iterdir()}
    results = json.loads((out / "run.json").read_text())["results"]
    assert set(results["actions"]) == {"steering", "throttle"}
    assert results["vehicles"]["painted"]["count"] > 0
    assert results["drift"]["frames"] == 210
    readme = tmp_path / "README.md"
    readme.write_text(
        "<!-- shipped table: written by `worldloop card camera` -->\nold\n<!-- end of the shipped table -->\nrest\n"
    )
    card = CameraCard(trained / "run", out, tmp_path / "shipped", readme)
    run_camera_card(card)
    text = (tmp_path / "shipped" / "README.md").read_text()
    assert "Driving camera" in text
    assert "| steering |" in text
    assert "| steering |" in readme.read_text()
    assert load_camera(tmp_path / "shipped").config["appearances"] == ["day"]
    record = json.loads((out / "run.json").read_text())
    record["results"]["weights_checksum"] = 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="scored other weights"):
        run_camera_card(replace(card, fidelity=tmp_path / "other"))
    record = json.loads((out / "run.json").read_text())
    record["arguments"]["data"] = ["elsewhere/some"]
    (tmp_path / "other" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="kept its clips apart from some, the camera was trained on train"):
        run_camera_card(replace(card, fidelity=tmp_path / "other"))


def test_clips_that_do_not_fit_are_refused(trained: Path, tmp_path: Path) -> None:
    good = asked(trained, tmp_path / "out")
    with pytest.raises(ValueError, match="show frames of --data"):
        run_camera_fidelity(replace(good, validation=good.data))
    with ClipWriter(tmp_path / "plain") as writer:
        writer.add(replace(moving_square("plain/0"), action_names=("a", "b")))
    with pytest.raises(ValueError, match="import or film it so"):
        run_camera_fidelity(replace(good, validation=(str(tmp_path / "plain"),)))
