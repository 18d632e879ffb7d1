"""`worldloop counterfactual`: do others answer what the ego does, and only those whom it concerns, as in the reference world?

From the present of every scene the ego is made to do something else than in its log (`interventions.py`), with the same motion
in the learned world and in SUMO. What an agent then does differently is held against the branch in which the ego keeps its
course, with the same random keys. SUMO has no chance in it: the kept branch is driven twice, and a difference is an error. Yet
some decisions in it (who goes first) hang on centimetres; an agent that changes as soon as the ego drives half a metre ahead of
its course answers no intervention and is counted as unsteady instead. Signals are those of the log in both worlds. Figures, each
pooled over scenes:

- sign agreement: the share of the agents affected in SUMO that go slower, the same way, or faster in the learned world as in SUMO
  (by their travelled distance; in the learned world the mean over the futures);
- of the agents that are unaffected in SUMO: how far the intervention moves them in the learned world, how far another random key
  does, and the energy distance of their futures in both branches as a share of its largest value;
- of the one who follows the ego: how often it collides with the ego, how long it takes to answer, how near it comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ..envs.reactions import (
    AFFECTED,
    SAME,
    UNAFFECTED,
    common_steps,
    held_speed,
    mean_change,
    other_key_distance,
    path_change,
    response_delay,
    response_sign,
    travelled,
)
from ..renderers.reactions import Answer, draw_answer
from ..worldmodel.data.recordings import moments, recordings
from ..worldmodel.data.shards import SceneDataset
from ..worldmodel.files import write_csv
from ..worldmodel.open_loop import Trace, force_ego
from ..worldmodel.run import dated_folder, require_free, seeded_generator, whole_run
from ..worldmodel.scene import TIME_STEP, AgentKind, Scene
from ..worldmodel.shipped import model_folder
from ..worldmodel.uncertainty import weights_checksum
from ..worldmodel.world import EPSILON, TEMPERATURE, LearnedWorld, World, random_keys
from .bootstrap import by_recording, cell, counted, interval, resampled
from .failures import Failures
from .interventions import INTERVENTIONS, KEEP, Intervention, Plan, plan_interventions
from .rollout import SCENE_ERRORS, open_scenes

LEARNED, REFERENCE = "learned", "sumo"

NUDGE = 0.5
"""Metres ahead of its course at which the ego drives in the branch that shows who is unsteady."""

FIGURES = {
    "sign_agreement": ("agreeing", "affected"),
    "unaffected_change": ("change", "unaffected"),
    "unaffected_chance": ("chance", "unaffected"),
    "unaffected_energy": ("energy", "cross"),
    "follower_collision_rate": ("collisions", "followers"),
    "follower_answers": ("answers", "followers"),
    "response_delay": ("delay", "answers"),
    "minimum_gap": ("gap", "followers"),
}
"""Figures of the summary, each a sum over cases over another sum, with the ends of its 95 % interval as `_low` and `_high`."""

COUNTS = ("affected", "slower", "same", "faster", "unaffected", "unsteady", "followers")
ALL = "all"


@dataclass(frozen=True)
class Counterfactual:
    """Force the ego to do something else, and see whether others answer as they do in SUMO.

    Prints a table and writes a run folder with run.json, summary.csv (a row for each intervention and world), cases.csv (one for
    each scene, intervention and world), responses.csv (one for each affected agent), failures.csv if any, and a picture for each
    intervention. Scenes must come from `worldloop data generate`, as the shipped ones do; needs pip install "worldloop[sumo]".

    Example: worldloop counterfactual --scenes scenes/made --interventions hard_brake cut_in --out runs/counterfactual
    """

    scenes: str = "demo"
    """Folder of a data set, FOLDER:GLOB for some of its scenes by id, or demo for the shipped ones."""
    interventions: tuple[Intervention, ...] = INTERVENTIONS
    """What the ego is made to do; from a scene in which it cannot be done it is left out."""
    world: Literal["both", "learned"] = "both"
    """learned: without the reference, so without saying who is affected; works on recordings and needs no SUMO."""
    rollouts: int = 8
    """Futures of each branch in the learned world."""
    horizon: float = 6.0
    """Seconds after the present; logs have to be so long."""
    temperature: float = TEMPERATURE
    """Of the learned world's sampling."""
    epsilon: float = EPSILON
    """Of the learned world's sampling: motions less likely than this are not drawn."""
    seed: int = 0
    """Seed of the sampling."""
    weights: Path | None = None
    """Folder of a trained behaviour model, instead of the shipped one, or small or large."""
    limit: int | None = None
    """Take only so many of the scenes, the first ones."""
    out: Path | None = None
    """Run folder, runs/counterfactual-DATE if not given."""


Row = dict[str, Any]
Branches = dict[str, dict[str, Trace]]
"""Traces by world and branch."""


