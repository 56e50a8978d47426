"""The rollout client: prompts in; samples with exact tokens, rewards and filtered groups out.

Names and signatures are slime's, so that its plug-ins run with only their import lines changed. A sample's
way: `data_source` makes a group of it, `generate` samples and checks its tokens through `client`, `rewards`
judges it, `filters` judges the group, `batch` decides whether it is in, and `loop` keeps that going.
"""

if __name__ != "espalier.rollout":
    raise ImportError(f"import espalier.rollout, not {__name__}: this folder is installed under that name")

from .config import RolloutConfig
from .data_source import DataSource, RolloutDataSource, RolloutDataSourceWithBuffer, pop_first
from .evaluation import eval_rollout, eval_rollout_single_dataset
from .fully_async import fully_async
from .generate import generate
from .groups import generate_and_rm, generate_and_rm_group
from .loop import generate_rollout, generate_rollout_async
from .outputs import DynamicFilterOutput, RolloutFnEvalOutput, RolloutFnTrainOutput
from .plugins import generate_functions, rollout_functions
from .sample import PrefixCacheInfo, Sample, SpecInfo, Status
from .sft import sft_rollout
from .sleep import sleep_rollout
from .state import GenerateState, RolloutState, rollout_state
from .stopping import abort
from .streaming import generate_streaming
from .training_arrays import PackedArrays, PaddedArrays, as_tensors, packed_arrays, padded_arrays

__all__ = [
    "DataSource",
    "DynamicFilterOutput",
    "GenerateState",
    "PackedArrays",
    "PaddedArrays",
    "PrefixCacheInfo",
    "RolloutConfig",
    "RolloutDataSource",
    "RolloutDataSourceWithBuffer",
    "RolloutFnEvalOutput",
    "RolloutFnTrainOutput",
    "RolloutState",
    "Sample",
    "SpecInfo",
    "Status",
    "abort",
    "as_tensors",
    "eval_rollout",
    "eval_rollout_single_dataset",
    "fully_async",
    "generate",
    "generate_and_rm",
    "generate_and_rm_group",
    "generate_functions",
    "generate_rollout",
    "generate_rollout_async",
    "generate_streaming",
    "packed_arrays",
    "padded_arrays",
    "pop_first",
    "rollout_functions",
    "rollout_state",
    "sft_rollout",
    "sleep_rollout",
]
