import json
from dataclasses import asdict, replace

import pytest
import torch
from models import tiny_model
from safetensors.torch import load_file
from scenes import CONE, EGO, moved, straight_road, uneven
from worldloop.worldmodel.checkpoint import use_bfloat16
from worldloop.worldmodel.data.shards import SceneDataset
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.lineage import read_stages
from worldloop.worldmodel.run import read_metrics, start_run
from worldloop.worldmodel.scene import AgentKind, PolylineKind, Scene, stack
from worldloop.worldmodel.train_behavior import Args, Trainer, agents_of, crop, main, mirror, self_driven, signals_of

SIZES = {"width": 16, "heads": 2, "layers": 1, "hidden": 16, "pair_width": 4, "window": 2, "map_neighbours": 4}


def write(folder, names, only_cars=False):
    with ShardWriter(folder) as writer:
        for number, name in enumerate(names):
            scene = uneven(straight_road(name, ego_speed=6.0 + number), ord(name[5]) - 97)
            kind = scene.kind.clone()
            kind[0, 4] = AgentKind.CYCLIST
            kind = torch.full_like(kind, AgentKind.VEHICLE) if only_cars else kind
            writer.add(moved(replace(scene, kind=kind), 0.4 * number, (5.0, 3.0 + 40 * ord(name[5]))), source="hand")
    return str(folder)


def crop_all(scenes: Scene) -> Scene:
    """Return scenes as training draws them: whole, but without lane links."""
    return stack([crop(scenes.take([row]), 0, scenes.steps, 99, 99) for row in range(len(scenes))])


@pytest.fixture
def args(tmp_path):
    data, held = write(tmp_path / "train", ["hand/a", "hand/b"]), write(tmp_path / "held", ["hand/c"])
    short = {"steps": 4, "batch": 2, "decisions": 4, "agents": 6, "evaluate_every": 2, "vehicle_tokens": 40, "other_tokens": 20}
    return Args(data=(data,), validation=(held,), out=tmp_path / "run", model=SIZES, **short)


def test_a_killed_training_goes_on_to_the_same_weights(args, tmp_path, monkeypatch):
    whole = main(args)
    weights = (whole / "model.safetensors").read_bytes()
    assert {"metrics.jsonl", "learning_curves.png", "checkpoint.safetensors", "run.json"} <= {f.name for f in args.out.iterdir()}
    assert json.loads((args.out / "run.json").read_text())["results"]["optimiser_steps"] == 4

    class Killed(Exception):
        pass

    learn = Trainer.learn

    def learn_until_killed(self, scene):
        if self.step == 3:
            raise Killed
        return learn(self, scene)

    again = replace(args, out=tmp_path / "killed")
    monkeypatch.setattr(Trainer, "learn", learn_until_killed)
    with pytest.raises(Killed):
        main(again)
    monkeypatch.setattr(Trainer, "learn", learn)
    assert (main(replace(again, resume=True)) / "model.safetensors").read_bytes() == weights


def test_a_resumed_training_may_end_at_another_step_and_says_so(args):
    main(args)
    main(replace(args, resume=True, steps=6))
    record = json.loads((args.out / "run.json").read_text())
    assert record["arguments"]["steps"] == record["results"]["optimiser_steps"] == 6
    with pytest.raises(ValueError, match="is at step 6 already, found --steps 5"):
        main(replace(args, resume=True, steps=5))
    with pytest.raises(FileExistsError, match="go on with it by --resume"):
        main(args)


