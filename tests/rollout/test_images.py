"""Pictures in a dataset: where they are found, what is wrong with them, and what becomes of them."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest

from espalier.errors import ConfigError, DataError, RolloutError
from espalier.rollout import RolloutConfig, RolloutDataSource, Sample
from espalier.rollout.images import MAX_IMAGE_BYTES, image_data, label, opened, reference_to
from espalier.rollout.records import encode_group
from tests.rollout.test_dataset import CHECKPOINT

URL = "https://example.com/cat.png"
TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|endoftext|>{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
)


def png(red: int = 0, size: int = 2) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (size, size), (red, 0, 0)).save(file, format="PNG")
    return file.getvalue()


def uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def checkpoint(folder: Path) -> Path:
    """A tokenizer whose chat template shows images."""
    path = folder / "checkpoint"
    path.mkdir()
    (path / "tokenizer.json").write_bytes((CHECKPOINT / "tokenizer.json").read_bytes())
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return path


def config(folder: Path, *rows: dict[str, Any], **changes: Any) -> RolloutConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "hf_checkpoint": checkpoint(folder),
        "apply_chat_template": True,
        "multimodal_keys": '{"image": "images"}',
    }
    return RolloutConfig(prompt_data=path, n_samples_per_prompt=1, **{**settings, **changes})


def first(args: RolloutConfig) -> Sample:
    return RolloutDataSource(args).get_samples(1)[0][0]


def images_of(sample: Sample) -> list[str]:
    assert sample.multimodal_inputs is not None
    found: list[str] = sample.multimodal_inputs["images"]
    return found


def test_every_form_of_an_image_is_sent_as_a_url_or_a_data_uri(tmp_path: Path) -> None:
    file = tmp_path / "a b.png"
    file.write_bytes(png())
    picture = PIL.Image.open(io.BytesIO(png()))
    forms: list[Any] = [
        "a b.png",
        str(file),
        file.as_uri(),
        uri(png()),
        base64.b64encode(png()).decode(),
        png(),
        {"bytes": png(), "path": None},
        {"bytes": None, "path": "a b.png"},
        {"url": uri(png())},
        picture,
    ]
    for form in forms:
        sent = image_data(reference_to(form, tmp_path))
        content = base64.b64decode(sent.removeprefix("data:image/png;base64,"), validate=True)
        assert PIL.Image.open(io.BytesIO(content)).tobytes() == picture.tobytes(), form
    assert image_data(reference_to(URL, tmp_path)) == URL
    assert image_data(picture).startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\xff\xd8\xff\xe0rest", "image/jpeg"),
        (b"GIF89a rest", "image/gif"),
        (b"RIFF1234WEBPrest", "image/webp"),
        (b"BMrest", "image/bmp"),
    ],
)
def test_the_kind_of_an_image_is_read_from_its_bytes(content: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.png").write_bytes(content)
    assert image_data(reference_to("wrong.png", tmp_path)) == uri(content, kind)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("gone.png", "there is no file 'gone.png'"),
        ("file:///gone.png", "there is no file 'file:///gone.png'"),
        ("text.png", "is no PNG, JPEG, GIF, WebP, BMP or TIFF image"),
        ("big.png", f"an image may have {MAX_IMAGE_BYTES}: make it smaller"),
        ("data:image/png;base64,!!", "the data URI cannot be decoded"),
        (base64.b64encode(b"plain text").decode(), "nor is it base64 of an image"),
        ("x" * 5000 + "\x00", "nor is it base64 of an image"),
        ("nul\x00.png", "there is no file"),
        (7, "must be a path, a URL, base64 or bytes, not int"),
        ({"caption": "x"}, "must have 'bytes', 'path' or 'url', not caption"),
    ],
)
def test_a_bad_image_is_told_with_its_row(image: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "good.png").write_bytes(png())
    with (tmp_path / "big.png").open("wb") as file:
        file.write(png())
        file.truncate(MAX_IMAGE_BYTES + 1)
    rows: list[dict[str, Any]] = [
        {"prompt": "<image>", "images": ["good.png"]},
        {"prompt": "<image>", "images": [image]},
    ]
    with pytest.raises(DataError) as told:
        first(config(tmp_path, *rows))
    assert "rows.jsonl, line 2" in str(told.value)
    assert message in str(told.value)


def test_placeholders_and_image_parts_take_the_rows_images_in_order(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(png(ord(name)))
    parts = [
        {"type": "image"},
        {"type": "text", "text": "left"},
        {"type": "image", "image": "c.png"},
        {"type": "image_url", "image_url": {"url": URL}},
    ]
    rows: list[dict[str, Any]] = [
        {"prompt": "<image>is it <image>?", "images": ["a.png", "b.png"]},
        {"prompt": [{"role": "user", "content": parts}], "images": "a.png"},
        {"prompt": "none here"},
    ]
    groups = RolloutDataSource(config(tmp_path, *rows)).get_samples(3)
    one, two, three = (group[0] for group in groups)
    assert one.prompt == "<|endoftext|>is it <|endoftext|>?"
    assert images_of(one) == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert two.prompt == "<|endoftext|>left<|endoftext|><|endoftext|>"
    assert images_of(two) == [str(tmp_path / "a.png"), str(tmp_path / "c.png"), URL]
    assert (three.prompt, three.multimodal_inputs) == ("none here", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "<image>", "images": [URL, URL]}, "1 of its 2 images have no place in the prompt: write"),
        ({"prompt": "<image><image>", "images": [URL]}, "places for more images than the 1 that its row has"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "video"}]}]},
            "a part of type 'video': only texts",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "a part of type 'input_audio': only texts and images can be sent",
        ),
    ],
)
def test_places_and_images_must_fit(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        first(config(tmp_path, row))


@pytest.mark.parametrize("keys", ['{"video": "clips"}', '{"image": "a", "audio": "b"}', "images", "{}", "[]"])
def test_other_media_and_malformed_keys_are_refused(keys: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--multimodal-keys: expected"):
        first(config(tmp_path, {"prompt": "x"}, multimodal_keys=keys))


def test_images_need_a_tokenizer(tmp_path: Path) -> None:
    args = config(tmp_path, {"prompt": "x", "images": [URL]}, hf_checkpoint=None, apply_chat_template=False)
    with pytest.raises(ConfigError, match="a dataset with images needs --hf-checkpoint"):
        first(args)


def test_a_parquet_file_holds_images_as_bytes(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["<image>"], "images": [[{"bytes": png(9), "path": "x.png"}]]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    args = config(tmp_path, {})
    sample = first(RolloutConfig(**{**vars(args), "prompt_data": tmp_path / "rows.parquet"}))
    assert images_of(sample) == [uri(png(9))]


def test_a_saved_line_names_images_and_outlines_what_is_trained_on(tmp_path: Path) -> None:
    file = str(tmp_path / "a.png")
    inputs: Mapping[str, Any] = {"pixel_values": zeros(), "note": "x"}
    sample = Sample(
        multimodal_inputs={"images": [file, URL, uri(png())]}, multimodal_train_inputs=dict(inputs)
    )
    line = json.loads(encode_group([sample], 0))
    assert set(line["multimodal_inputs"]) == {"images"}
    images = line["multimodal_inputs"]["images"]
    assert images[:2] == [file, URL]
    assert images[2] == label(uri(png()))
    assert images[2] != label(uri(png(1)))
    assert line["multimodal_train_shapes"] == {"pixel_values": "float32[2, 3]", "note": "str"}
    plain = json.loads(encode_group([Sample()], 0))
    assert not {"multimodal_inputs", "multimodal_train_shapes"} & set(plain)


def zeros() -> Any:
    import numpy as np

    return np.zeros((2, 3), np.float32)


def test_a_processor_gets_no_url_and_no_broken_image(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(png(size=64)[:60])
    assert opened(uri(png(7))).getpixel((0, 0)) == (7, 0, 0)
    with pytest.raises(RolloutError, match="a processor needs the image itself"):
        opened(URL)
    with pytest.raises(RolloutError, match=r"cut.png' cannot be read"):
        opened(reference_to("cut.png", tmp_path))
