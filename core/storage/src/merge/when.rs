//! When layers are merged: a while after something may have left one behind, and again later where
//! one had to wait. The while is there so that a row of calls is over before bytes are moved.

use crate::call::{CallContext, Watch};
use crate::error::StorageErrorKind;
use crate::merge::MergeRules;
use crate::state::Host;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use units::SrUuid;

/// How long what could not be merged waits for its next turn.
const RETRY: Duration = Duration::from_secs(120);

/// SRs that may have something to merge, and when each was last heard of.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    since: Mutex<BTreeMap<SrUuid, Instant>>,
    heard: Notify,
}

impl Wanted {
    /// Something of this SR may be merged.
    pub(crate) fn want(&self, sr: SrUuid) {
        self.want_at(sr, Instant::now());
    }

    fn want_at(&self, sr: SrUuid, at: Instant) {
        self.since.lock().insert(sr, at);
        self.heard.notify_one();
    }

    /// The SR whose turn it is, or when one's turn comes.
    fn next(&self, settle: Duration) -> Result<SrUuid, Option<Instant>> {
        let mut since = self.since.lock();
        let Some((sr, at)) = since.iter().min_by_key(|(_, at)| **at) else {
            return Err(None);
        };
        let (sr, due) = (*sr, *at + settle);
        if due > Instant::now() {
            return Err(Some(due));
        }
        since.remove(&sr);
        Ok(sr)
    }

    async fn wait_until(&self, due: Option<Instant>) {
        let heard = self.heard.notified();
        match due {
            Some(due) => {
                let _elapsed = tokio::time::timeout_at(due, heard).await;
            }
            None => heard.await,
        }
    }
}

impl Host {
    /// Merges what may be merged, `settle` after it was last heard of, until `stop`. `merged` hears
    /// of every SR in which something was.
    pub(crate) async fn merge_until(
        self: &Arc<Self>,
        settle: Duration,
        rules: &(dyn Fn(SrUuid) -> MergeRules + Send + Sync),
        merged: &(dyn Fn(SrUuid) + Send + Sync),
        stop: &CancellationToken,
    ) {
        while !stop.is_cancelled() {
            match self.wanted.next(settle) {
                Ok(sr) => {
                    if self.merge_now(sr, rules(sr), stop).await > 0 {
                        merged(sr);
                    }
                }
                Err(due) => tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.wanted.wait_until(due) => {}
                },
            }
        }
    }

    /// Says how many layers went.
    async fn merge_now(
        self: &Arc<Self>,
        sr: SrUuid,
        rules: MergeRules,
        stop: &CancellationToken,
    ) -> u32 {
        let ctx = CallContext::background();
        let watch = Watch {
            cancel: stop.clone(),
            ..Watch::default()
        };
        let layers = match self.sr_merge(&ctx, sr, rules, &watch).await {
            Ok(layers) => layers,
            Err(e) if e.kind() == StorageErrorKind::SrNotAttached => return 0,
            Err(e) => {
                tracing::warn!(%sr, error = %e, "layers are left for later");
                0
            }
        };
        if layers > 0 {
            tracing::info!(%sr, layers, "merged");
        }
        let left = match self.shared(&ctx, sr).await {
            Ok(live) => !live.record().merges().is_empty(),
            Err(_) => false,
        };
        if left {
            self.wanted.want_at(sr, Instant::now() + RETRY);
        }
        layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_sr_has_its_turn_when_it_has_been_quiet_for_a_while() {
        let (wanted, settle) = (Wanted::default(), Duration::from_secs(10));
        let (a, b) = (SrUuid::random(), SrUuid::random());
        assert_eq!(wanted.next(settle), Err(None));
        let start = Instant::now();
        wanted.want(a);
        assert_eq!(wanted.next(settle), Err(Some(start + settle)));
        tokio::time::advance(Duration::from_secs(6)).await;
        wanted.want(b);
        wanted.want(a);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(
            wanted.next(settle),
            Err(Some(start + Duration::from_secs(16)))
        );
        tokio::time::advance(Duration::from_secs(4)).await;
        let mut turns = [wanted.next(settle).unwrap(), wanted.next(settle).unwrap()];
        turns.sort();
        let mut both = [a, b];
        both.sort();
        assert_eq!(turns, both);
        assert_eq!(wanted.next(settle), Err(None), "a turn is taken once");
    }
}
