"""From hits to colours: what a ray ended at is lit by the sun, the sky and lamps, and hidden by the air in between."""

from __future__ import annotations

import torch
from torch import Tensor

from ..worldmodel.geometry import rotate
from .light import Appearance, facade, ground_colour, lamplight, noise, shade_bodies, sky
from .meshes import CONTACT_REACH, Part
from .scene3d_rays import Hits, Moment, cast, sunlit


def colours(
    moment: Moment, rays: Tensor, hits: Hits, pixel: Tensor, look: Appearance, shadows: bool, mirrors: bool = True
) -> Tensor:
    """Return linear colours (3, N) of what rays (N, 6) end at; `pixel` (N,) is how wide one is at a distance of 1."""
    origin, direction = rays.T[:3], rays.T[3:]
    colour = torch.empty(3, len(rays))
    above = (hits.distance == torch.inf).nonzero()[:, 0]
    colour[:, above] = sky(direction[:, above], look)
    for index, paint in ((hits.ground, _ground), (hits.body, _bodies)):
        if not len(index):
            continue
        towards, distance = direction[:, index], hits.distance[index]
        length = towards.square().sum(0).sqrt()
        point = origin[:, index] + distance * towards
        lamps = _lamps(moment, point, look)
        found = paint(moment, hits, towards / length, point, distance * pixel[index], lamps, look, shadows, mirrors)
        clear = torch.exp(distance * length * -look.haze)
        fog = torch.tensor(look.horizon)[:, None]
        colour[:, index] = fog + clear * (found - fog)
    return colour


def _lamps(moment: Moment, point: Tensor, look: Appearance) -> Tensor | None:
    """The light of lamps (3, N) on points (3, N), None by day."""
    if look.lamps == 0:
        return None
    x, y = point[:2] - moment.position[moment.ego][:, None]
    cos, sin = moment.heading[moment.ego].cos(), moment.heading[moment.ego].sin()
    ahead, aside = cos * x + sin * y - 0.5 * moment.size[moment.ego, 0], cos * y - sin * x
    return lamplight(point, (ahead, aside), moment.stage.pools, moment.stage.pools_corner, look)


def _ground(
    moment: Moment,
    hits: Hits,
    towards: Tensor,
    point: Tensor,
    footprint: Tensor,
    lamps: Tensor | None,
    look: Appearance,
    shadows: bool,
    mirrors: bool,
) -> Tensor:
    x, y = point[:2]
    wide = footprint * (-towards[2]).clamp(min=0.004).pow(-0.4)  # between how wide and how long a pixel is on the ground
    shares = moment.stage.scenery.ground.shares(x, y, wide)
    albedo, water = ground_colour(shares, x, y, wide, look)
    sun = (
        torch.ones_like(x) if not shadows else sunlit(moment, point + torch.tensor([[0.0], [0.0], [0.04]]), look.sun_direction())
    )
    ambient = torch.ones_like(x)
    close = (hits.contact > 0).nonzero()[:, 0]
    if len(close):
        agent = hits.contact[close] - 1
        away = point[:2, close] - moment.position[agent].T
        cos, sin = moment.heading[agent].cos(), moment.heading[agent].sin()
        outside = (
            torch.stack((cos * away[0] + sin * away[1], cos * away[1] - sin * away[0])).abs() - 0.5 * moment.size[agent, :2].T
        )
        dark = (1.0 - outside.clamp(min=0.0).square().sum(0).sqrt() / CONTACT_REACH).clamp(min=0.0).square()
        ambient[close] -= 0.8 * dark
        sun[close] *= 1.0 - (0.3 if shadows else 0.75) * dark
    up = look.sun_direction()[2]
    lit = [look.ambient[i] * ambient + (look.sun[i] * up) * sun + (0.0 if lamps is None else lamps[i]) for i in range(3)]
    colour = albedo * torch.stack(lit)
    if look.wet > 0:
        mirror = torch.stack((towards[0], towards[1], -towards[2]))
        share = water * (0.03 + 0.75 * (1.0 + towards[2]).clamp(0.0, 1.0).pow(6)) * (0.4 + 0.6 * ambient)
        seen = sky(mirror, look, sharp=False)
        if shadows and mirrors:
            wet = (water > 0.05).nonzero()[:, 0]
            rays = torch.cat((point[:, wet] + torch.tensor([[0.0], [0.0], [0.03]]), mirror[:, wet])).T.contiguous()
            seen[:, wet] = colours(moment, rays, cast(moment, rays), footprint[wet] * 0.0 + 0.01, look, False, False)
        colour += share * (seen - colour)
    return colour


def _bodies(
    moment: Moment,
    hits: Hits,
    towards: Tensor,
    point: Tensor,
    footprint: Tensor,
    lamps: Tensor | None,
    look: Appearance,
    shadows: bool,
    mirrors: bool,
) -> Tensor:
    stage, triangle = moment.stage, hits.triangle
    part, owner = stage.part[triangle], stage.owner[triangle]
    normal = stage.normal[triangle, 0].T.contiguous()
    curved = stage.curved[triangle].nonzero()[:, 0]
    if len(curved):
        corner, (u, v) = stage.normal[triangle[curved]], hits.at[curved].T
        normal[:, curved] = (corner[:, 0].T * (1.0 - u - v) + corner[:, 1].T * u) + corner[:, 2].T * v
    agent = (triangle >= stage.still).nonzero()[:, 0]
    if len(agent):
        heading = moment.heading[owner[agent]]
        turned = rotate(normal[:2, agent].T, heading).T
        normal[:2, agent] = turned
    normal = normal * normal.square().sum(0).rsqrt()
    nothing = torch.zeros(len(part))
    glass, glow, lit = nothing, nothing, nothing
    wall = (part == Part.WALL).nonzero()[:, 0]
    if len(wall):
        centre, cosine = stage.scenery.centre[owner[wall]], (towards[:, wall] * normal[:, wall]).sum(0).abs().clamp(min=0.1)
        found = facade(point[:, wall], normal[:, wall], centre, owner[wall], footprint[wall] / cosine, look)
        glass, glow = (nothing.index_put((wall,), value) for value in found)
    signal = (part >= Part.RED).nonzero()[:, 0]
    if len(signal):
        lit = nothing.index_put((signal,), (moment.lit[owner[signal]] == part[signal]).float())
    albedo = stage.albedo[triangle].T
    leaf = (part == Part.LEAF).nonzero()[:, 0]
    if len(leaf):
        x, y, z = point[:, leaf]
        albedo[:, leaf] *= 1.0 + 0.7 * noise(7.0 * (x + z), 7.0 * (y - 0.7 * z), 5.0 * footprint[leaf])
    sun = torch.ones(len(part)) if not shadows else sunlit(moment, point + 0.03 * normal, look.sun_direction())
    light = torch.zeros(3, len(part)) if lamps is None else lamps
    return shade_bodies(part, albedo, normal, towards, light, sun, lit, (glass, glow), look)
