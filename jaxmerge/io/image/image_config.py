"""The scales of a LoRA file of an image model, which has no ``adapter_config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxmerge.io.config import AdapterConfig


@dataclass(frozen=True)
class ImageConfig(AdapterConfig):
    """What decides the scale of each module.

    Attributes:
      alphas: module -> alpha, of its tensor in the file.
      components: component ("unet", "text_encoder", ...) -> its PEFT config, where the
        header of the file holds these.
    """

    alphas: Mapping[str, float] = field(default_factory=dict)
    components: Mapping[str, AdapterConfig] = field(default_factory=dict)

    def scale(self, module: str, rank: int) -> float:
        """``alpha / r``, 1 where the file has no alpha; with a config as PEFT has it."""
        component, _, rest = module.partition(".")
        if component in self.components:
            return self.components[component].scale(rest, rank)
        alpha = self.alphas.get(module, self.alpha)
        return 1.0 if alpha is None or alpha == "rank" else alpha / rank
