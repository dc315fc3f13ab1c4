"""One schema: records, the chat template and training accept and refuse the same messages."""

from typing import Any

import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.records import Record
from dualtoken.data_pipelines.shards.sample_codec import decode_record, encode_record
from dualtoken.mllm import DualTokenProcessor, build_processor

from . import chat_templates as templates

PICTURE = Image.new("RGB", (8, 8), (200, 0, 0))
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "how many?"}
REPLY = {"role": "assistant", "content": "Two."}
LOOK = {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "what?"}]}


def said(content: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": content}, REPLY]


ACCEPTED: dict[str, list[Any]] = {
    "a question": [ASK, REPLY],
    "system first": [SYSTEM, ASK, REPLY],
    "system twice": [SYSTEM, SYSTEM, ASK, REPLY],
    "system later": [ASK, REPLY, SYSTEM, ASK, REPLY],
    "system last": [ASK, REPLY, SYSTEM],
    "system only, then an answer": [SYSTEM, REPLY],
    "system with an image": [{**LOOK, "role": "system"}, ASK, REPLY],
    "assistant first": [REPLY, ASK, REPLY],
    "two users": [ASK, LOOK, REPLY],
    "two assistants": [ASK, REPLY, REPLY],
    "an empty question": said(""),
    "an empty answer": [ASK, {**REPLY, "content": ""}, ASK, REPLY],
    "text and strings": said(["how", {"type": "text", "text": "many?"}]),
    "an image under another name": said([{"type": "image", "path": PICTURE}, "what?"]),
    "an image as answer": [ASK, {**LOOK, "role": "assistant"}],
    "words about a mark": said("what is <video> in HTML?"),
}
REFUSED: dict[str, Any] = {
    "nothing": [],
    "a text": "how many?",
    "null": None,
    "a message that is a text": ["how many?"],
    "no role": [{"content": "q"}, REPLY],
    "role null": [{"role": None, "content": "q"}, REPLY],
    "role tool": said("q", "tool"),
    "role list": said("q", ["user"]),  # type: ignore[arg-type]
    "content null": said(None),
    "content a number": said(3),
    "content an object": said({"type": "text", "text": "q"}),
    "content empty": said([]),
    "text null": said([{"type": "text", "text": None}]),
    "text under content": said([{"type": "text", "content": "q"}]),
    "no type": said([{"text": "q"}]),
    "an unknown type": said([{"type": "table", "table": []}]),
    "no image": said([{"type": "image"}]),
    "image a number": said([{"type": "image", "image": 3}]),
    "half the codes": said([{"type": "image", "pixel_codes": [[[1]]]}]),
    "video": said([{"type": "video", "video": "v.mp4"}, "q"]),
    "sound": said([{"type": "input_audio", "input_audio": {}}, "q"]),
    "a video's mark": said("<video>\nWhat happens?"),
    "half a surrogate pair": said("q \ud83d"),
    "NUL": said("q\0"),
    "an unconditional answer": [ASK, {"role": "assistant", "content": [{"type": "unconditional"}]}],
}


@pytest.fixture(params=["own", "chatml", "mistral"])
def chat_processor(request: pytest.FixtureRequest, visual_tokenizer, text_folder) -> DualTokenProcessor:
    family = request.param
    text = text_folder if family == "own" else templates.chat_tokenizer(text_folder, family)
    return build_processor(visual_tokenizer, text)


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_accepted_is_accepted_everywhere(chat_processor, case):
    record = Record("r", ACCEPTED[case]).validate()
    trained = chat_processor.encode_record(ACCEPTED[case])
    stored = decode_record(dict(encode_record(record).members))
    for again in (
        chat_processor.encode_record(record.messages).input_ids,
        chat_processor.encode_record(stored.messages).input_ids,
        chat_processor.apply_chat_template(ACCEPTED[case])["input_ids"][0].numpy(),
    ):
        assert again.tolist() == trained.input_ids.tolist()
    # Only the assistant's turns are targets.
    learned = chat_processor.tokenizer.decode(trained.labels[trained.labels >= 0])
    assert "brief" not in learned
    assert "many" not in learned


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_in_the_same_words(processor, case):
    words = set()
    for use in (
        lambda messages: Record("r", messages).validate(),
        processor.encode_record,
        lambda messages: processor.apply_chat_template(
            [messages] if isinstance(messages, list) else messages
        ),
    ):
        with pytest.raises(UserError) as caught:
            use(REFUSED[case])
        words.add(str(caught.value).removeprefix("Record 'r': "))
    assert len(words) == 1
