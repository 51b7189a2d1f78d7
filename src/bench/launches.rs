//! Where the device's time went, by kind of launch.

use crate::backends::LaunchTime;

/// Prompts and images, and decode steps of the commonest number of rows; nothing when no times were kept.
pub fn print(times: &[LaunchTime]) {
    let commonest = times.iter().filter(|time| time.rows > 0).max_by_key(|time| time.steps).map(|time| time.rows);
    if let Some(rows) = commonest {
        table(times, rows, |steps, ms| format!("{steps} decode steps of {rows} rows, launched one by one: {ms:.3} ms each"));
        table(times, 0, |_, ms| format!("everything else: {ms:.1} ms"));
    }
}

/// Launches by time; those that are not of a decode step for the whole run.
fn table(times: &[LaunchTime], rows: u64, title: impl Fn(f64, f64) -> String) {
    let mut times: Vec<&LaunchTime> = times.iter().filter(|time| time.rows == rows).collect();
    times.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    let steps = if rows == 0 { 1.0 } else { times.first().map_or(1, |time| time.steps) as f64 };
    println!("{}", title(steps, times.iter().map(|time| time.ms).sum::<f64>() / steps));
    for time in times.iter().take(20) {
        let calls = time.calls as f64;
        println!("  {:<24} {:>9.3} ms = {:>7.1} × {:>8.2} µs", time.launch, time.ms / steps, calls / steps, time.ms * 1e3 / calls);
    }
}
