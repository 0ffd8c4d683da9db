"""An autoencoder of diffusers whose latents are the pixels; to import it imports diffusers."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class IdentityAutoencoder(ModelMixin, ConfigMixin):
    """Pixels as latents, for pipelines that ask for an autoencoder."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        scaling_factor: float = 1.0,
        block_out_channels: tuple[int, ...] = (1,),  # one of them: no pixels are merged
        latent_channels: int = 1,
        out_channels: int = 1,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))  # pipelines ask for its dtype and device

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Images as a distribution of latents, which is a point."""
        latents = IdentityDistribution(x)
        return AutoencoderKLOutput(latent_dist=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Latents as images."""
        return DecoderOutput(sample=z) if return_dict else (z,)
