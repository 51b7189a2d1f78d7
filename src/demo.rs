//! `grouper demo`: serves the small model that comes with the program and posts one batch to it over HTTP, as a learner would.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

use crate::api;
use crate::config::{Config, DemoArgs, LogFormat, ServeArgs};
use crate::error::{Error, Result};
use crate::serve::{self, Bars, Running};

const MODEL: &str = "tiny-vl-math";
/// Completions of each prompt.
const GENERATIONS: usize = 6;
/// Prompts with and without an image.
const TEXT_PROMPTS: usize = 2;
const IMAGE_PROMPTS: usize = 2;
const WIDTH: usize = 110;

pub async fn run(args: &DemoArgs) -> Result<()> {
    let started = Instant::now();
    serve::init_logging(LogFormat::Text);
    let folder = find_model()?;
    let prompts = choose_prompts(&folder)?;
    let mut serve_args = ServeArgs::parse_from(["serve".into(), folder.clone().into_os_string()]);
    serve_args.port = args.port;
    serve_args.engine.threads = args.threads;
    // The model is so small that a GPU would only take longer to start.
    serve_args.engine.device = "cpu".into();
    serve_args.served_model_name = vec![MODEL.into()];
    let data = std::env::temp_dir().join(format!("grouper-demo-{}", std::process::id()));
    serve_args.data_dir = Some(data.clone());
    let config = Config::from_args(&serve_args)?;
    let bars = Bars::new(LogFormat::Text);
    let running = Running::start(&config, &folder, api::bind(&config.http)?, &bars)?;
    let url = format!("http://{}", running.server.address());
    bars.say(&format!("ready in {:.1} s on {url}  docs: /docs  health: /health\n", started.elapsed().as_secs_f64()));

    let body = json!({"groups": prompts, "num_generations": GENERATIONS, "seed": 7, "sampling": {"max_tokens": 64}});
    let asked = Instant::now();
    let reply = post(&format!("{url}/v1/rollouts"), &body).await?;
    print!("{}", table(&prompts, &reply));
    println!("{}", summary(&reply, asked.elapsed()));
    if !args.once {
        println!("{}", what_next(&url));
        serve::a_signal().await?;
    }
    running.stop(Duration::from_secs(5)).await;
    let _ = std::fs::remove_dir_all(data);
    Ok(())
}

/// The bundled model: where `GROUPER_ASSETS` says, beside the program, in the working directory, or in the source it was built from.
///
/// # Errors
///
/// The places where it is not.
pub fn find_model() -> Result<PathBuf> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.to_owned());
    let assets = [
        std::env::var_os("GROUPER_ASSETS").map(PathBuf::from),
        beside().map(|folder| folder.join("assets")),
        beside().and_then(|folder| Some(folder.parent()?.join("share/grouper"))),
        Some(PathBuf::from("assets")),
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets")),
    ];
    let folders: Vec<PathBuf> = assets.into_iter().flatten().map(|assets| assets.join(MODEL)).collect();
    let found = folders.iter().find(|folder| folder.join("config.json").is_file()).cloned();
    found.ok_or_else(|| {
        let places: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        Error::Setup(format!("the bundled model is in none of {}; GROUPER_ASSETS names the folder that holds {MODEL}", places.join(", ")))
    })
}

/// The first held-out prompts of each kind, as groups of a rollout request.
fn choose_prompts(folder: &Path) -> Result<Vec<Value>> {
    let path = folder.join("heldout.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::file(&path, e))?;
    let rows: Vec<Value> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).map_err(|e| Error::file(&path, e)))
        .collect::<Result<_>>()?;
    let (with_image, text_only): (Vec<&Value>, Vec<&Value>) = rows.iter().partition(|row| has_image(row));
    let chosen = text_only.into_iter().take(TEXT_PROMPTS).chain(with_image.into_iter().take(IMAGE_PROMPTS));
    Ok(chosen
        .map(|row| json!({"id": row["id"].to_string().trim_matches('"'), "messages": row["messages"], "solution": row["solution"]}))
        .collect())
}

fn parts(row: &Value) -> impl Iterator<Item = &Value> {
    row["messages"].as_array().into_iter().flatten().filter_map(|message| message["content"].as_array()).flatten()
}

fn has_image(row: &Value) -> bool {
    parts(row).any(|part| part["type"] != "text")
}

async fn post(url: &str, body: &Value) -> Result<Value> {
    let failed = |e: reqwest::Error| Error::Setup(format!("the demo could not ask its own server: {e}"));
    let client = reqwest::Client::builder().no_proxy().build().map_err(failed)?;
    let response = client.post(url).json(body).send().await.map_err(failed)?;
    let (status, reply) = (response.status(), response.json::<Value>().await.map_err(failed)?);
    match status.is_success() {
        true => Ok(reply),
        false => Err(Error::Setup(format!("the demo's request was answered {status}: {}", reply["error"]["message"]))),
    }
}

