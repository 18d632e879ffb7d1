"""The learned camera: its conditions, its memory, its training, and the environment that is nothing but a camera."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from cameras import TINY, moving_square, tiny
from gymnasium.utils.env_checker import check_env
from safetensors.torch import load_file, save_file
from torch import Tensor
from worldloop.envs.video import CameraEnv, CameraVectorEnv
from worldloop.worldmodel import train_camera
from worldloop.worldmodel.camera import (
    POSE_FEATURES,
    CameraModel,
    Conditions,
    Footage,
    from_bytes,
    hashed_normal,
    load_camera,
    to_bytes,
)
from worldloop.worldmodel.camera_windows import Window, roll
from worldloop.worldmodel.data.clips import ClipDataset, ClipWriter
from worldloop.worldmodel.frame_readers import LAGS, READ_FRAMES, ActionReader, frechet_distance, sharpness, train_reader
from worldloop.worldmodel.lineage import write_stages
from worldloop.worldmodel.perspective import LAYOUT_CHANNELS
from worldloop.worldmodel.train_camera import Args, drop, main, things


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for side, count in (("train", 3), ("held", 1)):
        with ClipWriter(folder / side) as writer:
            for number in range(count):
                writer.add(moving_square(f"{side}/{number}"))
    return folder


def given(model: CameraModel, count: int) -> Conditions:
    torch.manual_seed(1)
    every = torch.ones(count, dtype=torch.bool)
    shape = (model.config["layout_channels"], model.config["height"], model.config["width"])
    return Conditions(
        past=torch.randn(count, 3, *model.latent_shape),
        past_valid=torch.ones(count, 3, dtype=torch.bool),
        level=torch.full((count,), 0.1),
        layout=torch.rand(count, *shape),
        layout_valid=every,
        action=torch.randn(count, 3, 2),
        action_valid=every,
        pose=torch.rand(count, POSE_FEATURES),
        appearance=torch.arange(count) % 2,
    )


@torch.no_grad()
def test_what_is_hidden_changes_nothing() -> None:
    """And what is shown does change the frame: for each condition, the same weights without it."""
    model, some = tiny(), given(tiny(), 2)
    noise = torch.randn(2, *model.latent_shape)
    never, shown = torch.zeros(2, dtype=torch.bool), model.paint(some, noise)
    hidden = {
        "past": replace(some, past_valid=torch.zeros_like(some.past_valid)),
        "layout": replace(some, layout_valid=never),
        "action": replace(some, action_valid=never),
    }
    for name, without in hidden.items():
        painted = model.paint(without, noise)
        other = replace(without, **{name: torch.randn_like(getattr(without, name))})
        assert torch.equal(model.paint(other, noise), painted), name
        assert not torch.equal(shown, painted), name


@torch.no_grad()
def test_a_row_is_painted_as_if_it_were_alone() -> None:
    model, some = tiny(), given(tiny(), 3)
    noise = hashed_normal(torch.arange(3), torch.zeros(3, dtype=torch.int64), model.latent_shape)
    together = model.decode(model.paint(some, noise)).int()
    alone = torch.cat([model.decode(model.paint(some.take([row]), noise[row : row + 1])) for row in range(3)]).int()
    assert (together - alone).abs().max() <= 1  # sums of other batch sizes differ in their last bits


def test_latents_are_eight_bit() -> None:
    model = tiny()
    latent = torch.linspace(-5, 5, 1001)
    rounded = from_bytes(to_bytes(latent, model), model)
    assert (rounded - latent.clamp(-3, 3)).abs().max() <= 3 / 254 + 1e-6
    assert torch.equal(from_bytes(to_bytes(rounded, model), model), rounded)


def test_memory_forgets_the_oldest_and_noise_depends_on_the_key_alone() -> None:
    model = tiny()
    footage = Footage.blank(model, 2)
    assert not footage.known.any()
    for number in range(4):
        footage = footage.add(torch.full((2, *model.latent_shape), number, dtype=torch.uint8))
    assert footage.known.all()
    assert footage.code[0, :, 0, 0, 0].tolist() == [1, 2, 3]
    key, step = torch.tensor([3, 9]), torch.tensor([5, 5])
    noise = hashed_normal(key, step, (100, 100))
    assert torch.equal(hashed_normal(key[1:], step[1:], (100, 100))[0], noise[1])
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02


def test_dropping_hides_older_frames_first() -> None:
    dropped = drop(given(tiny(), 400), 2, torch.Generator().manual_seed(0))
    assert (dropped.past_valid.int().diff(dim=1) >= 0).all()  # a newer frame is known wherever an older one is
    assert 0.15 < 1 - dropped.past_valid.all(1).float().mean() < 0.4
    assert 0.05 < (dropped.appearance == 2).float().mean() < 0.2


def test_windows_pair_each_frame_with_what_led_to_it() -> None:
    model, clip = tiny(), moving_square("a/0")
    window = Window.of(model, [clip], [torch.zeros(24, *model.latent_shape, dtype=torch.uint8)])
    past = model.config["past"]
    assert torch.equal(window.action[0, :, -1], clip.action[past - 1 : -1])
    assert torch.equal(window.action[0, 5], clip.action[5 : 5 + past])
    assert clip.layout is not None
    assert torch.equal(window.layout[0], clip.layout[past:])
    assert roll(model, window, torch.tensor([1])).shape == (1, 24 - past, 16, 32, 3)


def test_a_saved_camera_paints_the_same(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "camera")
    with torch.no_grad():
        some, noise = given(model, 1), torch.randn(1, *model.latent_shape)
        assert torch.equal(load_camera(tmp_path / "camera").paint(some, noise), model.paint(some, noise))
    with pytest.raises(ValueError, match="no learned camera can be read"):
        load_camera(tmp_path / "nothing")
    weights = next((tmp_path / "camera").glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if "condition_encoder" not in name}, weights)
    with pytest.raises(ValueError, match="do not belong together"):
        load_camera(tmp_path / "camera")
    save_file(tensors, weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no learned camera can be read"):
        load_camera(tmp_path / "camera")


def test_what_cannot_be_a_camera_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        CameraModel(60, 128)
    with pytest.raises(ValueError, match="as many"):
        CameraModel(64, 128, actions=("steering",))


def args(clips: Path, out: Path, **more: object) -> Args:
    short = {"autoencoder_steps": 3, "steps": 6, "batch": 2, "evaluate_every": 4, "model": TINY, "bfloat16": False}
    return Args(data=(str(clips / "train"),), validation=(str(clips / "held"),), out=out, **{**short, **more})  # pyright: ignore


def test_errors_count_more_where_things_are() -> None:
    layout = torch.zeros(1, 8, 8, 2, dtype=torch.uint8)
    layout[0, :4, :2, 1], layout[..., 0] = 255, 255  # a vehicle on half of one latent pixel, road everywhere
    assert things(layout, ("road", "vehicle")).tolist() == [[[0.5, 0.0], [0.0, 0.0]]]
    assert things(layout[..., :0], ()).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_training_resumes_to_the_same_weights(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_camera, "SAVE_EVERY", 1)
    whole = main(args(clips, tmp_path / "whole"))
    assert {"frames.png", "learning_curves.png", "metrics.jsonl", "model"} <= {f.name for f in whole.parent.iterdir()}
    part = args(clips, tmp_path / "part")

    class Killed(Exception): ...

    def killed(*_: object) -> float:
        raise Killed

    learn, taken = train_camera.Trainer.learn, 0

    def five(self: train_camera.Trainer, loss: object) -> float:
        nonlocal taken
        taken += 1
        return learn(self, loss) if taken <= 5 else killed()  # pyright: ignore

    with monkeypatch.context() as patch:
        patch.setattr(train_camera.Trainer, "learn", five)
        with pytest.raises(Killed):
            main(part)
    again = main(replace(part, resume=True))
    name = "diffusion_pytorch_model.safetensors"
    assert (again / name).read_bytes() == (whole / name).read_bytes()
    assert load_camera(again).config["latent_scale"] == load_camera(whole).config["latent_scale"]


def test_a_kill_while_saving_loses_nothing(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the checkpoint and before the model's files, at every one of the first saves of the second stage."""
    monkeypatch.setattr(train_camera, "SAVE_EVERY", 1)
    whole = main(args(clips, tmp_path / "whole"))
    save, part, saves = CameraModel.save_pretrained, args(clips, tmp_path / "part"), 0

    class Killed(Exception): ...

    def killed(self: CameraModel, *more: object) -> None:
        nonlocal saves
        saves += 1
        if saves in (3, 5):
            raise Killed
        save(self, *more)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(CameraModel, "save_pretrained", killed)
        for resume in (False, True):
            with pytest.raises(Killed):
                main(replace(part, resume=resume))
    again = main(replace(part, resume=True))
    name = "diffusion_pytorch_model.safetensors"
    assert (again / name).read_bytes() == (whole / name).read_bytes()


