"""Networks within the user's own optimisation models."""

from milpverify.embed.adding import embed
from milpverify.embed.deviation import Deviation
from milpverify.embed.embedding import Embedding

__all__ = ["Deviation", "Embedding", "embed"]
