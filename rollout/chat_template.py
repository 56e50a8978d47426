"""A checkpoint's own chat template: messages to the text that the model was trained to read.

Templates are Jinja code that comes with a checkpoint. They run in Jinja's immutable sandbox: they can reach
no file, no module and no attribute that begins with an underscore, and change nothing that they are given.
What a template may use beyond plain Jinja is what Hugging Face gives it: `raise_exception`, `strftime_now`,
`tojson` that keeps non-ASCII characters, loop controls, and the `generation` tag, which changes no text.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import msgspec

from ..errors import ConfigError, EspalierError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""A conversation, as the chat completions API has it: each message has a `role`, and mostly a `content`."""

Tools: TypeAlias = Sequence[Mapping[str, Any]]
"""Tools that the model may call, as the chat completions API has them."""

_SPECIAL_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token")
_DEFAULT: Final = "default"
_WITH_TOOLS: Final = "tool_use"


class TemplateRefused(EspalierError):
    """The chat template cannot render these messages. Says why, in the template's words where it has some."""


class ChatTemplate:
    """Renders messages. Templates that a checkpoint has for tools are used where there are tools."""

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        """Compile the templates `sources`, by name; one is called `default`.

        `special_tokens` are texts, by the names that templates know them by (`bos_token`). `now` is asked
        where a template prints the date.

        Raises: ConfigError where a template is no Jinja, or jinja2 is not installed.
        """
        environment = _environment(now)
        try:
            self._templates = {name: environment.from_string(source) for name, source in sources.items()}
        except Exception as error:  # a template is foreign code
            raise ConfigError(f"the chat template cannot be compiled: {error}") from error
        if _DEFAULT not in self._templates:
            raise ConfigError(f"there is no chat template {_DEFAULT!r}, only {', '.join(sources) or 'none'}")
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Messages,
        tools: Tools | None = None,
        *,
        add_generation_prompt: bool = False,
        **variables: object,
    ) -> str:
        """Return the text of the messages; with `add_generation_prompt` the next one is the model's.

        `variables` are those that the template itself asks for, such as `enable_thinking`.

        Raises: TemplateRefused where the template does not render them.
        """
        name = _WITH_TOOLS if tools and _WITH_TOOLS in self._templates else _DEFAULT
        values = {
            **self._special_tokens,
            "messages": messages,
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **variables,
        }
        try:
            return self._templates[name].render(values)
        except Exception as error:  # a template is foreign code
            raise TemplateRefused(f"the chat template cannot render the messages: {error}") from error


class _TokenizerConfig(msgspec.Struct):
    """`tokenizer_config.json`, as far as templates need it."""

    chat_template: str | list[dict[str, str]] | None = None
    bos_token: str | dict[str, Any] | None = None
    eos_token: str | dict[str, Any] | None = None
    unk_token: str | dict[str, Any] | None = None
    pad_token: str | dict[str, Any] | None = None


def load_chat_template(folder: Path) -> ChatTemplate:
    """Return the chat template in the folder of a tokenizer.

    It is in `chat_template.jinja` or, failing that, in `tokenizer_config.json`.

    Raises: ConfigError where there is none, or it cannot be used.
    """
    path = folder / "tokenizer_config.json"
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_TokenizerConfig)
        own_file = folder / "chat_template.jinja"
        source = own_file.read_text(encoding="utf-8") if own_file.is_file() else config.chat_template
    except OSError as error:
        raise ConfigError(f"--hf-checkpoint {error.filename}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--hf-checkpoint {path}: {error}") from None
    if source is None:
        raise ConfigError(f"--hf-checkpoint {folder}: has no chat template")
    named = {_DEFAULT: source} if isinstance(source, str) else _named_sources(source)
    try:
        return ChatTemplate(named, _special_tokens(config))
    except ConfigError as error:
        raise ConfigError(f"--hf-checkpoint {folder}: {error}") from error


def _named_sources(sources: list[dict[str, str]]) -> dict[str, str]:
    return {source.get("name", ""): source.get("template", "") for source in sources}


def _special_tokens(config: _TokenizerConfig) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in _SPECIAL_TOKENS:
        token = getattr(config, name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            tokens[name] = text
    return tokens


def _environment(now: Callable[[], datetime]) -> "ImmutableSandboxedEnvironment":
    try:
        from jinja2 import TemplateError, nodes  # noqa: PLC0415  only chat templates need the package
        from jinja2.ext import Extension  # noqa: PLC0415
        from jinja2.parser import Parser  # noqa: PLC0415
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ConfigError("chat templates need jinja2: pip install 'espalier[data]'") from None

    class GenerationTag(Extension):
        """`{% generation %}` marks what the model said; its text is rendered as it is."""

        tags = {"generation"}  # noqa: RUF012  Jinja's way of naming tags

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: object, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    return environment