def test_training_refuses_what_does_not_fit(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="show frames of --data"):
        main(replace(args(clips, tmp_path / "a"), validation=(str(clips / "train:train/0"),)))
    with ClipWriter(tmp_path / "again") as writer:
        writer.add(replace(moving_square("train/7"), id="train/7"))  # the same recording's frames under another number
    with pytest.raises(ValueError, match="show frames of --data, such as train/7"):
        main(replace(args(clips, tmp_path / "a"), validation=(str(tmp_path / "again"),)))
    with ClipWriter(tmp_path / "plain") as writer:
        writer.add(moving_square("plain/0", layouts=False))
    with pytest.raises(ValueError, match="differ in height, width, rate, actions or layouts"):
        main(replace(args(clips, tmp_path / "b"), validation=(str(tmp_path / "plain"),)))
    with pytest.raises(ValueError, match="at least 1"):
        main(args(clips, tmp_path / "c", steps=0))
    with pytest.raises(ValueError, match="--model widht: no such size"):
        main(args(clips, tmp_path / "c", model={"widht": 3}))
    with ClipWriter(tmp_path / "short") as writer:
        writer.add(moving_square("short/0", frames=7))
    with pytest.raises(ValueError, match="no clip has 16 frames, the longest has 7"):
        main(replace(args(clips, tmp_path / "d"), data=(str(tmp_path / "short"),)))
    tiny().save_pretrained(tmp_path / "model")
    write_stages(tmp_path / "model", [], {"data": ["elsewhere"], "validation": []})
    with ClipWriter(tmp_path / "swapped") as writer:
        writer.add(replace(moving_square("swapped/0"), action_names=("throttle", "steering")))
    with ClipWriter(tmp_path / "swapped_held") as writer:
        writer.add(replace(moving_square("other/0"), action_names=("throttle", "steering")))
    swapped = replace(args(clips, tmp_path / "e", model={}), data=(str(tmp_path / "swapped"),), start_from=tmp_path / "model")
    with pytest.raises(ValueError, match="import or film it so"):
        main(replace(swapped, validation=(str(tmp_path / "swapped_held"),)))


