//! The OpenAI routes by themselves; tests/openai runs the official client against them.

use serde_json::{Value, json};

use crate::common::{MODEL, Server, data_url, png, user, user_with_image};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(fields: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": user("hello"), "max_tokens": 8, "seed": 11});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn content(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()).filter(|choice| choice["index"] == index);
    choices.filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_what_a_reply_says() {
    let server = Server::start("");
    for extra in
        [json!({}), json!({"n": 3}), json!({"temperature": 0}), json!({"logprobs": true, "top_logprobs": 2, "return_token_ids": true})]
    {
        let whole = server.post(CHAT, &chat(extra.clone())).await.ok();
        let mut body = chat(extra);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let chunks = server.post(CHAT, &body).await.chunks();
        let (last, chunks) = chunks.split_last().unwrap();
        assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
        for choice in whole["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap();
            let own: Vec<&Value> =
                chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()).filter(|own| own["index"] == index).collect();
            assert_eq!(own[0]["delta"], json!({"role": "assistant", "content": ""}));
            assert_eq!(content(chunks, index), choice["message"]["content"].as_str().unwrap());
            assert_eq!(own.last().unwrap()["finish_reason"], choice["finish_reason"]);
            assert_eq!(own.iter().filter(|own| !own["finish_reason"].is_null()).count(), 1);
            let joined =
                |key: fn(&Value) -> &Value| -> Vec<Value> { own.iter().filter_map(|own| key(own).as_array()).flatten().cloned().collect() };
            if let Some(ids) = choice["token_ids"].as_array() {
                assert_eq!(&joined(|own| &own["token_ids"]), ids);
                assert_eq!(chunks[0]["prompt_token_ids"], whole["prompt_token_ids"]);
                assert!(chunks[1..].iter().all(|chunk| chunk.get("prompt_token_ids").is_none()));
            }
            if let Some(logprobs) = choice["logprobs"]["content"].as_array() {
                assert_eq!(&joined(|own| &own["logprobs"]["content"]), logprobs);
                assert!(logprobs.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2 && token["bytes"].is_array()));
            }
        }
        let generated = whole["usage"]["completion_tokens"].as_u64().unwrap();
        assert!(generated >= whole["choices"].as_array().unwrap().len() as u64);
    }
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seeds_replay_and_their_absence_does_not() {
    let server = Server::start("");
    let text = |reply: Value| reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let first = text(server.post(CHAT, &chat(json!({"max_tokens": 24}))).await.ok());
    assert_eq!(text(server.post(CHAT, &chat(json!({"max_tokens": 24}))).await.ok()), first);
    assert_ne!(text(server.post(CHAT, &chat(json!({"max_tokens": 24, "seed": 12}))).await.ok()), first);
    let drawn = chat(json!({"max_tokens": 24, "seed": null}));
    assert_ne!(text(server.post(CHAT, &drawn).await.ok()), text(server.post(CHAT, &drawn).await.ok()));
}

#[tokio::test(flavor = "multi_thread")]
async fn bias_stops_and_lengths_are_obeyed() {
    let server = Server::start("");
    // A bias of 100 makes token 101 certain.
    let forced = chat(json!({"logit_bias": {"101": 100}, "return_token_ids": true, "ignore_eos": true, "max_tokens": 4}));
    let reply = server.post(CHAT, &forced).await.ok();
    assert_eq!(reply["choices"][0]["token_ids"], json!([101, 101, 101, 101]));
    assert_eq!((&reply["choices"][0]["finish_reason"], &reply["choices"][0]["stop_reason"]), (&json!("length"), &Value::Null));
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
    let piece = &text[..text.len() / 4];

    let mut stopped = forced.clone();
    stopped["stop"] = json!(piece.repeat(2));
    let reply = server.post(CHAT, &stopped).await.ok();
    let choice = &reply["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"], &choice["message"]["content"]),
        (&json!("stop"), &json!(piece.repeat(2)), &json!(""))
    );
    assert_eq!(choice["token_ids"], json!([101, 101]));
    stopped["stream"] = json!(true);
    assert_eq!(content(&server.post(CHAT, &stopped).await.chunks(), 0), "", "what may begin a stop string is held back");

    let mut by_id = forced.clone();
    by_id["stop_token_ids"] = json!([101]);
    by_id["min_tokens"] = json!(0);
    let choice = server.post(CHAT, &by_id).await.ok()["choices"][0].clone();
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"], &choice["message"]["content"]),
        (&json!("stop"), &json!(101), &json!(""))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_text_prompts() {
    let server = Server::start("");
    let with_image = chat(json!({"messages": user_with_image(&data_url(&png(56, 56)), "what is it?")}));
    let plain = server.post(CHAT, &chat(json!({"messages": user("what is it?")}))).await.ok();
    let reply = server.post(CHAT, &with_image).await.ok();
    assert!(reply["usage"]["prompt_tokens"].as_u64() > plain["usage"]["prompt_tokens"].as_u64());

    let body = json!({"prompt": ["one two", [5, 6, 7]], "n": 2, "max_tokens": 3, "seed": 1, "logprobs": 2, "return_token_ids": true, "return_tokens_as_token_ids": true});
    let reply = server.post(TEXT, &body).await.ok();
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(choices[2]["prompt_token_ids"], json!([5, 6, 7]));
    for choice in choices {
        let (ids, logprobs) = (choice["token_ids"].as_array().unwrap(), &choice["logprobs"]);
        let names: Vec<Value> = ids.iter().map(|id| json!(format!("token_id:{id}"))).collect();
        assert_eq!(logprobs["tokens"], json!(names));
        for (name, top) in names.iter().zip(logprobs["top_logprobs"].as_array().unwrap()) {
            let top = top.as_object().unwrap();
            assert!(top.contains_key(name.as_str().unwrap()) && (2..=3).contains(&top.len()), "{top:?}");
        }
    }
    // One prompt as a string, as a list of one and as its ids: the same.
    let text = |prompt: Value| json!({"prompt": prompt, "max_tokens": 3, "seed": 1});
    let one = server.post(TEXT, &text(json!("one two"))).await.ok()["choices"].clone();
    assert_eq!(server.post(TEXT, &text(json!(["one two"]))).await.ok()["choices"], one);
    assert_eq!(server.post(TEXT, &text(choices[0]["prompt_token_ids"].clone())).await.ok()["choices"], one);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_have_names_and_a_context() {
    let server = Server::start("--served-model-name first org/second");
    let list = server.get("/v1/models").await.ok();
    assert_eq!(
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect::<Vec<_>>(),
        ["first", "org/second"]
    );
    for path in ["/v1/models/org/second", "/v1/models/org%2Fsecond", "/v1/models/org/second/"] {
        assert_eq!(server.get(path).await.ok()["max_model_len"], crate::common::CONTEXT, "{path}");
    }
    assert_eq!(server.get("/v1/models/third").await.error(404)["code"], "model_not_found");
    assert_eq!(server.post(CHAT, &chat(json!({"model": "org/second"}))).await.ok()["model"], "org/second");
    assert_eq!(server.post(CHAT, &chat(json!({"model": "third"}))).await.error(404)["param"], "model");
    let rollout = json!({"groups": [{"messages": user("x")}], "num_generations": 1, "sampling": {"max_tokens": 1}, "model": "org/second"});
    server.post("/v1/rollouts", &rollout).await.ok();
}
