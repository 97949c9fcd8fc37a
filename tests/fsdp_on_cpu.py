"""The training process with FSDP on CPU processes, which accelerate refuses by itself: our side of sharding, no GPU."""

import sys

from accelerate import state
from accelerate.utils import DistributedType

allowed = state.AcceleratorState.__init__


def also_on_cpu(self, *args, fsdp_plugin=None, **options) -> None:
    allowed(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    from srt_assets.core.training.main import main

    state.AcceleratorState.__init__ = also_on_cpu
    sys.exit(main())