def test_a_camera_that_does_not_say_what_it_was_trained_on_is_no_start(clips: Path, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "mute")
    with pytest.raises(ValueError, match=r"mute: holds no training\.json, so nobody can say what it was trained on"):
        main(replace(args(clips, tmp_path / "run", model={}), start_from=tmp_path / "mute"))
    assert not (tmp_path / "run").exists()


def test_a_camera_with_layouts_goes_on_to_learn_from_clips_without(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "model")
    write_stages(tmp_path / "model", [], {"data": ["elsewhere"], "validation": []})
    for name in ("train", "held"):
        with ClipWriter(tmp_path / name) as writer:
            writer.add(moving_square(f"{name}/0", layouts=False))
    asked = replace(args(tmp_path, tmp_path / "run", model={}), start_from=tmp_path / "model")
    assert load_camera(main(asked)).config["layout_channels"] == len(LAYOUT_CHANNELS)


def test_the_reader_learns_what_moved_the_square(clips: Path) -> None:
    """Inverse dynamics of a square that steering moves by 4 pixels."""
    dataset = ClipDataset(clips / "train")

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return dataset.sample(generator, 16, READ_FRAMES)

    torch.manual_seed(0)
    reader, generator = ActionReader(2, 16, 32), torch.Generator().manual_seed(0)
    train_reader(reader, batch, 400, generator, lambda: None)
    frames, action = batch(generator)
    for lag in range(LAGS):
        read, done = reader(frames)[:, lag, 0], action[:, READ_FRAMES - 2 - lag, 0]
        assert torch.corrcoef(torch.stack((read, done)))[0, 1] > 0.8, lag


