"""How the experts of a token are chosen: the settings. No torch, so that planning is quick."""

from dataclasses import dataclass

from foveal.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How experts are chosen and weighed.

    Attributes:
        experts: E, how many there are to choose from.
        chosen: K, how many each token takes.
        method: "greedy" (the K best scores), "group_limited_greedy" (DeepSeek-V2, section 2.2.2: only within
            the `kept_groups` of `groups` groups whose best expert scores highest) or "noaux_tc" (DeepSeek-V3,
            section 2.1.2: by score plus a learned bias, groups by their two best; the bias does not enter the weights).
        score: "softmax" over all experts, or "sigmoid" of each.
        normalise: weights of a token are divided by their sum.
        scale: weights are multiplied by it.
    """

    experts: int
    chosen: int
    method: str = "greedy"
    score: str = "softmax"
    groups: int = 1
    kept_groups: int = 1
    normalise: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("score", SCORES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"expert routing: {name} is {getattr(self, name)!r}; expected {' or '.join(known)}.")
        if not 1 <= self.chosen <= self.experts:
            raise ConfigError(f"expert routing: a token takes {self.chosen} of {self.experts} experts; take 1 or more.")
        if self.experts % self.groups or not 1 <= self.kept_groups <= self.groups:
            raise ConfigError(
                f"expert routing: {self.kept_groups} of {self.groups} groups of {self.experts} experts; the experts "
                "must divide into the groups, of which at least one is kept."
            )
        if self.method == "noaux_tc" and self.experts < 2 * self.groups:
            raise ConfigError(f"expert routing: noaux_tc needs 2 experts a group; {self.experts} in {self.groups}.")

    @property
    def biased(self) -> bool:
        """Whether a learned bias takes part in the choice."""
        return self.method == "noaux_tc"


METHODS = ("greedy", "group_limited_greedy", "noaux_tc")
SCORES = ("softmax", "sigmoid")
