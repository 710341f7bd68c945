"""How the server says no, as the OpenAI SDK for Python sees it."""

import httpx
import openai
import pytest

ASK = [{"role": "user", "content": "Hello"}]
INVALID = "invalid_request_error"


def test_a_wrong_key_is_an_authentication_error(sdk, key, model):
    mistyped = key[:-1] + ("a" if key[-1] != "a" else "b")
    for wrong in ("sk-wrong", mistyped, "x"):
        with pytest.raises(openai.AuthenticationError) as caught:
            sdk(wrong).chat.completions.create(model=model, messages=ASK)
        error = caught.value
        assert (error.status_code, error.code, error.type) == (401, "invalid_api_key", INVALID)
        assert error.request_id
        assert error.response.headers["www-authenticate"].startswith("Bearer")
        assert wrong == "x" or wrong not in str(error.body)


def test_no_key_is_401_on_every_path_outside_the_open_list(http):
    for method, path in [
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/nothing-here"),
        ("GET", "/admin/v1/keys"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("DELETE", "/v1/models"),
    ]:
        answer = http.request(method, path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["x-request-id"]
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a25_spellings_of_the_credential(http, key):
    for good in (
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"bearer {key}"},
        {"Authorization": f"BEARER   {key}"},
        {"x-api-key": key},
        {"api-key": key},
    ):
        assert http.get("/v1/models", headers=good).status_code == 200, list(good)
    for bad in (
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer{key}"},
        {"Authorization": f"Basic {key}"},
        {"Authorization": f"Bearer {key.swapcase()}"},
        {"Authorization": f"Bearer {key},{key}"},
        {"Authorization": f"Bearer {key}", "x-api-key": "sk-other"},
    ):
        answer = http.get("/v1/models", headers=bad)
        assert answer.status_code in (400, 401), list(bad)
    assert http.get("/v1/models", params={"api_key": key}).status_code == 401


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-nothing", messages=ASK)
    error = caught.value
    assert (error.status_code, error.code, error.type, error.param) == (404, "model_not_found", INVALID, "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-nothing")


def test_a_model_outside_the_role_is_forbidden_with_the_same_text(sdk, make_key, model):
    barred = sdk(make_key("barred")[0])
    assert barred.models.list().data == []
    with pytest.raises(openai.PermissionDeniedError) as forbidden:
        barred.chat.completions.create(model=model, messages=ASK)
    with pytest.raises(openai.NotFoundError) as missing:
        barred.chat.completions.create(model="gpt-nothing", messages=ASK)
    assert forbidden.value.code == missing.value.code == "model_not_found"
    assert forbidden.value.body["message"].replace(model, "gpt-nothing") == missing.value.body["message"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "64", True, 18446744073709551616, []], ids=str)
def test_a16_odd_values_are_refused_and_named(http, auth, model, name, value):
    body = {"model": model, "messages": ASK, name: value}
    answer = http.post("/v1/chat/completions", headers=auth, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == INVALID
    assert error["param"] == name


def test_bad_bodies_are_bad_requests_that_name_the_member(client, http, auth, model):
    for param, fields in [
        ("messages", {"messages": "Hello"}),
        ("temperature", {"temperature": "hot"}),
        ("n", {"n": 5}),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**({"model": model, "messages": ASK} | fields))
        assert caught.value.param is not None and caught.value.param.startswith(param)
        assert caught.value.type == INVALID
    for broken in ("", "{", "[]", "null", '{"model":"\\ud800"}', '{"a":1}x'):
        answer = http.post("/v1/chat/completions", headers=auth | {"content-type": "application/json"}, content=broken)
        assert answer.status_code == 400, broken
        assert answer.json()["error"]["type"] == INVALID


def test_a14_a_member_twice_is_refused(http, auth, model):
    head = auth | {"content-type": "application/json"}
    message = '"messages":[{"role":"user","content":"Hello"}]'
    for body in (
        f'{{"model":"{model}","model":"big",{message}}}',
        f'{{"model":"{model}","mod\\u0065l":"big",{message}}}',
        f'{{"model":"{model}","max_tokens":5,"max_tokens":9000,{message}}}',
        f'{{"model":"{model}","stream":false,"stream":true,{message}}}',
        f'{{"model":"{model}","messages":[{{"role":"user","content":"a","content":"b"}}]}}',
    ):
        answer = http.post("/v1/chat/completions", headers=head, content=body)
        assert answer.status_code == 400, body
        assert answer.json()["error"]["type"] == INVALID


def test_a_body_that_is_not_json_by_its_header(http, auth, model):
    head = auth | {"content-type": "text/plain"}
    answer = http.post("/v1/chat/completions", headers=head, content="{}")
    assert answer.status_code == 415


def test_a_huge_body_is_413(client, model):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x" * (9 << 20)}])
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")


def test_a_prompt_beyond_the_context_is_a_bad_request(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "one two " * 150_000}])
    assert caught.value.code == "context_length_exceeded"