@dataclass(frozen=True)
class Case:
    """One scene in all branches and worlds: `steady` (A,) says who counts, `present` (A,) who is there and is not the ego."""

    scene: Scene
    plan: Plan
    traces: Branches
    present: Tensor
    steady: Tensor


def run_counterfactual(args: Counterfactual) -> int:
    """Run `worldloop counterfactual`; return the exit code, 1 if a scenario failed.

    Raises:
        ValueError: an argument is out of range, no scene has a recipe, or nothing could be intervened in.
        MissingDependencyError: SUMO is not installed, and asked for.
    """
    out = args.out or dated_folder("counterfactual")
    require_free(out)
    steps = round(args.horizon / TIME_STEP)
    if args.rollouts < 2 or steps < 1 or not args.interventions:
        raise ValueError(
            f"found --rollouts {args.rollouts}, --horizon {args.horizon:g} and {len(args.interventions)} interventions: "
            "wanted at least 2 rollouts, 0.1 s and one intervention"
        )
    scenes = open_scenes(args.scenes)
    scenes = scenes if args.limit is None else scenes.first(args.limit)
    failures = Failures()
    rows, responses, refused, places = [], [], [], {}
    shown: dict[str, tuple[float, Answer]] = {}
    with ExitStack() as stack, whole_run(out, "counterfactual", asdict(args), args.seed) as run:
        worlds = _open_worlds(args, scenes, steps, stack)
        for number in track(range(len(scenes)), "intervening", console=Console(stderr=True)):
            try:
                case = run_case(scenes.load(number), args, worlds, steps)
            except SCENE_ERRORS as error:
                failures.note(scenes.ids[number], error)
                continue
            rows += case_rows(case)
            places[case.scene.id[0]] = moments(case.scene)
            responses += response_rows(case)
            refused += [{"intervention": name, "why": why} for name, why in case.plan.refused.items()]
            _keep_best(shown, case)
        failures.refuse_all(len(scenes))
        if all(row["intervention"] == KEEP for row in rows):
            raise ValueError(
                f"none of the {len(scenes)} scenes lets the ego do what was asked for: take other scenes or interventions"
            )
        failures.write(run.folder)
        recording = dict(zip(places, recordings(list(places.values())), strict=True))
        summary = summarise([row | {"recording": recording[row["scene"]]} for row in rows], args.seed)
        for name, content in (("summary", summary), ("cases", rows), ("responses", responses)):
            write_csv(run.folder / f"{name}.csv", content)
        for name, (_, answer) in shown.items():
            draw_answer(run.folder / f"{name}.png", answer)
        results = {"scenes": len(scenes), "failed": len(failures), "figures": summary}
        results |= {"thresholds_m": {"affected": AFFECTED, "unaffected": UNAFFECTED, "same": SAME, "nudge": NUDGE}}
        results["left_out"] = {
            name: {why: sum(row == {"intervention": name, "why": why} for row in refused) for why in sorted(reasons)}
            for name in args.interventions
            if (reasons := {row["why"] for row in refused if row["intervention"] == name})
        }
        results["weights_checksum"] = weights_checksum(model_folder(args.weights))
        run.finish(results)
    _print_tables(results, out)
    return failures.tell()


def _open_worlds(args: Counterfactual, scenes: SceneDataset, steps: int, stack: ExitStack) -> dict[str, World]:
    worlds: dict[str, World] = {LEARNED: LearnedWorld.from_pretrained(args.weights, args.temperature, args.epsilon)}
    if args.world == "both":
        without = sum(not entry["recipe"] for entry in scenes.entries)
        if without:
            raise ValueError(
                f"--scenes {args.scenes}: {without} of the {len(scenes)} scenes were not made by `worldloop data generate`: SUMO "
                "cannot drive them; choose others with FOLDER:GLOB, or take --world learned, which does without the reference"
            )
        from ..worldmodel.sumo_world import SumoWorld

        worlds[REFERENCE] = stack.enter_context(SumoWorld(steps=steps))
    return worlds


