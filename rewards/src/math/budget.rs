//! The work that one comparison may spend, counted in steps and not in time, so that a verdict is the same everywhere.

/// Why a value could not be worked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The expression is outside what this evaluator covers; another may cover it.
    Unsupported,
    /// The expression has no value: division by zero, ln 0, ∞ − ∞.
    Undefined,
    /// The budget is spent or a size bound is hit.
    Limit,
}

/// Steps left. About 20 ns each, so the default is a few milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    steps: u32,
}

/// The budget of one comparison of two answers.
pub(crate) const COMPARISON_STEPS: u32 = 200_000;

impl Budget {
    pub fn new(steps: u32) -> Self {
        Budget { steps }
    }

    pub fn spend(&mut self, steps: u32) -> Result<(), Stop> {
        match self.steps.checked_sub(steps) {
            Some(left) => {
                self.steps = left;
                Ok(())
            }
            None => {
                self.steps = 0;
                Err(Stop::Limit)
            }
        }
    }

    pub fn is_spent(&self) -> bool {
        self.steps == 0
    }
}
