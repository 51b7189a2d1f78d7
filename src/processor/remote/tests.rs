#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A server on loopback that counts its connections and answers each with `answer`.
async fn server(answer: impl AsyncFn(TcpStream) + Clone + 'static) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hits = Arc::new(AtomicUsize::new(0));
    let counter = hits.clone();
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            tokio::task::spawn_local(async move {
                let mut request = [0; 4096];
                _ = stream.read(&mut request).await;
                answer(stream).await;
            });
        }
    });
    (port, hits)
}

/// Runs a test that spawns servers on its own thread.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn options(domains: &[String]) -> MediaOptions {
    MediaOptions {
        allow_media_domains: domains.to_vec(),
        max_bytes: 100_000,
        connect_timeout: Duration::from_millis(500),
        total_timeout: Duration::from_millis(800),
        ..MediaOptions::default()
    }
}

async fn write(mut stream: TcpStream, text: &str) {
    _ = stream.write_all(text.as_bytes()).await;
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn no_url_reaches_a_private_address() {
    run(async {
        let (port, hits) = server(async |stream| write(stream, &ok("secret")).await).await;
        // The operator allowed everything that can be allowed, by mistake or on purpose.
        let hosts = ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "localhost.localdomain"];
        let domains: Vec<String> = hosts.iter().map(|host| format!("{host}:{port}")).collect();
        let remote = Remote::new(&MediaOptions { allow_remote_media: true, ..options(&domains) }).unwrap();
        let hosts = "127.0.0.1 127.1 127.0.1 2130706433 0x7f.1 0x7f000001 0177.0.0.1 017700000001 127.0.0.1. 0 0.0.0.0 \
            ①②⑦.0.0.1 127。0。0。1 %31%32%37.0.0.1 localhost LOCALHOST localhost. loc%61lhost [::1] [::] [0:0:0:0:0:0:0:1] \
            [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [64:ff9b::127.0.0.1] [64:ff9b:1::7f00:1] [2002:7f00:1::] [fe80::1] [fc00::1] \
            10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1 198.18.0.1 224.0.0.1 255.255.255.255 \
            metadata@127.0.0.1 ok:pw@127.0.0.1 example.com@127.0.0.1 example.com%40127.0.0.1 example.com\\@127.0.0.1 127.0.0.1\\.example.com";
        for host in hosts.split_whitespace() {
            for url in [format!("http://{host}:{port}/x.png"), format!("http://{host}/x.png"), format!("https://{host}/x.png")] {
                let error = remote.fetch(&url).await.expect_err(&url).to_string();
                assert!(!error.contains("127.0.0.1") && !error.contains("os error"), "{url}: {error}");
            }
        }
        let odd =
            format!("http:\\\\127.0.0.1:{port}/ http:///127.0.0.1:{port}/ http:127.0.0.1:{port}/ http://127.0.0.1:{port}#@example.com/");
        for url in odd.split(' ').chain(["http://", "http://exa mple.com/", "http://example.com/\u{0}", "http://127.0.0.1\t/"]) {
            remote.fetch(url).await.expect_err(url);
        }
        assert_eq!(hits.load(Ordering::SeqCst), 0, "a connection reached the server");
    });
}

#[test]
fn redirects_are_checked_and_counted() {
    run(async {
        let redirect = |target: String| {
            async move |stream| write(stream, &format!("HTTP/1.1 302 Found\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n")).await
        };
        let (secret, hits) = server(async |stream| write(stream, &ok("secret")).await).await;
        let (image, _) = server(async |stream| write(stream, &ok("image")).await).await;
        let (inside, _) = server(redirect("http://169.254.169.254/latest/meta-data".into())).await;
        let (listed, _) = server(redirect(format!("http://127.0.0.1:{image}/"))).await;
        let (unlisted, _) = server(redirect(format!("http://127.0.0.1:{secret}/"))).await;
        let (user, _) = server(redirect(format!("http://u@127.0.0.1:{image}/"))).await;
        let (scheme, _) = server(redirect("file:///etc/passwd".into())).await;
        let (relative, endless) = server(redirect("/again".into())).await;
        let domains: Vec<String> =
            [image, inside, listed, unlisted, user, scheme, relative].iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let remote = Remote::with_rule(&options(&domains), |ip| ip.is_loopback()).unwrap();
        let fetch = async |port: u16| remote.fetch(&format!("http://127.0.0.1:{port}/a.png")).await.map_err(|e| e.to_string());
        assert_eq!(fetch(image).await.unwrap(), b"image");
        assert_eq!(fetch(listed).await.unwrap(), b"image");
        assert_eq!(fetch(inside).await.unwrap_err(), format!(": {PRIVATE}"));
        assert!(fetch(unlisted).await.unwrap_err().contains("--allow-media-domain"));
        assert!(fetch(user).await.unwrap_err().contains("user name"));
        assert!(fetch(scheme).await.unwrap_err().contains("http and https"));
        assert!(fetch(relative).await.unwrap_err().contains("more than 3 times"));
        assert_eq!((hits.load(Ordering::SeqCst), endless.load(Ordering::SeqCst)), (0, 4));
    });
}

