"""The learned camera: paints the next frame from the layout of the explicit state, the past frames and the ego's action.

A small autoencoder makes of a frame a latent image of a quarter of its height and width; a U-Net, trained by flow matching
(Lipman et al., arXiv 2210.02747), turns noise into the next latent in one to four Euler steps. The explicit state is the memory:
where agents are comes from the layout, so nothing can be forgotten; the past frames carry what the state does not know, such as
the look of a house. Without a layout the same network is a video model that is moved by actions alone.

Against drift: the past is shown with noise whose level the network is told (Valevski et al., arXiv 2408.14837), training
continues on the network's own frames, and every latent is rounded to 8 bit, in training as in use.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from .dynamics import Motion
from .geometry import wrap_angle
from .perspective import LAYOUT_CHANNELS, perspective_layout
from .raster import RoadPieces, road_pieces
from .rig import RIGS, Camera, Rig
from .sampling import hashed_normal
from .scene import TIME_STEP, Scene, TensorBatch
from .shipped import SHIPPED_CAMERA, SHIPPED_VIDEO
from .sight import Sight
from .world import State

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
"""What diffusers calls the weights in a folder."""

SHRINK = 4
"""Pixels of a frame, across and down, that one pixel of the latent image stands for."""

LARGEST_LATENT = 3.0
"""Latents lie in +-3, where the decoder of AutoencoderTiny starts to flatten them; 8 bit divide that range."""

PAST_LEVEL = 0.1
"""Standard deviation of the noise on past latents when frames are made (they have about one themselves)."""

FIRST_STEPS = 8
"""Euler steps of an imagined first frame, which has no past to lean on."""

MOTIONS = ("acceleration", "curvature", "speed", "yaw_rate")
"""What a driving camera is told of the ego's motion between two frames: m/s2, 1/m, m/s at its end, radians/s."""

SLOWEST = 0.5
"""m/s below which a path has no curvature to speak of."""

POSE_FEATURES = 10
LEVEL_FEATURES = 8


@dataclass(frozen=True)
class Conditions(TensorBatch):
    """All that the next frames of N cameras are painted from; what is not valid is not looked at.

    Attributes:
        past: (N, K, c, h, w) latents, the last frame last; past_valid (N, K) bool.
        level: (N,) standard deviation of the noise that `past` carries.
        layout: (N, L, H, W) float in 0..1; L is 0 for a model without layouts. layout_valid (N,) bool.
        action: (N, K, D) in the units of the data, what was done at each past frame: the last one leads to the next frame, the
            others are there as a real car answers late. action_valid (N,) bool.
        pose: (N, POSE_FEATURES), see `pose_features`.
        appearance: (N,) int64 into the model's `appearances`, or its length for an unknown one.
    """

    past: Tensor
    past_valid: Tensor
    level: Tensor
    layout: Tensor
    layout_valid: Tensor
    action: Tensor
    action_valid: Tensor
    pose: Tensor
    appearance: Tensor


def pose_features(camera: Camera) -> list[float]:
    """Return what the network reads of a camera: focal lengths and centre in shares of the image, place, direction."""
    column, row = camera.centre or (camera.width / 2, camera.height / 2)
    values = [camera.focal[0] / camera.width, camera.focal[1] / camera.height, column / camera.width, row / camera.height]
    values += camera.position
    return [*values, math.cos(camera.yaw), math.sin(camera.yaw), camera.pitch]


def _autoencoder(width: int, latent_channels: int) -> AutoencoderTiny:
    """Return an autoencoder that halves height and width twice; the fewest blocks stand where there are most pixels."""
    blocks, channels = (1, 1, 2), (width,) * 3
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks[::-1],
        latent_channels=latent_channels,
        upsampling_scaling_factor=2,
    )


def _flow_network(size: tuple[int, int], inputs: int, outputs: int, channels: tuple[int, ...], layers: int) -> UNet2DModel:
    """Return the U-Net; it takes the embedding of the conditions as it is ("identity") and adds it to that of the noise level."""
    return UNet2DModel(
        sample_size=size,
        in_channels=inputs,
        out_channels=outputs,
        layers_per_block=layers,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        attention_head_dim=32,
        class_embed_type="identity",
    )


