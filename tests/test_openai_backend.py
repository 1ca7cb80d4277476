"""The OpenAI-compatible backend against a server with knobs for every trap."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import formatdate
from typing import Any

import pytest
from openai_server import CHAT, CONTINUE, TOOL, FakeServer, ask, draws, free_port, serving, texts

from posttrain_plugins.backends.open import open_backend
from posttrain_plugins.backends.openai.backend import OpenAIBackend
from posttrain_plugins.backends.protocol import AsyncBackend, check_request
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import InputError
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.types import Generate, Problem, SamplingParams, Usage

# --- the probe -------------------------------------------------------------------------------------------------------

GOOD = {
    "n": True,
    "temperature": True,
    "seed": True,
    "prefill": True,
    "logprobs": True,
    "top_logprobs": True,
    "stop": True,
    "stop_reason": True,
    "tools": True,
    "values": False,
}


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, {}),
        ({"n": "ignored"}, {"n": False}),
        ({"n": "copies"}, {"n": False}),
        ({"sampling": "generation_config"}, {}),
        ({"sampling": "never"}, {"temperature": False}),
        ({"seed": "global"}, {"seed": False}),
        ({"seed": "ignored"}, {"seed": False}),
        ({"prefill": "plain"}, {}),
        ({"prefill": "closed"}, {"prefill": False}),
        ({"prefill": "refused"}, {"prefill": False}),
        ({"prefill": "closed", "is_strict": True}, {"prefill": False}),
        ({"prefill": "plain", "is_strict": True}, {}),
        ({"stop": "kept"}, {}),
        ({"stop": "silent"}, {"stop_reason": False}),
        ({"stop": "ignored"}, {}),
        ({"has_logprobs": False}, {"logprobs": False, "top_logprobs": False}),
        ({"has_tools": False}, {"tools": False}),
        ({"limit_field": "max_completion_tokens"}, {}),
        ({"seed_field": "random_seed"}, {}),
        ({"counts": False}, {"prefill": False}),
        ({"hidden_tokens": 20}, {}),
        ({"hidden_tokens": 1024}, {"stop_reason": False}),
    ],
)
def test_the_probe_finds_what_the_server_does(knobs: dict[str, Any], expected: dict[str, bool]) -> None:
    with serving(**knobs) as server:
        found = OpenAIBackend("fake", server.url).capabilities
    assert {name: getattr(found, name) for name in GOOD} == GOOD | expected


def test_the_probe_is_made_once_counted_apart_and_told() -> None:
    told: list[str] = []
    with serving(n="ignored", sampling="generation_config", seed="global", prefill="closed") as server:
        backend = OpenAIBackend("fake", server.url, on_note=told.append)
        assert backend.capabilities == backend.capabilities
        probing = len(server.bodies)
        assert backend.probe_usage == server.usage
        completions = ask(backend, draws(), draws())
        assert len(server.bodies) == probing + 16
    spent = sum((c.usage for of in completions for c in of), Usage())
    assert backend.probe_usage + spent == server.usage
    assert probing < 50
    lines = "\n".join(backend.describe())
    assert "n            no   1 of 4 came: each completion is a request of its own" in lines
    assert "temperature  yes" in lines
    assert "only with a generation_config: greedy without it" in lines
    assert "equal seeds hold only for one request at a time" in lines
    assert told == backend.notes
    assert [line.split(": ")[1] for line in told] == ["n", "prefill", "temperature", "seed"]


def test_requests_that_come_before_the_finding_share_one_probe() -> None:
    with serving() as server:
        first, second = (OpenAIBackend("fake", server.url) for _ in range(2))
        first.capabilities  # noqa: B018
        alone = len(server.bodies)
        server.bodies.clear()
        ask(second, *(draws() for _ in range(5)))
        assert len(server.bodies) == alone + 5


def test_without_a_probe_the_server_is_taken_at_its_word() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url, should_probe=False)
        ((*completions,),) = ask(backend, draws())
        assert len(server.bodies) == 1
        assert len(set(texts(completions))) == 8
        assert not backend.capabilities.prefill


# --- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", ["many", "ignored", "copies"])
@pytest.mark.parametrize("sampling", ["temperature", "generation_config"])
@pytest.mark.parametrize("prompt", [CHAT, "Count: one"], ids=["chat", "text"])
def test_n_distinct_samples_come_back_and_usage_is_the_servers(n: str, sampling: str, prompt: Any) -> None:
    with serving(n=n, sampling=sampling) as server:
        backend = OpenAIBackend("fake", server.url)
        ask(backend, draws(1, prompt))
        before, server.bodies[:] = server.usage, []
        ((*completions,),) = ask(backend, draws(8, prompt))
        assert len(server.bodies) == (1 if n == "many" else 8)
    assert len(set(texts(completions))) == 8
    assert sum((c.usage for c in completions), before) == server.usage
    assert {c.usage.prompt_tokens for c in completions[1:]} == (
        {0} if n == "many" else {completions[0].usage.prompt_tokens}
    )


def test_equal_seeds_give_equal_completions_and_fit_every_server() -> None:
    with serving(n="ignored") as server:
        backend = OpenAIBackend("fake", server.url)
        first, second, other = (ask(backend, draws(), seed=seed)[0] for seed in (2**62, 2**62, 2**62 + 100))
    assert texts(first) == texts(second)
    assert texts(first) != texts(other)
    assert all(0 <= body.get("seed", 0) < 2**31 for body in server.bodies)


def test_many_more_than_a_server_takes_at_once_are_asked_in_parts() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url, should_probe=False)
        ((*completions,),) = ask(backend, draws(300))
        assert [body["n"] for body in server.bodies] == [128, 128, 44]
    assert len(completions) == 300
    assert sum((c.usage for c in completions), Usage()) == server.usage


def test_a_prefill_is_sent_as_the_server_wants_it() -> None:
    prefilled = draws(1, [*CHAT, {"role": "assistant", "content": "One"}])
    with serving(prefill="fields") as server:
        ask(OpenAIBackend("fake", server.url), prefilled)
        assert server.bodies[-1]["continue_final_message"] is True
        assert server.bodies[-1]["add_generation_prompt"] is False
    with serving(prefill="plain") as server:
        ask(OpenAIBackend("fake", server.url), prefilled)
        assert not CONTINUE & set(server.bodies[-1])
    with serving(prefill="closed") as server, pytest.raises(InputError, match="goes on from a begun answer"):
        check_request(prefilled, OpenAIBackend("fake", server.url), "beam_search")


@pytest.mark.parametrize(("stop", "told"), [("told", "w"), ("kept", "w"), ("silent", None), ("ignored", "w")])
def test_a_stop_string_is_cut_and_told_where_it_can_be(stop: str, told: str | None) -> None:
    with serving(stop=stop) as server:
        backend = OpenAIBackend("fake", server.url)
        ((completion,),) = ask(backend, draws(1, stop=("zzz", "w")))
        assert (completion.text, completion.finish_reason, completion.stop_reason) == ("", "stop", told)
        ((unstopped,),) = ask(backend, draws(1, stop=("zzz",)))
        assert (unstopped.finish_reason, unstopped.stop_reason) == ("length", None)


@pytest.mark.parametrize("prompt", [CHAT, "Count: one"], ids=["chat", "text"])
def test_logprobs_and_confidences(prompt: Any) -> None:
    with serving() as server:
        ((completion,),) = ask(OpenAIBackend("fake", server.url), draws(1, prompt, logprobs=True, top_logprobs=2))
    assert completion.logprobs == [-0.5] * 8
    assert completion.confidences == [1.0] * 8


def test_tool_calls_are_parsed_and_schemas_wrapped() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url)
        for tool in (TOOL, TOOL["function"]):
            ((completion,),) = ask(backend, Generate(CHAT, params=SamplingParams(max_tokens=8), tools=(tool,)))
            assert server.bodies[-1]["tools"] == [TOOL]
            assert completion.tool_calls == [{"name": "add", "arguments": {"city": "Paris"}}]
            assert (completion.finish_reason, completion.text) == ("tool_calls", "")


def test_reasoning_that_is_split_off_is_put_back() -> None:
    message = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    payload = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": None}
    with serving(script=[(200, {}, json.dumps(payload))]) as server:
        ((completion,),) = ask(OpenAIBackend("fake", server.url, should_probe=False), draws(1))
    assert completion.text == "<think>\n2 and 2\n</think>\n\n4"


def test_extra_fields_are_sent_and_ours_left_out_on_demand() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url, should_probe=False, extra_body={"top_k": -1, "top_p": None})
        ask(backend, draws(1))
        assert server.bodies[-1]["top_k"] == -1
        assert "top_p" not in server.bodies[-1]


def test_concurrency_is_limited_and_nobody_waits_for_a_wave() -> None:
    with serving(n="ignored", service_s=0.02) as server:
        backend = OpenAIBackend("fake", server.url, concurrency=6)
        server.peak = 0
        ask(backend, *(draws(4) for _ in range(6)))
        assert server.peak == 6


def test_it_is_an_async_backend_whose_connections_close_with_the_loop() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url, should_probe=False, identity="weights")
        assert isinstance(backend, AsyncBackend)
        assert backend.identity == "weights"
        for _ in range(3):  # a new loop each; a connection left open is a ResourceWarning, an error here
            ask(backend, draws(1))
        assert backend._endpoint._held == {}

        async def close() -> None:
            await backend.agenerate(draws(1), [1])
            await backend.aclose()
            assert backend._endpoint._held == {}
            await backend.agenerate(draws(1), [1])

        asyncio.run(close())


# --- what goes wrong -------------------------------------------------------------------------------------------------

BUSY = (503, {}, "overloaded")


def impatient(server: FakeServer, monkeypatch: pytest.MonkeyPatch, **options: Any) -> OpenAIBackend:
    monkeypatch.setattr("posttrain_plugins.backends.openai.http.FIRST_PAUSE_S", 0.001)
    return OpenAIBackend("fake", server.url, should_probe=False, **options)


@pytest.mark.parametrize(
    "answer",
    [BUSY, (429, {}, "slow down"), (500, {}, ""), (200, {}, "<html>"), (200, {}, "[]"), (408, {}, "{}")],
    ids=["503", "429", "500", "no JSON", "no object", "408"],
)
def test_what_may_pass_is_tried_again(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(script=[answer] * 2) as server:
        ((*completions,),) = ask(impatient(server, monkeypatch), draws(2))
        assert len(server.bodies) == 3
    assert [c.error for c in completions] == [None, None]


@pytest.mark.parametrize("header", ["0.3", "date"])
def test_retry_after_is_honoured(header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    header = formatdate(time.time() + 2, usegmt=True) if header == "date" else header
    with serving(script=[(429, {"Retry-After": header}, "")]) as server:
        ask(impatient(server, monkeypatch), draws(1))
        assert server.times[1] - server.times[0] >= 0.29


def test_a_request_that_fails_for_good_is_failed_samples_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(script=[BUSY] * 3) as server:
        first, second = ask(impatient(server, monkeypatch, max_retries=2, concurrency=1), draws(3), draws(2))
        assert len(server.bodies) == 4
    assert [(c.text, c.finish_reason, c.error) for c in first] == [("", "error", "HTTP 503: overloaded")] * 3
    assert sum((c.usage for c in first), Usage()) == Usage()
    assert [c.error for c in second] == [None] * 2


def test_samples_that_the_server_keeps_back_are_failed_samples() -> None:
    with serving(n="ignored") as server:
        ((*completions,),) = ask(OpenAIBackend("fake", server.url, should_probe=False), draws(3))
    assert [c.error for c in completions] == [None] + ["the server sent 1 of 3 completions"] * 2


def test_a_refused_request_is_not_tried_again() -> None:
    with serving(script=[(400, {}, json.dumps({"error": {"message": "maximum context length is 8"}}))]) as server:
        ((completion,),) = ask(OpenAIBackend("fake", server.url, should_probe=False), draws(1))
        assert len(server.bodies) == 1
    assert (completion.finish_reason, completion.error) == ("error", "HTTP 400: maximum context length is 8")


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"choices": [{}, {}]}, "a choice is not as expected: KeyError: 'text'"),
        ({"choices": [{"text": None}, {"text": ""}]}, None),
        ({"choices": [{"message": {}}, {"message": {"content": None}}], "usage": "none"}, None),
        ({"choices": [None, 7]}, "a choice is not as expected"),
        ({"choices": [{"message": {"content": "a"}, "finish_reason": "content_filter"}] * 2}, "content_filter"),
        ({"choices": [{"message": {"tool_calls": ["f"]}}] * 2}, "a choice is not as expected: AttributeError"),
    ],
)
def test_a_strange_answer_is_a_failed_sample(payload: dict[str, Any], error: str | None) -> None:
    with serving(script=[(200, {}, json.dumps(payload))]) as server:
        ((*completions,),) = ask(OpenAIBackend("fake", server.url, should_probe=False), draws(2))
    assert len(completions) == 2
    for completion in completions:
        assert error in (completion.error or "") if error else completion.error is None


def test_a_server_that_does_not_answer_in_time_fails_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(service_s=1.0) as server:
        ((completion,),) = ask(impatient(server, monkeypatch, timeout_s=0.05, max_retries=1), draws(1))
        assert len(server.bodies) == 2
    assert completion.error == "no answer within 0.05 s"


def test_a_wrong_key_an_unknown_model_and_a_wrong_route_are_told() -> None:
    with serving(api_key="right", has_text=False) as server:
        with pytest.raises(InputError, match=r"refused the API key: 401 Incorrect API key") as refused:
            OpenAIBackend("fake", server.url, "wrong").describe()
        assert "wrong" not in str(refused.value)
        for should_probe in (True, False):
            with pytest.raises(InputError, match="`unknown` does not exist") as unknown:
                ask(OpenAIBackend("unknown", server.url, "right", should_probe=should_probe), draws(1))
            assert "models there: fake, other" in str(unknown.value)
        with pytest.raises(InputError, match=r"v1/completions answered 404: Not Found"):
            ask(OpenAIBackend("fake", server.url, "right"), draws(1, "text"))
        assert OpenAIBackend("fake", server.url, "right").capabilities.n


def test_an_endpoint_without_chat_is_described_by_its_text_route() -> None:
    with serving(has_chat=False) as server:
        backend = OpenAIBackend("fake", server.url)
        assert backend.capabilities.prefill
        assert not backend.capabilities.tools


def test_keys_and_urls_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(api_key="right") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        ((completion,),) = ask(OpenAIBackend("fake", should_probe=False), draws(1))
    assert completion.error is None


def test_a_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "near.example")
        ((completion,),) = ask(OpenAIBackend("fake", "http://far.example/v1", should_probe=False), draws(1))
        assert completion.error is None
        assert OpenAIBackend("fake", "http://near.example/v1")._endpoint._proxy is None


def test_a_used_up_quota_ends_the_run_at_once() -> None:
    quota = json.dumps({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}})
    with serving(script=[(429, {}, quota)] * 9) as server:
        with pytest.raises(InputError, match="exceeded your current quota"):
            ask(OpenAIBackend("fake", server.url, should_probe=False), draws(1))
        assert len(server.bodies) == 1


def test_a_rate_limit_is_not_taken_for_what_the_server_cannot_do() -> None:
    plain = {"choices": [{"message": {"content": "7"}, "finish_reason": "stop"}]}
    with serving(script=[(200, {}, json.dumps(plain)), (429, {}, "slow down")]) as server:
        with pytest.raises(InputError, match=r"cannot be tried for what it can do: 429 slow down") as caught:
            ask(OpenAIBackend("fake", server.url, max_retries=0), draws(1))
        assert "should_probe=False" in str(caught.value.hint)


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S"):
        monkeypatch.setattr(f"posttrain_plugins.backends.openai.http.{name}", 60.0)
    began = time.monotonic()
    with pytest.raises(InputError, match=f"cannot reach the endpoint {url}"):
        ask(OpenAIBackend("fake", url), draws(1))
    assert time.monotonic() - began < 30.0, "it paused and asked again"
    monkeypatch.setattr("posttrain_plugins.backends.openai.http.FIRST_PAUSE_S", 0.001)
    with pytest.raises(InputError, match=f"the endpoint {url} is gone"):
        ask(OpenAIBackend("fake", url, should_probe=False, max_retries=2), draws(1))


@pytest.mark.parametrize("has_logprobs", [True, False])
@pytest.mark.parametrize("prompt", [CHAT, "Count to ten."])
def test_tokens_that_a_server_does_not_tell_are_counted(has_logprobs: bool, prompt: Any) -> None:
    """llama.cpp's server tells those of the first completion of a request alone."""
    with serving(counts_all=False, has_logprobs=has_logprobs) as server:
        backend = OpenAIBackend("fake", server.url)
        usage = {str(finding).split()[0]: str(finding) for finding in backend._main().findings}["usage"]
        assert " no " in usage
        assert any("usage" in note for note in backend.notes)
        ask(backend, draws(1, prompt))  # each route is probed at its first request
        before = server.usage
        (result,) = solve(SelfConsistency(n=5), [Problem(prompt, SamplingParams(max_tokens=12))], backend=backend)
        spent = result.usage["policy"]
        assert spent.completion_tokens == server.usage.completion_tokens - before.completion_tokens == 60
        assert spent.calls == (1 if has_logprobs else 5)


def test_a_server_that_tells_all_is_taken_at_its_word() -> None:
    with serving() as server:
        backend = OpenAIBackend("fake", server.url)
        assert backend._main().counts_all
        solve(SelfConsistency(n=3), [Problem(CHAT, SamplingParams(max_tokens=4))], backend=backend)
        assert "logprobs" not in server.bodies[-1]
    with serving(counts=False) as server:  # one that counts nothing is none that counts wrongly
        assert OpenAIBackend("fake", server.url)._main().counts_all


def test_a_server_with_one_model_needs_no_name() -> None:
    with serving(models_there=("fake",)) as server:
        backend: Any = open_backend(server.url)
        assert backend.model == backend.identity == "fake"
    with serving() as server, pytest.raises(InputError, match="it lists fake, other") as told:
        open_backend(server.url)
    assert f"{server.url}#MODEL" in str(told.value.hint)
    with serving(models_there=()) as server, pytest.raises(InputError, match="it lists none"):
        open_backend(server.url)
