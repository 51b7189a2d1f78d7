//! Images from other hosts, without becoming a way into the server's own network.
//!
//! One parsed URL is both what is checked and what is fetched. Addresses are checked where the connection takes them, in the resolver,
//! so a name that changes its answer in between gains nothing. Redirects are followed by hand, each one checked like the first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::LOCATION;
use reqwest::{Client, Response};
use url::{Host, Url};

use super::media::MediaOptions;
use crate::error::{Error, Result};

const MAX_REDIRECTS: usize = 3;

/// Which addresses may be connected to; a test puts its own loopback server here.
type AddressRule = fn(IpAddr) -> bool;

pub struct Remote {
    /// `None` where no flag allows remote images: then there is nothing that could connect.
    client: Option<Client>,
    domains: Vec<Domain>,
    any_domain: bool,
    address_allowed: AddressRule,
    max_bytes: usize,
    total_timeout: Duration,
}

/// One `--allow-media-domain`.
#[derive(Debug)]
struct Domain {
    host: String,
    /// Hosts below it, too.
    with_subdomains: bool,
    port: Option<u16>,
}

impl Remote {
    pub fn new(options: &MediaOptions) -> Result<Self> {
        Self::with_rule(options, is_public)
    }

    fn with_rule(options: &MediaOptions, address_allowed: AddressRule) -> Result<Self> {
        let domains: Vec<Domain> = options.allow_media_domains.iter().map(|text| Domain::parse(text)).collect::<Result<_>>()?;
        let enabled = options.allow_remote_media || !domains.is_empty();
        let client = enabled.then(|| client(options, address_allowed)).transpose()?;
        let (max_bytes, total_timeout) = (options.max_bytes, options.total_timeout);
        Ok(Remote { client, domains, any_domain: options.allow_remote_media, address_allowed, max_bytes, total_timeout })
    }

    /// The body behind an http or https URL.
    pub async fn fetch(&self, source: &str) -> Result<Vec<u8>> {
        let Some(client) = &self.client else {
            let message = "images from other hosts are not fetched: start the server with --allow-media-domain or --allow-remote-media";
            return Err(Error::invalid("", message));
        };
        // Some parsers take a backslash for a slash and drop line breaks; what two parsers could read differently is refused.
        if source.contains(|c: char| c == '\\' || c.is_whitespace() || c.is_control()) {
            return Err(Error::invalid("", "the URL contains a backslash, white space or a control character"));
        }
        let url = Url::parse(source).map_err(|_| Error::invalid("", "not a valid URL"))?;
        let timeout = tokio::time::timeout(self.total_timeout, self.follow(client, url));
        timeout.await.unwrap_or_else(|_| Err(Error::invalid("", format!("the image did not arrive within {:?}", self.total_timeout))))
    }

    async fn follow(&self, client: &Client, mut url: Url) -> Result<Vec<u8>> {
        for _ in 0..=MAX_REDIRECTS {
            self.check(&url)?;
            let response = client.get(url.clone()).send().await.map_err(|e| failure(&e))?;
            if !response.status().is_redirection() {
                return self.body(response).await;
            }
            let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
            let target = target.filter(|target| !target.contains('\\')).and_then(|target| url.join(target).ok());
            url = target.ok_or_else(|| Error::invalid("", "the host redirects to something that is not a URL"))?;
        }
        Err(Error::invalid("", format!("the host redirects more than {MAX_REDIRECTS} times")))
    }

