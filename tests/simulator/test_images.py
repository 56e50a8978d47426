import base64
from typing import Any

import pytest

from tests.simulator.workers import INSTANT, generate, running_worker

PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\nrest").decode()
ONE = "<|endoftext|>What is it?"


def test_images_take_the_places_of_their_tokens() -> None:
    with running_worker(image_tokens=7, **INSTANT) as worker:
        assert worker.get("/model_info").json()["has_image_understanding"] is True
        without = generate(worker, text="What is it?")["meta_info"]["prompt_tokens"]
        one = generate(worker, text=ONE, image_data=PNG)
        several = generate(worker, text=[ONE, "What is it?"], image_data=[[PNG], None])
    assert one["meta_info"]["prompt_tokens"] == without + 7
    assert [each["meta_info"]["prompt_tokens"] for each in several] == [without + 7, without]


def test_a_model_that_reads_no_images_takes_no_notice_of_them() -> None:
    with running_worker(**INSTANT) as worker:
        assert worker.get("/model_info").json()["has_image_understanding"] is False
        plain = generate(worker, text=ONE, sampling_params={"temperature": 0})
        other = generate(worker, text=ONE, sampling_params={"temperature": 0}, image_data="nonsense")
    assert other["output_ids"] == plain["output_ids"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text": ONE, "image_data": [PNG, PNG]}, "1 image placeholder token(s) but 2 image(s)"),
        ({"text": ONE, "image_data": "!!"}, "Error while loading image data"),
        ({"text": ONE, "image_data": "aGVsbG8="}, "cannot identify image file"),
        ({"text": ONE, "image_data": 7}, "Invalid image: 7"),
        ({"text": [ONE, ONE], "image_data": [PNG]}, "length of image_data should be equal"),
    ],
)
def test_images_that_do_not_fit_are_refused(body: dict[str, Any], message: str) -> None:
    with running_worker(image_tokens=7, **INSTANT) as worker:
        reply = worker.post("/generate", json=body)
    assert reply.status_code == 400
    assert message in reply.text
