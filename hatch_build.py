"""Puts the Julia package into wheels as ``pynode/_julia``; an editable install reads ``julia/``."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class JuliaPackage(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"]["julia"] = "pynode/_julia"
