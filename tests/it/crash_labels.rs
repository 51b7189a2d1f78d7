//! Whether every delivered token was made by the weights that its label names: it is scored again under them.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use crate::common::Server;
use crate::crash_learner::{may_cross_to, weights_of};
use crate::policy::{put, serialize};

/// What came of the labels of all tokens.
#[derive(Debug, Default)]
pub struct Labels {
    pub tokens: usize,
    pub crossing_samples: usize,
    /// Tokens that the weights of their version don't make.
    pub wrong: usize,
    /// Versions that nobody pushed.
    pub unknown: usize,
    pub versions: usize,
    /// Tokens that were scored under other weights as well, and those of them that did not show it.
    pub control: usize,
    pub control_alike: usize,
}

/// The tokens of a sample that carry one version.
struct Span {
    prompt: Value,
    token_ids: Value,
    logps: Vec<Value>,
    start: usize,
}

const SEQUENCES: usize = 128;
/// Between versions whose tokens are also scored under the weights of another.
const CONTROL: usize = 5;

/// `numbers`: of the weights of a version, where that is known; all that were pushed may be those of another.
pub async fn check(groups: impl Iterator<Item = &Value>, numbers: &HashMap<u64, u16>, pushed: &[u16]) -> Labels {
    let (mut labels, mut spans) = (Labels::default(), BTreeMap::<u64, Vec<Span>>::new());
    for group in groups {
        for sample in group["samples"].as_array().unwrap() {
            let logps = sample["logps"].as_array().unwrap();
            let of_sample = sample["policy_versions"].as_array().unwrap();
            labels.crossing_samples += usize::from(of_sample.len() > 1);
            let mut at = 0;
            for span in of_sample {
                let number = |key: &str| span[key].as_u64().unwrap();
                let (start, end) = (number("start") as usize, number("end") as usize);
                assert_eq!(start, at, "{sample}");
                at = end;
                let span = Span {
                    prompt: group["prompt_token_ids"].clone(),
                    token_ids: sample["token_ids"].clone(),
                    logps: logps[start..end].to_vec(),
                    start,
                };
                spans.entry(number("version")).or_default().push(span);
            }
            assert_eq!((at, sample["token_ids"].as_array().unwrap().len()), (logps.len(), logps.len()), "{sample}");
            labels.tokens += at;
        }
    }
    labels.versions = spans.len();
    let server = Server::start("");
    let mut held = None;
    for (i, (version, spans)) in spans.iter().enumerate() {
        let tokens: usize = spans.iter().map(|span| span.logps.len()).sum();
        let known = numbers.get(version).map(std::slice::from_ref);
        if i % CONTROL == CONTROL - 1 && known.is_some_and(|known| held != Some(known[0])) {
            // Still under the weights of the version before.
            labels.control += tokens;
            labels.control_alike += tokens - differing(&server, spans).await;
        }
        let mut least = None;
        for number in known.unwrap_or(pushed) {
            put(&server, "", serialize(&weights_of(*number))).await.ok();
            held = Some(*number);
            let wrong = differing(&server, spans).await;
            let crossed = spans.iter().any(|span| span.start > 0);
            assert!(
                wrong > 0 || !crossed || may_cross_to(*number),
                "version {version}: samples crossed to weights that they had to wait for"
            );
            least = Some(least.map_or(wrong, |least: usize| least.min(wrong)));
            if wrong == 0 {
                break;
            }
        }
        labels.wrong += least.unwrap_or(tokens);
        labels.unknown += usize::from(known.is_none() && least != Some(0));
    }
    server.stop().await;
    labels
}

/// How many tokens of some spans have other log-probabilities under the weights of a server, to the bit.
async fn differing(server: &Server, spans: &[Span]) -> usize {
    let mut differing = 0;
    for spans in spans.chunks(SEQUENCES) {
        let sequences: Vec<Value> =
            spans.iter().map(|span| json!({"prompt_token_ids": span.prompt, "completion_token_ids": span.token_ids})).collect();
        let reply = server.post("/v1/logps", &json!({"sequences": sequences})).await.ok();
        for (span, scored) in spans.iter().zip(reply["sequences"].as_array().unwrap()) {
            let scored = &scored["logps"].as_array().unwrap()[span.start..];
            differing += span.logps.iter().zip(scored).filter(|(drawn, scored)| drawn != scored).count();
        }
    }
    differing
}
