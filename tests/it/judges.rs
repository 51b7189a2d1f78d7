//! Judges against a scorer that misbehaves in every way, reward models against transformers, and the command that scores files.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use grouper::engine::{EngineConfig, start_cpu};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::common::{Server, user};
use crate::golden;

/// What a scorer does with a call.
#[derive(Clone, Debug)]
enum Act {
    /// The length of each completion is its reward.
    Lengths,
    Answer(u16, &'static str, String),
    /// Half an answer, then the end of the connection.
    Cut,
    Hang,
}

fn answer(body: &str) -> Act {
    Act::Answer(200, "", body.to_owned())
}

/// A scorer that acts by a script; its last act is repeated.
struct Scorer {
    url: String,
    calls: Arc<Mutex<Vec<(String, Value)>>>,
    /// Callers that did not wait.
    left: Arc<AtomicUsize>,
}

impl Scorer {
    async fn start(acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/score", listener.local_addr().unwrap());
        let calls: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let left: Arc<AtomicUsize> = Arc::default();
        let (seen, gone) = (calls.clone(), left.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, gone, acts) = (seen.clone(), gone.clone(), acts.clone());
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    let (head, body) = loop {
                        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                            return;
                        }
                        let text = String::from_utf8_lossy(&bytes).into_owned();
                        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                        let length =
                            head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
                        if body.len() >= length {
                            break (head.to_owned(), body.to_owned());
                        }
                    };
                    let body: Value = serde_json::from_str(&body).unwrap();
                    let act = {
                        let mut seen = seen.lock().unwrap();
                        seen.push((head, body.clone()));
                        acts[(seen.len() - 1).min(acts.len() - 1)].clone()
                    };
                    let (status, headers, text) = match act {
                        Act::Lengths => {
                            let of = |sample: &Value| sample["completion"].as_str().unwrap().len();
                            let rewards: Vec<usize> = body["samples"].as_array().unwrap().iter().map(of).collect();
                            (200, "", json!({ "rewards": rewards }).to_string())
                        }
                        Act::Answer(status, headers, text) => (status, headers, text),
                        Act::Cut => {
                            let half = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"rewards\": [";
                            stream.write_all(half.as_bytes()).await.unwrap();
                            return;
                        }
                        Act::Hang => {
                            let _ = stream.read(&mut [0; 1]).await;
                            gone.fetch_add(1, Relaxed);
                            return;
                        }
                    };
                    let length = text.len();
                    let reply = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{text}");
                    stream.write_all(reply.as_bytes()).await.unwrap();
                });
            }
        });
        Scorer { url, calls, left }
    }

    fn calls(&self) -> Vec<(String, Value)> {
        self.calls.lock().unwrap().clone()
    }

    fn server(&self) -> Server {
        Server::start(&format!("--allow-reward-url {}", self.url))
    }

    /// An `http` reward that asks this scorer.
    fn reward(&self, args: Value) -> Value {
        let mut reward = json!({"name": "http", "url": self.url, "timeout_ms": 5000});
        reward.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
        reward
    }
}

/// Values and reasons of the first reward.
async fn score(server: &Server, reward: &Value, samples: &Value) -> Vec<(Value, String)> {
    let name = reward["name"].as_str().unwrap();
    let reply = server.post("/v1/rewards/score", &json!({"rewards": [reward], "samples": samples})).await.ok();
    let of = |s: &Value| (s["rewards"][name].clone(), s["details"][name]["reason"].as_str().unwrap().to_owned());
    reply["samples"].as_array().unwrap().iter().map(of).collect()
}

