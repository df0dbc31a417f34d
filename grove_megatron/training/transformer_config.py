"""The transformer configuration of a command line, with Grove's settings also beside Megatron's
multi-latent attention."""

from argparse import Namespace
from dataclasses import dataclass

from megatron.core.transformer.transformer_config import MLATransformerConfig
from megatron.training.argument_utils import core_transformer_config_from_args

from ..config import GroveTransformerConfig
from ..runtime.fingerprints import megatron_patch
from ..runtime.registry import PatchSet


@dataclass
class GroveMLATransformerConfig(GroveTransformerConfig, MLATransformerConfig):
    """Grove's settings, and Megatron's of multi-latent attention."""

    # Both bases have a default; these are Megatron's of such a model.
    multi_latent_attention: bool = True
    normalization: str = "RMSNorm"


LATENT = PatchSet(
    "latent",
    "Grove's settings beside `--multi-latent-attention`",
    [
        megatron_patch(
            name="config-class-of-latent-attention",
            target="megatron.core.transformer:MLATransformerConfig",
            reason="Megatron takes this class whatever configuration class it is given",
            make=lambda original: GroveMLATransformerConfig,
        ),
    ],
)


def transformer_config(args: Namespace) -> GroveTransformerConfig:
    """What Megatron makes of validated flags, with Grove's.

    Raises:
        AssertionError, ValueError and others: of Megatron's own checks and ours.
    """
    with LATENT.applied():
        config: GroveTransformerConfig = core_transformer_config_from_args(
            args, GroveTransformerConfig
        )
    return config
