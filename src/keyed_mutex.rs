//! A mutex for each key: whoever holds a key's lock is alone with it, different keys don't wait for each
//! other (R18).
//!
//! An entry exists while somebody holds or waits for its lock and goes with the last of them, so that memory
//! is bounded by the work under way, not by the number of keys ever seen.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// One lock a key. Cloning is cheap; clones share the locks.
pub struct KeyedMutex<K: Eq + Hash> {
    entries: Arc<Mutex<Entries<K>>>,
}

/// The keys in use. A `std` mutex: it is held for a look-up, never across an `.await`.
type Entries<K> = HashMap<K, Entry>;

struct Entry {
    /// The lock; tokio's is fair, first come, first served.
    mutex: Arc<tokio::sync::Mutex<()>>,
    /// How many [`Lease`]s there are: holders and waiters.
    leases: usize,
}

impl<K: Eq + Hash> Default for KeyedMutex<K> {
    fn default() -> Self {
        Self {
            entries: Arc::default(),
        }
    }
}

impl<K: Eq + Hash> Clone for KeyedMutex<K> {
    fn clone(&self) -> Self {
        Self {
            entries: Arc::clone(&self.entries),
        }
    }
}

impl<K: Eq + Hash> fmt::Debug for KeyedMutex<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedMutex")
            .field("keys_in_use", &self.keys_in_use())
            .finish()
    }
}

impl<K: Eq + Hash + Clone> KeyedMutex<K> {
    /// Waits for the lock of `key`. Cancel-safe: a dropped future gives up its place.
    pub async fn lock(&self, key: K) -> KeyedMutexGuard<K> {
        let (lease, mutex) = self.lease(key);
        KeyedMutexGuard {
            _held: mutex.lock_owned().await,
            lease,
        }
    }

    /// Takes the lock of `key` if nobody holds it or waits for it.
    #[must_use]
    pub fn try_lock(&self, key: K) -> Option<KeyedMutexGuard<K>> {
        let (lease, mutex) = self.lease(key);
        Some(KeyedMutexGuard {
            _held: mutex.try_lock_owned().ok()?,
            lease,
        })
    }

    fn lease(&self, key: K) -> (Lease<K>, Arc<tokio::sync::Mutex<()>>) {
        let mut entries = lock(&self.entries);
        let entry = entries.entry(key.clone()).or_insert_with(|| Entry {
            mutex: Arc::default(),
            leases: 0,
        });
        entry.leases += 1;
        let mutex = Arc::clone(&entry.mutex);
        (
            Lease {
                entries: Arc::clone(&self.entries),
                key,
            },
            mutex,
        )
    }
}

impl<K: Eq + Hash> KeyedMutex<K> {
    /// How many keys are held or waited for.
    #[must_use]
    pub fn keys_in_use(&self) -> usize {
        lock(&self.entries).len()
    }
}

/// A panic can't leave the map half changed, so a poisoned lock is as good as any.
fn lock<K: Eq + Hash>(entries: &Mutex<Entries<K>>) -> MutexGuard<'_, Entries<K>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds the lock of a key until it is dropped.
#[must_use = "the lock is released when the guard is dropped"]
pub struct KeyedMutexGuard<K: Eq + Hash> {
    /// Declared first, so released first: the lock is free before the entry goes.
    _held: OwnedMutexGuard<()>,
    lease: Lease<K>,
}

impl<K: Eq + Hash + fmt::Debug> fmt::Debug for KeyedMutexGuard<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyedMutexGuard")
            .field(&self.lease.key)
            .finish()
    }
}

/// A holder's or waiter's claim on an entry; the last one removes it.
struct Lease<K: Eq + Hash> {
    entries: Arc<Mutex<Entries<K>>>,
    key: K,
}

impl<K: Eq + Hash> Drop for Lease<K> {
    fn drop(&mut self) {
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.get_mut(&self.key) {
            entry.leases -= 1;
            if entry.leases == 0 {
                entries.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    /// R18: one holder a key; others don't wait.
    #[test]
    fn a_key_excludes_itself_and_nobody_else() {
        let mutex = KeyedMutex::default();
        let Poll::Ready(held) = poll(&mut pin!(mutex.lock("a"))) else {
            panic!("a is free")
        };
        let mut second = pin!(mutex.lock("a"));
        assert!(poll(&mut second).is_pending());
        assert!(poll(&mut pin!(mutex.lock("b"))).is_ready());
        drop(held);
        assert!(poll(&mut second).is_ready());
    }

    /// R18: memory stays bounded: entries go with their last holder or waiter, cancelled ones included.
    #[test]
    fn an_entry_goes_with_its_last_lease() {
        let mutex = KeyedMutex::default();
        let Poll::Ready(held) = poll(&mut pin!(mutex.lock(1))) else {
            panic!("1 is free")
        };
        {
            let mut cancelled = pin!(mutex.lock(1));
            assert!(poll(&mut cancelled).is_pending());
        }
        assert_eq!(mutex.keys_in_use(), 1);
        drop(held);
        assert_eq!(mutex.keys_in_use(), 0);
    }

    /// R18: under contention on threads of their own, never two at once, and nothing left behind.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn holders_of_a_key_take_turns() {
        use std::sync::atomic::{AtomicBool, Ordering};

        let mutex = KeyedMutex::default();
        let busy: Arc<[AtomicBool; 3]> = Arc::default();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..300 {
            let (mutex, busy) = (mutex.clone(), Arc::clone(&busy));
            tasks.spawn(async move {
                let key = n % 3;
                let _guard = mutex.lock(key).await;
                assert!(!busy[key].swap(true, Ordering::SeqCst), "two holders");
                tokio::task::yield_now().await;
                assert!(busy[key].swap(false, Ordering::SeqCst));
            });
        }
        while let Some(result) = tasks.join_next().await {
            result.unwrap();
        }
        assert_eq!(mutex.keys_in_use(), 0);
    }
}
