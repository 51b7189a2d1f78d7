//! A scorer behind a URL.

use std::sync::Arc;

use crate::ask::{Ask, Asked, HttpAsk};
use crate::{ArgError, ArgSpec, Args, Reward, RewardSpec};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "http",
    about: "What a scorer behind a URL says. It is posted {\"samples\": [{completion, prompt?, solution?, fields?, finish_reason?}, …]} and answers {\"rewards\": [number or null, …]}, one for each sample. A scorer that can't be reached, is too slow or answers something else gives no verdict.",
    args: &[
        ArgSpec { name: "url", kind: "string", default: "", about: "Below a URL that the server was started with (--allow-reward-url)." },
        ArgSpec { name: "timeout_ms", kind: "integer", default: "30000", about: "Of one attempt, 1 to 600000." },
        ArgSpec { name: "batch_size", kind: "integer", default: "32", about: "Samples of one call at most, 1 to 1024." },
        ArgSpec {
            name: "retries",
            kind: "integer",
            default: "2",
            about: "Attempts after the first, 0 to 10, each after a longer pause: when there is no answer, or status 429 or 5xx.",
        },
        ArgSpec {
            name: "api_key_env",
            kind: "string?",
            default: "null",
            about: "The variable of the server's environment with the scorer's bearer token; its name begins with GROUPER_REWARD_KEY.",
        },
        ArgSpec {
            name: "cache",
            kind: "bool",
            default: "true",
            about: "Take the scorer's earlier answer to the same prompt, completion, solution and fields. Failures are never kept.",
        },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let url = args.string("url");
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            return Err(args.error("url", "does not begin with http:// or https://"));
        }
        let api_key_env = args.value("api_key_env").as_str().map(str::to_owned);
        // A client that may name any variable could have any secret sent out.
        if api_key_env.as_ref().is_some_and(|name| !name.starts_with("GROUPER_REWARD_KEY")) {
            return Err(args.error("api_key_env", "does not begin with GROUPER_REWARD_KEY"));
        }
        Ok(Box::new(Asked(Arc::new(Ask::Http(HttpAsk {
            url: url.to_owned(),
            timeout_ms: args.integer_in("timeout_ms", 1..=600_000)?,
            batch_size: args.integer_in("batch_size", 1..=1024)? as usize,
            retries: args.integer_in("retries", 0..=10)? as u32,
            api_key_env,
            cache: args.bool("cache"),
        })))))
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn arguments_are_bounded() {
        let message = |args: serde_json::Value| match crate::build("http", args.as_object().unwrap()) {
            Ok(_) => "built".to_owned(),
            Err(e) => e.to_string(),
        };
        assert_eq!(message(json!({"url": "https://a/b", "retries": 0, "api_key_env": "GROUPER_REWARD_KEY_A"})), "built");
        assert_eq!(message(json!({})), "url: the reward \"http\" needs it");
        assert_eq!(message(json!({"url": "file:///etc/passwd"})), "url: does not begin with http:// or https://");
        assert_eq!(message(json!({"url": "http://a", "timeout_ms": 0})), "timeout_ms: 0 is not between 1 and 600000");
        assert_eq!(message(json!({"url": "http://a", "batch_size": -1})), "batch_size: -1 is not between 1 and 1024");
        assert_eq!(message(json!({"url": "http://a", "retries": 11})), "retries: 11 is not between 0 and 10");
        assert_eq!(message(json!({"url": "http://a", "api_key_env": "HOME"})), "api_key_env: does not begin with GROUPER_REWARD_KEY");
    }
}
