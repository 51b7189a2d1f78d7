//! Models by their hub id, in the cache that transformers and huggingface_hub use: what one has fetched, the other finds.
//!
//! `models--org--name/refs/main` names a commit, `snapshots/COMMIT/…` links to `blobs/ETAG`. Environment variables as there:
//! `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.

mod download;

use std::path::{Path, PathBuf};

pub use download::Progress;

use crate::error::{Error, Result};

/// What the environment says about hub and cache.
#[derive(Clone)]
pub struct HubEnv {
    pub cache: PathBuf,
    pub endpoint: String,
    pub token: Option<String>,
    pub offline: bool,
}

impl HubEnv {
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// The same rules over any source of variables.
    pub fn from_lookup(var: impl Fn(&str) -> Option<String>) -> Self {
        let home_dir = var("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let expand = |path: String| match path.strip_prefix("~/") {
            Some(rest) => home_dir.join(rest),
            None => PathBuf::from(path),
        };
        let cache_dir = var("XDG_CACHE_HOME").map_or_else(|| home_dir.join(".cache"), expand);
        let hf_home = var("HF_HOME").map_or_else(|| cache_dir.join("huggingface"), expand);
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE")).map_or_else(|| hf_home.join("hub"), expand);
        let stored_token = || {
            let path = var("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), expand);
            std::fs::read_to_string(path).ok()
        };
        let token = var("HF_TOKEN").or_else(stored_token).map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()).trim_end_matches('/').to_owned();
        let offline = var("HF_HUB_OFFLINE").is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()));
        HubEnv { cache, endpoint, token, offline }
    }
}

/// `org/name` (or a bare `name` of the hub's first days), checked so that it can't leave the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId(String);

impl RepoId {
    pub fn parse(text: &str) -> Option<Self> {
        let part = |part: &str| {
            let starts_well = part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
            starts_well && part.len() <= 96 && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && !part.contains("..")
        };
        let parts: Vec<&str> = text.split('/').collect();
        (parts.len() <= 2 && parts.iter().all(|p| part(p))).then(|| RepoId(text.to_owned()))
    }

    fn as_str(&self) -> &str {
        &self.0
    }

    fn cache_folder(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}", self.0.replace('/', "--")))
    }
}

/// The folder of a model: `source` itself when it is one, else the hub's snapshot, fetched as far as it is not there.
///
/// # Errors
///
/// A source that is neither, a model that the hub does not have or does not give, a cache without it when offline.
pub async fn resolve(source: &str, revision: &str, env: &HubEnv, progress: &dyn Progress) -> Result<PathBuf> {
    let folder = Path::new(source);
    if folder.is_dir() {
        return match folder.join("config.json").is_file() {
            true => Ok(folder.to_owned()),
            false => Err(Error::Setup(format!("{source}: this folder has no config.json, so it is not a model"))),
        };
    }
    let looks_like_a_path = source.starts_with(['/', '.', '~']) || source.matches('/').count() > 1;
    let Some(repo) = RepoId::parse(source).filter(|_| !looks_like_a_path) else {
        return Err(Error::Setup(format!("{source}: there is no such folder, and it is not a hub id such as Qwen/Qwen2.5-VL-3B-Instruct")));
    };
    if revision.split('/').any(|part| part.is_empty() || part.starts_with('.')) || revision.contains(['?', '#', '\\', '%']) {
        return Err(Error::Setup(format!("--revision {revision}: not a branch, tag or commit")));
    }
    if env.offline {
        let message = || format!("{source} ({revision}) is not in {}, and HF_HUB_OFFLINE forbids fetching it", env.cache.display());
        return cached(&repo, revision, env).ok_or_else(|| Error::Setup(message()));
    }
    match download::fetch(&repo, revision, env, progress).await {
        Ok(folder) => Ok(folder),
        // As transformers does: what was fetched before serves when the hub can't be reached.
        Err(download::Failure::Unreachable(why)) => match cached(&repo, revision, env) {
            Some(folder) => {
                progress.say(&format!("the hub can't be reached ({why}); using what the cache has of {source}"));
                Ok(folder)
            }
            None => Err(Error::Setup(format!("{source}: the hub at {} can't be reached: {why}", env.endpoint))),
        },
        Err(download::Failure::Refused(error)) => Err(error),
    }
}

/// The snapshot that the cache has of a revision, if its weights are there.
fn cached(repo: &RepoId, revision: &str, env: &HubEnv) -> Option<PathBuf> {
    let repo = repo.cache_folder(&env.cache);
    let commit = match is_commit(revision) {
        true => revision.to_owned(),
        false => std::fs::read_to_string(repo.join("refs").join(revision)).ok()?.trim().to_owned(),
    };
    let snapshot = repo.join("snapshots").join(is_commit(&commit).then_some(commit)?);
    is_complete(&snapshot).then_some(snapshot)
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether every file that serving needs is in a snapshot.
fn is_complete(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    let shards = || {
        let index: serde_json::Value = serde_json::from_slice(&std::fs::read(snapshot.join("model.safetensors.index.json")).ok()?).ok()?;
        let map = index["weight_map"].as_object()?.clone();
        Some(!map.is_empty() && map.values().all(|shard| shard.as_str().is_some_and(has)))
    };
    has("config.json") && has("tokenizer.json") && (has("model.safetensors") || shards().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_variables_rank_as_in_huggingface_hub() {
        let cache = |vars: &[(&str, &str)]| {
            let vars: std::collections::HashMap<String, String> = vars.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            HubEnv::from_lookup(|name| vars.get(name).cloned())
        };
        let home = ("HOME", "/home/x");
        assert_eq!(cache(&[home]).cache, Path::new("/home/x/.cache/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/c")]).cache, Path::new("/c/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/c"), ("HF_HOME", "/h")]).cache, Path::new("/h/hub"));
        assert_eq!(cache(&[home, ("HF_HOME", "/h"), ("HF_HUB_CACHE", "~/k")]).cache, Path::new("/home/x/k"));
        assert_eq!(cache(&[home, ("HF_ENDPOINT", "http://m/")]).endpoint, "http://m");
        assert_eq!(cache(&[home, ("HF_TOKEN", " t\n")]).token.as_deref(), Some("t"));
        assert!(cache(&[home, ("HF_HUB_OFFLINE", "true")]).offline && !cache(&[home, ("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn repo_ids() {
        for good in ["Qwen/Qwen2.5-VL-3B-Instruct", "gpt2", "a/b_c.d"] {
            assert!(RepoId::parse(good).is_some(), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "a/b/c", "../a", "a/..", "a/.b", "a b", "a/b?c", "a\\b"] {
            assert!(RepoId::parse(bad).is_none(), "{bad}");
        }
    }
}
