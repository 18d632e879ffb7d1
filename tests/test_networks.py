"""Networks and demand as text."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloop.worldmodel.networks import TEMPLATES, element, make_network


@settings(max_examples=60, deadline=None)
@given(template=st.sampled_from(TEMPLATES), seed=st.integers(0, 2**31))
def test_every_network_is_whole(template: str, seed: int) -> None:
    network = make_network(template, seed)
    assert network == make_network(template, seed)
    nodes, edges, connections, demand = map(
        ElementTree.fromstring, (network.nodes, network.edges, network.connections, network.demand)
    )
    points = {node.get("id") for node in nodes}
    roads = {edge.get("id"): edge for edge in edges.iter("edge")}
    assert all({edge.get("from"), edge.get("to")} <= points for edge in roads.values())
    assert all(1 <= int(edge.get("numLanes", 0)) <= 5 and 5 < float(edge.get("speed", 0)) < 35 for edge in roads.values())
    for connection in connections.iter("connection"):
        for end, lane in (("from", "fromLane"), ("to", "toLane")):
            assert int(connection.get(lane, -1)) in range(int(roads[connection.get(end)].get("numLanes", 0)))
    for crossing in connections.iter("crossing"):
        assert set(crossing.get("edges", "").split()) <= set(roads)
    flows = [*demand.iter("flow"), *demand.iter("walk")]
    assert flows
    assert all({flow.get("from"), flow.get("to")} <= set(roads) for flow in flows)
    for chance in (float(flow.get("probability", 1)) for flow in (*demand.iter("flow"), *demand.iter("personFlow"))):
        assert 0 < chance < 1


@pytest.mark.parametrize("template", TEMPLATES)
def test_seeds_differ(template: str) -> None:
    assert len({make_network(template, seed).edges for seed in range(20)}) == 20


def test_drivers_differ_within_physical_limits() -> None:
    demand = ElementTree.fromstring(make_network("arterial", 0).demand)
    types = [kind for kind in demand.iter("vType") if kind.get("vClass") == "passenger"]
    headway = [float(kind.get("tau", 0)) for kind in types]
    assert len(types) == 14
    assert 0.7 <= min(headway) < max(headway) <= 2.2
    assert all(float(kind.get("decel", 0)) < float(kind.get("emergencyDecel", 0)) for kind in types)
    assert {"bicycle", "pedestrian", "truck", "bus", "motorcycle"} <= {kind.get("vClass") for kind in demand.iter("vType")}


def test_unknown_template_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'canal'.*crossing.*merge.*sumocfg"):
        make_network("canal", 0)


def test_element_prints_floats_alike_everywhere() -> None:
    assert element("a", id="x", width=0.1 + 0.2, lanes=2) == '<a id="x" width="0.300" lanes="2"/>'
    assert element("a", ["<b/>"], id="x") == '<a id="x"><b/></a>'
