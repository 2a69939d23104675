//! Locks by key: one async lock per VDI or SR, made when wanted, gone when nobody holds it. They
//! live in memory only and have no owner on record, so a crash leaves none behind.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use tokio::sync::OwnedMutexGuard;

/// See the module.
#[derive(Debug)]
pub(crate) struct KeyedLocks<K> {
    locks: Mutex<BTreeMap<K, Weak<tokio::sync::Mutex<()>>>>,
}

impl<K: Ord + Clone> KeyedLocks<K> {
    pub(crate) fn new() -> Self {
        Self {
            locks: Mutex::default(),
        }
    }

    /// Waits for one lock; first come, first served.
    pub(crate) async fn lock(&self, key: K) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            match locks.get(&key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    locks.retain(|_, lock| lock.strong_count() > 0);
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    locks.insert(key, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }

    /// Waits for two locks, in the order of their keys so that two callers cannot wait for each
    /// other.
    pub(crate) async fn lock_both(&self, a: K, b: K) -> Vec<OwnedMutexGuard<()>> {
        let (first, second) = if a <= b { (a, b) } else { (b, a) };
        let mut guards = vec![self.lock(first.clone()).await];
        if first != second {
            guards.push(self.lock(second).await);
        }
        guards
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_key_excludes_and_another_does_not() {
        let locks = KeyedLocks::new();
        let first = locks.lock(1).await;
        let _other = locks.lock(2).await;
        let again = locks.lock(1);
        tokio::pin!(again);
        assert!(
            futures_poll(again.as_mut()).await.is_none(),
            "the key was locked twice"
        );
        drop(first);
        let _again = again.await;
    }

    #[tokio::test]
    async fn both_of_the_same_key_is_one_lock_and_released_keys_are_forgotten() {
        let locks = KeyedLocks::new();
        drop(locks.lock_both(3, 3).await);
        drop(locks.lock_both(5, 4).await);
        let _held = locks.lock(9).await;
        assert_eq!(locks.locks.lock().keys().copied().collect::<Vec<_>>(), [9]);
    }

    async fn futures_poll<F: Future + Unpin>(future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = tokio::task::yield_now() => None,
        }
    }
}
