//! The keyed mutex under loom (R18): each model runs in the orders in which its threads can take turns, and
//! fails in one that lets two holders in, or leaves a key behind.
//!
//! The source is the service's own file, not a copy.

#[path = "../../src/keyed_mutex.rs"]
pub mod keyed_mutex;

#[cfg(test)]
mod models {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use loom::sync::atomic::Ordering::Relaxed;
    use loom::thread;

    use crate::keyed_mutex::{KeyedMutex, KeyedMutexGuard};

    /// How often threads are interrupted where they needn't wait, at most: faults show at one or two, and each more
    /// takes five times as long. `LOOM_MAX_PREEMPTIONS` overrides it.
    const PREEMPTIONS: usize = 4;

    fn check(model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound.get_or_insert(PREEMPTIONS);
        builder.check(model);
    }

    /// What a lock protects. It synchronizes nothing by itself: a second holder, or one that doesn't see what
    /// the holder before it wrote, loses a count.
    #[derive(Clone)]
    struct Counter(Arc<AtomicUsize>);

    impl Counter {
        fn new() -> Self {
            Self(Arc::new(AtomicUsize::new(0)))
        }

        fn increment(&self, _guard: &KeyedMutexGuard<u8>) {
            let count = self.0.load(Relaxed);
            self.0.store(count + 1, Relaxed);
        }

        fn count(&self) -> usize {
            self.0.load(Relaxed)
        }
    }

    /// Whoever gets the lock is alone with it, and nothing is left behind.
    #[test]
    fn holders_of_a_key_are_alone() {
        check(|| {
            let (mutex, counter) = (KeyedMutex::default(), Counter::new());
            let tries = {
                let (mutex, counter) = (mutex.clone(), counter.clone());
                move || mutex.try_lock(&1).map(|guard| counter.increment(&guard))
            };
            let threads = [thread::spawn(tries.clone()), thread::spawn(tries.clone())];
            let mine = tries();
            let got_in = threads.map(|thread| thread.join().unwrap());
            let got_in = got_in.iter().chain([&mine]).flatten().count();
            assert!(got_in > 0, "the first to try finds it free");
            assert_eq!(counter.count(), got_in);
            assert_eq!(mutex.keys_in_use(), 0);
        });
    }

    /// A lock that was released is free for whoever saw the release.
    #[test]
    fn a_released_key_is_free() {
        check(|| {
            let (mutex, counter) = (KeyedMutex::default(), Counter::new());
            let held = mutex.try_lock(&1).unwrap();
            let other = {
                let (mutex, counter) = (mutex.clone(), counter.clone());
                thread::spawn(move || mutex.try_lock(&1).map(|guard| counter.increment(&guard)))
            };
            counter.increment(&held);
            drop(held);
            let theirs = other.join().unwrap();
            let mine = mutex.try_lock(&1).map(|guard| counter.increment(&guard));
            assert!(mine.is_some());
            assert_eq!(counter.count(), 2 + theirs.iter().count());
            assert_eq!(mutex.keys_in_use(), 0);
        });
    }

    /// Different keys don't hinder each other: one is held here until the other's holder has ended.
    #[test]
    fn keys_do_not_hinder_each_other() {
        check(|| {
            let mutex = KeyedMutex::default();
            let held = mutex.try_lock(&1);
            let other = {
                let mutex = mutex.clone();
                thread::spawn(move || mutex.try_lock(&2).is_some())
            };
            assert!(other.join().unwrap());
            assert_eq!(mutex.keys_in_use(), 1);
            drop(held);
            assert_eq!(mutex.keys_in_use(), 0);
        });
    }
}