def test_fine_tuning_lets_the_model_drive_and_keeps_its_vocabulary(args, tmp_path):
    first = main(args)
    tuned = replace(args, start_from=first, model={}, closed_loop=8, learning_rate=1e-4, out=tmp_path / "tuned")
    second = main(tuned)
    assert (second / "vocabulary.safetensors").read_bytes() == (first / "vocabulary.safetensors").read_bytes()
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    change = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert 0 < change < 0.01  # begun from those weights, and not from others
    stages = read_stages(second)
    assert [stage["optimiser_steps"] for stage in stages] == [4, 4]
    assert [stage["arguments"]["closed_loop"] for stage in stages] == [0, 8]
    assert stages[0]["arguments"]["data"] == ["train"]  # no folders of this machine
    assert stages[1]["validation_loss"] == read_metrics(tuned.out)[-1]["validation_loss"]
    with pytest.raises(ValueError, match="both --start-from and --model"):
        main(replace(tuned, model=SIZES, out=tmp_path / "other"))


def test_fine_tuning_neither_validates_on_what_was_trained_on_nor_the_reverse(args, tmp_path):
    first = main(args)
    tuned = replace(args, start_from=first, model={}, out=tmp_path / "tuned")
    other = write(tmp_path / "other", ["hand/e"])
    with pytest.raises(ValueError, match="2 scenes, .* of --validation are what the weights of --start-from were trained on"):
        main(replace(tuned, data=(other,), validation=args.data))
    with pytest.raises(ValueError, match="1 scenes, .* of --data were held out when the weights of --start-from were trained"):
        main(replace(tuned, data=args.validation, validation=(other,)))
    assert not tuned.out.exists()


def test_a_copy_of_a_held_out_scene_is_not_trained_on(args, tmp_path):
    with ShardWriter(tmp_path / "copied") as writer:
        writer.add(replace(SceneDataset(args.validation[0]).load(0), id=("hand/other",)), source="hand")
    with pytest.raises(
        ValueError, match="1 scenes of --validation show the same recorded moments .* such as hand/c and hand/other"
    ):
        main(replace(args, data=(*args.data, str(tmp_path / "copied"))))


def test_a_self_driven_track_follows_the_model_and_learns_the_way_back(monkeypatch):
    scene, model, heard = straight_road(), tiny_model(), []
    advance = model.advance
    monkeypatch.setattr(model, "advance", lambda agents, *rest: heard.append(agents.velocity) or advance(agents, *rest))
    alone = model.vocabulary.encode(scene, 0, self_driven(model, scene, 0, 1))
    assert torch.equal(torch.cat(heard, 2), alone.velocity[:, :, :-1]), "off the log, the log's velocities say nothing"
    every = model.vocabulary.encode(scene, 0, self_driven(model, scene, 0, len(model.vocabulary)))
    assert torch.equal(every.pose, model.vocabulary.encode(scene).pose)  # free to take any token, it keeps to the log
    gap = (alone.pose - every.pose)[0, 1, :, :2].norm(dim=-1)
    assert gap[0] == 0
    assert gap[-1] > 1
    # One at a time from the tracks it has driven, the model chooses what it chose while it drove.
    at = torch.arange(0, scene.steps, 5)
    features, _ = model.advance(agents_of(scene, alone), signals_of(scene, at), model.encode_map(scene), model.empty_cache(scene))
    likeliest = model.head(features, scene.kind[..., None].expand(alone.pose.shape[:3])).argmax(-1)[0, 1, :-1]
    reached = model.vocabulary.decode(likeliest, alone.pose[0, 1, :-1])[:, -1, :2]
    assert torch.allclose(reached, alone.pose[0, 1, 1:, :2], atol=1e-3)


def test_an_interrupted_training_says_so_and_no_steps_are_refused(args, monkeypatch, capsys):
    def interrupt(self, scene):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "learn", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(args)
    assert json.loads((args.out / "run.json").read_text())["status"] == "interrupted"
    assert "--resume" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="go on with it by --resume"):
        main(args)
    with pytest.raises(ValueError, match="--steps: found 0"):
        main(replace(args, steps=0))


def test_scenes_in_both_sets_are_refused(args):
    with pytest.raises(ValueError, match="in both --data and --validation"):
        main(replace(args, validation=args.data))