#[test]
fn bodies_end_at_the_limits() {
    run(async {
        let (declared, _) = server(async |stream| write(stream, "HTTP/1.1 200 OK\r\ncontent-length: 10737418240\r\n\r\n").await).await;
        let (endless, _) = server(async |mut stream: TcpStream| {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            while stream.write_all(format!("1000\r\n{}\r\n", "x".repeat(0x1000)).as_bytes()).await.is_ok() {}
        })
        .await;
        let (slow, _) = server(async |mut stream: TcpStream| {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await;
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        let (missing, _) = server(async |stream| write(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await).await;
        let (garbage, _) = server(async |stream| write(stream, "220 smtp ready\r\n").await).await;
        let domains: Vec<String> = [declared, endless, slow, missing, garbage].iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let remote = Remote::with_rule(&options(&domains), |ip| ip.is_loopback()).unwrap();
        let fetch = async |port: u16| remote.fetch(&format!("http://127.0.0.1:{port}/")).await.unwrap_err();
        assert!(matches!(fetch(declared).await, Error::TooLarge { .. }));
        assert!(matches!(fetch(endless).await, Error::TooLarge { .. }));
        let start = Instant::now();
        assert!(fetch(slow).await.to_string().contains("in time") && start.elapsed() < Duration::from_secs(3));
        assert_eq!(fetch(missing).await.to_string(), ": the host answers with status 404");
        assert_eq!(fetch(garbage).await.to_string(), ": the transfer from the host failed");
    });
}

#[test]
fn remote_images_need_a_flag_that_the_error_names() {
    run(async {
        let off = Remote::new(&MediaOptions::default()).unwrap();
        let error = off.fetch("https://example.com/a.png").await.unwrap_err().to_string();
        assert!(error.contains("--allow-media-domain") && error.contains("--allow-remote-media"), "{error}");
        let listed = Remote::new(&options(&["example.com".into()])).unwrap();
        let error = listed.fetch("https://example.org/a.png").await.unwrap_err().to_string();
        assert!(error.contains("--allow-media-domain"), "{error}");
    });
}

#[test]
fn domains_match_whole_names() {
    let domains: Vec<Domain> =
        ["Example.com", "*.cdn.example.org", "host.test:8080", "bücher.example"].map(|d| Domain::parse(d).unwrap()).into();
    let allowed = |host: &str, port: u16| domains.iter().any(|domain| domain.allows(host, Some(port)));
    for (host, port, want) in [
        ("example.com", 443, true),
        ("example.com.", 80, true),
        ("example.com", 8080, false),
        ("www.example.com", 443, false),
        ("notexample.com", 443, false),
        ("example.com.evil.test", 443, false),
        ("a.cdn.example.org", 443, true),
        ("cdn.example.org", 443, true),
        ("evilcdn.example.org", 443, false),
        ("host.test", 8080, true),
        ("host.test", 80, false),
        ("xn--bcher-kva.example", 443, true),
    ] {
        assert_eq!(allowed(host, port), want, "{host}:{port}");
    }
    for bad in ["", "http://example.com", "example.com/path", "user@example.com", "*."] {
        Domain::parse(bad).expect_err(bad);
    }
}

#[test]
fn public_addresses_are_told_from_the_others() {
    for public in ["8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.0.1", "192.0.1.1", "2606:4700::1111", "2a00:1450::1"] {
        assert!(is_public(public.parse().unwrap()), "{public}");
    }
    let others = "0.1.2.3 10.1.1.1 127.255.0.1 100.127.0.1 169.254.0.1 172.20.0.1 192.0.0.1 192.0.2.1 192.88.99.1 192.168.0.1 198.19.0.1 \
        198.51.100.1 203.0.113.1 224.1.1.1 240.0.0.1 255.255.255.255 :: ::1 ::ffff:10.0.0.1 ::10.0.0.1 64:ff9b::a00:1 100::1 2001::1 \
        2001:db8::1 2002:a00:1:: 3fff::1 fc00::1 fd12::1 fe80::1 fec0::1 ff02::1";
    for other in others.split_whitespace() {
        assert!(!is_public(other.parse().unwrap()), "{other}");
    }
}
