//! Where the host's time went, by class of work.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::engine::handle::EngineStats;

/// Nanoseconds by class of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    classes: [(&'static str, u64); 6],
    steps: u64,
    preemptions: u64,
}

impl Split {
    pub fn read(stats: &EngineStats) -> Self {
        let classes = [
            ("plan and fill", &stats.plan_ns),
            ("vision", &stats.vision_ns),
            ("forward", &stats.forward_ns),
            ("sample", &stats.sample_ns),
            ("wait", &stats.wait_ns),
            ("finish", &stats.finish_ns),
        ];
        Split {
            classes: classes.map(|(name, ns)| (name, ns.load(Relaxed))),
            steps: stats.steps.load(Relaxed),
            preemptions: stats.preemptions.load(Relaxed),
        }
    }

    pub fn describe(&self, total: Duration) -> String {
        let parts = self.classes.iter().map(|(name, ns)| format!("{name} {:.1} %", 100.0 * *ns as f64 / total.as_nanos() as f64));
        format!(
            "time: {}; {} steps of {:.2} ms, {} preemptions",
            parts.collect::<Vec<_>>().join(", "),
            self.steps,
            total.as_secs_f64() * 1e3 / self.steps.max(1) as f64,
            self.preemptions
        )
    }
}

impl std::ops::Sub for Split {
    type Output = Split;

    fn sub(mut self, before: Split) -> Split {
        for (class, (_, ns)) in self.classes.iter_mut().zip(before.classes) {
            class.1 -= ns;
        }
        self.steps -= before.steps;
        self.preemptions -= before.preemptions;
        self
    }
}