def test_figures_by_hand() -> None:
    """Fréchet: means 3 apart and deviations 1 and 2 give 9 + 1 + 4 - 2 * 2 = 10 in each independent dimension."""
    values = torch.tensor([[-1.0], [1.0]]).repeat(50, 1) * math.sqrt(99 / 100)
    assert frechet_distance(values, 3 + 2 * values) == pytest.approx(10.0, abs=1e-3)
    assert frechet_distance(values, values) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(values[:1], values)
    flat = torch.full((1, 5, 5, 3), 7, dtype=torch.uint8)
    dotted = flat.clone()
    dotted[0, 2, 2] = 16  # Laplacian: -36 there and 9 at its four neighbours, over 9 pixels
    assert sharpness(flat).item() == 0
    assert sharpness(dotted).item() == pytest.approx(72 / 9)


def test_the_camera_environment_keeps_gymnasiums_contract(tmp_path: Path) -> None:
    model = tiny(layouts=0)
    check_env(CameraEnv(model, horizon=3), skip_render_check=True)
    with ClipWriter(tmp_path / "clips") as writer:
        writer.add(moving_square("plain/0", layouts=False))
    env = CameraEnv(model, tmp_path / "clips", horizon=3, render_mode="rgb_array")
    seen, info = env.reset(seed=1, options={"clip": ("plain/0", 4)})
    assert np.array_equal(seen, moving_square("plain/0").frames[4 + model.config["past"] - 1].numpy())
    assert info == {"steps": 0, "clip": "plain/0"}
    with pytest.raises(ValueError, match="wanted 1 within"):
        env.step(np.array([5.0, 0.0], np.float32))
    frames = [env.step(np.array([0.5, 0.5], np.float32)) for _ in range(3)]
    assert [frame[3] for frame in frames] == [False, False, True]
    assert np.array_equal(env.render(), frames[-1][0])
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array([0.5, 0.5], np.float32))
    with pytest.raises(ValueError, match="no recordings"):
        CameraEnv(model).reset(options={"clip": "plain/0"})
    with pytest.raises(ValueError, match="import or film it so"):
        CameraEnv(CameraModel(16, 16, channels=(16, 16, 32), **TINY), tmp_path / "clips")


def test_a_row_of_the_vector_environment_is_the_single_one() -> None:
    model = tiny(layouts=0)
    many, one = CameraVectorEnv(3, model, horizon=2), CameraEnv(model, horizon=2)
    action = np.array([0.3, 0.2], np.float32)
    first, _ = many.reset(seed=5)
    single, _ = one.reset(seed=6)
    assert np.abs(first[1].astype(int) - single).max() <= 1
    for _ in range(2):
        seen, _, _, truncated, info = many.step(np.stack([action] * 3))
        single = one.step(action)[0]
    assert truncated.all()
    assert np.abs(info["final_obs"][1].astype(int) - single).max() <= 1
    assert not np.array_equal(seen, np.stack(list(info["final_obs"])))
    fresh = CameraVectorEnv(3, model)
    with pytest.raises(ValueError, match="at least one True"):
        fresh.reset(options={"reset_mask": np.zeros(3, dtype=bool)})
    with pytest.raises(ValueError, match="found a list of 2"):
        fresh.reset(seed=[1, 2])
    fresh.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(gymnasium.error.ResetNeeded):
        fresh.step(np.stack([action] * 3))
