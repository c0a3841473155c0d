//! A mutex for each key: whoever holds a key's lock is alone with it, different keys don't wait for each
//! other (R18).
//!
//! An entry exists while somebody holds or waits for its lock and goes with the last of them, so that memory
//! is bounded by the work under way, not by the number of keys ever seen.
//!
//! A key's lock is the first place in a line. It is handed to the next in line, never put up to be snatched, so
//! it is fair; and holders and waiters leave the line in the same way, so a waiter that is dropped when it has
//! just become the first passes the lock on. All of it happens under one `std` mutex, for which loom's can stand
//! in: the package in `loom/` runs this file through its interleavings.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::fmt;
use std::future::poll_fn;
use std::hash::Hash;
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

#[cfg(loom)]
use loom::sync::{Arc, Mutex, MutexGuard};

/// One lock a key. Cloning is cheap; clones share the locks.
pub struct KeyedMutex<K: Eq + Hash> {
    lines: Arc<Mutex<Lines<K>>>,
}

/// The keys in use. A `std` mutex: it is held for a look-up, never across an `.await`.
type Lines<K> = HashMap<K, Line>;

/// The ticket of whoever finds no line, and so holds the lock from the start.
const FIRST: u64 = 0;

/// The line of a key that somebody holds.
#[derive(Default)]
struct Line {
    /// Those who want it next, in the order of their tickets.
    waiters: VecDeque<Waiter>,
    last_ticket: u64,
}

struct Waiter {
    ticket: u64,
    /// Told when it becomes the holder; none before it is first polled.
    waker: Option<Waker>,
}

impl Line {
    /// Adds a waiter; answers its ticket.
    fn join(&mut self) -> u64 {
        self.last_ticket += 1;
        self.waiters.push_back(Waiter {
            ticket: self.last_ticket,
            waker: None,
        });
        self.last_ticket
    }

    /// Where a ticket waits; `None`: it holds the lock.
    fn position(&self, ticket: u64) -> Option<usize> {
        self.waiters
            .binary_search_by_key(&ticket, |waiter| waiter.ticket)
            .ok()
    }
}

impl<K: Eq + Hash> Default for KeyedMutex<K> {
    fn default() -> Self {
        Self {
            lines: Arc::new(Mutex::new(HashMap::new())),
        }
    }
}

impl<K: Eq + Hash> Clone for KeyedMutex<K> {
    fn clone(&self) -> Self {
        Self {
            lines: Arc::clone(&self.lines),
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
        let ticket = match lock(&self.lines).entry(key.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(Line::default());
                FIRST
            }
            Entry::Occupied(mut entry) => entry.get_mut().join(),
        };
        let place = self.place(key, ticket);
        if ticket != FIRST {
            poll_fn(|cx| place.poll_holder(cx)).await;
        }
        KeyedMutexGuard(place)
    }

    /// Takes the lock of `key` if nobody holds it or waits for it.
    #[must_use]
    pub fn try_lock(&self, key: K) -> Option<KeyedMutexGuard<K>> {
        match lock(&self.lines).entry(key.clone()) {
            Entry::Vacant(entry) => entry.insert(Line::default()),
            Entry::Occupied(_) => return None,
        };
        Some(KeyedMutexGuard(self.place(key, FIRST)))
    }

    fn place(&self, key: K, ticket: u64) -> Place<K> {
        Place {
            lines: Arc::clone(&self.lines),
            key,
            ticket,
        }
    }
}

impl<K: Eq + Hash> KeyedMutex<K> {
    /// Whether somebody holds the lock of `key` at the moment.
    #[must_use]
    pub fn is_locked(&self, key: &K) -> bool {
        lock(&self.lines).contains_key(key)
    }

    /// How many keys are held or waited for.
    #[must_use]
    pub fn keys_in_use(&self) -> usize {
        lock(&self.lines).len()
    }
}

/// A panic can't leave the map half changed, so a poisoned lock is as good as any.
fn lock<K: Eq + Hash>(lines: &Mutex<Lines<K>>) -> MutexGuard<'_, Lines<K>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds the lock of a key until it is dropped.
#[must_use = "the lock is released when the guard is dropped"]
pub struct KeyedMutexGuard<K: Eq + Hash>(Place<K>);

impl<K: Eq + Hash + fmt::Debug> fmt::Debug for KeyedMutexGuard<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyedMutexGuard").field(&self.0.key).finish()
    }
}

/// A holder's or waiter's place in the line of a key, until it is dropped.
struct Place<K: Eq + Hash> {
    lines: Arc<Mutex<Lines<K>>>,
    key: K,
    ticket: u64,
}

impl<K: Eq + Hash> Place<K> {
    fn poll_holder(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut lines = lock(&self.lines);
        let Some(line) = lines.get_mut(&self.key) else {
            unreachable!("a line stays while somebody has a place in it");
        };
        let Some(position) = line.position(self.ticket) else {
            return Poll::Ready(());
        };
        let replaced = line.waiters[position].waker.replace(cx.waker().clone());
        // A waker may do anything when it is dropped or woken: here and below, not under the lock.
        drop(lines);
        drop(replaced);
        Poll::Pending
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut lines = lock(&self.lines);
        let Some(line) = lines.get_mut(&self.key) else {
            return;
        };
        if let Some(position) = line.position(self.ticket) {
            let left = line.waiters.remove(position);
            drop(lines);
            drop(left);
        } else if let Some(next) = line.waiters.pop_front() {
            drop(lines);
            if let Some(waker) = next.waker {
                waker.wake();
            }
        } else {
            lines.remove(&self.key);
        }
    }
}

#[cfg(all(test, not(loom)))]
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

    /// R18: first come, first served, past whoever has given up; nobody can push in.
    #[test]
    fn the_lock_is_handed_over_in_order() {
        let mutex = KeyedMutex::default();
        let held = mutex.try_lock(1).unwrap();
        let mut second = Box::pin(mutex.lock(1));
        let mut third = pin!(mutex.lock(1));
        let mut fourth = pin!(mutex.lock(1));
        assert!(poll(&mut second).is_pending());
        assert!(poll(&mut third).is_pending());
        assert!(poll(&mut fourth).is_pending());
        drop(held);
        assert!(mutex.try_lock(1).is_none());
        // It was handed to the second already, which passes it on.
        drop(second);
        assert!(poll(&mut fourth).is_pending());
        let Poll::Ready(held) = poll(&mut third) else {
            panic!("it is the third's turn")
        };
        drop(held);
        assert!(poll(&mut fourth).is_ready());
        assert_eq!(mutex.keys_in_use(), 0);
    }

    /// R18: a waiter that has moved to another task is woken there.
    #[test]
    fn whoever_polled_last_is_woken() {
        #[derive(Default)]
        struct Flag(std::sync::atomic::AtomicBool);
        impl std::task::Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let mutex = KeyedMutex::default();
        let held = mutex.try_lock(1).unwrap();
        let mut waiter = pin!(mutex.lock(1));
        let [before, after]: [Arc<Flag>; 2] = Default::default();
        for flag in [&before, &after] {
            let waker = Waker::from(Arc::clone(flag));
            let polled = waiter.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
        }
        drop(held);
        let woken = [before, after].map(|flag| flag.0.load(std::sync::atomic::Ordering::SeqCst));
        assert_eq!(woken, [false, true]);
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
        assert!(mutex.is_locked(&1));
        assert!(!mutex.is_locked(&2));
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
