"""What a caller of the OpenAI SDK for Python gets when all is well."""

import httpx
import pytest

ASK = [{"role": "user", "content": "Say hello in one short sentence."}]
COUNT = [{"role": "user", "content": "Write the numbers from 1 to 2000, one a line."}]


def test_the_list_of_models_has_the_one_that_is_served(client, model):
    listed = client.models.list()
    assert listed.object == "list"
    assert [m.object for m in listed.data] == ["model"]
    one = client.models.retrieve(model)
    assert (one.id, one.object, one.owned_by) == (model, "model", "guan")
    assert one.created > 0


def test_a_chat_answer_has_text_usage_and_a_request_id(client, model):
    answer = client.chat.completions.create(model=model, messages=ASK, max_tokens=16, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == model
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content.strip()
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert 0 < usage.completion_tokens <= 16
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer._request_id


def test_a_stream_has_the_same_text_as_the_whole_answer(client, model):
    asked = {"model": model, "messages": ASK, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert {c.model for c in chunks} == {model}
    assert len({c.id for c in chunks}) == 1
    assert all(len(c.choices) == 1 for c in chunks), "no usage chunk was asked for"
    assert all(c.usage is None for c in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content
    ends = [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason]
    assert ends == [whole.choices[0].finish_reason]
    assert chunks[-1].choices[0].finish_reason


def test_a08_the_usage_chunk_comes_last_and_only_when_asked_for(client, model):
    chunks = list(
        client.chat.completions.create(
            model=model, messages=ASK, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert 0 < chunks[-1].usage.completion_tokens <= 8
    assert all(c.usage is None and c.choices for c in chunks[:-1])


def test_a_stream_on_the_wire_is_data_lines_done_and_the_end(http, auth, model):
    body = {"model": model, "messages": ASK, "max_tokens": 8, "stream": True}
    with http.stream("POST", "/v1/chat/completions", headers=auth, json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].replace(" ", "") == "text/event-stream;charset=utf-8"
        assert "no-cache" in answer.headers["cache-control"]
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in answer.headers
        assert answer.headers["x-request-id"]
        text = answer.read().decode()
    frames = [frame for frame in text.split("\n\n") if frame]
    assert all(frame.startswith(("data: ", ":")) and "\n" not in frame for frame in frames)
    assert frames[-1] == "data: [DONE]"
    assert text.endswith("data: [DONE]\n\n")


def test_completions_answer_and_stream(client, model):
    asked = {"model": model, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**asked)
    assert whole.object == "text_completion"
    assert whole.model == model
    assert 0 < whole.usage.completion_tokens <= 8
    chunks = list(client.completions.create(**asked, stream=True))
    assert all(c.choices for c in chunks)
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text


@pytest.fixture(scope="module")
def tiny(sdk, make_key):
    return sdk(make_key("tiny")[0])


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 5000},
        {"max_completion_tokens": 5000},
        {"max_tokens": 5000, "max_completion_tokens": 5000},
        {"max_tokens": 5000, "max_completion_tokens": 4},
        {"max_tokens": None},
        {},
    ],
    ids=["max_tokens", "max_completion_tokens", "both", "the-lower-counts", "null", "neither"],
)
def test_the_roles_output_limit_holds_in_whatever_field_the_caller_writes(tiny, model, fields):
    answer = tiny.chat.completions.create(model=model, messages=COUNT, temperature=0, **fields)
    assert 0 < answer.usage.completion_tokens <= 16
    if fields.get("max_completion_tokens") == 4:
        assert answer.usage.completion_tokens <= 4
    assert answer.choices[0].finish_reason == "length"


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client, model):
    asked = {"model": model, "prompt": "1, 2, 3, 4, 5, 6, 7,", "max_tokens": 40, "temperature": 0}
    free = client.completions.create(**asked).choices[0].text
    stop = free.strip()[3:5]
    answer = client.completions.create(**asked, stop=[stop])
    assert stop and stop not in answer.choices[0].text
    assert answer.choices[0].text == free[: free.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(client.completions.create(**asked, stop=stop, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == answer.choices[0].text


def test_the_same_seed_gives_the_same_answer(client, model):
    for fields in ({"temperature": 0}, {"temperature": 1.0, "seed": 7}):
        asked = {"model": model, "messages": ASK, "max_tokens": 16} | fields
        first, second = (client.chat.completions.create(**asked).choices[0].message.content for _ in range(2))
        assert first == second, fields


def test_two_choices_come_as_two(client, model):
    answer = client.chat.completions.create(model=model, messages=ASK, max_tokens=4, n=2)
    assert [c.index for c in answer.choices] == [0, 1]


def test_unknown_members_are_dropped_and_named(http, auth, model):
    body = {"model": model, "messages": ASK, "max_tokens": 1, "x_future_member": 1}
    answer = http.post("/v1/chat/completions", headers=auth, json=body)
    assert answer.status_code == 200
    assert "x_future_member" in answer.headers["x-guan-dropped"]


def test_liveness_readiness_and_the_page_need_no_key(http):
    assert http.get("/livez").status_code == 200
    assert http.get("/readyz").status_code == 200
    page = http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "content-security-policy" in page.headers


def test_the_certificate_has_the_names_a_caller_uses(url, trust):
    port = httpx.URL(url).port
    for host in ("127.0.0.1", "localhost"):
        with httpx.Client(verify=trust, trust_env=False) as bare:
            assert bare.get(f"https://{host}:{port}/livez").status_code == 200
