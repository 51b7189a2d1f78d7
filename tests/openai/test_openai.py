"""Runs the official OpenAI client against a server: python test_openai.py http://127.0.0.1:8000

Needs `pip install openai` and nothing else. The first check that fails ends the run.
"""

import base64
import struct
import sys
import zlib

import openai


def png(width: int, height: int) -> bytes:
    """A small picture, made by hand so that no imaging library is needed."""
    rows = b"".join(b"\0" + bytes((x * 5 + y * 3) % 256 for x in range(3 * width)) for y in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


def models(client: openai.OpenAI, model: str) -> None:
    found = client.models.retrieve(model)
    assert found.id == model and found.object == "model" and found.max_model_len > 0, found


def chat(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=8, seed=1, temperature=0.8, top_p=0.9, user="me")
    choice = reply.choices[0]
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str), reply
    assert choice.finish_reason in ("stop", "length") and reply.object == "chat.completion" and reply.model == model, reply
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens, reply.usage
    again = client.chat.completions.create(model=model, messages=QUESTION, max_completion_tokens=8, seed=1, temperature=0.8, top_p=0.9)
    assert again.choices[0].message.content == choice.message.content, "a seed replays"


def several(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=8, n=2)
    assert [choice.index for choice in reply.choices] == [0, 1], reply


def stream(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, seed=3)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, seed=3, stream=True, stream_options=options))
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content, (text, whole)
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason, chunks[-2]
    assert not chunks[-1].choices and chunks[-1].usage == whole.usage, chunks[-1]


def logprobs(client: openai.OpenAI, model: str) -> None:
    extra = {"return_token_ids": True, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.0, "skip_special_tokens": False}
    reply = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=6, logprobs=True, top_logprobs=5, logit_bias={"5": -1}, extra_body=extra
    )
    choice = reply.choices[0]
    assert len(choice.logprobs.content) == len(choice.token_ids) == reply.usage.completion_tokens, choice
    assert len(reply.prompt_token_ids) == reply.usage.prompt_tokens, reply
    for token in choice.logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 5, token
        assert bytes(token.bytes).decode(errors="replace") == token.token, token
        assert token.top_logprobs == sorted(token.top_logprobs, key=lambda top: -top.logprob), token


def image(client: openai.OpenAI, model: str) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(56, 56)).decode()
    content = [{"type": "text", "text": "How many?"}, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
    reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], max_tokens=8)
    text_only = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "How many?"}], max_tokens=8)
    assert reply.usage.prompt_tokens > text_only.usage.prompt_tokens, (reply.usage, text_only.usage)


def completions(client: openai.OpenAI, model: str) -> None:
    reply = client.completions.create(model=model, prompt=["1 + 1 =", "2 + 2 ="], max_tokens=4, n=2, logprobs=2, seed=5)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3] and reply.object == "text_completion", reply
    for choice in reply.choices:
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == len(choice.logprobs.text_offset), choice
    chunks = list(client.completions.create(model=model, prompt="1 + 1 =", max_tokens=4, seed=5, stream=True))
    first = client.completions.create(model=model, prompt="1 + 1 =", max_tokens=4, seed=5)
    assert "".join(chunk.choices[0].text for chunk in chunks) == first.choices[0].text, (chunks, first)


def errors(client: openai.OpenAI, model: str) -> None:
    def fails(kind: type[openai.APIStatusError], param: str, **fields) -> None:
        try:
            client.chat.completions.create(**{"model": model, "messages": QUESTION, "max_tokens": 2} | fields)
        except kind as error:
            assert error.param == param and error.code and error.type == "invalid_request_error", error.body
            assert error.request_id, "errors name their request"
        else:
            raise AssertionError(f"{fields} did not fail")

    fails(openai.BadRequestError, "temperature", temperature=-1)
    fails(openai.BadRequestError, "tools", tools=[{"type": "function", "function": {"name": "f"}}])
    fails(openai.BadRequestError, "response_format", response_format={"type": "json_object"})
    fails(openai.BadRequestError, "tempurature", extra_body={"tempurature": 1})
    fails(openai.BadRequestError, "messages[0].content[0].image_url",
          messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}])
    fails(openai.NotFoundError, "model", model="gpt-4o")


def leaving(client: openai.OpenAI, model: str) -> None:
    chunks = client.chat.completions.create(model=model, messages=QUESTION, stream=True, n=4)
    next(iter(chunks))
    chunks.close()
    client.chat.completions.create(model=model, messages=QUESTION, max_tokens=1)


def main() -> None:
    url = sys.argv[1].rstrip("/")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=sys.argv[2] if len(sys.argv) > 2 else "any", max_retries=0, timeout=60)
    model = client.models.list().data[0].id
    for check in (models, chat, several, stream, logprobs, image, completions, errors, leaving):
        check(client, model)
        print(f"ok {check.__name__}")


if __name__ == "__main__":
    main()
