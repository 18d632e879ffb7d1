"""What cameras on the ego see of a `State`: pictures, depth, semantic classes and instances, by casting rays.

All cameras of a rig look into the same world; one cast serves all four kinds of image.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..worldmodel.geometry import rotate
from ..worldmodel.rig import APPEARANCES, Rig
from ..worldmodel.scene import LAYOUT, Scene
from ..worldmodel.sight import Sight
from ..worldmodel.world import State
from .light import LOOKS, Appearance, bloom, developed, streaks
from .meshes import CONTACT_REACH
from .scene3d_rays import Stage, cast, labels, moment_of
from .scenery import build_scenery
from .shading import colours

REACH = 160.0
"""Metres from the ego beyond which road users are not drawn."""

FINE_PIXELS = 20.0
"""Pixels of height from which on a road user is drawn with all its triangles."""

SHADOWS_WITHIN = 70.0
"""Metres from the ego within which road users throw shadows, also from outside of the picture."""

STAGED = tuple(name for name in LAYOUT if name not in ("heading", "velocity", "signal_state"))
"""Fields of a scene that its stage may follow from: houses keep off everyone's log, and stand along the ego's."""

INSIDE = 1.0
"""A camera so near to the ego's box, in metres, does not see the ego."""


@dataclass(frozen=True)
class Frames:
    """What C cameras of B egos show.

    Attributes:
        colour: (B, C, H, W, 3) uint8.
        depth: (B, C, H, W) metres along the optical axis, infinite in the sky.
        semantic: (B, C, H, W) uint8 `Semantic`.
        instance: (B, C, H, W) int16, the agent's place in dimension A plus one, 0 where there is no agent.
    """

    colour: Tensor
    depth: Tensor
    semantic: Tensor
    instance: Tensor


