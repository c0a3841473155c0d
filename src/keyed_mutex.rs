//! A mutex for each key: whoever holds a key's lock is alone with it, and other keys are free (R18).
//!
//! Nobody waits here. Whoever finds a key taken does something else, and is told by the holder to come again; so a key
//! has an entry only while it is held, and memory is bounded by the work under way, not by the keys ever seen.
//!
//! All of it happens under one `std` mutex, for which loom's can stand in: the package in `loom/` runs this file
//! through its interleavings.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::{Arc, Mutex, MutexGuard};

#[cfg(loom)]
use loom::sync::{Arc, Mutex, MutexGuard};

/// One lock a key. Cloning is cheap; clones share the locks.
pub struct KeyedMutex<K: Eq + Hash> {
    held: Arc<Mutex<HashSet<K>>>,
}

impl<K: Eq + Hash> Default for KeyedMutex<K> {
    fn default() -> Self {
        Self {
            held: Arc::new(Mutex::new(HashSet::new())),
        }
    }
}

impl<K: Eq + Hash> Clone for KeyedMutex<K> {
    fn clone(&self) -> Self {
        Self {
            held: Arc::clone(&self.held),
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
    /// Takes the lock of `key` if nobody holds it.
    #[must_use]
    pub fn try_lock(&self, key: &K) -> Option<KeyedMutexGuard<K>> {
        lock(&self.held)
            .insert(key.clone())
            .then(|| KeyedMutexGuard {
                held: Arc::clone(&self.held),
                key: key.clone(),
            })
    }
}

impl<K: Eq + Hash> KeyedMutex<K> {
    /// Whether somebody holds the lock of `key` at the moment.
    #[must_use]
    pub fn is_locked(&self, key: &K) -> bool {
        lock(&self.held).contains(key)
    }

    /// How many keys are held.
    #[must_use]
    pub fn keys_in_use(&self) -> usize {
        lock(&self.held).len()
    }
}

/// A panic can't leave the set half changed, so a poisoned lock is as good as any.
fn lock<K>(held: &Mutex<HashSet<K>>) -> MutexGuard<'_, HashSet<K>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds the lock of a key until it is dropped.
#[must_use = "the lock is released when the guard is dropped"]
pub struct KeyedMutexGuard<K: Eq + Hash> {
    held: Arc<Mutex<HashSet<K>>>,
    key: K,
}

impl<K: Eq + Hash> KeyedMutexGuard<K> {
    /// The key.
    pub const fn key(&self) -> &K {
        &self.key
    }
}

impl<K: Eq + Hash + fmt::Debug> fmt::Debug for KeyedMutexGuard<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyedMutexGuard").field(&self.key).finish()
    }
}

impl<K: Eq + Hash> Drop for KeyedMutexGuard<K> {
    fn drop(&mut self) {
        lock(&self.held).remove(&self.key);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// R18: one holder a key; other keys are free. Memory stays bounded: an entry goes with its holder.
    #[test]
    fn a_key_excludes_itself_and_no_other() {
        let mutex = KeyedMutex::default();
        let held = mutex.try_lock(&"a").unwrap();
        assert_eq!(held.key(), &"a");
        assert!(mutex.is_locked(&"a") && !mutex.is_locked(&"b"));
        assert!(mutex.clone().try_lock(&"a").is_none());
        let other = mutex.try_lock(&"b").unwrap();
        assert_eq!(mutex.keys_in_use(), 2);
        drop(held);
        assert!(mutex.try_lock(&"a").is_some());
        drop(other);
        assert_eq!(mutex.keys_in_use(), 0);
    }
}
