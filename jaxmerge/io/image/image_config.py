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
      named: module -> its name in the file.
    """

    alphas: Mapping[str, float] = field(default_factory=dict)
    components: Mapping[str, AdapterConfig] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)

    def scale(self, module: str, rank: int) -> float:
        """``alpha / r``, 1 where there is no alpha; what PEFT takes, with a config."""
        component, _, rest = self.named.get(module, module).partition(".")
        if component in self.components:
            return self.components[component].scale(rest, rank)
        alpha = self.alphas.get(module, self.alpha)
        return 1.0 if alpha is None or isinstance(alpha, str) else alpha / rank
