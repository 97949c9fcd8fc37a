"""The resource of the assets: the settings, from which a step opens the lake."""

from dataclasses import dataclass

from srt_assets.core.lake import Lake
from srt_assets.settings import Settings


@dataclass(frozen=True)
class LakeResource:
    """The home that the settings name. Ask for it with `lake: dg.ResourceParam[LakeResource]`."""

    of: Settings

    def settings(self) -> Settings:
        return self.of

    def open(self) -> Lake:
        return Lake(self.of.home)
