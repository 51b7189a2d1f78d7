//! Scorers behind a URL: samples are gathered to batches, posted, and asked again after a failure that may pass.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use metrics::counter;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use rewards::{FinishReason, HttpAsk, Reason, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use url::Url;

use super::cache::{Cache, Key};
use super::{Question, gone};
use crate::error::{Error, Result};

/// Calls of all requests that are under way.
const MAX_CALLS: usize = 64;
/// How long a batch waits to become full.
const GATHER: Duration = Duration::from_millis(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer: so much, and so much more for each sample.
const MAX_REPLY: (usize, usize) = (64 << 10, 1 << 10);

const IS_JSON: &str = "strings, numbers and JSON are JSON";

/// Who calls, and where it may.
pub struct Caller {
    client: Client,
    allowed: Vec<Url>,
    calls: Arc<Semaphore>,
    cache: Arc<Cache>,
}

/// Samples on their way to one scorer.
#[derive(Clone)]
pub struct HttpLine {
    jobs: mpsc::UnboundedSender<Job>,
    /// Who is asked, and with whose key.
    scorer: Arc<str>,
    /// `None`: every sample is asked about.
    cache: Option<Arc<Cache>>,
}

struct Job {
    question: Question,
    reply: oneshot::Sender<Verdict>,
}

/// What the calls of a line have in common.
struct Scorer {
    client: Client,
    url: Url,
    key: Option<HeaderValue>,
    ask: HttpAsk,
    calls: Arc<Semaphore>,
}

#[derive(Serialize)]
struct Body<'a> {
    samples: Vec<Posted<'a>>,
}

/// A sample as the scoring route takes it, without token ids.
#[derive(Serialize)]
struct Posted<'a> {
    completion: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    solution: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<&'a Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<FinishReason>,
}

#[derive(Deserialize)]
struct Reply {
    rewards: Vec<Value>,
}

/// Why a call gave no verdicts.
struct Failure {
    reason: Reason,
    message: String,
    /// Whether another attempt may help.
    passing: bool,
    retry_after: Option<Duration>,
}

impl Caller {
    /// `None` where nothing is allowed: then there is nothing that could connect.
    pub fn new(allowed: &[String]) -> Result<Option<Self>> {
        if allowed.is_empty() {
            return Ok(None);
        }
        let parse = |text: &String| {
            let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
            let plain = url.filter(|url| url.username().is_empty() && url.password().is_none() && url.query().is_none());
            plain.ok_or_else(|| Error::Setup(format!("--allow-reward-url {text}: not a URL such as http://judge:9000/score")))
        };
        let allowed = allowed.iter().map(parse).collect::<Result<_>>()?;
        // Another part of the program may have chosen a provider already; either will do.
        _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            // Elsewhere is not where the operator allowed.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("grouper/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::Setup(format!("no HTTP client: {e}")))?;
        Ok(Some(Caller { client, allowed, calls: Arc::new(Semaphore::new(MAX_CALLS)), cache: Arc::default() }))
    }

    pub fn open(&self, ask: &HttpAsk) -> Result<HttpLine> {
        let url = self.check(&ask.url).map_err(|why| Error::invalid("", format!("url: {:?} {why}", ask.url)))?;
        let key = ask.api_key_env.as_ref().map(|name| {
            let value = std::env::var(name).ok().and_then(|key| HeaderValue::try_from(format!("Bearer {}", key.trim())).ok());
            let mut value =
                value.ok_or_else(|| Error::invalid("", format!("api_key_env: the server's environment has no {name} that is a token")))?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        });
        let (client, calls) = (self.client.clone(), self.calls.clone());
        let name = format!("{url} {}", ask.api_key_env.as_deref().unwrap_or_default()).into();
        let scorer = Scorer { client, url, key: key.transpose()?, ask: ask.clone(), calls };
        let (sender, jobs) = mpsc::unbounded_channel();
        tokio::spawn(Arc::new(scorer).gather(jobs));
        Ok(HttpLine { jobs: sender, scorer: name, cache: ask.cache.then(|| self.cache.clone()) })
    }

