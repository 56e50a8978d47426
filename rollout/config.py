"""The rollout's settings, under slime's attribute names: functions written for slime take them as `args`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ..errors import ConfigError
from .config_checks import check_settings


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Everything that a rollout needs to know.

    Raises: ConfigError naming the flag where a value is out of range or two do not fit together.
    """

    router_url: str = "http://127.0.0.1:30000"
    """where the router listens"""

    prompt_data: Path
    """prompts: a .jsonl or .parquet file, or a folder saved by datasets; PATH@[START:END] is a slice"""

    input_key: str = "prompt"
    """key of the prompt in a line"""

    label_key: str = "label"
    """key of the label, which rewards compare with; lines may lack it"""

    metadata_key: str = "metadata"
    """key of an object of anything else; lines may lack it"""

    tool_key: str = "tools"
    """key of the tools that the model may call; lines may lack it"""

    apply_chat_template: bool = False
    """format prompts with the chat template of --hf-checkpoint: messages, or a text as the user's message"""

    apply_chat_template_kwargs: str | None = None
    """variables of the chat template, as a JSON object"""

    multimodal_keys: str | None = None
    """key of the images in a line, as a JSON object: {"image": "images"}; <image> in the prompt is where
    each goes"""

    multimodal_processor_path: str | None = None
    """function that makes token ids and training inputs of a text and its images"""

    loss_mask_type: str = "qwen"
    """how the rollout function sft finds the model's turns: qwen, qwen3, qwen3_5 or distill_qwen"""

    rollout_max_prompt_len: int | None = None
    """leave out prompts with more tokens than this"""

    buffer_filter_path: str | None = None
    """which of the groups that were cut off are handed out next; pop_first takes the oldest"""

    save: Path | None = None
    """folder for the data source's state, buffer included, after each step"""

    load: Path | None = None
    """folder with such a state to go on from"""

    output_dir: Path = Path("rollout-output")
    """folder for samples.jsonl and metrics.jsonl"""

    save_arrays: bool = False
    """write the packed training arrays of each step, too: arrays/step_N.npz in the output folder"""

    use_tensorboard: bool = False
    """write the metrics for TensorBoard, too: tensorboard/ in the output folder"""

    use_wandb: bool = False
    """write the metrics for Weights & Biases, too: wandb/ in the output folder"""

    wandb_project: str = "espalier"
    """project of the W&B run"""

    wandb_group: str | None = None
    """group of the W&B run"""

    wandb_mode: str = "offline"
    """offline, to be sent by `wandb sync`, or online"""

    overwrite: bool = False
    """replace the results of an earlier run in the output folder"""

    num_rollout: int = 1
    """steps to run"""

    rollout_batch_size: int = 32
    """groups kept a step; a group is one prompt's samples"""

    n_samples_per_prompt: int = 8
    """samples in a group"""

    over_sampling_batch_size: int | None = None
    """groups submitted at a time; above the batch size, spare groups stand in for dropped ones at once"""

    rollout_shuffle: bool = False
    """shuffle the prompts anew in each epoch"""

    rollout_seed: int = 42
    """seed of the shuffle and of everything else that is random here"""

    rollout_deterministic: bool = False
    """same seed, same samples: send each sample its own sampling seed, and fill the batch in the order of
    submission rather than of arrival, so that it waits for stragglers"""

    rollout_temperature: float = 1.0
    """sampling temperature; 0 is greedy"""

    rollout_top_p: float = 1.0
    """nucleus sampling: share of the probability to sample from"""

    rollout_top_k: int = -1
    """sample from this many tokens only; -1 is all"""

    rollout_max_response_len: int = 1024
    """tokens a response may have; a longer one is truncated"""

    rollout_stop: tuple[str, ...] = ()
    """texts that end a response"""

    rollout_stop_token_ids: tuple[str, ...] = ()
    """token ids that end a response"""

    rollout_skip_special_tokens: bool = False
    """leave special tokens out of the response's text; its tokens keep them"""

    hf_checkpoint: Path | None = None
    """folder with a tokenizer.json, or the file: prompts are then sent as token ids; without it they are
    sent as text and the router's radix tree tells their tokens"""

    rm_type: str | None = None
    """reward: math, deepscaler, dapo, f1, gpqa, ifeval, remote, code, random, digit_share or another
    registered name, with boxed_ before it to grade the last box alone; package.module:function or
    package.module.function; a sample's metadata may name another one as rm_type"""

    custom_rm_path: str | None = None
    """reward that goes before every rm_type"""

    reward_key: str | None = None
    """for rewards that return an object: the key of the number to train on"""

    log_reward_category: str | None = None
    """for rewards that return an object: a key whose values are counted, as rollout/error_cat/VALUE"""

    rm_url: str | None = None
    """for the reward remote: URL of a grader that takes {prompt, response, label} and answers the reward;
    for on_policy_distillation: URL of the teacher's SGLang server"""

    code_rm_timeout_s: float = 10.0
    """for the reward code: seconds that the tests of a sample may take together"""

    code_rm_memory_mb: int = 1024
    """for the reward code: MiB of memory that a program may take"""

    code_rm_allow_network: bool = False
    """for the reward code: run programs also where this machine has no way to keep them off the network"""

    group_rm: bool = False
    """call the reward of --custom-rm-path once a group, with the list of its samples"""

    dynamic_sampling_filter_path: str | None = None
    """dynamic filter, such as check_reward_nonzero_std: groups it rejects are dropped and replaced"""

    over_sampling_filter_path: str | None = None
    """over-sampling filter, such as sort_by_reward_std: with it --over-sampling-batch-size groups are
    completed, and the first --rollout-batch-size of those that it returns are the batch"""

    rollout_sample_filter_path: str | None = None
    """function that sees the batch and may set remove_sample on samples that are not to be trained on"""

    rollout_all_samples_process_path: str | None = None
    """function that sees every group that was decided on, dropped ones included, and the data source"""

    custom_generate_function_path: str | None = None
    """generate function in place of the default one"""

    tools: tuple[str, ...] = ()
    """tool_calling: tools that the model may call, by name or as package.module:function"""

    tool_parser: str = "qwen"
    """tool_calling: how the model writes its calls: qwen, hermes, openai"""

    tool_timeout_s: float = 30.0
    """tool_calling: seconds a call of a tool may take; the model is told of one that takes longer"""

    tool_max_turns: int = 8
    """tool_calling: turns of the model in a sample"""

    tool_max_observation_tokens: int = 1024
    """tool_calling: tokens of what a tool answered that the model is told; the rest is cut off"""

    rollout_max_context_len: int | None = None
    """tool_calling: tokens that prompt and response may have together"""

    rollout_function_path: str | None = None
    """rollout function in place of the default one"""

    use_rollout_routing_replay: bool = False
    """keep which experts each token went to, in rollout_routed_experts; needs --num-layers and
    --moe-router-topk"""

    num_layers: int | None = None
    """layers of the model, for --use-rollout-routing-replay"""

    moe_router_topk: int | None = None
    """experts that a token goes to in each layer, for --use-rollout-routing-replay"""

    max_dropped_groups: int = 256
    """give up when this many groups in a row were dropped"""

    rollout_num_gpus: int | None = None
    """GPUs that the workers have together; with it, tokens a second are told per GPU, too"""

    sglang_server_concurrency: int = 512
    """samples generated at a time"""

    request_timeout_s: float = 600.0
    """seconds a sample's request may take, retries included"""

    generate_timeout_s: float | None = None
    """seconds a custom generate function may take for a sample, all turns together"""

    reward_timeout_s: float = 60.0
    """seconds a reward may take, from when it starts"""

    router_patience_s: float = 60.0
    """seconds to wait for a router that is gone or has no worker, before the run ends"""

    abort_all: bool = False
    """when a batch is complete, end everything on every worker with one call, whoever sent it: for fleets
    that this rollout has to itself; else its own requests are ended one by one"""

    partial_rollout: bool = False
    """give the groups that are cut off back to the data source: the next rollout goes on where they were"""

    mask_offpolicy_in_partial_rollout: bool = False
    """train only on what the last rollout sampled of a response; needs --partial-rollout"""

    keep_surplus_groups: bool = False
    """give complete groups beyond the batch back to the data source, for the next rollout"""

    fully_async_max_groups: int | None = None
    """fully_async: groups that are under way or wait for the trainer, at most; twice those submitted at a
    time where it is not given"""

    max_weight_staleness: int | None = None
    """fully_async: weight updates that a group's oldest weights may be behind; any number where not given"""

    stale_group_policy: Literal["drop", "retry"] = "drop"
    """fully_async: what becomes of groups that are too old: thrown away, or generated again"""

    eval_prompt_data: tuple[str, ...] = ()
    """evaluation sets, as pairs of a name and a file"""

    eval_config: Path | None = None
    """YAML file of evaluation sets with settings of their own: eval: {defaults: {…}, datasets: [{name: …,
    path: …}]}"""

    eval_interval: int | None = None
    """evaluate after every so many steps"""

    eval_function_path: str | None = None
    """rollout function that evaluates, in place of the one that makes training samples"""

    eval_dump: bool = True
    """write the samples of an evaluation to eval/ in the output folder"""

    n_samples_per_eval_prompt: int = 1
    """samples for each prompt of an evaluation set; pass@k needs at least k"""

    eval_input_key: str | None = None
    """key of the prompt in evaluation sets; else as in training, and so are those below"""

    eval_label_key: str | None = None
    """key of the label in evaluation sets"""

    eval_temperature: float | None = None
    """sampling temperature in evaluations"""

    eval_top_p: float | None = None
    """nucleus sampling in evaluations"""

    eval_top_k: int | None = None
    """sample from this many tokens only, in evaluations"""

    eval_max_response_len: int | None = None
    """tokens a response may have in evaluations"""

    def __post_init__(self) -> None:
        """Check what a single field's type cannot."""
        check_settings(self)
        self.sampling_params()

    @property
    def data(self) -> Path:
        """The same as `prompt_data`."""
        return self.prompt_data

    @property
    def sglang_router_ip(self) -> str:
        """Host of the router, as slime's functions ask for it."""
        return urlsplit(self.router_url).hostname or ""

    @property
    def sglang_router_port(self) -> int:
        """Port of the router, as slime's functions ask for it."""
        parts = urlsplit(self.router_url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def groups_per_submission(self) -> int:
        """Groups submitted at a time."""
        return self.over_sampling_batch_size or self.rollout_batch_size

    @property
    def groups_at_a_time(self) -> int:
        """Groups that fully_async has under way or waiting, at most."""
        return self.fully_async_max_groups or 2 * self.groups_per_submission

    @property
    def groups_to_complete(self) -> int:
        """Groups that a rollout completes: the batch, or what the over-sampling filter chooses it from."""
        return self.groups_per_submission if self.over_sampling_filter_path else self.rollout_batch_size

    def sampling_params(self) -> dict[str, Any]:
        """Return the sampling parameters of every request, under SGLang's names.

        Stop texts stay in the response (`no_stop_trim`), so that its text says all that its tokens do.
        """
        return {
            "temperature": self.rollout_temperature,
            "top_p": self.rollout_top_p,
            "top_k": self.rollout_top_k,
            "max_new_tokens": self.rollout_max_response_len,
            "stop": list(self.rollout_stop) or None,
            "stop_token_ids": [_token_id(text) for text in self.rollout_stop_token_ids] or None,
            "skip_special_tokens": self.rollout_skip_special_tokens,
            "no_stop_trim": True,
            "spaces_between_special_tokens": False,
        }


def _token_id(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"--rollout-stop-token-ids: expected token ids, not {text!r}")
    return int(text)
