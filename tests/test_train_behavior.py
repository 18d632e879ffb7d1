import json
from dataclasses import replace

import pytest
import torch
from scenes import CONE, EGO, moved, straight_road
from worldloop.worldmodel.data.shards import ShardWriter
from worldloop.worldmodel.scene import AgentKind, stack
from worldloop.worldmodel.train_behavior import Args, crop, main, mirror

SIZES = {"width": 16, "heads": 2, "layers": 1, "hidden": 16, "pair_width": 4, "window": 2, "map_neighbours": 4}


def write(folder, names):
    with ShardWriter(folder) as writer:
        for number, name in enumerate(names):
            scene = straight_road(name, ego_speed=6.0 + number)
            kind = scene.kind.clone()
            kind[0, 4] = AgentKind.CYCLIST
            writer.add(moved(replace(scene, kind=kind), 0.4 * number, (5.0, 3.0)), source="hand")
    return str(folder)


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

    from worldloop.worldmodel.train_behavior import Trainer

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


def test_scenes_in_both_sets_are_refused(args):
    with pytest.raises(ValueError, match="in both --data and --validation"):
        main(replace(args, validation=args.data))


def test_an_unknown_size_and_a_missing_checkpoint_are_named(args):
    with pytest.raises(ValueError, match="no such size"):
        main(replace(args, model={"colour": 3}, out=args.out / "other"))
    with pytest.raises(ValueError, match=r"vocabulary\.safetensors"):
        main(replace(args, resume=True, out=args.out / "nowhere"))


def test_a_crop_keeps_the_ego_first_and_the_nearest_of_the_chosen_middle():
    scene = straight_road()
    window = crop(scene, 5, 30, agents=3, polylines=2, middle=CONE)
    assert window.validate().sizes() | {"P": 0} == {"B": 1, "A": 3, "T": 30, "L": 2, "P": 0, "E": 0, "S": 1, "R": 101}
    assert torch.equal(window.position[0, 0], scene.position[0, EGO, 5:35])
    assert AgentKind.OBJECT in window.kind


def test_a_mirrored_scene_is_valid_and_its_mirror_is_itself():
    scene = stack([straight_road("hand/1"), moved(straight_road("hand/2"), 0.5, (1.0, 2.0))])
    twice = mirror(mirror(scene))
    assert torch.equal(twice.polyline, scene.polyline)
    assert torch.equal(twice.heading, scene.heading)
    once = mirror(scene).validate()
    assert torch.equal(once.velocity[..., 1], -scene.velocity[..., 1])
