//! The sampling loop and the channel it feeds.

use crate::{Derivation, Reading, Step};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Where readings come from: the data path, the hypervisor, the host.
#[async_trait]
pub trait Source: Send + Sync {
    /// Name for the log.
    fn name(&self) -> &str;

    /// Reads every value now. A source that is late loses this step, see [`run`].
    async fn read(&self) -> Vec<Reading>;
}

/// The newest step; cheap to clone, never blocks the sampler.
#[derive(Debug, Clone)]
pub struct Stream(watch::Receiver<Arc<Step>>);

impl Stream {
    /// Waits for the next step. `None` once sampling has ended.
    ///
    /// Cancel safe: a step that was not returned is returned by the next call, unless a newer one
    /// has taken its place.
    pub async fn next(&mut self) -> Option<Arc<Step>> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }
}

/// Samples `sources` every `step` until `stop` fires. A source that takes longer than the step is
/// left out of it, so that one that hangs does not silence the others.
pub fn run(sources: Vec<Arc<dyn Source>>, step: Duration, stop: CancellationToken) -> Stream {
    let (sender, receiver) = watch::channel(Arc::new(Step::default()));
    tokio::spawn(async move {
        let mut derivation = Derivation::default();
        let mut ticks = tokio::time::interval(step);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let mut readings = Vec::new();
            for source in &sources {
                match tokio::time::timeout(step, source.read()).await {
                    Ok(more) => readings.extend(more),
                    Err(_) => tracing::warn!(source = source.name(), "late, left out of this step"),
                }
            }
            let time_s = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64());
            sender.send_replace(Arc::new(derivation.step(time_s, readings)));
        }
    });
    Stream(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Key, Kind};

    struct Fixed(f64);

    #[async_trait]
    impl Source for Fixed {
        fn name(&self) -> &str {
            "fixed"
        }
        async fn read(&self) -> Vec<Reading> {
            let key = Key {
                class: "host",
                uuid: "h".to_owned(),
                name: "load".to_owned(),
            };
            vec![Reading {
                key,
                kind: Kind::Gauge,
                value: self.0,
            }]
        }
    }

    struct Hanging;

    #[async_trait]
    impl Source for Hanging {
        fn name(&self) -> &str {
            "hanging"
        }
        async fn read(&self) -> Vec<Reading> {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_hangs_does_not_silence_the_others() {
        let stop = CancellationToken::new();
        let sources: Vec<Arc<dyn Source>> = vec![Arc::new(Hanging), Arc::new(Fixed(0.5))];
        let mut stream = run(sources, Duration::from_secs(5), stop);
        let step = stream.next().await.expect("a step");
        assert_eq!(step.rows.len(), 1);
        assert_eq!(step.rows[0].value, 0.5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_stream_ends_when_sampling_stops() {
        let stop = CancellationToken::new();
        let mut stream = run(
            vec![Arc::new(Fixed(1.0))],
            Duration::from_secs(5),
            stop.clone(),
        );
        assert!(stream.next().await.is_some());
        stop.cancel();
        while stream.next().await.is_some() {}
    }
}