def run_case(scene: Scene, args: Counterfactual, worlds: Mapping[str, World], steps: int) -> Case:
    """Drive all branches of a scene (B = 1) in all worlds, one after another.

    Raises:
        ValueError: the log is too short, or a world does not repeat itself.
    """
    plan = plan_interventions(scene, args.interventions, steps)
    keys = random_keys(seeded_generator(args.seed, f"counterfactual {scene.id[0]}"), args.rollouts)
    traces: Branches = {}
    steady = torch.ones_like(scene.valid[0, :, 0])
    for name, world in worlds.items():
        own = keys if name == LEARNED else keys[:1]
        motions = {branch: plan.motion.map(lambda tensor, at=at: tensor[at]) for at, branch in enumerate(plan.branches)}
        found = {branch: force_ego(world, scene, motion, own) for branch, motion in motions.items()}
        again = force_ego(world, scene, motions[KEEP], own)
        if not torch.equal(again.position, found[KEEP].position) or not torch.equal(again.valid, found[KEEP].valid):
            raise ValueError(f"{scene.id[0]}: the {name} world gave other futures for the same keys and the same ego")
        if name == REFERENCE:
            kept = motions[KEEP]
            ahead = torch.stack((kept.heading.cos(), kept.heading.sin(), torch.zeros_like(kept.heading)), dim=-1)
            nudged = force_ego(world, scene, replace(kept, position=kept.position + NUDGE * ahead), own)
            steady = path_change(nudged, found[KEEP])[0] <= AFFECTED
        traces[name] = found
    present = traces[LEARNED][KEEP].valid[0, :, 0] & (scene.kind[0] != AgentKind.OBJECT)
    present[int(scene.ego)] = False
    return Case(scene, plan, traces, present, steady)


def affected_agents(case: Case, branch: str) -> tuple[Tensor, Tensor]:
    """Return who (A,) is affected by an intervention in the reference world, and who is not; the unsteady are neither."""
    change = path_change(case.traces[REFERENCE][branch], case.traces[REFERENCE][KEEP])[0]
    counts = case.present & case.steady
    return counts & (change > AFFECTED), counts & (change <= UNAFFECTED)


def responses(case: Case, branch: str) -> dict[str, Tensor]:
    """Return by world the change (S, A) of travelled distance in metres, as long as the reference has the agent."""
    reference = case.traces[REFERENCE]
    steps = common_steps(reference[branch], reference[KEEP])[0]
    return {world: travelled(of[branch], steps) - travelled(of[KEEP], steps) for world, of in case.traces.items()}


def case_rows(case: Case) -> Iterator[Row]:
    """Yield a row for each branch and world: counts, and the sums that figures are made of."""
    for number, branch in enumerate(case.plan.branches):
        for world, traces in case.traces.items():
            row: Row = {"scene": case.scene.id[0], "intervention": branch, "world": world}
            row |= dict.fromkeys((*COUNTS, *(name for pair in FIGURES.values() for name in pair)), 0.0)
            if branch != KEEP and REFERENCE in case.traces:
                row |= _agent_sums(case, branch, world)
            if (place := case.plan.follower[number]) is not None and bool(case.present[place]):
                row |= _follower_sums(case.scene, traces[branch], traces[KEEP], place)
            yield row


def _agent_sums(case: Case, branch: str, world: str) -> Row:
    affected, unaffected = affected_agents(case, branch)
    change = responses(case, branch)
    sign = response_sign(change[world].mean(0))[affected]
    row: Row = {"affected": int(affected.sum()), "unaffected": int(unaffected.sum())}
    row |= {"unsteady": int((case.present & ~case.steady).sum())}
    row |= {name: int((sign == value).sum()) for name, value in (("slower", -1), ("same", 0), ("faster", 1))}
    row["agreeing"] = int((sign == response_sign(change[REFERENCE][0])[affected]).sum())
    moved, kept = case.traces[world][branch], case.traces[world][KEEP]
    row["change"] = float(mean_change(moved, kept).mean(0)[unaffected].sum())
    if world == LEARNED:
        pairs = ((kept, kept), (moved, moved), (moved, kept))
        chance, after, cross = (other_key_distance(*pair)[unaffected].sum() for pair in pairs)
        row |= {"chance": float(chance), "cross": float(2 * cross), "energy": float(2 * cross - chance - after)}
    return row


def _follower_sums(scene: Scene, moved: Trace, kept: Trace, place: int) -> Row:
    nearest = moved.gap(scene.size[0], int(scene.ego), place).amin(-1)
    delay = response_delay(*(held_speed(trace, moved, kept)[:, place] for trace in (moved, kept)))
    answers = delay.isfinite()
    return {
        "followers": 1,
        "collisions": float((nearest == 0).float().mean()),
        "answers": float(answers.float().mean()),
        "delay": float(torch.where(answers, delay, 0.0).mean()),
        "gap": float(nearest.mean()),
    }


def response_rows(case: Case) -> Iterator[Row]:
    """Yield a row for each agent affected in the reference world: what it does there, and in the learned world."""
    if REFERENCE not in case.traces:
        return
    for branch in case.plan.branches[1:]:
        change, follower = responses(case, branch), case.plan.follower[case.plan.branches.index(branch)]
        for agent in affected_agents(case, branch)[0].nonzero()[:, 0].tolist():
            found = change[LEARNED][:, agent]
            yield {
                "scene": case.scene.id[0],
                "intervention": branch,
                "agent": agent,
                "follower": agent == follower,
                "reference": float(change[REFERENCE][0, agent]),
                "learned": float(found.mean()),
                "learned_least": float(found.min()),
                "learned_most": float(found.max()),
            }