def test_unknown_route_and_wrong_method(http, auth):
    answer = http.get("/v1/nothing-here", headers=auth)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"
    answer = http.get("/v1/chat/completions", headers=auth)
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_the_handbooks_rates_are_in_the_headers(sdk, first_key, make_key, model):
    for api_key, limit in ((first_key, "100"), (make_key("user")[0], "10")):
        answer = sdk(api_key).chat.completions.with_raw_response.create(model=model, messages=ASK, max_tokens=1)
        assert answer.headers["x-ratelimit-limit-requests"] == limit
        assert 0 <= int(answer.headers["x-ratelimit-remaining-requests"]) < int(limit)


def test_too_many_requests_say_when_to_come_back(sdk, make_key, model):
    slow = sdk(make_key("slow")[0])
    for _ in range(2):
        slow.chat.completions.create(model=model, messages=ASK, max_tokens=1)
    with pytest.raises(openai.RateLimitError) as caught:
        slow.chat.completions.create(model=model, messages=ASK, max_tokens=1)
    error, headers = caught.value, caught.value.response.headers
    assert (error.status_code, error.type, error.code) == (429, "requests", "rate_limit_exceeded")
    assert 0 < float(headers["retry-after-ms"]) <= 30_000
    assert 1 <= float(headers["retry-after"]) <= 30
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"].endswith("s")


def test_a_revoked_key_is_refused_at_once(sdk, make_key, revoke, model):
    api_key, key_id = make_key("tiny")
    alive = sdk(api_key)
    assert alive.models.list().data
    revoke(key_id)
    with pytest.raises(openai.AuthenticationError) as caught:
        alive.models.list()
    assert caught.value.code == "invalid_api_key"


def test_one_call_at_a_time_and_a_cancelled_one_frees_its_place(sdk, make_key, model):
    single = sdk(make_key("single")[0])
    long = {"model": model, "messages": [{"role": "user", "content": "Count from 1 to 100000, one number a line."}]}
    # Some models end early however much they are asked for, so the call is one that can only end at its limit.
    endless = single.completions.create(
        model=model, prompt="1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n", max_tokens=8192, temperature=0, stream=True
    )
    for _, _chunk in zip(range(3), endless):
        pass
    with pytest.raises(openai.RateLimitError) as caught:
        single.chat.completions.create(**long, max_tokens=1)
    assert caught.value.code == "rate_limit_exceeded"
    endless.close()
    # The place is free as soon as the server has seen the client go; the engine is asked again right after.
    single.with_options(max_retries=8).chat.completions.create(**long, max_tokens=1)


def test_a_client_that_leaves_does_no_harm_to_the_next(client, model):
    for _ in range(5):
        stream = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Tell a long story."}], max_tokens=512, stream=True
        )
        next(iter(stream))
        stream.close()
    answer = client.chat.completions.create(model=model, messages=ASK, max_tokens=4)
    assert answer.usage.completion_tokens > 0


def test_a_header_block_that_is_too_large_is_refused(http, auth):
    try:
        answer = http.get("/v1/models", headers=auth | {"x-long": "x" * (1 << 20)})
    except httpx.TransportError:
        return  # closed without an answer is a refusal too
    assert answer.status_code in (400, 431)