class View:
    """The rays of a rig in the ego's frame, and which of its pixels an agent may cover."""

    def __init__(self, rig: Rig, supersample: int) -> None:
        self.rig = rig.resized(rig.width * supersample, rig.height * supersample)
        self.supersample = supersample
        count, high, wide = len(rig), self.rig.height, self.rig.width
        self.shape = (count, high, wide)
        self.direction = self.rig.rays().reshape(-1, 3).T.contiguous()
        self.origin = self.rig.origin().T.repeat_interleave(high * wide, dim=1)
        self.focal = self.rig.intrinsics()[:, 0]
        self.pixel = (1.0 / self.focal).repeat_interleave(high * wide)

    def covered(self, relative: Tensor, heading: Tensor, size: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which pixels agents may cover.

        Args:
            relative: (A, 2) metres from the ego, in its frame.
            heading: (A,) radians from the ego's.
            size: (A, 3) metres.
            known: (A,) bool, who is to be looked for.

        Returns:
            pixels: (n,) int64 into all rays. seen: (A,) bool, in some picture. tall: (A,) pixels of height at the most.
        """
        count, high, wide = self.shape
        signs = torch.tensor([(x, y) for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
        reach = (0.5 * size[:, None, :2] + CONTACT_REACH) * signs
        foot = rotate(reach, heading[:, None]) + relative[:, None]
        flat = foot.new_zeros(len(size), 4, 1)
        corner = torch.cat((torch.cat((foot, flat), -1), torch.cat((foot, flat + size[:, None, 2:] * 1.02), -1)), dim=1)
        pixel, depth = self.rig.project(corner.reshape(-1, 3))
        pixel, depth = pixel.reshape(count, -1, 8, 2), depth.reshape(count, -1, 8)
        behind = depth < 0.1
        limit = torch.tensor([wide, high])
        low = torch.where(behind[..., None], -1.0, pixel).amin(2).floor().clamp(min=0.0)
        top = torch.where(behind[..., None], limit + 1.0, pixel).amax(2).ceil()
        top = torch.minimum(top, limit.float())
        shown = (low < top).all(-1) & ~behind.all(-1) & known
        camera, agent = shown.nonzero(as_tuple=True)
        (left, upper), (right, lower) = low[camera, agent].long().T, top[camera, agent].long().T
        edges = torch.zeros(count, high + 1, wide + 1, dtype=torch.int32)
        one = torch.ones(len(camera), dtype=torch.int32)
        for row, column, step in ((upper, left, one), (upper, right, -one), (lower, left, -one), (lower, right, one)):
            edges.index_put_((camera, row, column), step, accumulate=True)
        cover = edges.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)[:, :high, :wide] > 0
        near = depth.clamp(min=0.5).amin(-1)
        tall = torch.where(shown, self.focal[:, None] * size[:, 2] / near, 0.0).amax(0)
        return cover.flatten().nonzero()[:, 0], shown.any(0), tall


def inside(rig: Rig, size: Tensor) -> bool:
    """Return whether a camera is so near to the ego's box of `size` (3,) that it does not see the ego."""
    limit = torch.stack((0.5 * size[0], 0.5 * size[1], size[2])) + INSIDE
    return bool((rig.origin().abs() < limit).all(dim=-1).any())


def _checksum(scene: Scene, row: int) -> int:
    """CRC-32 of what the stage of scene `row` follows from; how far its batch is padded makes no difference."""
    found = 0
    for name in STAGED:
        value = getattr(scene, name)[row]
        index = value.nonzero()
        for part in (index, value[tuple(index.T)]):
            found = zlib.crc32(part.contiguous().numpy().tobytes(), found)
    return found


def _look(name: str) -> Appearance:
    if name not in LOOKS:
        raise ValueError(f"there is no appearance {name!r}: choose one of {', '.join(APPEARANCES)}")
    return LOOKS[name]


class SceneRenderer:
    """Draws states as the ego's cameras see them; a `SceneCamera`. One renderer serves all rows of a batch.

    The same state gives the same bits, whatever batch it stands in. What is made for a scene (its town, its road users' bodies)
    is kept for the last `scenes_kept` scenes.

    Args:
        rig: the cameras; `draw` takes another one too.
        appearance: one of `worldmodel.rig.APPEARANCES`.
        supersample: rays along each side of a pixel, whose colours are averaged; labels are those of the middle one (of an even
            number: the one right below the middle).
        shadows: cast a ray to the sun from every point that is seen, and mirror what stands beside wet roads.
        bonnet: show the ego up to its windows where a camera sits inside of it, instead of leaving it out.
        scenes_kept: how many scenes to remember.

    Raises:
        ValueError: an unknown appearance, or a number that is not positive.
    """

    def __init__(
        self,
        rig: Rig | None = None,
        appearance: str = "day",
        *,
        supersample: int = 1,
        shadows: bool = False,
        bonnet: bool = False,
        scenes_kept: int = 32,
    ) -> None:
        if min(supersample, scenes_kept) < 1:
            raise ValueError(f"found supersample {supersample}, scenes_kept {scenes_kept}: both must be at least 1")
        self.rig = rig or Rig()
        self.look = _look(appearance)
        self.supersample, self.shadows, self.bonnet, self.scenes_kept = supersample, shadows, bonnet, scenes_kept
        self._stages: OrderedDict[tuple[str, int], Stage] = OrderedDict()
        self._views: dict[Rig, View] = {}
        self._known: tuple[Scene, list[Stage]] | None = None

    def begin(self, state: State) -> Sight:
        """Return what is seen of the moment in which episodes begin."""
        return Sight(self._draw(state, self.rig, [self.look] * len(state), False)[0], {})

    def follow(self, sight: Sight, state: State, action: Tensor) -> Sight:
        """Return what is seen of `state`; what was seen and done before makes no difference to it."""
        return self.begin(state)

    def draw(self, state: State, rig: Rig | None = None, appearances: Sequence[str] | None = None) -> Frames:
        """Return colour, depth, classes and instances of B moments.

        Args:
            state: B rows.
            rig: other cameras than the renderer's.
            appearances: B names, one for each row, instead of the renderer's.

        Raises:
            ValueError: another number of appearances than rows, or an unknown one.
        """
        rig = rig or self.rig
        looks = [self.look] * len(state) if appearances is None else [_look(name) for name in appearances]
        if len(looks) != len(state):
            raise ValueError(f"found {len(looks)} appearances for {len(state)} rows: wanted one for each")
        return Frames(*self._draw(state, rig, looks, True))

    def _draw(self, state: State, rig: Rig, looks: list[Appearance], labelled: bool) -> list[Tensor]:
        """The fields of `Frames`, or colour alone if not `labelled`."""
        stages = self.stages(state.scene)
        if rig not in self._views:
            self._views = {rig: View(rig, self.supersample)}
        view = self._views[rig]
        drawn = [self._draw_row(state, row, stages[row], view, looks[row], labelled) for row in range(len(state))]
        return [torch.stack(values) for values in zip(*drawn, strict=True)]

    def stages(self, scene: Scene) -> list[Stage]:
        """Return the stages of B scenes, built where they are not known yet."""
        if self._known is None or self._known[0] is not scene:
            self._known = (scene, [self._stage(scene, row) for row in range(len(scene))])
        return self._known[1]

    def _stage(self, scene: Scene, row: int) -> Stage:
        key = (scene.id[row], _checksum(scene, row))
        if key not in self._stages:
            self._stages[key] = Stage(scene, row, build_scenery(scene, row))
            while len(self._stages) > self.scenes_kept:
                self._stages.popitem(last=False)
        self._stages.move_to_end(key)
        return self._stages[key]

    def _draw_row(self, state: State, row: int, stage: Stage, view: View, look: Appearance, labelled: bool) -> tuple[Tensor, ...]:
        """Colour, depth, classes and instances of one row, as in `Frames` but without B."""
        ego, size, valid = int(state.scene.ego[row]), state.scene.size[row], state.valid[row]
        position, heading = state.position[row, :, :2], state.heading[row]
        relative = rotate(position - position[ego], -heading[ego])
        known = valid & (relative.square().sum(-1) < REACH**2)
        within = inside(view.rig, size[ego])
        if within and not self.bonnet:
            known = known & (torch.arange(len(known)) != ego)
        looking, seen, tall = view.covered(relative, heading - heading[ego], size, known)
        if self.shadows:
            seen = seen | (known & (relative.square().sum(-1) < SHADOWS_WITHIN**2))
        moment = moment_of(state, row, stage, seen, tall > FINE_PIXELS * view.supersample, within)
        origin = moment.to_scene(view.origin)
        origin[:2] += position[ego][:, None]
        rays = torch.cat((origin, moment.to_scene(view.direction))).T.contiguous()
        hits = cast(moment, rays, looking)
        count, high, wide = view.shape
        light = colours(moment, rays, hits, view.pixel, look, self.shadows).reshape(3, count, high, wide).transpose(0, 1)
        if look.lamps > 0:
            light = bloom(light)
        shown = developed(light, look)
        if look.streaks > 0:
            hidden = look.streaks * streaks(high, wide, (stage.seed, int(state.step[row])))
            shown = shown + hidden * (0.75 - shown)
        times, middle = view.supersample, view.supersample // 2
        if times > 1:
            shown = torch.nn.functional.avg_pool2d(shown, times)
        colour = (shown * 255.0 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        if not labelled:
            return (colour,)
        semantic, instance = labels(moment, rays, hits)
        flat = (values.reshape(view.shape)[:, middle::times, middle::times] for values in (hits.distance, semantic, instance))
        return colour, *(values.contiguous() for values in flat)
