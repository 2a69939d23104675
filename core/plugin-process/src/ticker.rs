//! The clock of component deadlines: a thread that advances the engine's epoch while calls run and
//! sleeps when none does, so that an idle plugin costs nothing.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::Engine;

/// Time between two epochs.
pub(crate) const TICK_MS: u64 = 10;

/// Counts calls at work.
#[derive(Default)]
pub(crate) struct Ticker {
    active: Mutex<usize>,
    started: Condvar,
}

/// Keeps the clock going while it lives.
pub(crate) struct Running<'a>(&'a Ticker);

impl Ticker {
    /// Starts the thread.
    pub(crate) fn start(engine: Engine) -> std::io::Result<Arc<Self>> {
        let ticker = Arc::new(Self::default());
        let shared = ticker.clone();
        let tick = move || {
            loop {
                shared
                    .started
                    .wait_while(&mut shared.active.lock(), |active| *active == 0);
                let begun = Instant::now();
                let mut ticks = 0;
                while *shared.active.lock() > 0 {
                    std::thread::sleep(Duration::from_millis(TICK_MS));
                    // On a loaded machine a sleep takes longer; deadlines must not.
                    while begun.elapsed().as_millis() >= u128::from((ticks + 1) * TICK_MS) {
                        engine.increment_epoch();
                        ticks += 1;
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("ticker".to_owned())
            .spawn(tick)?;
        Ok(ticker)
    }

    /// Says that a call is at work until the guard is dropped.
    pub(crate) fn run(&self) -> Running<'_> {
        let mut active = self.active.lock();
        *active += 1;
        if *active == 1 {
            self.started.notify_one();
        }
        Running(self)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.active.lock() -= 1;
    }
}