fn completions(n: usize) -> Value {
    (0..n).map(|i| json!({"completion": "x".repeat(i + 1), "solution": i, "fields": {"k": i}})).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scorer_is_asked_in_batches() {
    let scorer = Scorer::start(vec![Act::Lengths]).await;
    let server = scorer.server();
    let verdicts = score(&server, &scorer.reward(json!({"batch_size": 4})), &completions(10)).await;
    for (i, verdict) in verdicts.iter().enumerate() {
        assert_eq!(*verdict, (json!((i + 1) as f64), "judged".to_owned()));
    }
    let calls = scorer.calls();
    let mut sizes: Vec<usize> = calls.iter().map(|(_, body)| body["samples"].as_array().unwrap().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 4, 4]);
    let samples: Vec<&Value> = calls.iter().flat_map(|(_, body)| body["samples"].as_array().unwrap()).collect();
    assert!(samples.contains(&&json!({"completion": "xxx", "solution": 2, "fields": {"k": 2}})), "{samples:?}");
    assert!(calls.iter().all(|(head, _)| head.starts_with("POST /score ") && !head.to_lowercase().contains("authorization")));

    // One question, asked in two places.
    let twice = json!({"name": "product", "rewards": [scorer.reward(json!({"cache": false})), scorer.reward(json!({"cache": false}))]});
    assert_eq!(score(&server, &twice, &completions(2)).await[1], (json!(4.0), "computed".to_owned()));
    assert_eq!(scorer.calls().len(), calls.len() + 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scorer_that_fails_gives_no_verdict() {
    let two = completions(2);
    let cases = [
        (vec![answer(r#"{"rewards": [1]}"#)], "bad_reply", 1),
        (vec![answer(r#"{"rewards": [1, 2, 3]}"#)], "bad_reply", 1),
        (vec![answer(r#"{"rewards": [NaN, 1]}"#)], "bad_reply", 1),
        (vec![answer(r#"{"rewards": [1e999, 1]}"#)], "bad_reply", 1),
        (vec![answer("<html>")], "bad_reply", 1),
        (vec![answer(r#"{"scores": [1, 2]}"#)], "bad_reply", 1),
        (vec![answer(&" ".repeat(1 << 20))], "bad_reply", 1),
        (vec![Act::Answer(404, "", "no".into())], "bad_reply", 1),
        (vec![Act::Answer(302, "location: http://127.0.0.1:1/other\r\n", String::new())], "bad_reply", 1),
        (vec![Act::Answer(503, "", "{}".into())], "bad_reply", 3),
        (vec![Act::Cut], "unreachable", 3),
        (vec![Act::Hang], "timed_out", 3),
    ];
    for (acts, reason, attempts) in cases {
        let scorer = Scorer::start(acts.clone()).await;
        let server = scorer.server();
        let verdicts = score(&server, &scorer.reward(json!({"timeout_ms": 250})), &two).await;
        assert_eq!(verdicts, vec![(Value::Null, reason.to_owned()); 2], "{acts:?}");
        assert_eq!(scorer.calls().len(), attempts, "{acts:?}");
        server.stop().await;
    }
    // Nobody listens there any more.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = Server::start(&format!("--allow-reward-url http://{closed}"));
    let reward = json!({"name": "http", "url": format!("http://{closed}/"), "retries": 0});
    assert_eq!(score(&server, &reward, &two).await, vec![(Value::Null, "unreachable".to_owned()); 2]);
    let metrics = server.get("/metrics").await.text;
    let counted = |line: &&str| line.starts_with("grouper_judge_answers_total{") && line.contains(r#"outcome="unreachable""#);
    assert!(metrics.lines().any(|line| counted(&line)), "{metrics}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_asked_again_and_the_rest_counts_alone() {
    let again = [Act::Answer(500, "", String::new()), Act::Answer(429, "retry-after: 1\r\n", String::new()), Act::Cut, Act::Hang];
    for first in again {
        let scorer = Scorer::start(vec![first.clone(), Act::Lengths]).await;
        let server = scorer.server();
        let start = Instant::now();
        let verdicts = score(&server, &scorer.reward(json!({"timeout_ms": 500})), &completions(2)).await;
        assert_eq!(verdicts[1], (json!(2.0), "judged".to_owned()), "{first:?}");
        assert_eq!(scorer.calls().len(), 2);
        assert!(!matches!(first, Act::Answer(429, ..)) || start.elapsed() >= Duration::from_secs(1));
        server.stop().await;
    }
    let scorer = Scorer::start(vec![answer(r#"{"rewards": [0.5, null, "1"], "version": 3}"#)]).await;
    let server = scorer.server();
    let expected = [(json!(0.5), "judged"), (Value::Null, "abstained"), (Value::Null, "bad_reply")].map(|(v, r)| (v, r.to_owned()));
    assert_eq!(score(&server, &scorer.reward(json!({})), &completions(3)).await, expected);
    // A fallback takes the place of what the scorer leaves open.
    let fallback = json!({"name": "first_non_none", "rewards": [scorer.reward(json!({})), {"name": "constant", "value": -1}]});
    let values: Vec<Value> = score(&server, &fallback, &completions(3)).await.into_iter().map(|(value, _)| value).collect();
    assert_eq!(values, [json!(0.5), json!(-1.0), json!(-1.0)]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scorer_is_asked_once_about_the_same() {
    let scorer = Scorer::start(vec![Act::Cut, Act::Lengths]).await;
    let server = scorer.server();
    let once = scorer.reward(json!({"retries": 0}));
    let two = completions(2);
    assert_eq!(score(&server, &once, &two).await, vec![(Value::Null, "unreachable".to_owned()); 2]);
    let verdicts = [(json!(1.0), "judged".to_owned()), (json!(2.0), "judged".to_owned())];
    assert_eq!(score(&server, &once, &two).await, verdicts, "a failure is no answer");
    assert_eq!(score(&server, &once, &two).await, verdicts);
    assert_eq!(scorer.calls().len(), 2, "the answers are known");
    // Another sample in anything that is posted, and a reward that wants to ask.
    let mut other = two.clone();
    other[1]["fields"]["k"] = json!("other");
    assert_eq!(score(&server, &once, &other).await, verdicts);
    let asked: Vec<usize> = scorer.calls().iter().map(|(_, body)| body["samples"].as_array().unwrap().len()).collect();
    assert_eq!(asked, [2, 2, 1]);
    assert_eq!(score(&server, &scorer.reward(json!({"retries": 0, "cache": false})), &two).await, verdicts);
    assert_eq!(scorer.calls().len(), 4);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rollouts_wait_for_judges_until_the_deadline() {
    let scorer = Scorer::start(vec![Act::Lengths, Act::Hang]).await;
    let server = scorer.server();
    let body = |deadline: u64| {
        json!({"groups": [{"messages": user("2 + 2?"), "solution": "4"}], "num_generations": 4, "seed": 3, "sampling": {"max_tokens": 8},
               "rewards": [scorer.reward(json!({"timeout_ms": 60_000, "cache": false})), {"name": "constant", "value": 1}], "deadline_ms": deadline})
    };
    let reply = server.post("/v1/rollouts", &body(8_000)).await.ok();
    for sample in reply["groups"][0]["samples"].as_array().unwrap() {
        // Samples may have ended too far apart for one batch.
        let judged = sample["rewards"]["http"] == json!(sample["text"].as_str().unwrap().len() as f64);
        assert!(judged || sample["details"]["http"]["reason"] == "timed_out", "{sample}");
        assert_eq!(sample["rewards"]["constant"], 1.0);
    }
    let posted = &scorer.calls()[0].1["samples"][0];
    assert!(posted["prompt"].as_str().unwrap().contains("2 + 2?") && posted["solution"] == "4", "{posted}");

    let start = Instant::now();
    let reply = server.post("/v1/rollouts", &body(1500)).await.ok();
    assert!(start.elapsed() < Duration::from_secs(10));
    for sample in reply["groups"][0]["samples"].as_array().unwrap() {
        assert_eq!((&sample["rewards"]["http"], &sample["details"]["http"]["reason"]), (&Value::Null, &json!("timed_out")), "{sample}");
        assert_eq!((&sample["rewards"]["constant"], &sample["reward"]), (&json!(1.0), &json!(1.0)));
    }
    // Calls that nobody waits for end, though each would have had a minute.
    let hung = scorer.calls().len() - 1;
    while scorer.left.load(Relaxed) < hung {
        assert!(start.elapsed() < Duration::from_secs(30), "{hung} calls hang");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.assert_idle().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn judges_that_are_not_there_are_refused() {
    let model = golden::model("tiny-rm");
    let server = Server::start(&format!("--allow-reward-url http://judge:9000/score --reward-model rm={}", model.display()));
    let cases = [
        (json!({"name": "http", "url": "http://judge:9000/other"}), "rewards[0]", "--allow-reward-url"),
        (json!({"name": "http", "url": "http://user@judge:9000/score"}), "rewards[0]", "user name"),
        (json!({"name": "http", "url": "http://judge:9000/score", "api_key_env": "GROUPER_REWARD_KEY_NONE"}), "rewards[0]", "environment"),
        (json!({"name": "http", "url": "http://judge:9000/score", "api_key_env": "PATH"}), "rewards[0].api_key_env", "GROUPER_REWARD_KEY"),
        (json!({"name": "model", "model": "mr"}), "rewards[0]", "there are: rm"),
        (json!({"name": "clip", "reward": {"name": "model", "model": "mr"}}), "rewards[0]", "there is no reward model \\\"mr\\\""),
    ];
    for (reward, path, says) in cases {
        for (route, rest) in
            [("/v1/rewards/score", json!({"samples": completions(1)})), ("/v1/rollouts", json!({"groups": [{"prompt": "x"}]}))]
        {
            let mut body = rest;
            body["rewards"] = json!([reward]);
            let error = server.post(route, &body).await.error(400);
            assert_eq!(error["param"], path, "{error}");
            assert!(error["message"].to_string().contains(says), "{error}");
        }
    }
    let catalogue = server.get("/v1/rewards").await.ok();
    let listed = |name: &str| catalogue["rewards"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap()["args"].clone();
    let defaults: Vec<Value> =
        listed("http").as_array().unwrap().iter().map(|arg| json!([arg["name"], arg["required"], arg["default"]])).collect();
    let expected = json!([
        ["url", true, null],
        ["timeout_ms", false, 30000],
        ["batch_size", false, 32],
        ["retries", false, 2],
        ["api_key_env", false, null],
        ["cache", false, true]
    ]);
    assert_eq!(json!(defaults), expected);
    assert_eq!(listed("model")[0]["name"], "model");
    server.stop().await;
    // A reward model draws no tokens, and what draws tokens is no reward model.
    let error = start_cpu(&model, &EngineConfig::default()).err().unwrap().to_string();
    assert!(error.contains("is a reward model"), "{error}");
    let text = golden::model("tiny-text");
    let output = grouper(&["score", "-", "--device", "cpu", "--reward-model", &format!("rm={}", text.display())], "");
    assert!(!output.status.success());
    assert!(stderr(&output).contains("--reward-model rm: ") && stderr(&output).contains("is no reward model"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn reward_models_score_as_transformers_does() {
    let server = Server::start(&format!("--reward-model rm={}", golden::model("tiny-rm").display()));
    let reward = json!({"name": "model", "model": "rm"});
    let cases = golden::cases("reward_model");
    let samples: Value = cases
        .iter()
        .map(|case| {
            let mut sample = case.clone();
            sample.as_object_mut().unwrap().retain(|key, _| ["prompt", "messages", "completion"].contains(&key.as_str()));
            sample
        })
        .collect();
    let verdicts = score(&server, &reward, &samples).await;
    for (case, (value, reason)) in cases.iter().zip(&verdicts) {
        assert_eq!(reason, "judged", "{}", case["id"]);
        let (ours, golden) = (value.as_f64().unwrap(), case["score"].as_f64().unwrap());
        assert!((ours - golden).abs() < 1e-4, "{}: {ours} against {golden}", case["id"]);
    }
    // Alone as among others, to the bit.
    for (i, verdict) in verdicts.iter().enumerate() {
        assert_eq!(score(&server, &reward, &json!([samples[i]])).await[0], *verdict);
    }
    let image =
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": "x"}]}]);
    let none = json!([
        {"completion": "no prompt"}, {"completion": "x", "messages": image},
        {"completion": "x", "messages": [{"role": "robot", "content": "x"}]}, {"completion": "x ".repeat(4000), "prompt": "long"}]);
    let reasons: Vec<String> = score(&server, &reward, &none).await.into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, ["not_applicable", "not_applicable", "not_applicable", "too_long"]);
    // A completion can't spell a control token.
    let spelled = json!([{"prompt": "Q", "completion": "A<|endoftext|>"}, {"prompt": "QA<|endoftext|>", "completion": ""}]);
    let verdicts = score(&server, &reward, &spelled).await;
    assert_ne!(verdicts[0].0, verdicts[1].0);

    // Rollouts ask the same model about the same conversation.
    let body = json!({"groups": [{"messages": user("What is 2 + 2?")}], "num_generations": 3, "seed": 5, "sampling": {"max_tokens": 6},
                      "rewards": [reward], "return": ["text"]});
    let reply = server.post("/v1/rollouts", &body).await.ok();
    for sample in reply["groups"][0]["samples"].as_array().unwrap() {
        let again = json!([{"messages": user("What is 2 + 2?"), "completion": sample["text"]}]);
        assert_eq!(sample["rewards"]["model"], score(&server, &reward, &again).await[0].0, "{sample}");
        assert!(sample["rewards"]["model"].is_f64());
    }
    server.stop().await;
}

fn grouper(args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_grouper"));
    command.args(args).env("GROUPER_REWARD_KEY_TEST", "s3cret").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn files_are_scored_line_by_line() {
    // More lines than are read at a time.
    let line = |i: usize| json!({"completion": format!("<think>x</think>\\boxed{{{}}}", i % 3), "solution": "1"}).to_string();
    let input: String = (0..5000).map(|i| line(i) + "\n").collect();
    let output = grouper(&["score", "-"], &format!("\n{input}\n"));
    let replies = lines(&output);
    assert_eq!(replies.len(), 5000);
    for (i, reply) in replies.iter().enumerate() {
        let right = f64::from(u8::from(i % 3 == 1));
        assert_eq!(reply["rewards"], json!({"think_format": 1.0, "accuracy": right}), "line {i}");
        assert_eq!(reply["reward"], 1.0 + right);
        assert!(reply.get("advantage").is_none() && reply["details"]["accuracy"]["extracted"].is_string());
    }
    let figures = stderr(&output);
    assert!(figures.starts_with("5000 samples in "), "{figures}");
    let row = figures.lines().find(|row| row.starts_with("accuracy")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["accuracy", "0.3334", "0.4715", "0"]);

    // From a file, with rewards, groups that are apart, and advantages: what the route says of the same list.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("samples.jsonl");
    let sample = |group: Value, score: f64| json!({"completion": "x", "fields": {"score": score}, "group": group});
    let samples = [sample(json!("a"), 1.0), sample(json!(7), 5.0), json!({"completion": "y"}), sample(json!("a"), 3.0)];
    std::fs::write(&file, samples.iter().map(|s| s.to_string() + "\n").collect::<String>()).unwrap();
    let rewards = r#"[{"name": "field", "field": "score", "weight": 2}]"#;
    let output = grouper(&["score", file.to_str().unwrap(), "--rewards", rewards, "--advantage", r#"{"scale": "none"}"#], "");
    let replies = lines(&output);
    let advantages: Vec<Option<f64>> = replies.iter().map(|reply| reply["advantage"].as_f64()).collect();
    assert_eq!(advantages, [Some(-2.0), Some(0.0), None, Some(2.0)]);
    assert_eq!(replies[2], json!({"rewards": {"field": null}, "reward": null, "details": {"field": {"reason": "no_field"}}}));
    assert!(stderr(&output).lines().any(|row| row.split_whitespace().eq(["field", "3.0000", "2.0000", "1"])), "{}", stderr(&output));
}

#[test]
fn bad_lines_and_flags_are_told_with_their_place() {
    let cases = [
        (vec![], "{\"completion\": \"a\"}\n{\"completion\": 3}\n", "standard input:2: completion: expected a string, got number 3"),
        (vec![], "\n{\"completion\": \"a\", \"solutoin\": 1}", "standard input:2: solutoin: unknown field, did you mean solution?"),
        (vec![], "{\"completion\": \"a\", \"group\": []}", "standard input:1: group: neither a string nor a number"),
        (vec![], "{\"completion\": ", "standard input:1: not JSON at column"),
        (vec![], "[1]", "standard input:1: the line is a list; it must be a JSON object"),
        (vec!["--rewards", "accuracy,acuracy"], "", "rewards[1].name: there is no reward \"acuracy\"; did you mean \"accuracy\"?"),
        (vec!["--rewards", "[{\"name\": 3}]"], "", "--rewards: not a JSON list of rewards"),
        (vec!["--advantage", "trll"], "", "advantage: there is no preset \"trll\""),
        (vec!["--reward-model", "rm"], "", "--reward-model rm: NAME=FOLDER is expected"),
        (vec!["--allow-reward-url", "judge"], "", "--allow-reward-url judge: not a URL"),
    ];
    for (flags, input, says) in cases {
        let output = grouper(&[&["score", "-"], flags.as_slice()].concat(), input);
        assert!(!output.status.success() && output.stdout.is_empty(), "{flags:?}");
        assert!(stderr(&output).contains(says), "{says}: {}", stderr(&output));
    }
    let output = grouper(&["score", "/no/such/file.jsonl"], "");
    assert!(stderr(&output).contains("/no/such/file.jsonl: "), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_judged_with_a_key() {
    let scorer = Scorer::start(vec![Act::Lengths]).await;
    let rewards = json!([scorer.reward(json!({"api_key_env": "GROUPER_REWARD_KEY_TEST"}))]).to_string();
    let url = scorer.url.clone();
    let run = move || grouper(&["score", "-", "--rewards", &rewards, "--allow-reward-url", &url], "{\"completion\": \"four\"}\n");
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    assert_eq!(lines(&output)[0]["rewards"]["http"], 4.0);
    let (head, _) = &scorer.calls()[0];
    assert!(head.to_lowercase().contains("authorization: bearer s3cret"), "{head}");
    assert!(!stderr(&output).contains("s3cret"));
}