def motion_between(before: Motion, after: Motion) -> Tensor:
    """Return what led from one ego's motion to the next, TIME_STEP later: (..., 4) in the order of `MOTIONS`.

    It is what has happened, not what was commanded: a car that stands cannot brake, one that slides does not follow its wheel.
    """
    speed, former = after.velocity.norm(dim=-1), before.velocity.norm(dim=-1)
    turn = wrap_angle(after.heading - before.heading) / TIME_STEP
    curvature = torch.where(speed > SLOWEST, turn / speed.clamp(min=SLOWEST), 0.0)
    return torch.stack(((speed - former) / TIME_STEP, curvature, speed, turn), dim=-1)


class CameraModel(ModelMixin, ConfigMixin):
    """Autoencoder and flow network of one learned camera, saved and loaded by diffusers (`from_pretrained`: folder or Hub id).

    Args:
        height: rows of a frame, a multiple of 16.
        width: columns, a multiple of 16.
        rate: frames a second.
        actions: names of the D components of an action.
        action_mean, action_scale, action_low, action_high: (D,) mean, standard deviation, least and largest of the training data.
        layout_channels: L, 0 for a model without layouts.
        appearances: names of the appearances.
        past: K, how many past frames it sees.
        latent_channels: c.
        latent_scale: standard deviation of the training data's latents.
        autoencoder_channels: width of the autoencoder.
        channels: width of the U-Net's three levels.
        layers: residual blocks a level.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        height: int = 64,
        width: int = 128,
        rate: float = 10.0,
        actions: Sequence[str] = ("acceleration", "curvature", "speed", "yaw_rate"),
        action_mean: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        action_scale: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        action_low: Sequence[float] = (-8.0, -0.2, 0.0, -1.0),
        action_high: Sequence[float] = (4.0, 0.2, 30.0, 1.0),
        layout_channels: int = 0,
        appearances: Sequence[str] = (),
        past: int = 3,
        latent_channels: int = 8,
        latent_scale: float = 1.0,
        autoencoder_channels: int = 32,
        channels: Sequence[int] = (64, 96, 128),
        layers: int = 1,
    ):
        """Build the networks with random weights.

        Raises:
            ValueError: height or width is no multiple of 16, or the sizes of actions disagree.
        """
        super().__init__()
        if height % 16 or width % 16 or min(height, width) < 16:
            raise ValueError(f"height {height}, width {width}: wanted multiples of 16")
        if {len(each) for each in (action_mean, action_scale, action_low, action_high)} != {len(actions)}:
            raise ValueError(f"actions {tuple(actions)}: wanted as many means, scales, lows and highs")
        features = 64 if layout_channels else 0
        inputs = latent_channels * (past + 1) + past + features
        self.autoencoder = _autoencoder(autoencoder_channels, latent_channels)
        self.network = _flow_network((height // SHRINK, width // SHRINK), inputs, latent_channels, tuple(channels), layers)
        if layout_channels:
            self.layout_encoder = nn.Sequential(
                nn.Conv2d(layout_channels, 32, 4, stride=2, padding=1),
                nn.SiLU(),
                nn.Conv2d(32, features, 4, stride=2, padding=1),
                nn.SiLU(),
                nn.Conv2d(features, features, 3, padding=1),
            )
            self.no_layout = nn.Parameter(torch.zeros(features, 1, 1))
        embedding = 4 * channels[0]
        self.condition_encoder = nn.Sequential(
            nn.Linear(past * len(actions) + POSE_FEATURES + LEVEL_FEATURES + 2, embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
        )
        self.appearance = nn.Embedding(len(appearances) + 1, embedding)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of a latent image."""
        config = cast(Any, self.config)
        return config.latent_channels, config.height // SHRINK, config.width // SHRINK

    def twin(self) -> CameraModel:
        """Return another model of the same configuration and weights."""
        twin = cast(CameraModel, CameraModel.from_config(self.config))
        twin.load_state_dict(self.state_dict())
        return twin

    def forward(self, noisy: Tensor, sigma: Tensor, given: Conditions) -> Tensor:
        """Return the flow (N, c, h, w), noise less latent.

        Args:
            noisy: (N, c, h, w), (1 - sigma) latent + sigma noise.
            sigma: (N,) in 0..1.
            given: what the frames are painted from.
        """
        config = cast(Any, self.config)
        past = given.past * given.past_valid[:, :, None, None, None]
        seen = given.past_valid[:, :, None, None].to(noisy.dtype).expand(-1, -1, *noisy.shape[2:])
        planes = [noisy, past.flatten(1, 2), seen]
        if config.layout_channels:
            layout = self.layout_encoder(given.layout)
            planes.append(torch.where(given.layout_valid[:, None, None, None], layout, self.no_layout))
        mean, scale = noisy.new_tensor(config.action_mean), noisy.new_tensor(config.action_scale)
        told = given.past_valid.clone()
        told[:, -1] = True  # what leads to the next frame needs no past
        action = ((given.action - mean) / scale).clamp(-5.0, 5.0) * (told & given.action_valid[:, None])[..., None]
        level = given.level[:, None] * 2.0 ** torch.arange(LEVEL_FEATURES // 2, device=noisy.device)
        flags = torch.stack((given.action_valid, given.layout_valid), dim=-1).to(noisy.dtype)
        vector = torch.cat((action.flatten(1), given.pose, level.sin(), level.cos(), flags), dim=-1)
        label = self.condition_encoder(vector) + self.appearance(given.appearance)
        return self.network(torch.cat(planes, dim=1), 1000.0 * sigma, class_labels=label, return_dict=False)[0]

    def paint(self, given: Conditions, noise: Tensor, steps: int = 2) -> Tensor:
        """Return the next latents (N, c, h, w), rounded to 8 bit, from `noise` (N, c, h, w) in `steps` Euler steps."""
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[1.0 - step / steps for step in range(steps)])  # it counts its steps, so it is made anew
        latent = noise
        for time in cast(Tensor, scheduler.timesteps):
            flow = self(latent, (time / 1000.0).expand(len(noise)), given)
            latent = scheduler.step(flow, time, latent, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        return from_bytes(to_bytes(latent, self), self)

    def encode(self, frame: Tensor) -> Tensor:
        """Return latents (N, c, h, w), of standard deviation 1 over the training data, of frames (N, H, W, 3) uint8."""
        image = frame.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        latent = self.autoencoder.encode(image, return_dict=False)[0]
        return from_bytes(to_bytes(latent / cast(Any, self.config).latent_scale, self), self)

    def decode(self, latent: Tensor) -> Tensor:
        """Return frames (N, H, W, 3) uint8 of latents (N, c, h, w)."""
        image = self.autoencoder.decode(latent * cast(Any, self.config).latent_scale, return_dict=False)[0]
        return ((image.permute(0, 2, 3, 1).float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_bytes(latent: Tensor, model: CameraModel) -> Tensor:
    """Round latents to uint8: 255 steps over +-LARGEST_LATENT of the autoencoder."""
    share = latent * cast(Any, model.config).latent_scale / LARGEST_LATENT
    return (share.clamp(-1.0, 1.0) * 127.0).round().add(128.0).to(torch.uint8)


def from_bytes(code: Tensor, model: CameraModel) -> Tensor:
    """Return the latents of `to_bytes`."""
    return (code.float() - 128.0) * (LARGEST_LATENT / 127.0 / cast(Any, model.config).latent_scale)


@dataclass(frozen=True)
class Footage(TensorBatch):
    """What N running cameras remember.

    Attributes:
        code: (N, K, c, h, w) uint8 latents of the past frames, the last one last; known (N, K) bool.
        done: (N, K, D) what led to each of them.
    """

    code: Tensor
    known: Tensor
    done: Tensor

    @classmethod
    def blank(cls, model: CameraModel, count: int) -> Footage:
        """Return the memory of `count` cameras that have seen nothing yet: their first frame is imagined."""
        config = cast(Any, model.config)
        code = torch.full((count, config.past, *model.latent_shape), 128, dtype=torch.uint8)
        known, done = torch.zeros(code.shape[:2], dtype=torch.bool), torch.tensor(config.action_mean)
        return cls(code, known, done.repeat(*code.shape[:2], 1))

    def add(self, code: Tensor, done: Tensor | None = None) -> Footage:
        """Return the memory with one more latent (N, c, h, w) uint8 and what led to it, (N, D); the oldest is forgotten."""
        known = torch.cat((self.known[:, 1:], torch.ones_like(self.known[:, :1])), dim=1)
        done = self.done[:, -1] if done is None else done
        code = torch.cat((self.code[:, 1:], code[:, None]), dim=1)
        return Footage(code, known, torch.cat((self.done[:, 1:], done[:, None]), dim=1))

    def paint(
        self,
        model: CameraModel,
        key: Tensor,
        step: Tensor,
        action: Tensor | None = None,
        layout: Tensor | None = None,
        pose: Tensor | None = None,
        appearance: Tensor | None = None,
        steps: int = 2,
    ) -> tuple[Tensor, Footage]:
        """Return the next frames (N, H, W, 3) uint8 and the memory with them.

        Args:
            model: the camera.
            key: (N,) int64 random keys.
            step: (N,) int64, number of the frame; the same key and step give the same noise, whatever else is painted.
            action: (N, D) what led to the frame, or None where that is not known.
            layout: (N, L, H, W) float in 0..1, or None.
            pose: (N, POSE_FEATURES), zeros if None.
            appearance: (N,) int64, unknown if None.
            steps: Euler steps.
        """
        config, count = cast(Any, model.config), len(key)
        latest = self.done[:, -1] if action is None else action
        flag = lambda given: torch.full((count,), given is not None)  # noqa: E731
        shape = (config.layout_channels, config.height, config.width)
        given = Conditions(
            past=from_bytes(self.code, model) + PAST_LEVEL * hashed_normal(key, 2 * step, self.code.shape[1:]),
            past_valid=self.known,
            level=torch.full((count,), PAST_LEVEL),
            layout=torch.zeros(count, *shape) if layout is None else layout,
            layout_valid=flag(layout),
            action=torch.cat((self.done[:, 1:], latest[:, None]), dim=1),
            action_valid=flag(action),
            pose=torch.zeros(count, POSE_FEATURES) if pose is None else pose,
            appearance=torch.full((count,), len(config.appearances)) if appearance is None else appearance,
        )
        with torch.inference_mode():
            latent = model.paint(given, hashed_normal(key, 2 * step + 1, model.latent_shape), steps)
            frame = model.decode(latent)
        return frame.clone(), self.add(to_bytes(latent, model).clone(), latest)


def as_planes(layout: Tensor) -> Tensor:
    """Return layouts (N, H, W, L) uint8 as the network takes them, (N, L, H, W) in 0..1."""
    return layout.permute(0, 3, 1, 2).float() / 255.0


def camera_checksum(folder: Path) -> int:
    """Return the CRC-32 of a camera folder's configuration and weights, by which figures say whose they are."""
    return zlib.crc32((folder / WEIGHTS_FILE).read_bytes(), zlib.crc32((folder / "config.json").read_bytes()))


def load_camera(folder: str | Path) -> CameraModel:
    """Read a camera that `save_pretrained` wrote, from a folder or a Hub id, ready to paint.

    Raises:
        ValueError: files are missing, broken, or do not belong together.
    """
    if Path(folder) in (SHIPPED_CAMERA, SHIPPED_VIDEO) and not Path(folder).exists():
        raise ValueError("this release ships no such camera: train one (`worldloop train camera`) and name its folder")
    try:
        how: dict[str, Any] = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False, "use_safetensors": True}
        model, found = cast(Any, CameraModel.from_pretrained)(folder, output_loading_info=True, **how)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{folder}: no learned camera can be read ({str(error).splitlines()[0]})") from error
    if wrong := [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]:
        raise ValueError(f"{folder}: weights and configuration do not belong together ({wrong[0]}): copy the folder again")
    config = cast(Any, model.config)
    if not min(config.latent_scale, *config.action_scale) > 0:
        raise ValueError(f"{folder}/config.json: latent_scale and action_scale must be above 0")
    if broken := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(f"{folder}: {broken[0]} holds NaN or infinity: copy the folder again")
    return model.eval()


class LearnedCamera:
    """The learned camera in the loop (a `SceneCamera`): each camera of a rig paints its layout of the state.

    Frames depend on the state, the past frames and the action; their random numbers on the state's key and step alone.

    Args:
        rig: where the cameras are; their sizes become the model's.
        appearance: one of the model's `appearances`.
        model: a camera that takes layouts, the shipped one if None.
        steps: Euler steps for each frame.
    """

    def __init__(self, rig: Rig | None = None, appearance: str = "day", model: CameraModel | None = None, steps: int = 2):
        """Open the model.

        Raises:
            ValueError: the model knows no such appearance, or takes no layouts of this release.
        """
        self.model = load_camera(SHIPPED_CAMERA) if model is None else model
        config = cast(Any, self.model.config)
        if config.layout_channels != len(LAYOUT_CHANNELS) or tuple(config.actions) != MOTIONS:
            raise ValueError(
                f"this camera takes layouts of {config.layout_channels} channels and {', '.join(config.actions)}: "
                f"wanted {len(LAYOUT_CHANNELS)} and {', '.join(MOTIONS)}, as a driving camera does"
            )
        if abs(config.rate * TIME_STEP - 1.0) > 1e-6:
            raise ValueError(f"this camera paints at {config.rate:g} Hz, the loop runs at {1 / TIME_STEP:g} Hz")
        if appearance not in config.appearances:
            raise ValueError(f"appearance {appearance!r} is unknown: choose one of {', '.join(config.appearances)}")
        self.rig = (rig or RIGS["front"]).resized(config.width, config.height)
        self.appearance, self.steps = list(config.appearances).index(appearance), steps
        self._pose = torch.tensor([pose_features(camera) for camera in self.rig.cameras])
        self._map: tuple[Scene, RoadPieces] | None = None

    def begin(self, state: State) -> Sight:
        """See `SceneCamera.begin`: the first frames are imagined from the layout alone."""
        return self._paint(state, Footage.blank(self.model, len(state) * len(self.rig)), None, FIRST_STEPS)

    def follow(self, sight: Sight, state: State, action: Tensor) -> Sight:
        """See `SceneCamera.follow`; what the ego really did counts, not the action that it was given."""
        footage = Footage(*(sight.memory[name].flatten(0, 1) for name in ("code", "known", "done")))
        ego = state.ego()
        told = motion_between(Motion(ego.position, sight.memory["heading"], sight.memory["velocity"]), ego)
        return self._paint(state, footage, told.repeat_interleave(len(self.rig), dim=0), self.steps)

    def _paint(self, state: State, footage: Footage, action: Tensor | None, steps: int) -> Sight:
        batch, cameras = len(state), len(self.rig)
        if self._map is None or self._map[0] is not state.scene:  # a cache: the scene stays the same for whole episodes
            self._map = state.scene, road_pieces(state.scene)
        frame, footage = footage.paint(
            self.model,
            (state.key[:, None] + torch.arange(cameras)).flatten(),
            state.step.repeat_interleave(cameras),
            action,
            as_planes(perspective_layout(state, self._map[1], self.rig).flatten(0, 1)),
            self._pose.repeat(batch, 1),
            torch.full((batch * cameras,), self.appearance),
            steps,
        )
        memory = {name: tensor.unflatten(0, (batch, cameras)) for name, tensor in vars(footage).items()}
        ego = state.ego()
        return Sight(frame.unflatten(0, (batch, cameras)), memory | {"heading": ego.heading, "velocity": ego.velocity})
