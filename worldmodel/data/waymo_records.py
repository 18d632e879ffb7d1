"""The container of the Waymo Open Motion Dataset: TFRecord files of `Scenario` messages, read without TensorFlow.

A TFRecord file is a row of records: length (uint64), masked crc32c of the length, data, masked crc32c of the data, little-endian
(tensorflow/core/lib/io/record_writer.h). The messages are those of waymo_open_dataset/protos/scenario.proto and map.proto as far
as this package has use for them; protobuf builds their classes when this module is imported, in a pool of their own, so that
Waymo's package may be there or not. Enumerations are declared as the integers that they are on the wire: a number that is not
known here stays visible, so that the reader can refuse it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from .shards import DataError

PACKAGE = "worldloop.waymo"

MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "MapPoint": {"x": (1, "double"), "y": (2, "double"), "z": (3, "double")},
    "BoundarySegment": {
        "lane_start_index": (1, "int32"),
        "lane_end_index": (2, "int32"),
        "boundary_feature_id": (3, "int64"),
    },
    "LaneNeighbor": {
        "feature_id": (1, "int64"),
        "self_start_index": (2, "int32"),
        "self_end_index": (3, "int32"),
        "neighbor_start_index": (4, "int32"),
        "neighbor_end_index": (5, "int32"),
    },
    "LaneCenter": {
        "speed_limit_mph": (1, "double"),
        "type": (2, "int32"),
        "interpolating": (3, "bool"),
        "polyline": (8, "MapPoint[]"),
        "entry_lanes": (9, "int64[]"),
        "exit_lanes": (10, "int64[]"),
        "left_neighbors": (11, "LaneNeighbor[]"),
        "right_neighbors": (12, "LaneNeighbor[]"),
        "left_boundaries": (13, "BoundarySegment[]"),
        "right_boundaries": (14, "BoundarySegment[]"),
    },
    "Line": {"type": (1, "int32"), "polyline": (2, "MapPoint[]")},
    "Area": {"polygon": (1, "MapPoint[]")},
    "StopSign": {"lane": (1, "int64[]"), "position": (2, "MapPoint")},
    "MapFeature": {
        "id": (1, "int64"),
        "lane": (3, "LaneCenter"),
        "road_line": (4, "Line"),
        "road_edge": (5, "Line"),
        "stop_sign": (7, "StopSign"),
        "crosswalk": (8, "Area"),
        "speed_bump": (9, "Area"),
        "driveway": (10, "Area"),
    },
    "TrafficSignalLaneState": {"lane": (1, "int64"), "state": (2, "int32"), "stop_point": (3, "MapPoint")},
    "DynamicMapState": {"lane_states": (1, "TrafficSignalLaneState[]")},
    "ObjectState": {
        "center_x": (2, "double"),
        "center_y": (3, "double"),
        "center_z": (4, "double"),
        "length": (5, "float"),
        "width": (6, "float"),
        "height": (7, "float"),
        "heading": (8, "float"),
        "velocity_x": (9, "float"),
        "velocity_y": (10, "float"),
        "valid": (11, "bool"),
    },
    "Track": {"id": (1, "int32"), "object_type": (2, "int32"), "states": (3, "ObjectState[]")},
    "RequiredPrediction": {"track_index": (1, "int32"), "difficulty": (2, "int32")},
    "Scenario": {
        "timestamps_seconds": (1, "double[]"),
        "tracks": (2, "Track[]"),
        "objects_of_interest": (4, "int32[]"),
        "scenario_id": (5, "string"),
        "sdc_track_index": (6, "int32"),
        "dynamic_map_states": (7, "DynamicMapState[]"),
        "map_features": (8, "MapFeature[]"),
        "current_time_index": (10, "int32"),
        "tracks_to_predict": (11, "RequiredPrediction[]"),
    },
    "ExampleEntry": {"key": (1, "string")},
    "ExampleFeatures": {"feature": (1, "ExampleEntry[]")},
    "Example": {"features": (1, "ExampleFeatures")},
}
"""Field name to (number, type) by message; `[]` is repeated. `Line` is Waymo's RoadLine and RoadEdge, `Area` its Crosswalk,
SpeedBump and Driveway. `Example` is what is needed of tf.Example to tell one."""


def _message_classes() -> dict[str, Any]:
    """Return the message classes of `MESSAGES` by name."""
    field_type = descriptor_pb2.FieldDescriptorProto
    scalars = {
        name: getattr(field_type, f"TYPE_{name.upper()}") for name in ("double", "float", "int32", "int64", "bool", "string")
    }
    file = descriptor_pb2.FileDescriptorProto(name="worldloop/waymo.proto", package=PACKAGE, syntax="proto2")
    for message_name, message_fields in MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, (number, written) in message_fields.items():
            kind = written.removesuffix("[]")
            label = field_type.LABEL_REPEATED if written.endswith("[]") else field_type.LABEL_OPTIONAL
            field = message.field.add(name=name, number=number, label=label)
            if kind in scalars:
                field.type = scalars[kind]
            else:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


_CLASSES = _message_classes()
Scenario: Any = _CLASSES["Scenario"]
"""The message that one record holds; `Scenario()` makes an empty one."""


def masked_checksum(data: bytes) -> int:
    """Return the crc32c of `data`, rotated and offset as TFRecord files store it (tensorflow/core/lib/hash/crc32c.h)."""
    value = google_crc32c.value(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(file: Path) -> Iterator[bytes]:
    """Yield the data of every record, one in memory at a time.

    Raises:
        DataError: the file holds no record, ends within one, or a checksum differs; the message names the record, from 0.
    """
    number, left = 0, file.stat().st_size
    with file.open("rb") as stream:
        while left:
            head = stream.read(12)
            if len(head) == 12 and masked_checksum(head[:8]) != struct.unpack("<I", head[8:])[0]:
                what = "is no TFRecord file" if number == 0 else f"record {number}: its length is damaged"
                raise DataError(f"{file}: {what} (checksum of the length differs): fetch the file again, uncompressed")
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            left -= 16 + length
            if len(head) < 12 or left < 0:
                raise DataError(f"{file}: record {number}: the file ends within it: fetch the file again")
            data = stream.read(length)
            if masked_checksum(data) != struct.unpack("<I", stream.read(4))[0]:
                raise DataError(f"{file}: record {number}: its checksum differs, so it is damaged: fetch the file again")
            yield data
            number += 1
    if number == 0:
        raise DataError(f"{file}: is empty: fetch the file again")


def parse_scenario(data: bytes) -> Any:
    """Return the `Scenario` that a record holds.

    Raises:
        DataError: it holds something else; the message says what, without the file's name.
    """
    try:
        scenario = Scenario.FromString(data)
    except DecodeError as error:
        scenario, reason = None, str(error)
    else:
        reason = "it has neither an id nor tracks"
    if scenario is not None and (scenario.scenario_id or scenario.tracks):
        return scenario
    try:
        keys = [entry.key for entry in _CLASSES["Example"].FromString(data).features.feature]
    except DecodeError:
        keys = []
    if keys:
        raise DataError(
            f"holds a tf.Example (features such as {min(keys)!r}), wanted a Scenario: "
            "fetch the files of the data set's folder `scenario` and not of `tf_example`"
        )
    raise DataError(f"holds no Scenario ({reason}): wanted the files of the data set's folder `scenario`")