    fn check(&self, url: &Url) -> Result<()> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Error::invalid("", "only http and https URLs are fetched"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::invalid("", "a URL with a user name or password is not fetched"));
        }
        let host = url.host().ok_or_else(|| Error::invalid("", "the URL has no host"))?;
        // The connector never asks the resolver about an address written out, so it is checked here.
        let address = match host {
            Host::Ipv4(ip) => Some(IpAddr::V4(ip)),
            Host::Ipv6(ip) => Some(IpAddr::V6(ip)),
            Host::Domain(_) => None,
        };
        if address.is_some_and(|ip| !(self.address_allowed)(ip)) {
            return Err(Error::invalid("", PRIVATE));
        }
        let name = host.to_string();
        let port = url.port_or_known_default();
        let listed = self.domains.iter().any(|domain| domain.allows(&name, port));
        if listed || self.any_domain && matches!(port, Some(80 | 443)) {
            return Ok(());
        }
        Err(Error::invalid(
            "",
            match self.any_domain {
                true => "only ports 80 and 443 are fetched from: list others with --allow-media-domain host:port",
                false => "the host is not one of those given as --allow-media-domain",
            },
        ))
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>> {
        let too_large = || Error::too_large("", format!("the file has more than {} bytes", self.max_bytes));
        if !response.status().is_success() {
            return Err(Error::invalid("", format!("the host answers with status {}", response.status().as_u16())));
        }
        if response.content_length().is_some_and(|length| length > self.max_bytes as u64) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| failure(&e))? {
            if body.len() + chunk.len() > self.max_bytes {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

const PRIVATE: &str = "the URL leads to an address that is not public";

fn client(options: &MediaOptions, address_allowed: AddressRule) -> Result<Client> {
    let refusal = |e: &dyn std::fmt::Display| Error::Setup(format!("fetching remote images can't be set up: {e}"));
    // Another part of the program may have chosen a provider already; either will do.
    _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        // A proxy from the environment would connect for us, past the resolver.
        .no_proxy()
        .dns_resolver(Arc::new(PublicResolver { address_allowed }))
        .connect_timeout(options.connect_timeout)
        .timeout(options.total_timeout)
        .user_agent(concat!("grouper/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| refusal(&e))
}

/// What went wrong, in our own words: a library's would name addresses and internals.
fn failure(error: &reqwest::Error) -> Error {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(e) = source {
        if e.is::<NotPublic>() {
            return Error::invalid("", PRIVATE);
        }
        source = e.source();
    }
    Error::invalid(
        "",
        match error {
            e if e.is_timeout() => "the host does not answer in time",
            e if e.is_connect() => "the host can't be reached",
            _ => "the transfer from the host failed",
        },
    )
}

struct PublicResolver {
    address_allowed: AddressRule,
}

#[derive(Debug, thiserror::Error)]
#[error("no public address")]
struct NotPublic;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let address_allowed = self.address_allowed;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<SocketAddr> = found.into_iter().filter(|address| address_allowed(address.ip())).collect();
            if public.is_empty() { Err(NotPublic.into()) } else { Ok(Box::new(public.into_iter()) as Addrs) }
        })
    }
}

impl Domain {
    fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::Setup(format!("--allow-media-domain {text}: a host is expected, such as example.com, *.example.com or example.com:8080"))
        };
        let (with_subdomains, host) = text.strip_prefix("*.").map_or((false, text), |host| (true, host));
        let url = Url::parse(&format!("http://{host}")).map_err(|_| bad())?;
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        let host_text = url.host_str().filter(|_| plain && !text.contains('/')).ok_or_else(bad)?;
        Ok(Domain { host: host_text.to_owned(), with_subdomains, port: url.port() })
    }

    fn allows(&self, host: &str, port: Option<u16>) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let below = || host.strip_suffix(&self.host).is_some_and(|rest| rest.ends_with('.'));
        let port_allowed = match self.port {
            Some(own) => port == Some(own),
            None => matches!(port, Some(80 | 443)),
        };
        port_allowed && (host == self.host || self.with_subdomains && below())
    }
}

/// Whether an address belongs to the public internet: not to this machine, a local network, a carrier, or a special purpose
/// (IANA's registries of special-purpose addresses). Addresses that wrap another one are judged by it or refused.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or_else(|| is_public_v6(ip), is_public_v4),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = match (a, b) {
        (0 | 10 | 127 | 224.., _) => true,
        (100, 64..=127) | (169, 254) | (172, 16..=31) | (192, 168) | (198, 18 | 19) => true,
        (192, 0) => matches!(c, 0 | 2),
        _ => matches!((a, b, c), (192, 88, 99) | (198, 51, 100) | (203, 0, 113)),
    };
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    match ip.segments() {
        // Teredo and other protocol blocks, documentation, 6to4.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
