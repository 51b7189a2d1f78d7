//! Steps that are captured once and replayed: one call to the driver in place of hundreds of launches.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::{Device, check};
use crate::backends::StepKey;

/// Rows up to which steps are padded to a power of two, and whose multiples they are padded to above.
const FINE: usize = 64;
/// Rows above which a larger multiple is enough, so that graphs stay few.
const MANY: usize = 1024;
const COARSE: usize = 256;

/// Rows to which a decode step is padded.
pub fn padded(rows: usize) -> usize {
    match (rows <= FINE, rows <= MANY) {
        (true, _) => rows.next_power_of_two(),
        (_, true) => rows.next_multiple_of(FINE),
        _ => rows.next_multiple_of(COARSE),
    }
}

/// What steps of at most `most` rows are padded to, ascending.
pub fn buckets(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |rows| Some(padded(rows + 1))).take_while(move |rows| *rows <= padded(most))
}

pub struct Graphs {
    device: Arc<Device>,
    steps: RefCell<HashMap<StepKey, Step>>,
    enabled: bool,
}

// Safety: driver handles, used by whoever owns the backend.
unsafe impl Send for Graphs {}

enum Step {
    /// Ran once as plain launches, which load whatever a capture could not.
    Warm,
    Captured(sys::CUgraphExec),
}

impl Graphs {
    pub fn new(device: &Arc<Device>, enabled: bool) -> Self {
        Graphs { device: device.clone(), steps: RefCell::default(), enabled }
    }

    /// Runs `step`: plainly the first time, captured the second, replayed from then on.
    pub fn run(&self, key: StepKey, step: impl FnOnce()) {
        if let Some(mut timeline) = self.device.timeline() {
            timeline.begin(key.rows as u64);
            drop(timeline);
            step();
            return self.device.timeline().iter_mut().for_each(|timeline| timeline.end());
        }
        if !self.enabled {
            return step();
        }
        let mut steps = self.steps.borrow_mut();
        let graph = match steps.get(&key) {
            None => {
                steps.insert(key, Step::Warm);
                return step();
            }
            Some(Step::Warm) => {
                let graph = self.capture(step);
                steps.insert(key, Step::Captured(graph));
                graph
            }
            Some(Step::Captured(graph)) => *graph,
        };
        self.device.bind();
        // Safety: the graph lives as long as `self`, the buffers it names as long as the step's owner.
        check("replaying a step", unsafe { result::graph::launch(graph, self.device.stream()) });
    }

    fn capture(&self, step: impl FnOnce()) -> sys::CUgraphExec {
        self.device.bind();
        let stream = self.device.stream();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // Safety: the stream is ours; the graph is destroyed once it is instantiated.
        unsafe {
            check("capturing a step", result::stream::begin_capture(stream, mode));
            step();
            let graph = check("ending a capture", result::stream::end_capture(stream));
            let executable = check("instantiating a step", result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)));
            check("dropping a capture", result::graph::destroy(graph));
            check("uploading a step", result::graph::upload(executable, stream));
            executable
        }
    }

    /// Whether steps are captured at all.
    pub fn enabled(&self) -> bool {
        self.enabled && self.device.timeline().is_none()
    }

    /// Drops all captures: their steps are captured anew when they come again.
    pub fn forget(&self) {
        self.device.bind();
        for (_, step) in self.steps.borrow_mut().drain() {
            if let Step::Captured(graph) = step {
                // Safety: instantiated once; replays under way go on without it.
                let _ = unsafe { result::graph::exec_destroy(graph) };
            }
        }
    }

    /// Steps that are replayed.
    pub fn captured(&self) -> usize {
        self.steps.borrow().values().filter(|step| matches!(step, Step::Captured(_))).count()
    }
}

impl Drop for Graphs {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_padded_to_few_sizes_and_by_little() {
        assert_eq!(buckets(1).collect::<Vec<_>>(), [1]);
        assert_eq!(buckets(512).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384, 448, 512]);
        assert_eq!(buckets(2048).count(), 7 + 15 + 4);
        let all: Vec<usize> = buckets(3000).collect();
        for rows in 1..=3000 {
            assert_eq!(all.iter().find(|bucket| **bucket >= rows), Some(&padded(rows)), "{rows} rows");
            assert_eq!(buckets(rows).last(), Some(padded(rows)));
        }
    }
}