    fn check(&self, text: &str) -> Result<Url, &'static str> {
        // Some parsers take a backslash for a slash and drop line breaks; what two parsers could read differently is refused.
        if text.contains(|c: char| c == '\\' || c.is_whitespace() || c.is_control()) {
            return Err("contains a backslash, white space or a control character");
        }
        let url = Url::parse(text).map_err(|_| "is not a URL")?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("has a user name or password; use api_key_env");
        }
        match self.allowed.iter().any(|allowed| is_below(&url, allowed)) {
            true => Ok(url),
            false => Err("is not at or below one of those given as --allow-reward-url"),
        }
    }
}

/// The same scheme, host and port, and a path that is the allowed one or goes on behind a slash.
fn is_below(url: &Url, allowed: &Url) -> bool {
    let rest = url.path().strip_prefix(allowed.path().trim_end_matches('/'));
    url.origin() == allowed.origin() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl HttpLine {
    pub async fn ask(&self, question: Question) -> Verdict {
        let Some(cache) = &self.cache else { return self.put(question).await };
        let key = self.key(&question);
        if let Some(verdict) = cache.get(&key) {
            counter!("grouper_judge_cached_total", "judge" => "http").increment(1);
            return verdict;
        }
        let verdict = self.put(question).await;
        // What the scorer said, not what went wrong on the way.
        if matches!(verdict.reason, Reason::Judged | Reason::Abstained) {
            cache.put(key, verdict.clone());
        }
        verdict
    }

    async fn put(&self, question: Question) -> Verdict {
        let (reply, verdict) = oneshot::channel();
        match self.jobs.send(Job { question, reply }) {
            Ok(()) => verdict.await.unwrap_or_else(|_| gone()),
            Err(_) => gone(),
        }
    }

    /// Of where the sample goes and everything that is posted of it.
    fn key(&self, question: &Question) -> Key {
        let posted = serde_json::to_vec(&Posted::from(question)).unwrap_or_else(|error| panic!("{IS_JSON}: {error}"));
        Sha256::new().chain_update(self.scorer.as_bytes()).chain_update([0]).chain_update(posted).finalize().into()
    }
}

impl Scorer {
    /// Makes batches of what comes until nobody can ask any more.
    async fn gather(self: Arc<Self>, mut jobs: mpsc::UnboundedReceiver<Job>) {
        while let Some(first) = jobs.recv().await {
            let mut batch = vec![first];
            let full = async {
                while batch.len() < self.ask.batch_size {
                    let Some(job) = jobs.recv().await else { return };
                    batch.push(job);
                }
            };
            let _ = timeout(GATHER, full).await;
            let Ok(call) = self.calls.clone().acquire_owned().await else { return };
            let scorer = self.clone();
            tokio::spawn(async move {
                scorer.score(batch).await;
                drop(call);
            });
        }
    }

    /// One batch, until it is answered, given up, or nobody waits for it any more.
    async fn score(&self, mut batch: Vec<Job>) {
        batch.retain(|job| !job.reply.is_closed());
        let samples = batch.len();
        let body = match serde_json::to_vec(&Body { samples: batch.iter().map(|job| Posted::from(&job.question)).collect() }) {
            Ok(body) => body,
            Err(error) => panic!("{IS_JSON}: {error}"),
        };
        let verdicts = tokio::select! {
            verdicts = self.attempts(body, samples) => verdicts,
            _ = join_all(batch.iter_mut().map(|job| job.reply.closed())) => return,
        };
        for (job, verdict) in batch.into_iter().zip(verdicts) {
            let _ = job.reply.send(verdict);
        }
    }

    async fn attempts(&self, body: Vec<u8>, samples: usize) -> Vec<Verdict> {
        let mut pause = FIRST_PAUSE;
        let mut retries = self.ask.retries;
        loop {
            let call = timeout(Duration::from_millis(self.ask.timeout_ms), self.call(body.clone(), samples));
            let failure = match call.await {
                Ok(Ok(verdicts)) => {
                    counter!("grouper_judge_calls_total", "judge" => "http", "outcome" => "ok").increment(1);
                    return verdicts;
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure { passing: true, ..Failure::new(Reason::TimedOut, format!("no answer in {} ms", self.ask.timeout_ms)) },
            };
            counter!("grouper_judge_calls_total", "judge" => "http", "outcome" => failure.reason.as_str()).increment(1);
            let scorer = format!("{}{}", self.url.origin().ascii_serialization(), self.url.path());
            let again = failure.passing && retries > 0;
            tracing::warn!(%scorer, samples, again, "{}", failure.message);
            if !again {
                return vec![Verdict::none(failure.reason); samples];
            }
            retries -= 1;
            sleep(failure.retry_after.unwrap_or(pause).clamp(pause, LONGEST_PAUSE)).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    async fn call(&self, body: Vec<u8>, samples: usize) -> Result<Vec<Verdict>, Failure> {
        let mut request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key.clone());
        }
        let response = request.send().await.map_err(|e| Failure::transfer(&e))?;
        let status = response.status();
        if !status.is_success() {
            let passing = status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
            let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let retry_after = seconds.map(Duration::from_secs);
            let what = if status.is_redirection() { "a redirect, which is not followed" } else { "no verdicts" };
            return Err(Failure { passing, retry_after, ..Failure::new(Reason::BadReply, format!("status {}: {what}", status.as_u16())) });
        }
        let reply = read(response, MAX_REPLY.0 + MAX_REPLY.1 * samples).await?;
        let bad = |message: String| Failure::new(Reason::BadReply, message);
        // Python's json writes NaN and Infinity, which JSON does not have.
        let reply: Reply = serde_json::from_slice(&reply).map_err(|e| bad(format!("not {{\"rewards\": [number or null, …]}}: {e}")))?;
        match reply.rewards.len() {
            n if n == samples => Ok(reply.rewards.iter().map(verdict).collect()),
            n => Err(bad(format!("{n} rewards for {samples} samples"))),
        }
    }
}

fn verdict(value: &Value) -> Verdict {
    match value {
        Value::Null => Verdict::none(Reason::Abstained),
        Value::Number(number) => match number.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Verdict::new(number, Reason::Judged),
            None => Verdict::none(Reason::BadReply),
        },
        _ => Verdict::none(Reason::BadReply),
    }
}

async fn read(mut response: Response, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| Failure::transfer(&e))? {
        if body.len() + chunk.len() > limit {
            return Err(Failure::new(Reason::BadReply, format!("the answer has more than {limit} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

impl Failure {
    fn new(reason: Reason, message: String) -> Self {
        Failure { reason, message, passing: false, retry_after: None }
    }

    fn transfer(error: &reqwest::Error) -> Self {
        let (reason, what) = match error {
            e if e.is_timeout() => (Reason::TimedOut, "the scorer does not answer in time"),
            e if e.is_connect() => (Reason::Unreachable, "the scorer can't be reached"),
            _ => (Reason::Unreachable, "the connection to the scorer broke"),
        };
        Failure { passing: true, ..Failure::new(reason, what.to_owned()) }
    }
}

impl<'a> From<&'a Question> for Posted<'a> {
    fn from(question: &'a Question) -> Self {
        let context = &question.context;
        Posted {
            completion: &question.completion,
            prompt: context.prompt.as_deref(),
            solution: context.solution.as_ref(),
            fields: context.fields.as_ref(),
            finish_reason: question.finish_reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_allowed_is_called() {
        let caller = Caller::new(&["http://judge:9000/score".to_owned(), "https://a.example/".to_owned()]).unwrap().unwrap();
        for url in ["http://judge:9000/score", "http://judge:9000/score/", "http://judge:9000/score/x?y=1", "https://a.example/any"] {
            assert!(caller.check(url).is_ok(), "{url}");
        }
        let refused = [
            "http://judge:9000/scores",
            "http://judge:9000/score/../admin",
            "http://judge:9000/score/%2e%2e/admin",
            "http://judge:9001/score",
            "https://judge:9000/score",
            "http://judge.evil:9000/score",
            "http://judge:9000@evil/score",
            "http://judge:9000\\@evil/score",
            "http://evil/http://judge:9000/score",
            "http://a.example/any",
            "https://a.example:8443/any",
        ];
        for url in refused {
            assert!(caller.check(url).is_err(), "{url}");
        }
        assert!(Caller::new(&[]).unwrap().is_none());
        for url in ["judge:9000", "ftp://judge", "http://u:p@judge", "http://judge/?a=b"] {
            assert!(Caller::new(&[url.to_owned()]).is_err(), "{url}");
        }
    }
}
