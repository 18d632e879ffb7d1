"""`worldloop fidelity`: how near a world's futures come to recorded ones, beside constant velocity and the log itself.

The ego follows its log; everyone else valid at the present is simulated six times, over 8 s or for as long as the log goes on.
Scored are the agents of `open_loop.scored_agents`. Three figures: minADE over 3 s and over the whole horizon; the share of agents
that overlap another one at some time and did not at the present; the share of vehicles whose centre leaves the road at some time
and that were on it at the present (where the map has road edges).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ..envs.measures import agent_collisions, agent_off_road, road_edges
from ..worldmodel.data import SceneDataset
from ..worldmodel.open_loop import min_average_displacement, scored_agents, simulate
from ..worldmodel.run import dated_folder, seeded_generator, whole_run, write_csv
from ..worldmodel.scene import AgentKind, Scene
from ..worldmodel.world import TEMPERATURE, TOP_P, ConstantVelocityWorld, LearnedWorld, ReplayWorld, State, World

FIGURES = ("min_ade_3s", "min_ade", "collision_rate", "off_road_rate")
"""Columns of the table, each a sum over agents divided by how many agents it holds for."""

RESAMPLES = 1000
"""Bootstrap resamples of scenes for the 95 % intervals."""


@dataclass(frozen=True)
class Fidelity:
    """Measure how near the learned world comes to recorded traffic.

    Prints a table: the learned world, constant velocity, and the log itself. Writes a run folder with run.json, summary.csv and
    scenes.csv (one row for each scene and world).

    Example: worldloop fidelity --scenes scenes/pandaset:pandaset/06* scenes/ngsim:*Peach*
    """

    scenes: tuple[str, ...]
    """Data sets, FOLDER or FOLDER:GLOB for the scenes with such ids."""
    weights: Path | None = None
    """Model folder; the shipped one if not given."""
    rollouts: int = 6
    """Futures for each scene; the best one counts for minADE."""
    horizon: int = 80
    """Steps of 0.1 s at the most; shorter where the log ends earlier."""
    temperature: float = TEMPERATURE
    """Of the learned world's sampling."""
    top_p: float = TOP_P
    """Of the learned world's sampling."""
    seed: int = 0
    """Seed of the sampling."""
    out: Path | None = None
    """Run folder, runs/fidelity-DATE if not given."""


@torch.no_grad()
def score(world: World, scene: Scene, rollouts: int, horizon: int, generator: torch.Generator) -> dict[str, float]:
    """Return sums and counts of every figure for one scene (B = 1): `<figure>_sum` and `<figure>_count`."""
    steps = min(horizon, int(ReplayWorld().horizon(scene)[0]))
    edges = road_edges(scene.repeat(rollouts))
    ever: dict[str, list[Tensor]] = {"collision": [], "off_road": []}

    def watch(state: State) -> None:
        ever["collision"].append(agent_collisions(state))
        ever["off_road"].append(agent_off_road(state, edges))

    futures = simulate(world, scene, rollouts, steps, generator, watch)
    scored = scored_agents(scene).repeat_interleave(rollouts, dim=0)
    result: dict[str, float] = {}

    def enter(name: str, values: Tensor, counted: Tensor) -> None:
        result[f"{name}_sum"] = float(values[counted].sum())
        result[f"{name}_count"] = float(counted.sum())

    enter("min_ade_3s", *min_average_displacement(futures, scene, 30))
    enter("min_ade", *min_average_displacement(futures, scene, steps))
    history = torch.stack(ever["collision"])
    enter("collision_rate", history[1:].any(0), scored & ~history[0])
    history = torch.stack(ever["off_road"])
    vehicle = scene.kind.repeat(rollouts, 1) == AgentKind.VEHICLE
    on_road = scored & ~history[0] & edges.valid.any(dim=1, keepdim=True) & vehicle
    enter("off_road_rate", history[1:].any(0), on_road)
    return result


def summarise(rows: Sequence[dict[str, float]], seed: int) -> dict[str, float | None]:
    """Return each figure over all scenes with its 95 % interval (percentile bootstrap over scenes); None where nothing counts."""
    generator = seeded_generator(seed, "bootstrap")
    drawn = torch.randint(len(rows), (RESAMPLES, len(rows)), generator=generator)
    result: dict[str, float | None] = {"scenes": len(rows)}
    for name in FIGURES:
        sums = torch.tensor([row[f"{name}_sum"] for row in rows], dtype=torch.float64)
        counts = torch.tensor([row[f"{name}_count"] for row in rows], dtype=torch.float64)
        if counts.sum() == 0:
            result |= {name: None, f"{name}_low": None, f"{name}_high": None}
            continue
        means = sums[drawn].sum(1) / counts[drawn].sum(1).clamp(min=1)
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        result |= {name: float(sums.sum() / counts.sum()), f"{name}_low": low, f"{name}_high": high}
    return result


def run_fidelity(args: Fidelity) -> None:
    """Score all worlds on all scenes with a progress bar; print the table and write the run folder."""
    if args.rollouts < 1 or args.horizon < 1:
        raise ValueError(f"found --rollouts {args.rollouts} and --horizon {args.horizon}, wanted at least 1 of each")
    sources = [SceneDataset.named(text) for text in args.scenes]
    worlds: dict[str, World] = {
        "learned": LearnedWorld.from_pretrained(args.weights, args.temperature, args.top_p),
        "constant velocity": ConstantVelocityWorld(),
        "log": ReplayWorld(),
    }
    out = args.out or dated_folder("fidelity")
    with whole_run(out, "fidelity", asdict(args), args.seed) as run:
        rows = []
        scenes = [(source, number) for source in sources for number in range(len(source))]
        for source, number in track(scenes, "scoring", console=Console(stderr=True)):
            scene = source.load(number)
            for name, world in worlds.items():
                generator = seeded_generator(args.seed, f"fidelity {scene.id[0]}")
                rollouts = 1 if name == "log" else args.rollouts
                rows.append({"scene": scene.id[0], "world": name} | score(world, scene, rollouts, args.horizon, generator))
        summary = [{"world": name} | summarise([row for row in rows if row["world"] == name], args.seed) for name in worlds]
        write_csv(run.folder / "scenes.csv", rows)
        write_csv(run.folder / "summary.csv", summary)
        run.finish({"worlds": summary})
    table = Table("world", "minADE 3 s (m)", "minADE whole (m)", "collisions", "off road", title=f"{len(scenes)} scenes")
    for row in summary:
        table.add_row(str(row["world"]), *(_cell(row, name) for name in FIGURES))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"in brackets: 95 % interval over scenes. Run record: {out}", markup=False)


def _cell(row: Mapping[str, str | float | None], name: str) -> str:
    if row[name] is None:
        return "no road edges"
    scale, unit = (100, " %") if name.endswith("rate") else (1, "")
    value, low, high = (scale * float(row[key] or 0) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.2f}{unit} [{low:.2f}, {high:.2f}]"
