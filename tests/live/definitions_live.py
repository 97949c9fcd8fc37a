"""The code location of the live test: the real graph, with sensors that look every other second."""

from srt_assets.definitions import build_defs
from srt_assets.settings import load_settings

live_defs = build_defs(load_settings(), tick_s=2)
