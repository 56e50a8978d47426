"""Supervised training as a rollout: conversations from the dataset as samples, with nothing generated."""

from pathlib import Path

from ..errors import ConfigError, DataError
from .chat_template import TemplateRefused
from .config import RolloutConfig
from .data_source import DataSource
from .dataset import TOOLS_IN_METADATA
from .loss_mask import MultiTurnLossMaskGenerator
from .outputs import RolloutFnTrainOutput
from .plugins import rollout_functions, without_router
from .sample import Sample, Status
from .tokenizer import load_tokenizer


def sft_rollout(
    args: RolloutConfig,
    rollout_id: int,  # noqa: ARG001  a rollout function's signature
    data_source: DataSource,
    evaluation: bool = False,  # noqa: FBT001, FBT002  slime's signature
) -> RolloutFnTrainOutput:
    """Return `rollout_batch_size` groups of one sample, whose prompts are whole conversations.

    The response begins with the first token that is trained on; reward is 0, and there are no
    log-probabilities. A conversation without such a token has an empty response (slime takes its whole mask
    for the response's).

    Raises: ConfigError where the settings do not fit; DataError naming the sample whose conversation cannot
    be rendered or whose turns cannot be told apart.
    """
    if evaluation:
        raise ConfigError("supervised training has no evaluation: call it with evaluation=False")
    if args.n_samples_per_prompt != 1:
        raise ConfigError(
            f"supervised training takes each conversation once: --n-samples-per-prompt 1, "
            f"not {args.n_samples_per_prompt}"
        )
    if args.hf_checkpoint is None:
        raise ConfigError("supervised training needs --hf-checkpoint, which has the tokenizer")
    generator = MultiTurnLossMaskGenerator(load_tokenizer(Path(args.hf_checkpoint)), args.loss_mask_type)
    groups = data_source.get_samples(args.rollout_batch_size)
    for group in groups:
        for sample in group:
            _take_conversation(generator, sample)
    return RolloutFnTrainOutput(samples=groups)


rollout_functions.register("sft")(without_router(sft_rollout))


def _take_conversation(generator: MultiTurnLossMaskGenerator, sample: Sample) -> None:
    if isinstance(sample.prompt, str):
        raise ConfigError(
            "supervised training needs prompts that are lists of messages: leave out --apply-chat-template"
        )
    try:
        tokens, mask = generator.get_loss_mask(sample.prompt, sample.metadata.get(TOOLS_IN_METADATA))
    except (ValueError, TemplateRefused) as error:
        raise DataError(f"sample {sample.index}: {error}") from error
    [length] = generator.get_response_lengths([mask])
    sample.tokens = tokens
    sample.response_length = length
    sample.loss_mask = mask[len(mask) - length :]
    sample.reward = 0.0
    sample.status = Status.COMPLETED
