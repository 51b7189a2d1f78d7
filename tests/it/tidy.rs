//! The shape of the source: dependencies point one way, files stay readable, what must be absent is absent.

use std::path::{Path, PathBuf};

/// Lines of code in a file, tests, comments and blank lines not counted.
const MAX_CODE_LINES: usize = 450;

/// A module and what it must never name. Paths are prefixes below `src/`.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("rng.rs", &["crate::"]),
    ("error.rs", &["crate::"]),
    ("backends/", &["crate::model", "crate::engine", "crate::processor", "crate::rollout", "crate::api", "crate::config", "axum", "tokio"]),
    ("model/", &["crate::engine", "crate::processor", "crate::rollout", "crate::api", "crate::config", "cpu::", "cuda::", "axum", "tokio"]),
    (
        "processor/",
        &[
            "crate::engine",
            "crate::backends",
            "crate::rollout",
            "crate::api",
            "crate::config",
            "model::decoder",
            "model::vision",
            "model::weights",
            "axum",
        ],
    ),
    // The engine never sees a string: no tokenizer, no template, no JSON. Its thread never awaits.
    (
        "engine/",
        &["crate::processor", "crate::rollout", "crate::policy::", "crate::api", "crate::config", "serde_json", "tokenizers", "axum"],
    ),
    ("engine/mod.rs", &["async fn", ".await"]),
    ("engine/scheduler.rs", &["async fn", ".await", "crate::backends::cpu"]),
    ("store/", &["crate::engine", "crate::model", "crate::processor", "crate::rollout", "crate::api", "crate::config", "axum"]),
    ("rollout/", &["crate::api", "crate::config", "crate::backends", "axum"]),
    ("policy/", &["crate::api", "crate::rollout", "crate::config", "crate::processor", "axum"]),
    ("rollout/", &["crate::policy"]),
    ("judges/", &["crate::rollout", "crate::api", "crate::config", "axum"]),
    ("judges/model.rs", &["reqwest"]),
    ("config.rs", &["crate::api", "axum"]),
    // Nobody opens sockets but the server, the two that fetch and the one that asks scorers.
    ("processor/chat.rs", &["reqwest"]),
    ("rollout/", &["reqwest"]),
    ("api/", &["reqwest", "crate::backends", "model::decoder"]),
];

/// A word and the only places below `src/` that may say it.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("axum::", &["api/"]),
    ("cudarc", &["backends/cuda/"]),
    ("allow(unsafe_code)", &["backends/cuda/", "backends/cpu/simd.rs", "model/weights.rs"]),
    ("rusqlite", &["store/"]),
    ("reqwest::", &["processor/remote.rs", "judges/http.rs", "hub/", "hub.rs", "demo.rs", "main.rs", "serve.rs"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Every file below `src/` with its path relative to it.
fn sources() -> Vec<(String, String)> {
    let src = root().join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 30, "the source is not where it is looked for");
    files
        .into_iter()
        .map(|f| (f.strip_prefix(&src).unwrap().to_string_lossy().replace('\\', "/"), std::fs::read_to_string(f).unwrap()))
        .collect()
}

/// Lines that a compiler sees, without the file's unit tests.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("\n#[cfg(test)]").unwrap_or(text.len());
    text[..end].lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
}

#[test]
fn dependencies_point_one_way() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for (module, words) in FORBIDDEN.iter().filter(|(module, _)| path.starts_with(module)) {
            for (number, line) in code(&text) {
                wrong.extend(
                    words.iter().filter(|w| line.contains(**w)).map(|w| format!("src/{path}:{}: {module} must not name {w}", number + 1)),
                );
            }
        }
        for (word, places) in ONLY_IN.iter().filter(|(_, places)| !places.iter().any(|p| path.starts_with(p))) {
            wrong.extend(
                code(&text)
                    .filter(|(_, line)| line.contains(word))
                    .map(|(number, _)| format!("src/{path}:{}: {word} belongs in {places:?}", number + 1)),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_taken_in_at_once() {
    let mut files = Vec::new();
    for folder in ["src", "rewards/src", "tests"] {
        rust_files(&root().join(folder), &mut files);
    }
    let long: Vec<String> = files
        .iter()
        .map(|f| (f, code(&std::fs::read_to_string(f).unwrap()).count()))
        .filter(|(_, lines)| *lines > MAX_CODE_LINES)
        .map(|(f, lines)| format!("{}: {lines} lines of code, more than {MAX_CODE_LINES}: split it by concept", f.display()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn every_module_says_what_it_is() {
    let is_test = |path: &str| path.ends_with("tests.rs");
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|(path, text)| !is_test(path) && !text.starts_with("//!") && !text.starts_with("#![doc"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "no module text: {silent:?}");
}

/// Every file that ARCHITECTURE.md maps exists, and every module is on the map.
#[test]
fn the_code_map_is_true() {
    let map = std::fs::read_to_string(root().join("src/ARCHITECTURE.md")).unwrap();
    for module in ["api", "backends", "engine", "judges", "model", "policy", "processor", "rollout", "store"] {
        assert!(map.contains(&format!("`{module}/`")), "ARCHITECTURE.md does not map {module}/");
    }
    let named = map.split('`').skip(1).step_by(2).filter(|w| w.ends_with(".rs") && !w.contains(' '));
    let missing: Vec<&str> = named.filter(|w| !root().join("src").join(w).exists() && !root().join(w).exists()).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names files that are not there: {missing:?}");
}

#[test]
fn nothing_is_marked_unfinished() {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("#[ign", "ore"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
    ];
    let mut files = Vec::new();
    for folder in ["src", "rewards/src", "tests"] {
        rust_files(&root().join(folder), &mut files);
    }
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for mark in marks {
            assert!(!text.contains(mark), "{} contains {mark}", file.display());
        }
    }
}
