//! The keyed mutex under loom (R18): each model runs in the orders in which its threads can take turns, and
//! fails in one that lets two holders in, loses a wake-up (loom calls it a deadlock), or leaves a key behind.
//!
//! The source is the service's own file, not a copy.

#[path = "../../src/keyed_mutex.rs"]
pub mod keyed_mutex;

#[cfg(test)]
mod models {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use loom::future::block_on;
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

    /// Polls for the lock once, and gives up unless it is there at once.
    fn lock_impatiently(mutex: &KeyedMutex<u8>, key: u8) -> Option<KeyedMutexGuard<u8>> {
        block_on(async {
            let mut lock = pin!(mutex.lock(key));
            poll_fn(|cx| match lock.as_mut().poll(cx) {
                Poll::Ready(guard) => Poll::Ready(Some(guard)),
                Poll::Pending => Poll::Ready(None),
            })
            .await
        })
    }

    /// One at a time, everybody in the end, and nothing left behind.
    #[test]
    fn holders_of_a_key_take_turns() {
        check(|| {
            let (mutex, counter) = (KeyedMutex::default(), Counter::new());
            let increment = {
                let (mutex, counter) = (mutex.clone(), counter.clone());
                move || counter.increment(&block_on(mutex.lock(1)))
            };
            let threads = [
                thread::spawn(increment.clone()),
                thread::spawn(increment.clone()),
            ];
            increment();
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(counter.count(), 3);
            assert_eq!(mutex.keys_in_use(), 0);
        });
    }

    /// `try_lock` takes the lock only where it is free, and is in nobody's way where it isn't.
    #[test]
    fn whoever_only_tries_is_alone_too() {
        check(|| {
            let (mutex, counter) = (KeyedMutex::default(), Counter::new());
            let waits = {
                let (mutex, counter) = (mutex.clone(), counter.clone());
                thread::spawn(move || counter.increment(&block_on(mutex.lock(1))))
            };
            let tries = {
                let (mutex, counter) = (mutex.clone(), counter.clone());
                thread::spawn(move || mutex.try_lock(1).map(|guard| counter.increment(&guard)))
            };
            let mine = mutex.try_lock(1).map(|guard| counter.increment(&guard));
            waits.join().unwrap();
            let theirs = tries.join().unwrap();
            let got_in = 1 + mine.iter().chain(&theirs).count();
            assert_eq!(counter.count(), got_in);
            assert_eq!(mutex.keys_in_use(), 0);
        });
    }

    /// A waiter that gives up while the lock is handed to it passes it on; one that gives up before is passed
    /// over.
    #[test]
    fn who_gives_up_holds_nobody_up() {
        check(|| {
            let (mutex, counter) = (KeyedMutex::default(), Counter::new());
            let held = mutex.try_lock(1).unwrap();
            let gives_up = {
                let (mutex, counter) = (mutex.clone(), counter.clone());
                thread::spawn(move || {
                    lock_impatiently(&mutex, 1).map(|guard| counter.increment(&guard))
                })
            };
            let waits = {
                let (mutex, counter) = (mutex.clone(), counter.clone());
                thread::spawn(move || counter.increment(&block_on(mutex.lock(1))))
            };
            counter.increment(&held);
            drop(held);
            let got_in = 2 + gives_up.join().unwrap().iter().count();
            waits.join().unwrap();
            assert_eq!(counter.count(), got_in);
            assert_eq!(mutex.keys_in_use(), 0);
        });
    }

    /// Different keys don't wait for each other: one is held here until the other's holder has ended.
    #[test]
    fn keys_do_not_wait_for_each_other() {
        check(|| {
            let mutex = KeyedMutex::default();
            let held = block_on(mutex.lock(1));
            let other = {
                let mutex = mutex.clone();
                thread::spawn(move || drop(block_on(mutex.lock(2))))
            };
            other.join().unwrap();
            assert_eq!(mutex.keys_in_use(), 1);
            drop(held);
            assert_eq!(mutex.keys_in_use(), 0);
        });
    }
}
