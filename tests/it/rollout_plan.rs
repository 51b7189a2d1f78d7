//! What a rollout request may say, and what is said about one that can't be meant.

use grouper::error::Error;
use grouper::judges::Judges;
use grouper::rollout::limits::Limits;
use grouper::rollout::plan::{Plan, Served};
use grouper::rollout::request::RolloutRequest;
use serde_json::{Value, json};

fn plan(fields: Value) -> Result<Plan, Error> {
    let mut body = json!({"groups": [{"prompt": "2 + 2"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let request: RolloutRequest = serde_json::from_value(body).map_err(|error| Error::invalid("json", error.to_string()))?;
    let served = Served { model: "tiny".into(), vocab_size: 1000, max_model_len: 2048, reference: false };
    Plan::new(request, &Limits::default(), &served, &Judges::default())
}

fn accepted(fields: Value) -> Plan {
    plan(fields.clone()).unwrap_or_else(|error| panic!("{fields}: {error}"))
}

/// The message begins with `expected`.
fn refused(fields: Value, expected: &str) {
    match plan(fields.clone()) {
        Ok(_) => panic!("{fields} was accepted"),
        Err(error) => assert!(error.to_string().starts_with(expected), "{fields}: {error}"),
    }
}

#[test]
fn defaults() {
    let Plan { groups, settings, .. } = accepted(json!({}));
    assert_eq!((groups[0].id.as_str(), settings.num_generations, settings.seed, settings.max_refills), ("0", 8, None, 3));
    assert_eq!((settings.sampling.max_tokens, settings.sampling.temperature, settings.sampling.top_k), (512, 1.0, 0));
    let keys: Vec<&str> = settings.rewarder.keys().iter().map(|key| &**key).collect();
    assert_eq!((keys, settings.rewarder.weights()), (vec!["think_format", "accuracy"], &[1.0, 1.0][..]));
    assert!(settings.returns.text && settings.returns.logps && !settings.returns.entropy);
    assert_eq!(settings.recipe.preset, Some("trl"));
}

#[test]
fn sampling_is_checked_value_by_value() {
    for (field, good, bad) in [
        ("temperature", vec![json!(0), json!(-0.0), json!(1e-5), json!(100)], vec![json!(-1), json!(100.5), json!(1e-30)]),
        ("top_p", vec![json!(1), json!(1e-9)], vec![json!(0), json!(1.01), json!(-0.5), json!(1e-60)]),
        ("top_k", vec![json!(-1), json!(0), json!(1), json!(9007199254740992i64)], vec![json!(-2)]),
        ("min_p", vec![json!(0), json!(0.99)], vec![json!(1), json!(-0.1), json!(0.9999999999)]),
        ("repetition_penalty", vec![json!(0.01), json!(1.2)], vec![json!(0), json!(-1), json!(101), json!(1e-40)]),
        ("max_tokens", vec![json!(1), json!(2047)], vec![json!(0), json!(2048)]),
        ("min_tokens", vec![json!(0), json!(512)], vec![json!(513)]),
    ] {
        for value in good {
            accepted(json!({"sampling": {field: value}}));
        }
        for value in bad {
            refused(json!({"sampling": {field: value}}), &format!("sampling.{field}: "));
        }
    }
    assert_eq!(accepted(json!({"sampling": {"top_k": 1000}})).settings.sampling.top_k, 0);
    assert_eq!(accepted(json!({"sampling": {"top_k": 999}})).settings.sampling.top_k, 999);
    assert!(accepted(json!({"sampling": {"temperature": -0.0}})).settings.sampling.temperature.is_sign_positive());
    assert_eq!(accepted(json!({"sampling": {"stop": "END"}})).settings.sampling.stop, ["END"]);
    refused(json!({"sampling": {"stop": ["a", ""]}}), "sampling.stop[1]: 0 bytes; 1 to 256 are allowed");
    refused(json!({"sampling": {"stop": vec!["x"; 17]}}), "sampling.stop: 17 elements; at most 16 are allowed");
    refused(json!({"sampling": {"stop_token_ids": [3, 1000]}}), "sampling.stop_token_ids[1]: token id 1000 is not below");
    refused(json!({"sampling": {"best_of": 2}}), "json: unknown field `best_of`");
}

#[test]
fn groups_have_one_prompt_and_their_own_name() {
    let one = |group: Value| json!({"groups": [group]});
    refused(json!({"groups": []}), "groups: 0 is not between 1 and 256");
    refused(json!({"groups": vec![json!({"prompt": "x"}); 257]}), "groups: 257 is not between 1 and 256");
    refused(json!({"groups": vec![json!({"prompt": "x"}); 17], "num_generations": 256}), "num_generations: 4352 samples in all");
    refused(one(json!({})), "groups[0]: there must be exactly one of");
    refused(one(json!({"prompt": "x", "prompt_token_ids": [1]})), "groups[0]: there must be exactly one of");
    refused(one(json!({"prompt": ""})), "groups[0].prompt: ");
    refused(one(json!({"messages": []})), "groups[0].messages: ");
    refused(one(json!({"prompt_token_ids": [5, 1000]})), "groups[0].prompt_token_ids[1]: token id 1000");
    refused(one(json!({"prompt": "x", "assistant_prefill": "<think>"})), "groups[0].assistant_prefill: ");
    refused(one(json!({"prompt": "x", "solution": ["4"]})), "groups[0].solution: [\"4\"] is neither a string nor a number");
    refused(one(json!({"prompt": "x", "id": "a\nb"})), "groups[0].id: ");
    refused(one(json!({"prompt": "x", "solutoin": "4"})), "json: unknown field `solutoin`");
    accepted(one(json!({"prompt": "x", "solution": 4.5, "id": ""})));
    accepted(one(json!({"messages": [{"role": "user", "content": "x"}], "assistant_prefill": "<think>"})));
    refused(json!({"groups": [{"prompt": "x", "id": "a"}, {"prompt": "x", "id": "a"}]}), "groups[1].id: \"a\" is the id of an earlier");
    refused(json!({"groups": [{"prompt": "x", "id": "1"}, {"prompt": "x"}]}), "groups[1].id: \"1\" is the id of an earlier");
}

#[test]
fn everything_else_is_checked_too() {
    refused(json!({"num_generations": 0}), "num_generations: 0 is not between 1 and 256");
    refused(json!({"num_generations": u64::MAX}), "num_generations: ");
    refused(json!({"max_refills": 101}), "max_refills: ");
    refused(json!({"deadline_ms": 0}), "deadline_ms: ");
    refused(json!({"queue": "other"}), "queue: ");
    accepted(json!({"queue": "default", "model": "tiny"}));
    accepted(json!({"mode": "queue", "queue": "other"}));
    refused(json!({"mode": "queue", "queue": ""}), "queue: ");
    assert!(matches!(plan(json!({"model": "gpt-4"})), Err(Error::NotFound(_))));
    refused(json!({"return": ["text", "ref_logps"]}), "return[1]: ");
    refused(json!({"idempotency_key": ""}), "idempotency_key: ");
    refused(json!({"advantage": {"ddof": 3}}), "advantage.ddof: 3 is neither 0 nor 1");
    refused(json!({"advantage": "grpo"}), "advantage: there is no preset \"grpo\"");
    refused(json!({"advantage": "gdpo", "mode": "stream"}), "advantage: ");
    refused(json!({"advantage": {"scale": "batch"}, "mode": "stream"}), "advantage: ");
    accepted(json!({"advantage": "gdpo"}));
    refused(json!({"rewards": [{"name": "acuracy"}]}), "rewards[0].name: there is no reward \"acuracy\"");
    refused(json!({"rewards": [{"name": "field"}]}), "rewards[0].field: ");
    refused(json!({"rewards": [{"name": "constant", "value": "x"}]}), "rewards[0].value: ");
    refused(json!({"rewards": [{"name": "constant"}, {"name": "constant"}]}), "rewards[1].as: ");
    let two = accepted(json!({"rewards": [{"name": "constant"}, {"name": "constant", "as": "two", "weight": 0.5}]}));
    assert_eq!((&*two.settings.rewarder.keys()[1], two.settings.rewarder.weights()[1]), ("two", 0.5));
    assert!(accepted(json!({"rewards": []})).settings.rewarder.keys().is_empty());
}

/// A `max_tokens` that nobody asked for gives way to the prompt; one that was asked for does not.
#[test]
fn long_prompts_shorten_the_default_length_only() {
    let default = accepted(json!({})).settings.sampling;
    assert_eq!((default.for_prompt(100, 2048).max_tokens, default.for_prompt(2000, 2048).max_tokens), (512, 48));
    let asked = accepted(json!({"sampling": {"max_tokens": 512}})).settings.sampling;
    assert_eq!(asked.for_prompt(2000, 2048).max_tokens, 512);
}