/// The groups as text: each prompt once, below it a line a completion.
fn table(prompts: &[Value], reply: &Value) -> String {
    let mut out = String::new();
    for (prompt, group) in prompts.iter().zip(reply["groups"].as_array().into_iter().flatten()) {
        let images = parts(prompt).filter(|part| part["type"] != "text").count();
        let image = if images > 0 { "[image] " } else { "" };
        out.push_str(&format!("{}\n", "─".repeat(WIDTH)));
        let question = one_line(&question(prompt));
        out.push_str(&format!("{}   gold answer: {}\n", clip(&format!("{image}{question}"), WIDTH - 24), plain(&prompt["solution"])));
        if let Some(error) = group["error"]["message"].as_str() {
            out.push_str(&format!("  failed: {}\n", clip(error, WIDTH - 10)));
            continue;
        }
        let names: Vec<&String> = group["samples"][0]["rewards"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
        let text_width = WIDTH - 2 - 10 - names.iter().map(|name| name.len().max(6) + 2).sum::<usize>();
        let header: String = names.iter().map(|name| format!("  {name:>6}")).collect();
        out.push_str(&format!("  {:text_width$}{header}{:>10}\n", "completion", "advantage"));
        for sample in group["samples"].as_array().into_iter().flatten() {
            let text = clip(&one_line(sample["text"].as_str().unwrap_or_default()), text_width);
            let padding = " ".repeat(text_width - text.chars().count());
            let rewards: String =
                names.iter().map(|name| format!("  {:>1$}", number(&sample["rewards"][*name], 2), name.len().max(6))).collect();
            out.push_str(&format!("  {text}{padding}{rewards}{:>10}\n", number(&sample["advantage"], 3)));
        }
    }
    out + &"─".repeat(WIDTH) + "\n"
}

fn question(prompt: &Value) -> String {
    let of_message = |message: &Value| match &message["content"] {
        Value::String(text) => text.clone(),
        content => content.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join(" "),
    };
    let users = prompt["messages"].as_array().into_iter().flatten().filter(|message| message["role"] == "user");
    users.map(of_message).collect::<Vec<_>>().join(" / ")
}

fn summary(reply: &Value, took: Duration) -> String {
    let metrics = &reply["metrics"];
    let tokens = metrics["num_tokens"].as_f64().unwrap_or(0.0);
    format!(
        "{tokens} tokens in {:.2} s; mean reward {}, standard deviation within groups {}, seed {}",
        took.as_secs_f64(),
        number(&metrics["reward"], 3),
        number(&metrics["reward_std"], 3),
        plain(&reply["seed"]),
    )
}

fn what_next(url: &str) -> String {
    format!(
        r#"
The server runs on: {url}   docs: {url}/docs   health: {url}/health   Ctrl-C ends it.

  curl {url}/v1/rollouts -H 'Content-Type: application/json' -d '{{"groups": [{{"messages": [{{"role": "user", "content": "3 + 4 = ?"}}], "solution": "7"}}], "num_generations": 4}}'

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{{"messages": [{{"role": "user", "content": "3 + 4 = ?"}}]}}'

  curl {url}/metrics

It learns, too. From the source folder, in a second terminal (accuracy goes from 0.4 to 0.85 in some minutes):

  pip install torch transformers pillow ./clients/python
  python examples/learner/grpo.py --url {url}
"#
    )
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn number(value: &Value, digits: usize) -> String {
    value.as_f64().map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

/// Text on one line and without control characters: it came from a model and goes to a terminal.
fn one_line(text: &str) -> String {
    let visible: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    visible.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn clip(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_prompt_completions_rewards_and_advantages() {
        let prompts = [
            json!({"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How\nmany?"}]}], "solution": "3"}),
        ];
        let sample = |text: &str, accuracy: Value, advantage: f64| json!({"text": text, "rewards": {"think_format": 1.0, "accuracy": accuracy}, "advantage": advantage});
        let reply = json!({"groups": [{"samples": [sample("<think>\u{1b}[2J</think>", json!(1.0), 0.5), sample(&"x".repeat(200), Value::Null, -0.5)]}]});
        let text = table(&prompts, &reply);
        assert!(text.contains("[image] How many?   gold answer: 3") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("think_format  accuracy advantage"), "{text}");
        let rows: Vec<&str> = text.lines().filter(|line| line.ends_with("0.500")).collect();
        assert!(rows.len() == 2 && rows.iter().all(|row| row.chars().count() == WIDTH), "{text}");
        assert!(rows[1].contains('…') && rows[1].contains('–'), "{text}");
    }
}
