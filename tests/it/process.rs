//! The server as a process of its own, which can be killed.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::golden;

pub struct ServerProcess {
    child: Child,
}

impl ServerProcess {
    /// Starts a server on a data folder and waits until it is ready.
    pub fn start(folder: &Path, port: u16, env: &[(&str, OsString)]) -> Self {
        let flags = ["--threads", "1", "--max-model-len", "512", "--kv-cache-memory", "16M"];
        ServerProcess::serve(&golden::model("tiny-vl"), folder, port, &flags, env)
    }

    /// As [`ServerProcess::start`], another model with other flags.
    pub fn serve(model: &Path, folder: &Path, port: u16, flags: &[&str], env: &[(&str, OsString)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_grouper"));
        command.arg("serve").arg(model).args(["--port", &port.to_string(), "--device", "cpu"]).args(flags);
        command.envs(env.iter().map(|(name, value)| (name, value)));
        command.arg("--data-dir").arg(folder).stdout(Stdio::null()).stderr(Stdio::piped()).env("RUST_LOG", "warn");
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        // Errors of the start are shown; then somebody has to read on.
        loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "the server ended: {said}");
            said.push_str(&line);
            if line.contains("ready in") {
                break;
            }
        }
        std::thread::spawn(move || {
            let is_news = |line: &String| line.contains("ERROR") && !line.contains("it waits for a push");
            log.lines().map_while(Result::ok).filter(is_news).for_each(|line| eprintln!("{line}"))
        });
        ServerProcess { child }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        // SIGKILL.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// From the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
