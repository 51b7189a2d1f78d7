//! Fetching a snapshot: the list of files, then each one through an `.incomplete` file that a later start resumes.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::io::AsyncWriteExt;

use super::{HubEnv, RepoId, is_commit};
use crate::error::{Error, Result};

/// What a download tells while it goes on.
pub trait Progress: Send + Sync {
    fn say(&self, line: &str);
    fn begin_file(&self, name: &str, done: u64, total: u64);
    fn advance(&self, bytes: u64);
    fn end_file(&self);
}

/// Whether trying elsewhere (in the cache) makes sense.
pub(super) enum Failure {
    Unreachable(String),
    Refused(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Refused(error)
    }
}

const MAX_REDIRECTS: usize = 5;

/// Files of a model repository that serving reads. Weights in other formats run code when loaded, and are never fetched.
fn is_wanted(name: &str) -> bool {
    let configs = [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ];
    configs.contains(&name) || (name.ends_with(".safetensors") && !name.contains('/'))
}

struct Hub<'a> {
    client: Client,
    env: &'a HubEnv,
    repo: &'a RepoId,
    progress: &'a dyn Progress,
}

/// What a HEAD request says about a file.
struct Remote {
    etag: String,
    size: Option<u64>,
    url: Url,
}

/// Makes the snapshot of a revision complete and returns its folder.
pub(super) async fn fetch(repo: &RepoId, revision: &str, env: &HubEnv, progress: &dyn Progress) -> Result<PathBuf, Failure> {
    let client = Client::builder()
        .user_agent(concat!("grouper/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(60))
        .build()
        .map_err(|e| Error::Setup(format!("no HTTP client: {e}")))?;
    let hub = Hub { client, env, repo, progress };
    let (commit, files) = hub.list(revision).await?;
    let folder = repo.cache_folder(&env.cache);
    let snapshot = folder.join("snapshots").join(&commit);
    for name in files.iter().filter(|name| is_wanted(name)) {
        // A file that is there was finished: links are made last.
        if !snapshot.join(name).exists() {
            hub.file(&folder, &snapshot, &commit, name).await?;
        }
    }
    if !is_commit(revision) {
        let reference = folder.join("refs").join(revision);
        write_small(&reference, commit.as_bytes()).map_err(|e| Error::file(&reference, e))?;
    }
    if !super::is_complete(&snapshot) {
        let message = format!("{}: the hub has no config.json, tokenizer.json or safetensors weights for it", repo.as_str());
        return Err(Error::Setup(message).into());
    }
    Ok(snapshot)
}

impl Hub<'_> {
    /// The commit behind a revision and the names of its files.
    async fn list(&self, revision: &str) -> Result<(String, Vec<String>), Failure> {
        let url = format!("{}/api/models/{}/revision/{}", self.env.endpoint, self.repo.as_str(), revision.replace('/', "%2F"));
        let url = Url::parse(&url).map_err(|_| Error::Setup(format!("HF_ENDPOINT {}: not a URL", self.env.endpoint)))?;
        let (response, _) = self.get(reqwest::Method::GET, url, None).await?;
        let response = self.refusal(response, "")?;
        let info: serde_json::Value = response.json().await.map_err(unreachable)?;
        let commit = info["sha"].as_str().filter(|sha| is_commit(sha)).map(str::to_owned);
        let names = info["siblings"].as_array().into_iter().flatten().filter_map(|file| file["rfilename"].as_str()).map(str::to_owned);
        match commit {
            Some(commit) => Ok((commit, names.collect())),
            None => Err(Failure::Unreachable("its answer names no commit".into())),
        }
    }

    async fn file(&self, folder: &Path, snapshot: &Path, commit: &str, name: &str) -> Result<(), Failure> {
        let safe = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !safe {
            return Err(Error::Setup(format!("{}: the hub lists a file {name:?}", self.repo.as_str())).into());
        }
        let remote = self.head(commit, name).await?;
        let blob = folder.join("blobs").join(&remote.etag);
        if !blob.exists() {
            self.blob(&blob, &remote, name).await?;
        }
        link(&blob, &snapshot.join(name)).map_err(|e| Error::file(snapshot.join(name), e))?;
        Ok(())
    }

    /// Large files live elsewhere: the first answer names their etag and redirects.
    async fn head(&self, commit: &str, name: &str) -> Result<Remote, Failure> {
        let url = format!("{}/{}/resolve/{commit}/{name}", self.env.endpoint, self.repo.as_str());
        let url = Url::parse(&url).map_err(|_| Error::Setup(format!("HF_ENDPOINT {}: not a URL", self.env.endpoint)))?;
        let (response, headers) = self.get(reqwest::Method::HEAD, url, None).await?;
        let response = self.refusal(response, name)?;
        // The first answer in the chain of redirects that has a header is the hub's own.
        let first = |key: &str| headers.iter().find_map(|headers| Some(headers.get(key)?.to_str().ok()?.to_owned()));
        let etag = first("x-linked-etag").or_else(|| first(ETAG.as_str())).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if etag.is_empty() || etag.len() > 128 || !etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Error::Setup(format!("{}: the hub names no etag for {name}", self.repo.as_str())).into());
        }
        let length = || response.headers().get("content-length")?.to_str().ok()?.parse().ok();
        let size = first("x-linked-size").and_then(|size| size.parse().ok()).or_else(length);
        Ok(Remote { etag, size, url: response.url().clone() })
    }

    async fn blob(&self, blob: &Path, remote: &Remote, name: &str) -> Result<(), Failure> {
        let part = blob.with_extension("incomplete");
        let at = |error: std::io::Error| Failure::from(Error::file(&part, error));
        std::fs::create_dir_all(part.parent().unwrap_or(Path::new("."))).map_err(at)?;
        let mut done = std::fs::metadata(&part).map_or(0, |meta| meta.len());
        if remote.size.is_some_and(|size| done > size) {
            done = 0;
        }
        if remote.size.is_none_or(|size| done < size || size == 0) {
            let (response, _) = self.get(reqwest::Method::GET, remote.url.clone(), Some(done).filter(|done| *done > 0)).await?;
            let mut response = self.refusal(response, name)?;
            if response.status() != StatusCode::PARTIAL_CONTENT || !starts_at(response.headers(), done) {
                done = 0;
            }
            let mut file = tokio::fs::OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(done == 0)
                .append(done > 0)
                .open(&part)
                .await
                .map_err(at)?;
            let expected = remote.size.or(response.content_length().map(|rest| rest + done)).unwrap_or(0);
            self.progress.begin_file(name, done, expected);
            while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
                file.write_all(&chunk).await.map_err(at)?;
                done += chunk.len() as u64;
                self.progress.advance(chunk.len() as u64);
            }
            file.sync_all().await.map_err(at)?;
            self.progress.end_file();
        }
        match remote.size {
            Some(size) if size != done => Err(Failure::Unreachable(format!("{name} ended after {done} of {size} bytes"))),
            _ => std::fs::rename(&part, blob).map_err(at),
        }
    }

    /// One request with its redirects; the token goes to the hub only. Gives the headers of every answer on the way.
    async fn get(&self, method: reqwest::Method, url: Url, from: Option<u64>) -> Result<(Response, Vec<HeaderMap>), Failure> {
        let home = Url::parse(&self.env.endpoint).ok();
        let (mut url, mut seen) = (url, Vec::new());
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.client.request(method.clone(), url.clone()).header("accept-encoding", "identity");
            let at_home = home.as_ref().is_some_and(|home| home.origin() == url.origin());
            if let Some(token) = self.env.token.as_ref().filter(|_| at_home) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.send().await.map_err(unreachable)?;
            seen.push(response.headers().clone());
            let next = response.headers().get(LOCATION).and_then(|to| url.join(to.to_str().ok()?).ok());
            match next {
                Some(next) if response.status().is_redirection() => url = next,
                _ => return Ok((response, seen)),
            }
        }
        Err(Failure::Unreachable("too many redirects".into()))
    }

    fn refusal(&self, response: Response, name: &str) -> Result<Response, Failure> {
        let repo = self.repo.as_str();
        let what = if name.is_empty() { repo.to_owned() } else { format!("{repo}/{name}") };
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let hint = match self.env.token {
                    Some(_) => "the token in use may not read it",
                    None => "set HF_TOKEN (or run hf auth login) if it is private or gated",
                };
                Err(Error::Setup(format!("{what}: the hub refuses it; {hint}")).into())
            }
            StatusCode::NOT_FOUND => Err(Error::Setup(format!("{what}: the hub has no such model or revision")).into()),
            status => Err(Failure::Unreachable(format!("it answers {status}"))),
        }
    }
}

fn unreachable(error: reqwest::Error) -> Failure {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Failure::Unreachable(text)
}

fn starts_at(headers: &HeaderMap, from: u64) -> bool {
    headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

/// Links a snapshot's file to its blob, relatively, so that the cache can be moved; a file system without links gets a copy.
fn link(blob: &Path, file: &Path) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Left over from a blob that is gone.
    if file.symlink_metadata().is_ok() {
        std::fs::remove_file(file)?;
    }
    let name = blob.file_name().unwrap_or_default();
    #[cfg(unix)]
    if std::os::unix::fs::symlink(Path::new("../../blobs").join(name), file).is_ok() {
        return Ok(());
    }
    std::fs::copy(blob, file).map(|_| ())
}

fn write_small(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let part = path.with_extension("incomplete");
    std::fs::write(&part, bytes)?;
    std::fs::rename(part, path)
}
