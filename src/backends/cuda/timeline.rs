//! Where the time of a device goes: one event after each launch, when somebody asks.
//!
//! A launch is charged what passed since the one before it ended, so the gap between two kernels belongs to the second. Steps are
//! launched one by one meanwhile, in one line.

use std::collections::{BTreeMap, VecDeque};

use cudarc::driver::{result, sys};

use super::device::check;
use crate::backends::LaunchTime;

/// Rows of what is no decode step: prompts and images.
const OTHER: u64 = 0;

pub struct Timeline {
    stream: sys::CUstream,
    /// The step being launched: its rows, and the event before its first launch.
    open: Option<Step>,
    /// Steps that the device may not have finished.
    pending: VecDeque<Step>,
    spare: Vec<sys::CUevent>,
    /// By rows and launch: how many, and milliseconds.
    totals: BTreeMap<(u64, String), (u64, f64)>,
    steps: BTreeMap<u64, u64>,
}

struct Step {
    rows: u64,
    start: sys::CUevent,
    marks: Vec<(String, sys::CUevent)>,
}

// Safety: driver handles, used by whoever holds the timeline.
unsafe impl Send for Timeline {}

impl Timeline {
    pub fn new(stream: sys::CUstream) -> Self {
        let (pending, spare) = (VecDeque::new(), Vec::new());
        Timeline { stream, open: None, pending, spare, totals: BTreeMap::new(), steps: BTreeMap::new() }
    }

    pub fn begin(&mut self, rows: u64) {
        self.end();
        while self.pending.len() > 4 {
            self.harvest();
        }
        let start = self.record();
        self.open = Some(Step { rows, start, marks: Vec::new() });
    }

    pub fn mark(&mut self, launch: &str) {
        let event = self.record();
        match &mut self.open {
            Some(step) => step.marks.push((launch.to_owned(), event)),
            // The first launch of other work tells where that begins.
            None => self.open = Some(Step { rows: OTHER, start: event, marks: Vec::new() }),
        }
    }

    pub fn end(&mut self) {
        self.pending.extend(self.open.take());
    }

    /// What was measured since the last call.
    pub fn take(&mut self) -> Vec<LaunchTime> {
        self.end();
        while !self.pending.is_empty() {
            self.harvest();
        }
        let steps = std::mem::take(&mut self.steps);
        let times = std::mem::take(&mut self.totals).into_iter();
        times.map(|((rows, launch), (calls, ms))| LaunchTime { rows, launch, calls, ms, steps: steps[&rows] }).collect()
    }

    fn record(&mut self) -> sys::CUevent {
        let event = self.spare.pop();
        let event = event.unwrap_or_else(|| check("creating an event", result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)));
        // Safety: event and stream belong to one live context, which the caller has bound.
        check("recording an event", unsafe { result::event::record(event, self.stream) });
        event
    }

    fn harvest(&mut self) {
        let Some(step) = self.pending.pop_front() else { return };
        let mut before = step.start;
        for (launch, event) in step.marks {
            // Safety: both were recorded; the second is waited for.
            let ms = unsafe {
                check("waiting for an event", result::event::synchronize(event));
                check("reading a time", result::event::elapsed(before, event))
            };
            let total = self.totals.entry((step.rows, launch)).or_default();
            *total = (total.0 + 1, total.1 + f64::from(ms));
            self.spare.push(before);
            before = event;
        }
        self.spare.push(before);
        *self.steps.entry(step.rows).or_default() += 1;
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        let marks = self.pending.drain(..).chain(self.open.take()).flat_map(|s| s.marks.into_iter().map(|m| m.1).chain([s.start]));
        for event in self.spare.drain(..).chain(marks) {
            // Safety: nobody waits for them any more.
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}