def test_what_was_made_of_a_held_out_scene_is_not_trained_on(args, tmp_path):
    made = write(tmp_path / "made", ["hand/c#hard_brake", "hand/d"])
    with pytest.raises(ValueError, match="1 scenes, or copies or what was made of them, .* such as hand/c$"):
        main(replace(args, data=(*args.data, made)))


def test_an_unknown_size_and_a_missing_checkpoint_are_named(args):
    with pytest.raises(ValueError, match="no such size"):
        main(replace(args, model={"colour": 3}, out=args.out / "other"))
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        main(replace(args, resume=True, out=args.out / "nowhere"))
    assert not args.out.exists()


def test_a_training_killed_before_its_first_checkpoint_begins_again(args, tmp_path):
    whole = main(args)
    killed = replace(args, out=tmp_path / "killed", bfloat16=use_bfloat16(None))
    start_run(killed.out, "train behavior", json.loads(json.dumps(asdict(killed), default=str)), 0)
    again = main(replace(killed, resume=True))
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"was started with learning_rate 0\.001, found 5"):
        main(replace(killed, resume=True, learning_rate=5))


def test_bad_data_leave_no_run_folder_behind(args):
    with pytest.raises(ValueError, match="no motion of kind"):
        main(replace(args, data=(write(args.out.parent / "cars", ["hand/d"], only_cars=True),)))
    assert not args.out.exists()


def test_a_crop_keeps_the_ego_first_and_the_nearest_of_the_chosen_middle():
    scene = straight_road()
    window = crop(scene, 5, 30, agents=3, polylines=2, middle=CONE)
    assert window.validate().sizes() | {"P": 0} == {"B": 1, "A": 3, "T": 30, "L": 2, "P": 0, "E": 0, "S": 1, "R": 101}
    assert torch.equal(window.position[0, 0], scene.position[0, EGO, 5:35])
    assert AgentKind.OBJECT in window.kind


def test_a_mirrored_scene_is_valid_and_its_mirror_is_itself():
    scene = stack([straight_road("hand/1"), moved(straight_road("hand/2"), 0.5, (1.0, 2.0))])
    scene = crop_all(scene)
    twice = mirror(mirror(scene))
    assert torch.equal(twice.polyline, scene.polyline)
    assert torch.equal(twice.heading, scene.heading)
    once = mirror(scene).validate()
    assert torch.equal(once.velocity[..., 1], -scene.velocity[..., 1])
    edges = once.polyline_kind == PolylineKind.ROAD_EDGE
    assert edges.any()
    place = once.position[:, EGO, 0, :2]
    for row in range(len(once)):
        lines, valid = once.polyline[row][edges[row]][..., :2], once.polyline_valid[row][edges[row]]
        for line, known in zip(lines, valid, strict=True):
            start, end = line[0], line[known][-1]
            left = (end - start)[0] * (place[row] - start)[1] - (end - start)[1] * (place[row] - start)[0]
            assert left > 0  # the road lies on the left of its edges still
    with pytest.raises(ValueError, match="found lane links"):
        mirror(straight_road())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"batch": 0}, "--batch: found 0"),
        ({"noise": 0}, "--noise 0"),
        ({"closed_loop": -3}, "--closed-loop -3"),
        ({"closed_loop": 4}, "wanted --start-from with it"),
        ({"average": 2.0}, "--average: found 2.0"),
        ({"learning_rate": 0.0}, "--learning-rate: found 0.0"),
    ],
)
def test_numbers_that_no_training_can_have_leave_no_folder(tmp_path, wrong, told):
    path = tmp_path / "scenes"
    with ShardWriter(path) as writer:
        writer.add(straight_road())
    args = Args(data=(str(path),), validation=(str(path),), out=tmp_path / "run")
    with pytest.raises(ValueError, match=told):
        main(replace(args, **wrong))
    for weight in ("-1", "0", "nan"):
        with pytest.raises(ValueError, match="wanted a number above 0"):
            main(replace(args, data=(f"{path}={weight}",)))
    assert not args.out.exists()