def summarise(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return a row for each intervention and world, and over all interventions, with 95 % intervals (over recordings)."""
    summary = []
    for name in dict.fromkeys((*(row["intervention"] for row in rows), ALL)):
        for world in dict.fromkeys(row["world"] for row in rows):
            found = [row for row in rows if row["world"] == world and row["intervention"] == name]
            if name == ALL:
                found = [row for row in rows if row["world"] == world and row["intervention"] != KEEP]
            if not found:
                continue
            recording, scenes = [row["recording"] for row in found], {row["scene"] for row in found}
            sums: Row = {"intervention": name, "world": world, "scenes": len(scenes), "cases": len(found)}
            sums["recordings"] = len(set(recording))
            sums |= {count: sum(row[count] for row in found) for count in COUNTS}
            drawn = resampled(len(set(recording)), seed)
            for figure, pair in FIGURES.items():
                above, below = (
                    by_recording(torch.tensor([float(row[part]) for row in found], dtype=torch.float64), recording)
                    for part in pair
                )
                sums |= _ratio(figure, above, below, drawn)
            summary.append(sums)
    return summary


def _ratio(name: str, above: Tensor, below: Tensor, drawn: Tensor) -> Row:
    """A ratio of sums over recordings (N,) and the ends of its interval from resamples (R, N).

    None where nothing counts; no interval where one recording counts alone, which says nothing of others.
    """
    if below.sum() == 0:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = interval(above[drawn].sum(1) / below[drawn].sum(1)) if (below > 0).sum() > 1 else (None, None)
    return {name: float(above.sum() / below.sum()), f"{name}_low": low, f"{name}_high": high}


def _keep_best(shown: dict[str, tuple[float, Answer]], case: Case) -> None:
    """Keep the case of each intervention in which somebody answers most, a follower rather than others."""
    judge = REFERENCE if REFERENCE in case.traces else LEARNED
    for number, branch in enumerate(case.plan.branches):
        if branch == KEEP:
            continue
        of, follower = case.traces[judge], case.plan.follower[number]
        counts = case.present & case.steady
        if not counts.any():
            continue
        change = torch.where(counts, path_change(of[branch], of[KEEP]).mean(0), -1.0)
        agent = int(change.argmax())
        worth = float(change[agent])
        if follower is not None and float(change[follower]) > AFFECTED:
            agent, worth = follower, 100.0 + float(change[follower])
        if worth > shown.get(branch, (-1.0, None))[0]:
            who = "follower" if agent == follower else "agent that answers most"
            traces = {world: (branches[KEEP], branches[branch]) for world, branches in case.traces.items()}
            shown[branch] = (worth, Answer(branch.replace("_", " "), case.scene, traces, agent, who))


def _print_tables(results: Mapping[str, Any], out: Path) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 150
    title = f"{counted(results['scenes'], 'scene')}, {results['failed']} failed"
    agents = Table("intervention", "cases", "affected", "slower / same / faster\nin SUMO", "learned", "same sign", title=title)
    for name in ("unaffected", "moved by it (m)", "by chance (m)", "energy distance"):
        agents.add_column(name)
    followers = Table("intervention", "world", "followers", "collide", "answer", "after (s)", "smallest gap (m)")
    by_name: dict[str, dict[str, Row]] = {}
    for row in results["figures"]:
        by_name.setdefault(row["intervention"], {})[row["world"]] = row
    for name, of in by_name.items():
        for world, row in of.items():
            cells = (_cell(row, key) for key in ("follower_collision_rate", "follower_answers", "response_delay", "minimum_gap"))
            followers.add_row(name.replace("_", " "), world, f"{row['followers']:g}", *cells)
        if REFERENCE in of and name != KEEP:
            signs = (" / ".join(f"{of[at][sign]:g}" for sign in ("slower", "same", "faster")) for at in (REFERENCE, LEARNED))
            row = of[LEARNED]
            figures = [_cell(row, key) for key in list(FIGURES)[:4]]
            head = (name.replace("_", " "), str(row["cases"]), f"{row['affected']:g}", *signs, figures[0])
            agents.add_row(*head, f"{row['unaffected']:g}", *figures[1:])
    if agents.row_count:
        console.print(agents)
    console.print(followers)
    for name, reasons in results["left_out"].items():
        for why, count in reasons.items():
            console.print(f"{name.replace('_', ' ')} left out in {counted(count, 'scene')}: {why}", markup=False)
    console.print(f"in brackets: 95 % interval over recordings. Run record: {out}", markup=False, soft_wrap=True)


def _cell(row: Row, name: str) -> str:
    share = name in ("sign_agreement", "follower_collision_rate", "follower_answers", "unaffected_energy")
    scale, unit, places = (100, " %", 1) if share else (1, "", 2)
    return cell(row, name, scale, unit, places)
