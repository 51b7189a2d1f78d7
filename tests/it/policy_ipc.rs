//! The control socket: who may open it, and what a server without a GPU says.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::checkpoint::tensors;
use crate::common::Server;
use crate::policy::greedy;

/// Posts JSON through a Unix socket and returns status and body.
async fn post(socket: &Path, path: &str, body: &Value) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap())
}

/// All of the model's tensors behind one handle.
fn body() -> Value {
    use base64::Engine;
    let handle = base64::engine::general_purpose::STANDARD.encode([7u8; 64]);
    let tensors: Vec<Value> = tensors()
        .into_iter()
        .map(|(name, (_, shape, _))| json!({"name": name, "dtype": "BF16", "shape": shape, "handle": handle, "offset": 0}))
        .collect();
    json!({"device_uuid": "GPU-00112233-4455-6677-8899-aabbccddeeff", "tensors": tensors})
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_by_ipc_are_checked_and_need_a_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let server = Server::start(&format!("--control-socket {}", socket.display()));
    let (before, held) = (greedy(&server).await, server.get("/v1/policy").await.ok());
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // On the socket only.
    server.post("/v1/policy/ipc", &body()).await.error(404);
    assert_eq!(post(&socket, "/v1/models", &json!({})).await.0, 404);
    let (status, reply) = post(&socket, "/v1/policy/ipc", &body()).await;
    assert!(status == 400 && reply["error"]["message"].as_str().unwrap().contains("needs its GPU"), "{reply}");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut body = body();
        change(&mut body);
        body
    };
    let drop_first = |body: &mut Value| drop(body["tensors"].as_array_mut().unwrap().remove(0));
    let twice = |body: &mut Value| {
        let first = body["tensors"][0].clone();
        body["tensors"].as_array_mut().unwrap().push(first);
    };
    let first = body()["tensors"][0]["name"].as_str().unwrap().to_owned();
    for (body, says) in [
        (changed(&drop_first), first.as_str()),
        (changed(&twice), "is there twice"),
        (changed(&|body| body["tensors"][0]["name"] = json!("model.other")), "model.other"),
        (changed(&|body| body["tensors"][0]["shape"] = json!([1, 2, 3])), first.as_str()),
        (changed(&|body| body["tensors"][1]["dtype"] = json!("I8")), "tensors[1].dtype"),
        (changed(&|body| body["tensors"][1]["handle"] = json!("AAAA")), "tensors[1].handle"),
        (changed(&|body| body["tensors"][1]["handle"] = json!("??")), "tensors[1].handle"),
        (changed(&|body| body["tensors"][1]["offset"] = json!(-1)), "tensors[1].offset"),
        (changed(&|body| body["device_uuid"] = json!("GPU-1")), "device_uuid"),
        (changed(&|body| body["version"] = json!(-1)), "version"),
        (changed(&|body| body["extra"] = json!(0)), "extra"),
    ] {
        let (status, reply) = post(&socket, "/v1/policy/ipc", &body).await;
        assert!(matches!(status, 400 | 409) && reply["error"]["message"].as_str().unwrap().contains(says), "{says}: {reply}");
    }
    assert_eq!((greedy(&server).await, server.get("/v1/policy").await.ok()), (before, held));
    // A second server can't take a socket that is served; one that was left behind is taken over.
    let path = socket.to_str().unwrap().to_owned();
    server.stop().await;
    assert!(!socket.exists(), "the socket outlives its server");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let server = Server::start(&format!("--control-socket {path}"));
    assert_eq!(post(&socket, "/v1/policy/ipc", &body()).await.0, 400);
    server.stop().await;
}
