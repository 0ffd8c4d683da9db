"""Random changes of images, independent for each image."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_ext._lib import checks


def random_shifts(
    images: Tensor, max_shift: int, generator: torch.Generator | None = None
) -> Tensor:
    """Shift each image by whole pixels, uniformly along both axes, and fill with zeros.

    :param Tensor images: images; those with the same first index are shifted together.
        **Shape:** ``(n, *batch, height, width)``.
    :param int max_shift: the largest shift along each axis, in pixels.
    :param torch.Generator generator: generator of the shifts. Default: PyTorch's global one.
    :returns: images of the same shape.
    :raises ValueError: for a negative shift, or a tensor of another shape.

    Example::

        >>> image = torch.eye(3)[None]
        >>> random_shifts(image, 1, torch.Generator().manual_seed(0)).shape
        torch.Size([1, 3, 3])
    """
    images = checks.as_tensor("images", images, "(*batch, n, height, width)")
    max_shift = checks.integer("max_shift", max_shift, 0)
    checks.optional(checks.instance, "generator", generator, torch.Generator, "a torch.Generator")
    num_images, height, width = len(images), *images.shape[-2:]
    device = images.device if generator is None else generator.device
    offsets = torch.randint(
        2 * max_shift + 1, (2, num_images, 1), generator=generator, device=device
    ).to(images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    padded = pad(images.reshape(num_images, -1, height, width), [max_shift] * 4)
    index = torch.arange(num_images, device=images.device)[:, None, None]
    shifted = padded.movedim(1, -1)[index, rows[:, :, None], columns[:, None, :]]
    return shifted.movedim(-1, 1).reshape(images.shape)
