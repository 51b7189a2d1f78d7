//! Who may call what: a key per kind of route, and a guard against web pages that reach for a server on loopback.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::error::{ApiError, shorten};
use super::{AppState, Role};

/// A key of which only the digest is kept, so that it is never printed and comparing it takes the same time for every guess.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    pub fn new(secret: &str) -> Self {
        Key(Sha256::digest(secret.as_bytes()).into())
    }

    fn matches(&self, presented: &str) -> bool {
        let presented = Key::new(presented);
        self.0.iter().zip(presented.0).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// `--api-key` opens data routes, `--control-key` opens everything. A server without keys is open, and binds to loopback only.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    pub api: Option<Key>,
    pub control: Option<Key>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    NoKey,
    WrongKey,
    /// A good key, but not for this route.
    NotThisKey,
}

impl Keys {
    fn judge(&self, role: Role, presented: Option<&str>) -> Verdict {
        let is = |key: &Option<Key>| matches!((key, presented), (Some(key), Some(presented)) if key.matches(presented));
        let (is_api, is_control) = (is(&self.api), is(&self.control));
        let open = match role {
            Role::Public => true,
            Role::Infer | Role::Learn => self.api.is_none() || is_api || is_control,
            Role::Admin => is_control || (self.control.is_none() && self.api.is_none()),
        };
        match (open, presented) {
            (true, _) => Verdict::Allowed,
            (false, None) => Verdict::NoKey,
            (false, Some(_)) if is_api => Verdict::NotThisKey,
            (false, Some(_)) => Verdict::WrongKey,
        }
    }
}

/// The layer of one route: its role is fixed in the route table and has nothing to do with how the path was spelt.
pub async fn require(State((state, role)): State<(AppState, Role)>, request: Request, next: Next) -> Response {
    let presented = bearer(request.headers());
    let refused = match state.http.keys.judge(role, presented) {
        Verdict::Allowed => return next.run(request).await,
        Verdict::NoKey => (StatusCode::UNAUTHORIZED, "missing_api_key", "send a key as Authorization: Bearer KEY"),
        Verdict::WrongKey => (StatusCode::UNAUTHORIZED, "invalid_api_key", "the key in Authorization is not one of this server's"),
        Verdict::NotThisKey => {
            (StatusCode::FORBIDDEN, "control_key_needed", "this route takes the control key (--control-key), not the API key")
        }
    };
    ApiError::new(refused.0, refused.1, refused.2).into_response()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// A page whose name was rebound to 127.0.0.1 sends that name as Host: on loopback only names of this machine are answered.
pub async fn check_host(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let Some(allowed) = &state.http.allowed_hosts else { return next.run(request).await };
    match host_of(request.uri(), request.headers()) {
        Some(host) if is_local_name(&host) || allowed.iter().any(|name| name.eq_ignore_ascii_case(&host)) => next.run(request).await,
        host => {
            let host = shorten(host.as_deref().unwrap_or("none"));
            let message = format!("this server listens on loopback and does not answer to the host {host} (--allow-host adds a name)");
            ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message).into_response()
        }
    }
}

/// The host without its port, from the request line when it is there.
fn host_of(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let header = || headers.get(header::HOST)?.to_str().ok()?.parse::<axum::http::uri::Authority>().ok();
    let authority = uri.authority().cloned().or_else(header)?;
    Some(authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase())
}

fn is_local_name(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_open_their_roles_only() {
        use Verdict::*;
        let keys = |api: bool, control: bool| Keys { api: api.then(|| Key::new("a")), control: control.then(|| Key::new("c")) };
        // Keys set, then what Public, Infer, Learn and Admin answer to: no key, the API key, the control key, another one.
        let table = [
            (keys(false, false), [[Allowed, Allowed, Allowed, Allowed], [Allowed, Allowed, Allowed, Allowed]]),
            (keys(true, false), [[NoKey, Allowed, WrongKey, WrongKey], [NoKey, NotThisKey, WrongKey, WrongKey]]),
            (keys(false, true), [[Allowed, Allowed, Allowed, Allowed], [NoKey, WrongKey, Allowed, WrongKey]]),
            (keys(true, true), [[NoKey, Allowed, Allowed, WrongKey], [NoKey, NotThisKey, Allowed, WrongKey]]),
        ];
        for (keys, [data, admin]) in table {
            for (index, presented) in [None, Some("a"), Some("c"), Some("x")].into_iter().enumerate() {
                assert_eq!(keys.judge(Role::Public, presented), Allowed);
                assert_eq!(keys.judge(Role::Infer, presented), data[index], "{keys:?} {presented:?}");
                assert_eq!(keys.judge(Role::Learn, presented), data[index], "{keys:?} {presented:?}");
                assert_eq!(keys.judge(Role::Admin, presented), admin[index], "{keys:?} {presented:?}");
            }
        }
    }

    #[test]
    fn hosts_of_this_machine() {
        let host = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, value.parse().unwrap());
            host_of(&Uri::from_static("/health"), &headers).map(|host| is_local_name(&host))
        };
        for good in ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "127.9.9.9", "[::1]:8000"] {
            assert_eq!(host(good), Some(true), "{good}");
        }
        for bad in ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0:8000"] {
            assert_eq!(host(bad), Some(false), "{bad}");
        }
        assert_eq!(host_of(&Uri::from_static("/health"), &HeaderMap::new()), None);
    }
}
