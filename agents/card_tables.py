"""The tables of a model card, as Markdown, from what runs have recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..worldmodel.lineage import without_folders
from .bootstrap import cell, counted

LEARNED, REFERENCE = "learned", "sumo"


def limited(arguments: Mapping[str, Any]) -> str:
    """Return as text that a run took only some scenes of each data set, if it did."""
    return f", at most {arguments['limit']} of each" if arguments["limit"] else ""


def fidelity_table(record: Mapping[str, Any]) -> str:
    """Return the summary of a fidelity run as Markdown: what was scored, how, and a row for each world."""
    arguments = record["arguments"]
    scenes = ", ".join(f"`{without_folders(source)}`" for source in arguments["scenes"])
    results = record["results"]
    first, last = (f"{steps / 10:g}" for steps in results["steps"])
    lines = [
        f"{results['worlds'][0]['scenes']} scenes of {counted(results['worlds'][0]['recordings'], 'recording')} "
        f"({scenes}{limited(arguments)}), {results['objects']} scored road users, "
        f"{arguments['rollouts']} futures each over {first} to {last} s (as far as the log goes), the recording car too; "
        f"temperature {arguments['temperature']:g}, epsilon {arguments['epsilon']:g}. RMM: realism meta-metric of the Waymo sim "
        f"agents challenge {results['config']}. "
        "Behind: how far a world's RMM lies below that of the first one, scene by scene. In brackets: 95 % interval, bootstrap "
        "over recordings.",
        "",
        "| world | RMM | of the log's | behind | minADE 3 s (m) | minADE (m) | collide (%) | leave the road (%) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["worlds"]:
        cells = [row["world"]]
        for name in ("rmm", "rmm_ratio", "rmm_lead", "min_ade_3s", "min_ade", "collision_rate", "off_road_rate"):
            if row[name] is None:
                cells.append("no road edges" if name == "off_road_rate" else "" if name == "rmm_lead" else "no such value")
                continue
            scale, places = (100, 1) if name.endswith("rate") else (1, 2 if name.startswith("min_ade") else 3)
            cells.append(cell(row, name, scale, places=places))
        lines.append(f"| {' | '.join(cells)} |")
    left_out = ", ".join(f"{name.replace('_', ' ')} ({count} scenes)" for name, count in results["left_out"].items())
    if left_out:
        lines += ["", f"Left out of the RMM where the data has no such value: {left_out}."]
    return "\n".join(lines)


def reactions_table(record: Mapping[str, Any]) -> str:
    """Return the summary of a counterfactual run as Markdown: how others answer what the ego does, beside SUMO."""
    results, arguments = record["results"], record["arguments"]
    by_name: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in results["figures"]:
        by_name.setdefault(row["intervention"], {})[row["world"]] = row
    lines = [
        f"{counted(results['scenes'], 'scene')} of {counted(results['figures'][-1]['recordings'], 'recording')} "
        f"(`{without_folders(arguments['scenes'])}`), {arguments['rollouts']} futures each "
        f"over {arguments['horizon']:g} s. The ego does something else than keeping its course; affected is whom that moves in "
        "SUMO. The follower is the next one behind the ego. In brackets: 95 % interval, bootstrap over recordings.",
        "",
        "| the ego | affected | same sign as in SUMO (%) | followers | run into it (%), SUMO | learned | answer after (s), SUMO "
        "| learned |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, of in by_name.items():
        if REFERENCE not in of or LEARNED not in of:
            continue
        mine, theirs = of[LEARNED], of[REFERENCE]
        signs = cell(mine, "sign_agreement", 100, places=1) if mine["affected"] else ""
        pairs = [
            cell(row, figure, scale, places=places)
            for figure, scale, places in (("follower_collision_rate", 100, 1), ("response_delay", 1, 2))
            for row in (theirs, mine)
        ]
        cells = (name.replace("_", " "), f"{mine['affected']:g}", signs, f"{mine['followers']:g}", *pairs)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def endurance_table(record: Mapping[str, Any]) -> str:
    """Return the summary of an endurance run as Markdown: the end of a minute as a share of its beginning."""
    results, arguments = record["results"], record["arguments"]
    scenes = ", ".join(f"`{without_folders(source)}`" for source in arguments["scenes"])
    first = results["worlds"][0]
    lines = [
        f"{counted(first['scenes'], 'scene')} of {counted(first['recordings'], 'recording')} ({scenes}{limited(arguments)}), "
        f"{arguments['rollouts']} futures of {arguments['seconds']} s each: the last {arguments['window']} s as a share of "
        "the first. In brackets: 95 % interval, bootstrap over recordings.",
        "",
        "| world | density | mean speed | collisions | off the road | distance of speeds |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["worlds"]:
        names = ("density", "speed", "collisions", "off_road", "speed_distance")
        lines.append(f"| {' | '.join((row['world'], *(cell(row, f'{name}_ratio') for name in names)))} |")
    return "\n".join(lines)


def uncertainty_table(record: Mapping[str, Any]) -> str:
    """Return the check of a calibrate run as Markdown: what is stated against the error."""
    check, arguments = record["results"]["check"], record["arguments"]
    scenes = ", ".join(f"`{without_folders(source)}`" for source in arguments["scenes"])
    lines = [
        f"Checked on {counted(check['scenes'], 'scene')} ({scenes}), {arguments['rollouts']} futures each. In brackets: 95 % "
        "interval, bootstrap over recordings.",
        "",
        "| road users | error (m) | stated (m) | rank correlation | of time alone |",
        "|---|---|---|---|---|",
    ]
    for row in check["rank_correlations"]:
        metres = ("none" if row[name] is None else f"{row[name]:.2f}" for name in ("measured_metres", "stated_metres"))
        lines.append(f"| {' | '.join((row['rows'], *metres, *(cell(row, name) for name in ('stated', 'time'))))} |")
    ends = (
        "never" if check[name] is None else f"at {check[name]:g} s" for name in ("safe_horizon_stated", "safe_horizon_measured")
    )
    stated, measured = ends
    told = f"The mean error passes {check['tolerance']:g} m {stated} as stated, {measured} as measured"
    return "\n".join([*lines, "", f"{told}, of {check['longest']:g} s."])
